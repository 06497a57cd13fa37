"""Exponential moving average (EMA) of the weights."""

import copy
import itertools
from typing import TypeVar

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from batches import Batches
from config import EMAConfig
from fmnist_diffusion import FashionMNISTUNet2DModel
from losses import DiffusionLoss
from text_model import TextConditionalUNet


Model = TypeVar("Model", bound=FashionMNISTUNet2DModel | TextConditionalUNet)

# The statistics of BatchNorm are re-estimated from this number of batches.
BATCH_NORM_BATCHES = 50


def make_ema(config: EMAConfig, unet: torch.nn.Module) -> EMAModel | None:
    if not config.enabled:
        return None
    return EMAModel(
        unet.parameters(),
        decay=config.max_decay,
        use_ema_warmup=True,
        inv_gamma=config.inv_gamma,
        power=config.power,
        foreach=True,
    )


def copy_model(unet: Model, ema: EMAModel | None) -> Model:
    """Returns a copy of `unet` for sampling, with the EMA weights if EMA is enabled."""
    if isinstance(unet, TextConditionalUNet):
        text_encoder = copy.deepcopy(unet.text_encoder)
        new_unet = TextConditionalUNet(copy_model(unet.unet, None), text_encoder, unet.tokenizer)
    else:
        new_unet = FashionMNISTUNet2DModel.from_config(unet.config)
        assert isinstance(new_unet, FashionMNISTUNet2DModel)
        new_unet.load_state_dict(unet.state_dict())
    new_unet.to(unet.device).eval()  # pyright: ignore[reportArgumentType]
    if ema is not None:
        ema.copy_to(new_unet.parameters())
    return new_unet  # pyright: ignore[reportReturnType]


@torch.no_grad()
def reestimate_batch_norm(
    unet: FashionMNISTUNet2DModel | TextConditionalUNet,
    batches: Batches,
    loss: DiffusionLoss,
    accelerator: Accelerator,
) -> None:
    """Re-estimates the running statistics of BatchNorm for the EMA weights (arXiv 1803.05407, section 3.2).

    The EMA averages parameters, but not buffers.
    """
    norms = [module for module in unet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if not norms:
        return
    momentum = norms[0].momentum
    for norm in norms:
        norm.reset_running_stats()
        # With `momentum=None`, BatchNorm computes a cumulative average over all batches.
        norm.momentum = None
        norm.train()
    for images, labels, generator in itertools.islice(batches.epoch(0), BATCH_NORM_BATCHES):
        batch = loss.prepare_batch(images, labels, generator)
        with accelerator.autocast():
            unet(batch.images, batch.timesteps, batch.class_labels)
    for norm in norms:
        norm.momentum = momentum
        norm.eval()
