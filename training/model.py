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

# What the images decide, and the layers whose shape follows from it: fine-tuning may begin these anew.
DATA_OPTIONS = ("sample_size", "in_channels", "out_channels", "label_names")
DATA_LAYERS = ("class_embedding.", "down_blocks.0.conv.", "conv_out.")


def make_model(
    config: TrainingConfig,
    channels: int,
    num_classes: int | None,
    label_names: tuple[str, ...] | None,
    pretrained: FashionMNISTPipeline | None,
) -> tuple[FashionMNISTUNet2DModel, DDPMScheduler]:
    """Makes the model and its noise schedule for images of `channels`, with `num_classes` labels if they have any.

    Raises:
        `ValueError`: `config.model` is wrong, does not fit the labels, or asks of `pretrained` what it can't become.
    """
    options = [name for name in inspect.signature(FashionMNISTUNet2DModel).parameters if name not in DATA_OPTIONS]
    for name in config.model:
        if name in DATA_OPTIONS:
            raise ValueError(f"model.{name} follows from the images; give data.resolution or data.channels instead.")
        if name not in options:
            raise ValueError(f"model has no option {name}; it has {', '.join(options)}.")

    model_config: dict[str, Any] = {}
    if pretrained is not None:
        model_config = {name: pretrained.unet.config[name] for name in options}
        if pretrained.scheduler.config.prediction_type != config.scheduler.prediction_type:
            raise ValueError(
                f"{config.init_from} predicts {pretrained.scheduler.config.prediction_type}; give"
                f" --scheduler.prediction_type={pretrained.scheduler.config.prediction_type}."
            )
    model_config |= config.model
    model_config |= {"sample_size": config.data.resolution, "in_channels": channels, "out_channels": channels}
    if model_config.get("num_class_embeds") is not None:
        if num_classes is None:
            raise ValueError("the model has classes but the images have no labels; give --data.label_column.")
        if "num_class_embeds" not in config.model:
            model_config["num_class_embeds"] = num_classes
        elif num_classes != config.model["num_class_embeds"]:
            raise ValueError(f"the images have {num_classes} classes; give --model.num_class_embeds={num_classes}.")
        model_config["label_names"] = label_names

    unet = FashionMNISTUNet2DModel(**model_config)
    if pretrained is not None:
        adopt_weights(unet, pretrained.unet, str(config.init_from))
    return unet, make_scheduler(config.scheduler)


def make_scheduler(config: SchedulerConfig) -> DDPMScheduler:
    scheduler = DDPMScheduler(**asdict(config))
    if config.beta_schedule == "sigmoid":
        # Only DDPMScheduler knows this name; written out, every other scheduler can be made from it.
        scheduler = DDPMScheduler.from_config(
            scheduler.config, trained_betas=scheduler.betas.tolist(), beta_schedule="linear"
        )
    return scheduler


@torch.no_grad()
def adopt_weights(unet: FashionMNISTUNet2DModel, pretrained: FashionMNISTUNet2DModel, name: str) -> None:
    """Copies the weights of `pretrained`, but for the layers of `DATA_LAYERS` that have another shape.

    New class embeddings begin as the pretrained null label, so that the model begins as its unconditional branch.
    """
    old, new = pretrained.state_dict(), unet.state_dict()
    fits = {key for key in new if key in old and old[key].shape == new[key].shape}
    differing = sorted((old.keys() | new.keys()) - fits)
    unfit = [key for key in differing if not key.startswith(DATA_LAYERS)]
    if unfit:
        raise ValueError(
            f"{name} can't be fine-tuned into this architecture ({unfit[0]} differs); of the model options, only"
            " num_class_embeds may change."
        )
    for key in differing:
        logger.info("%s does not fit the images and begins anew", key)
    unet.load_state_dict({key: old[key] for key in fits}, strict=False)
    if unet.class_embedding is not None and "class_embedding.weight" in differing:
        unet.class_embedding.weight[:] = old["class_embedding.weight"][-1] if "class_embedding.weight" in old else 0.0
