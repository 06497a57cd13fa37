"""Decodes images to uint8 pixels of a fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from .conversion import convert_image
from .datasets_utils import get_array_column, get_arrow_column, is_uint8_array
from .errors import DataError, ImageError, combine_image_errors
from .image_tensors import ImageTensors
from .pixels import get_height_width
from .reading import read_image


if TYPE_CHECKING:
    import datasets

MAX_SIDE = 4096  # pixels
MAX_DECODED_SIZE = 3 * 1024**3  # bytes


def decode(dataset: datasets.Dataset, *, resolution: int | tuple[int, int], channels: int) -> ImageTensors:
    """
    Decodes a dataset returned by [`load_split`] and keeps the pixels in memory.

    See [`convert_image`] for the treatment of size, color and transparency.

    Args:
        dataset (`datasets.Dataset`):
            The dataset with the column `image` and optionally the columns `label` and `text`.
        resolution (`int` or `tuple[int, int]`):
            The side length of a square, or `(height, width)`, in pixels.
        channels (`int`):
            1 for grayscale (color images are converted to ITU-R 601-2 luma) or 3 for RGB.

    Raises:
        `DataError`: If images cannot be read, if `resolution` or `channels` is invalid, or if the pixels need more
            than 3 GiB of memory.
    """
    height, width = check_shape(resolution, channels)
    check_decoded_size(len(dataset), height, width, channels)
    if is_uint8_array(dataset.features["image"]):
        images = decode_arrays(get_array_column(dataset, "image"), height, width, channels)
    else:
        images = np.empty((len(dataset), channels, height, width), dtype=np.uint8)
        errors = []
        for index, image in enumerate(disable_decoding(dataset)["image"]):
            try:
                images[index] = _decode_image(image, name_row(dataset, index), height, width, channels)
            except ImageError as error:
                errors.append(error)
        if errors:
            raise combine_image_errors(errors)
    captions = tuple(dataset["text"]) if "text" in dataset.features else None
    if "label" not in dataset.features:
        return ImageTensors(torch.from_numpy(images), captions=captions)
    labels = torch.from_numpy(get_arrow_column(dataset, "label").to_numpy().astype(np.int64))
    return ImageTensors(torch.from_numpy(images), labels, tuple(dataset.features["label"].names), captions)


class ImageStream(Dataset):
    """
    A view of a dataset that decodes images on access. The images do not have to fit in memory.

    Its items are dictionaries with `images`, a uint8 tensor of shape `(channels, height, width)`; with `labels`, an
    `int`, if there are labels; and with `captions`, a `str`, if there are captions. Accessing an item raises a
    [`DataError`] if its image cannot be read.

    Args:
        dataset, resolution, channels:
            See [`decode`], which returns the same pixels.
    """

    def __init__(self, dataset: datasets.Dataset, *, resolution: int | tuple[int, int], channels: int):
        self.height, self.width = check_shape(resolution, channels)
        self.dataset, self.channels = disable_decoding(dataset), channels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        name = name_row(self.dataset, index)
        pixels = _decode_image(row["image"], name, self.height, self.width, self.channels)
        item: dict[str, Any] = {"images": torch.from_numpy(pixels)}
        if "label" in row:
            item["labels"] = row["label"]
        if "text" in row:
            item["captions"] = row["text"]
        return item


def check_shape(resolution: int | tuple[int, int], channels: int) -> tuple[int, int]:
    """Checks the arguments of [`decode`] and returns `resolution` as `(height, width)`."""
    sides = resolution if isinstance(resolution, (tuple, list)) and len(resolution) == 2 else (resolution,)
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
        raise DataError(
            f"`resolution` must be a number of pixels or (height, width), from 1 to {MAX_SIDE}, got {resolution!r}."
        )
    if type(channels) is not int or channels not in (1, 3):
        raise DataError(f"`channels` must be 1 (grayscale) or 3 (RGB), got {channels!r}.")
    return get_height_width(resolution)


def check_decoded_size(num_images: int, height: int, width: int, channels: int) -> None:
    """Raises a [`DataError`] if the decoded images need more than 3 GiB of memory."""
    size = num_images * height * width * channels
    if size > MAX_DECODED_SIZE:
        raise DataError(
            f"The decoded images of shape {(num_images, channels, height, width)} need {size:,} bytes of memory, more"
            f" than the limit of {MAX_DECODED_SIZE:,}. Reduce `max_samples` or `resolution`, or decode the"
            " images on access with `ImageStream`."
        )


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
        images[index] = convert_image(PIL.Image.fromarray(array), height, width, channels)
    return images


def disable_decoding(dataset: datasets.Dataset) -> datasets.Dataset:
    """Returns a view with encoded images, so that decoding errors can name the file."""
    import datasets

    if is_uint8_array(dataset.features["image"]):
        return dataset
    return dataset.cast_column("image", datasets.Image(decode=False))


def name_row(dataset: datasets.Dataset, index: int) -> str:
    """Returns the name of an image of a dataset for error messages."""
    source = dataset.info.dataset_name
    return f"the image in row {index}" + (f" of {source}" if source else "")


def get_encoded(image: dict[str, Any], row_name: str) -> tuple[bytes | str, str]:
    """
    Returns the bytes or the path of an encoded image of `datasets`, and its name for error messages.

    Args:
        image (`dict[str, Any]`): The image (`{"bytes", "path"}`).
        row_name (`str`): See [`name_row`].

    Raises:
        `DataError`: If the image has neither bytes nor a path.
    """
    encoded, path = image["bytes"], image["path"]
    if encoded is not None:
        return encoded, f"{row_name} ({path})" if path else row_name
    if path is None:
        raise ImageError(row_name, "it has neither bytes nor a path")
    return path, f"the image {path}"


def _decode_image(image: Any, row_name: str, height: int, width: int, channels: int) -> np.ndarray:
    """Decodes an encoded image of `datasets` (`{"bytes", "path"}`) or a nested list of pixels."""
    if not isinstance(image, dict):
        return convert_image(PIL.Image.fromarray(np.asarray(image, dtype=np.uint8)), height, width, channels)
    encoded, name = get_encoded(image, row_name)
    return convert_image(read_image(encoded, name), height, width, channels, name)
