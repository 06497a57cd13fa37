"""Creates the model and the noise schedule of a run, from scratch or from a pipeline to fine-tune."""

import logging
from dataclasses import asdict
from typing import Any

import torch
from diffusers import DDPMScheduler

from config import SchedulerConfig, TrainingConfig
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel


logger = logging.getLogger("training")

# The training images determine these model arguments.
DATA_OPTIONS = ("sample_size", "in_channels", "out_channels", "label_names")
# Fine-tuning may change these model arguments.
FREE_OPTIONS = ("num_class_embeds", "dropout")


def make_model(
    config: TrainingConfig,
    resolution: int | tuple[int, int],
    channels: int,
    label_names: tuple[str, ...] | None,
    pretrained: FashionMNISTPipeline | None,
) -> tuple[FashionMNISTUNet2DModel, DDPMScheduler]:
    """Creates the model and its noise schedule.

    Args:
        config: The run; `config.model` overrides the arguments of the model.
        resolution: Height and width of the images.
        channels: Number of channels of the images.
        label_names: Names of the classes; `None` if the images have no labels.
        pretrained: Pipeline to fine-tune.

    Raises:
        `ValueError`: If `config.model` has an unknown argument, does not fit the labels, or does not fit `pretrained`.
    """
    for name in config.model:
        if name in DATA_OPTIONS:
            raise ValueError(
                f"`model.{name}` cannot be set, because it is determined by the training data. Set `data.resolution`,"
                " `data.channels` or `data.label_column` instead."
            )
    noise_scheduler = make_noise_scheduler(config.scheduler)
    model_config: dict[str, Any] = {}
    if pretrained is not None:
        check_fine_tuning(config, noise_scheduler, pretrained)
        model_config |= {name: value for name, value in pretrained.unet.config.items() if not name.startswith("_")}
    model_config |= config.model
    model_config |= {"sample_size": resolution, "in_channels": channels, "out_channels": channels}
    if model_config.get("num_class_embeds") is not None:
        if label_names is None:
            raise ValueError("A class-conditional model requires images with labels. Set `data.label_column`.")
        if config.model.get("num_class_embeds", len(label_names)) != len(label_names):
            raise ValueError(
                f"`model.num_class_embeds` must be the number of classes of the images ({len(label_names)}), got"
                f" {config.model['num_class_embeds']}."
            )
        model_config |= {"num_class_embeds": len(label_names), "label_names": label_names}

    try:
        unet = FashionMNISTUNet2DModel(**model_config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model: {error}") from error
    if pretrained is not None:
        copy_matching_weights(unet, pretrained.unet)
    return unet, noise_scheduler


def make_noise_scheduler(config: SchedulerConfig) -> DDPMScheduler:
    settings: dict[str, Any] = asdict(config)
    scheduler = DDPMScheduler(**settings)
    if config.beta_schedule == "sigmoid":
        # Only DDPMScheduler supports this schedule by name. Other schedulers can use its betas.
        scheduler = DDPMScheduler(**settings, trained_betas=scheduler.betas.tolist())
    return scheduler


def check_fine_tuning(
    config: TrainingConfig, noise_scheduler: DDPMScheduler, pretrained: FashionMNISTPipeline
) -> None:
    """Raises `ValueError` if the run differs from `pretrained` in architecture, prediction type or noise schedule."""
    options = pretrained.unet.config
    for name, value in config.model.items():
        old = options.get(name, value)
        if name not in FREE_OPTIONS and value != (list(old) if isinstance(old, tuple) else old):
            raise ValueError(f"`model.{name}` must be {old} to fine-tune {config.init_from}, got {value}.")
    if options["num_class_embeds"] is not None and config.model.get("num_class_embeds", 1) is None:
        raise ValueError(
            f"`model.num_class_embeds` must not be null to fine-tune {config.init_from}. Pass the number of classes of"
            " the images."
        )
    old_scheduler: Any = DDPMScheduler.from_config(pretrained.scheduler.config)
    old_type, new_type = (scheduler.config["prediction_type"] for scheduler in (old_scheduler, noise_scheduler))
    if old_type != new_type:
        raise ValueError(
            f"`scheduler.prediction_type` must be {old_type} to fine-tune {config.init_from}, got {new_type}."
        )
    if not torch.equal(old_scheduler.betas, noise_scheduler.betas):
        raise ValueError(
            f"The noise schedule must match that of {config.init_from} for fine-tuning. Copy the values in the"
            f" scheduler_config.json of {config.init_from} to the `scheduler` section (beta_schedule"
            f" {old_scheduler.config['beta_schedule']}, {len(old_scheduler.betas)} timesteps)."
        )


@torch.no_grad()
def copy_matching_weights(unet: FashionMNISTUNet2DModel, pretrained: FashionMNISTUNet2DModel) -> None:
    """Copies the weights of `pretrained` to `unet`, except those whose shape depends on the images and differs.

    New class embeddings are initialized with the pretrained null label, so the new model starts out unconditional.
    """
    old, new = pretrained.state_dict(), unet.state_dict()
    matching = {name for name in new if name in old and old[name].shape == new[name].shape}
    for name in sorted(new.keys() - matching - {"class_embedding.weight"}):
        logger.info("%s has a different shape than in the pretrained model and is initialized from scratch.", name)
    unet.load_state_dict({name: old[name] for name in matching}, strict=False)
    if unet.class_embedding is not None and "class_embedding.weight" not in matching:
        unet.class_embedding.weight[:] = old["class_embedding.weight"][-1] if "class_embedding.weight" in old else 0.0
