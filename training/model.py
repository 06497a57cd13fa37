"""The model that a run begins with: new, or a pipeline to fine-tune."""

import inspect
import logging
from dataclasses import asdict
from typing import Any

import torch
from diffusers import DDPMScheduler

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from training.config import SchedulerConfig, TrainingConfig


logger = logging.getLogger(__name__)

# What the images decide.
DATA_OPTIONS = ("sample_size", "in_channels", "out_channels", "label_names")
# What fine-tuning may change besides.
FREE_OPTIONS = ("num_class_embeds", "dropout")


def make_model(
    config: TrainingConfig,
    resolution: int | tuple[int, int],
    channels: int,
    label_names: tuple[str, ...] | None,
    pretrained: FashionMNISTPipeline | None,
) -> tuple[FashionMNISTUNet2DModel, DDPMScheduler]:
    """Makes the model and its noise schedule for images with these labels, if they have any.

    Raises:
        `ValueError`: `config.model` is wrong, does not fit the labels, or asks of `pretrained` what it can't become.
    """
    options = [name for name in inspect.signature(FashionMNISTUNet2DModel).parameters if name not in DATA_OPTIONS]
    for name in config.model:
        if name in DATA_OPTIONS:
            raise ValueError(f"model.{name} follows from the images; give data.resolution or data.channels instead.")
        if name not in options:
            raise ValueError(f"model has no option {name}; it has {', '.join(options)}.")

    scheduler = make_scheduler(config.scheduler)
    model_config: dict[str, Any] = {}
    if pretrained is not None:
        model_config = {name: pretrained.unet.config[name] for name in options}
        check_fine_tuning(config, model_config, scheduler, pretrained.scheduler.config)
    model_config |= config.model
    model_config |= {"sample_size": resolution, "in_channels": channels, "out_channels": channels}
    if model_config.get("num_class_embeds") is not None:
        if label_names is None:
            raise ValueError("the model has classes but the images have no labels; give --data.label_column.")
        if config.model.get("num_class_embeds", len(label_names)) != len(label_names):
            raise ValueError(
                f"the images have {len(label_names)} classes; give --model.num_class_embeds={len(label_names)}."
            )
        model_config |= {"num_class_embeds": len(label_names), "label_names": label_names}

    unet = FashionMNISTUNet2DModel(**model_config)
    if pretrained is not None:
        adopt_weights(unet, pretrained.unet)
    return unet, scheduler


def make_scheduler(config: SchedulerConfig) -> DDPMScheduler:
    scheduler = DDPMScheduler(**asdict(config))
    if config.beta_schedule == "sigmoid":
        # Only DDPMScheduler knows this name; written out, every other scheduler can be made from it.
        scheduler = DDPMScheduler(**asdict(config) | {"trained_betas": scheduler.betas.tolist()})
    return scheduler


def check_fine_tuning(
    config: TrainingConfig, pretrained_options: dict[str, Any], scheduler: DDPMScheduler, pretrained_scheduler: Any
) -> None:
    """Raises `ValueError` where the pipeline to fine-tune has another architecture, prediction or noise schedule."""
    for name, value in config.model.items():
        old = pretrained_options[name]
        if name not in FREE_OPTIONS and value != (list(old) if isinstance(old, tuple) else old):
            raise ValueError(f"{config.init_from} has model.{name}={old}, which can't be changed; leave it out.")
    if pretrained_options["num_class_embeds"] is not None and config.model.get("num_class_embeds", 1) is None:
        raise ValueError(f"{config.init_from} has classes; leave out --model.num_class_embeds.")
    if pretrained_scheduler.prediction_type != scheduler.config["prediction_type"]:
        raise ValueError(
            f"{config.init_from} predicts {pretrained_scheduler.prediction_type}; give"
            f" --scheduler.prediction_type={pretrained_scheduler.prediction_type}."
        )
    old_betas = DDPMScheduler.from_config(pretrained_scheduler).betas
    if not torch.equal(old_betas, scheduler.betas):
        raise ValueError(
            f"{config.init_from} has another noise schedule; give the settings of its scheduler_config.json"
            f" (beta_schedule {pretrained_scheduler.beta_schedule}, {len(old_betas)} steps) as --scheduler.*."
        )


@torch.no_grad()
def adopt_weights(unet: FashionMNISTUNet2DModel, pretrained: FashionMNISTUNet2DModel) -> None:
    """Copies the weights of `pretrained`, but for layers that have another shape because the images differ.

    New class embeddings begin as the pretrained null label, so that the model begins as its unconditional branch.
    """
    old, new = pretrained.state_dict(), unet.state_dict()
    fits = {key for key in new if key in old and old[key].shape == new[key].shape}
    for key in sorted(new.keys() - fits):
        logger.info("%s does not fit the images and begins anew", key)
    unet.load_state_dict({key: old[key] for key in fits}, strict=False)
    if unet.class_embedding is not None and "class_embedding.weight" not in fits:
        unet.class_embedding.weight[:] = old["class_embedding.weight"][-1] if "class_embedding.weight" in old else 0.0
