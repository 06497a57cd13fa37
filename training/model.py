"""Creates the model and the pipeline of a run. The model is created from scratch or from a pipeline to fine-tune."""

from typing import Any

from diffusers import AutoencoderKL, DDPMScheduler

from adaptation import load_adapted_weights
from config import DataConfig, ResolvedConfig, TextEncoderConfig, TrainingConfig
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.pipelines import get_vae_scale_factor
from fmnist_diffusion.sampling import make_consistency_pipeline, make_pipeline
from noise_schedule import NoiseScheduler
from text_model import TextConditionalUNet


def make_model(
    config: ResolvedConfig,
    label_names: tuple[str, ...] | None,
    pretrained: FashionMNISTUNet2DModel | None,
    vae: AutoencoderKL | None,
) -> FashionMNISTUNet2DModel:
    """Creates the model.

    Args:
        config: The run. `config.model` contains the arguments of the model.
        label_names: Names of the classes; `None` if the images have no labels.
        pretrained: Model to fine-tune, with the same architecture.
        vae: Autoencoder of a latent diffusion model.

    Raises:
        `ValueError`: If `config.model` is invalid, or if the number of classes differs from that of the resumed run.
    """
    num_classes = config.model.get("num_class_embeds")
    if config.resume is not None and label_names is not None and num_classes not in (None, len(label_names)):
        raise ValueError(
            f"The training images must have {num_classes} classes, like those of the run to resume, got"
            f" {len(label_names)}. Restore the original data, or start a new run."
        )
    shape = get_sample_shape(config.data, vae)
    model_config = make_model_config(config.model, shape, label_names, config.text_encoder)
    unet = FashionMNISTUNet2DModel(**model_config)
    if pretrained is not None:
        load_adapted_weights(unet, pretrained)
    return unet


def make_model_config(
    options: dict[str, Any],
    shape: tuple[int, int, int],
    label_names: tuple[str, ...] | None,
    text_encoder: TextEncoderConfig,
) -> dict[str, Any]:
    """Returns the arguments of the model: `options` and those that depend on the images and the text encoder.

    Args:
        options: Other arguments of the model.
        shape: Number of channels, height and width of the samples; see [`get_sample_shape`].
        label_names: Names of the classes; `None` if the images have no labels.
        text_encoder: Settings of the text encoder.
    """
    channels, height, width = shape
    return options | {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "class_embed_type": "identity" if text_encoder.enabled else None,
        "label_names": label_names if options.get("num_class_embeds") is not None else None,
    }


def get_sample_shape(data: DataConfig, vae: AutoencoderKL | None) -> tuple[int, int, int]:
    """Returns the number of channels, the height and the width of the latents or, without `vae`, of the images."""
    if vae is None:
        return data.image_shape
    _, height, width = data.image_shape
    factor = get_vae_scale_factor(vae)
    return vae.config["latent_channels"], height // factor, width // factor


def make_run_pipeline(
    config: TrainingConfig,
    unet: FashionMNISTUNet2DModel | TextConditionalUNet,
    noise_scheduler: NoiseScheduler,
    vae: AutoencoderKL | None,
) -> FashionMNISTPipeline:
    """Creates the pipeline of a run, with the default scheduler for its kind of model."""
    text: dict[str, Any] = {}
    if isinstance(unet, TextConditionalUNet):
        unet, text = unet.unet, {"text_encoder": unet.text_encoder, "tokenizer": unet.tokenizer}
    if not config.distillation.enabled:
        return make_pipeline(unet, noise_scheduler, **text, vae=vae)
    assert isinstance(noise_scheduler, DDPMScheduler)
    return make_consistency_pipeline(unet, noise_scheduler, **text)
