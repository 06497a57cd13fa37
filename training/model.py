"""Creates the model and the noise schedule of a run, from scratch or from a pipeline to fine-tune."""

from dataclasses import asdict
from typing import Any

from diffusers import DDPMScheduler

from adaptation import load_adapted_weights
from config import DataConfig, ResolvedConfig, SchedulerConfig, TextEncoderConfig, TrainingConfig
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.sampling import make_consistency_pipeline, make_pipeline
from text_model import TextConditionalUNet


def make_model(
    config: ResolvedConfig, label_names: tuple[str, ...] | None, pretrained: FashionMNISTUNet2DModel | None
) -> tuple[FashionMNISTUNet2DModel, DDPMScheduler]:
    """Creates the model and its noise schedule.

    Args:
        config: The run. `config.model` contains the arguments of the model.
        label_names: Names of the classes; `None` if the images have no labels.
        pretrained: Model to fine-tune, with the same architecture.

    Raises:
        `ValueError`: If `config.model` is invalid.
    """
    model_config = make_model_config(config.model, config.data, label_names, config.text_encoder)
    try:
        unet = FashionMNISTUNet2DModel(**model_config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model: {error}") from error
    if pretrained is not None:
        load_adapted_weights(unet, pretrained)
    return unet, make_noise_scheduler(config.scheduler)


def make_model_config(
    options: dict[str, Any], data: DataConfig, label_names: tuple[str, ...] | None, text_encoder: TextEncoderConfig
) -> dict[str, Any]:
    """Returns the arguments of the model: `options` and those that the images and the text encoder determine."""
    return options | {
        "sample_size": data.resolution,
        "in_channels": data.channels,
        "out_channels": data.channels,
        "class_embed_type": None if text_encoder.num_hidden_layers is None else "identity",
        "label_names": label_names if options.get("num_class_embeds") is not None else None,
    }


def make_noise_scheduler(config: SchedulerConfig) -> DDPMScheduler:
    settings: dict[str, Any] = asdict(config)
    scheduler = DDPMScheduler(**settings)
    if config.beta_schedule == "sigmoid":
        # Only DDPMScheduler supports this schedule by name. Other schedulers can use its betas.
        scheduler = DDPMScheduler(**settings, trained_betas=scheduler.betas.tolist())
    return scheduler


def make_run_pipeline(
    config: TrainingConfig, unet: FashionMNISTUNet2DModel | TextConditionalUNet, noise_scheduler: DDPMScheduler
) -> FashionMNISTPipeline:
    """Creates the pipeline of a run, with the default scheduler for diffusion or distilled models."""
    make = make_pipeline if config.distillation.num_segments is None else make_consistency_pipeline
    if isinstance(unet, TextConditionalUNet):
        return make(unet.unet, noise_scheduler, text_encoder=unet.text_encoder, tokenizer=unet.tokenizer)
    return make(unet, noise_scheduler)
