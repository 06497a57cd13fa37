"""Loads the autoencoder of a latent diffusion model, and encodes and reconstructs images."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from batches import ImageDataset
from config import DataConfig
from fmnist_diffusion.data import ImageTensors, to_model_input, to_uint8
from fmnist_diffusion.pipelines import encode_images, get_vae_scale_factor
from fmnist_diffusion.pipelines.components import check_scaling, load_model
from pretrained import load_pretrained


ENCODING_BATCH_SIZE = 32


# Inspection and training use the same autoencoder, so it is only loaded once.
@functools.lru_cache(maxsize=1)
def load_vae(vae: str | None) -> AutoencoderKL | None:
    """Loads a folder that `train_autoencoder.py` wrote, or the autoencoder of a latent diffusion pipeline.

    Returns `None` if `vae` is `None`.

    Raises:
        `ValueError`, `OSError`: If there is no autoencoder, or if it cannot be loaded.
    """
    if vae is None:
        return None
    if not (Path(vae) / "config.json").is_file():
        try:
            model = load_pretrained(vae).pipe.vae
        except OSError as error:
            raise OSError(f"{error} To train an autoencoder, run train_autoencoder.py.") from error
        if model is None:
            raise ValueError(f"`--vae` must be an autoencoder or a pipeline that contains one, got {vae}.")
        return model.eval().requires_grad_(False)
    folder = Path(vae).resolve()
    model = load_model(folder.parent, folder.name, AutoencoderKL)
    check_scaling(folder, model)
    return model.eval().requires_grad_(False)


def hash_vae(vae: AutoencoderKL) -> str:
    """Returns the SHA-256 of the weights and of the factors that scale the latents."""
    digest = hashlib.sha256(f"{vae.config['scaling_factor']} {vae.config['shift_factor']}".encode())
    for _, tensor in sorted(vae.state_dict().items()):
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def check_image_shape(data: DataConfig, vae: AutoencoderKL) -> None:
    """Raises `ValueError` if the autoencoder does not support the size or the channels of the images."""
    channels, *size = data.image_shape
    factor = get_vae_scale_factor(vae)
    if any(side % factor for side in size):
        raise ValueError(
            f"`--data.resolution` must be a multiple of {factor}, the downsampling factor of the autoencoder, got"
            f" {data.resolution}."
        )
    if channels != vae.config["in_channels"]:
        raise ValueError(
            f"`--data.channels` must be {vae.config['in_channels']}, the number of channels of the autoencoder, got"
            f" {channels}."
        )


@torch.no_grad()
def encode_dataset(vae: AutoencoderKL, images: ImageTensors | ImageDataset, device: torch.device) -> ImageTensors:
    """Returns the latents of all images, float32 `(N, C, H, W)`, with the labels of the images."""
    assert isinstance(images, ImageTensors)
    vae.to(device)  # pyright: ignore[reportArgumentType]
    latents = [
        encode_images(vae, to_model_input(batch.to(device))) for batch in images.images.split(ENCODING_BATCH_SIZE)
    ]
    return ImageTensors(torch.cat(latents), images.labels, images.label_names)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes and decodes images.

    Args:
        vae: The autoencoder.
        images: uint8 pixels `(N, C, H, W)`.

    Returns:
        The means of the posteriors, float32 `(N, latent_channels, H / factor, W / factor)`, on the device of `vae`;
        and the reconstructions, uint8 `(N, C, H, W)`, on the CPU.
    """
    latents, reconstructions = [], []
    for batch in images.split(ENCODING_BATCH_SIZE):
        encoded: Any = vae.encode(to_model_input(batch).to(vae.device))
        latents.append(encoded.latent_dist.mode())
        decoded: Any = vae.decode(latents[-1])
        reconstructions.append(to_uint8(decoded.sample).cpu())
    return torch.cat(latents), torch.cat(reconstructions)


def compute_psnr(reconstructions: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal-to-noise ratio of each image in decibels, `(N,)`; the inputs are uint8."""
    errors = (reconstructions.float() - images.float()).square().flatten(1).mean(1)
    # To keep the PSNR finite, a perfect reconstruction counts as an error of 1 in a single pixel value.
    return 10 * torch.log10(255**2 / errors.clamp(min=1 / images[0].numel()))
