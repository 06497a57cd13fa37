"""Conversion between uint8 pixels, the value range of the model and PIL images."""

import PIL.Image
import torch


def to_model_input(images: torch.Tensor) -> torch.Tensor:
    """Convert uint8 pixels in [0, 255], of any shape, to float32 in the model's range [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(sample: torch.Tensor) -> torch.Tensor:
    """
    Convert a sample in [-1, 1], of any floating-point dtype and shape, to uint8 pixels. Other values are clamped.

    This is the exact inverse of [`to_model_input`] for all 256 pixel values.
    """
    return ((sample.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pil(images: torch.Tensor) -> list[PIL.Image.Image]:
    """Convert uint8 pixels of shape `(num_images, channels, height, width)`, 1 or 3 channels, to PIL images."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]
