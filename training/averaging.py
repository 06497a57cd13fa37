"""Exponential moving average (EMA) of the weights."""

import itertools

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from batches import Batches
from config import EMAConfig
from fmnist_diffusion import FashionMNISTUNet2DModel
from losses import DiffusionLoss


# The statistics of BatchNorm are re-estimated from this number of batches.
BATCH_NORM_BATCHES = 50


def make_ema(config: EMAConfig, unet: torch.nn.Module, accelerator: Accelerator) -> EMAModel | None:
    if not config.enabled:
        return None
    return EMAModel(
        unet.parameters(),
        decay=config.max_decay,
        use_ema_warmup=True,
        inv_gamma=config.inv_gamma,
        power=config.power,
        # The foreach operations do not support sharded tensors.
        foreach=not accelerator.is_fsdp2,
    )


def copy_model(
    unet: torch.nn.Module, ema: EMAModel | None, accelerator: Accelerator
) -> FashionMNISTUNet2DModel | None:
    """Returns a copy of `unet` for sampling, with the EMA weights if EMA is enabled.

    All processes must call this function. Only the main process gets the copy; the others get `None`.
    """
    if ema is not None:
        ema.store(unet.parameters())
        ema.copy_to(unet.parameters())
    state_dict = accelerator.get_state_dict(unet)
    copy = None
    if accelerator.is_main_process:
        copy = FashionMNISTUNet2DModel.from_config(accelerator.unwrap_model(unet).config)
        assert isinstance(copy, FashionMNISTUNet2DModel)
        copy.load_state_dict(state_dict)
        copy.to(accelerator.device).eval()
    if ema is not None:
        ema.restore(unet.parameters())
    return copy


@torch.no_grad()
def reestimate_batch_norm(
    unet: FashionMNISTUNet2DModel, batches: Batches, loss: DiffusionLoss, accelerator: Accelerator
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
    for images, labels in itertools.islice(batches.epoch(0), BATCH_NORM_BATCHES):
        batch = loss.add_noise(images, labels)
        with accelerator.autocast():
            unet(batch.images, batch.timesteps, batch.class_labels)
    for norm in norms:
        norm.momentum = momentum
        norm.eval()
