"""Decodes images to uint8 pixels of a fixed size."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from .datasets_utils import get_array_column, get_arrow_column, is_uint8_array
from .errors import DataError
from .image_tensors import ImageTensors


if TYPE_CHECKING:
    import datasets


def decode(dataset: datasets.Dataset, *, resolution: int | tuple[int, int], channels: int) -> ImageTensors:
    """
    Decodes a dataset returned by [`load_split`] and keeps the pixels in memory.

    An image of a different size is resized with an antialiased bicubic filter to cover `resolution` and then
    center-cropped. An image of this size keeps its exact pixels.

    Args:
        dataset (`datasets.Dataset`):
            The dataset with the column `image` and optionally the column `label`.
        resolution (`int` or `tuple[int, int]`):
            The side length of a square, or `(height, width)`, in pixels.
        channels (`int`):
            1 for grayscale (color images are converted to ITU-R 601-2 luma) or 3 for RGB.

    Raises:
        `DataError`: If an image cannot be read, or if `resolution` or `channels` is invalid.
    """
    height, width = get_height_width(resolution, channels)
    if is_uint8_array(dataset.features["image"]):
        images = decode_arrays(get_array_column(dataset, "image"), height, width, channels)
    else:
        images = np.empty((len(dataset), channels, height, width), dtype=np.uint8)
        for index, image in enumerate(_disable_decoding(dataset)["image"]):
            images[index] = _decode_image(image, height, width, channels)
    if "label" not in dataset.features:
        return ImageTensors(torch.from_numpy(images))
    labels = torch.from_numpy(get_arrow_column(dataset, "label").to_numpy().astype(np.int64))
    return ImageTensors(torch.from_numpy(images), labels, tuple(dataset.features["label"].names))


def stream_images(dataset: datasets.Dataset, *, resolution: int | tuple[int, int], channels: int) -> datasets.Dataset:
    """
    Returns a view of a dataset that decodes images on access. The images do not have to fit in memory.

    Args:
        dataset, resolution, channels:
            See [`decode`], which returns the same pixels.

    Returns:
        `datasets.Dataset`: A dataset whose items are dictionaries with `images`, a uint8 tensor of shape `(channels,
        height, width)`, and, if there are labels, `labels`, an `int`. Accessing an item raises a [`DataError`] if its
        image cannot be read.
    """
    height, width = get_height_width(resolution, channels)
    transform = partial(_decode_batch, height=height, width=width, channels=channels)
    return _disable_decoding(dataset).with_transform(transform)


def get_height_width(resolution: int | tuple[int, int], channels: int) -> tuple[int, int]:
    """Checks the arguments of [`decode`] and returns `resolution` as `(height, width)`."""
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if height < 1 or width < 1:
        raise DataError(f"`resolution` must be a positive number of pixels or (height, width), got {resolution}.")
    if channels not in (1, 3):
        raise DataError(f"`channels` must be 1 (grayscale) or 3 (RGB), got {channels}.")
    return height, width


def decode_arrays(arrays: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    """
    Converts uint8 pixels to the size and channels of [`decode`].

    Args:
        arrays (`np.ndarray`):
            Images of shape `(num_images, height, width)` or `(num_images, height, width, 3)`.
        height, width, channels (`int`):
            The shape of the returned images.

    Returns:
        `np.ndarray`: Images of shape `(num_images, channels, height, width)`.
    """
    if channels == 1 and arrays.shape[1:] == (height, width):
        return arrays[:, None].copy()
    images = np.empty((len(arrays), channels, height, width), dtype=np.uint8)
    for index, array in enumerate(arrays):
        images[index] = _convert(PIL.Image.fromarray(array), height, width, channels)
    return images


def _disable_decoding(dataset: datasets.Dataset) -> datasets.Dataset:
    """Returns a view with encoded images, so that decoding errors can name the file."""
    import datasets

    if is_uint8_array(dataset.features["image"]):
        return dataset
    return dataset.cast_column("image", datasets.Image(decode=False))


def _decode_batch(batch: dict[str, list[Any]], height: int, width: int, channels: int) -> dict[str, list[Any]]:
    arrays = [_decode_image(image, height, width, channels) for image in batch["image"]]
    decoded: dict[str, list[Any]] = {"images": [torch.from_numpy(array) for array in arrays]}
    if "label" in batch:
        decoded["labels"] = batch["label"]
    return decoded


def _decode_image(image: Any, height: int, width: int, channels: int) -> np.ndarray:
    """Decodes an encoded image of `datasets` (`{"bytes", "path"}`) or a nested list of pixels."""
    if isinstance(image, dict):
        return _convert(_open_image(image), height, width, channels)
    return _convert(PIL.Image.fromarray(np.asarray(image, dtype=np.uint8)), height, width, channels)


def _open_image(encoded_image: dict[str, Any]) -> PIL.Image.Image:
    """Decodes an image from its bytes, or from its file if there are none, and applies the EXIF orientation."""
    encoded, path = encoded_image["bytes"], encoded_image["path"]
    name = f"the image {path}" if path else "an image of the dataset"
    try:
        with PIL.Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            PIL.ImageOps.exif_transpose(image, in_place=True)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"Could not read {name}. Replace or remove it.") from error
    # Pillow clips most values of these modes to white when it converts them to 8 bits.
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise DataError(f"Could not use {name} because it has more than 8 bits per channel. Convert it to 8 bits.")
    return image


def _convert(image: PIL.Image.Image, height: int, width: int, channels: int) -> np.ndarray:
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = PIL.ImageOps.fit(image, (width, height), method=PIL.Image.Resampling.BICUBIC)
    pixels = np.array(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
