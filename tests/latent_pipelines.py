"""Latent diffusion pipelines with small models and random weights."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler

from fmnist_diffusion import FashionMNISTPipeline
from tiny_pipelines import make_unet


def make_vae(channels: int = 3) -> AutoencoderKL:
    """Returns an autoencoder with 2 latent channels that halves the resolution."""
    torch.manual_seed(2)
    options: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
    }
    vae = AutoencoderKL(
        channels,
        channels,
        **options,
        latent_channels=2,
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=3.0,
        shift_factor=0.1,
    )
    return vae.eval()


def get_latent_pipeline(channels: int = 3, scheduler: Any = None, **config: Any) -> FashionMNISTPipeline:
    """Returns a pipeline for images of 16x16 pixels, whose latents are 8x8."""
    unet = make_unet(in_channels=2, out_channels=2, **config)
    scheduler = scheduler or DDIMScheduler(clip_sample=False)
    pipe = FashionMNISTPipeline(unet, scheduler, num_inference_steps=2, vae=make_vae(channels))
    pipe.set_progress_bar_config(disable=True)
    return pipe
