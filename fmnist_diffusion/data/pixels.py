"""Conversion between uint8 pixels, model inputs and PIL images."""

from collections.abc import Sequence

import PIL.Image
import torch


def get_height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Returns `(height, width)` for `size`, which is either the side length of a square or `(height, width)`."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def to_model_input(images: torch.Tensor) -> torch.Tensor:
    """Converts uint8 pixels in [0, 255], of any shape, to float32 values in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(sample: torch.Tensor) -> torch.Tensor:
    """
    Converts a floating-point tensor of any shape, clamped to [-1, 1], to uint8 pixels.

    This is the exact inverse of [`to_model_input`] for all 256 pixel values.
    """
    return ((sample.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pil(images: torch.Tensor) -> list[PIL.Image.Image]:
    """Converts uint8 pixels of shape `(num_images, 1 or 3, height, width)` to PIL images."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]
