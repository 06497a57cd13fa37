"""Creates the model and the noise schedule of a run, from scratch or from a pipeline to fine-tune."""

from dataclasses import asdict
from typing import Any

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from adaptation import load_adapted_weights
from config import DataConfig, ResolvedConfig, SchedulerConfig, TextEncoderConfig, TrainingConfig
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.sampling import make_consistency_pipeline, make_pipeline
from fmnist_diffusion.schedulers import make_scheduler
from text_model import TextConditionalUNet


NoiseScheduler = DDPMScheduler | FlowMatchEulerDiscreteScheduler


def make_model(
    config: ResolvedConfig, label_names: tuple[str, ...] | None, pretrained: FashionMNISTUNet2DModel | None
) -> tuple[FashionMNISTUNet2DModel, NoiseScheduler]:
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
        "class_embed_type": "identity" if text_encoder.enabled else None,
        "label_names": label_names if options.get("num_class_embeds") is not None else None,
    }


def make_noise_scheduler(config: SchedulerConfig) -> NoiseScheduler:
    if config.prediction_type == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps, shift=config.shift)
    settings: dict[str, Any] = asdict(config)
    del settings["shift"]
    scheduler = DDPMScheduler(**settings)
    if config.beta_schedule == "sigmoid":
        # Only DDPMScheduler supports this schedule by name. Other schedulers can use its betas.
        scheduler = DDPMScheduler(**settings, trained_betas=scheduler.betas.tolist())
    return scheduler


def get_noise_scheduler(pipe: FashionMNISTPipeline) -> NoiseScheduler:
    """Returns the noise schedule and the prediction type of the model of a pipeline."""
    if pipe.prediction_type == "flow_prediction":
        return make_scheduler(FlowMatchEulerDiscreteScheduler, pipe.scheduler.config)
    noise_scheduler: Any = DDPMScheduler.from_config(pipe.scheduler.config)
    return noise_scheduler


def get_betas(noise_scheduler: NoiseScheduler) -> list[float]:
    """Returns the variances of the noising steps. The list is empty for flow matching."""
    return noise_scheduler.betas.tolist() if isinstance(noise_scheduler, DDPMScheduler) else []


def make_run_pipeline(
    config: TrainingConfig, unet: FashionMNISTUNet2DModel | TextConditionalUNet, noise_scheduler: NoiseScheduler
) -> FashionMNISTPipeline:
    """Creates the pipeline of a run, with the default scheduler for its kind of model."""
    text = {}
    if isinstance(unet, TextConditionalUNet):
        unet, text = unet.unet, {"text_encoder": unet.text_encoder, "tokenizer": unet.tokenizer}
    if config.distillation.num_segments is None:
        return make_pipeline(unet, noise_scheduler, **text)
    assert isinstance(noise_scheduler, DDPMScheduler)
    return make_consistency_pipeline(unet, noise_scheduler, **text)
