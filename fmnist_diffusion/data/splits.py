"""Loads and inspects a split from the Hub, from local files or from a safetensors file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .columns import DEFAULT_CAPTION_COLUMN, NO_LABELS
from .decoding import check_decoded_size, check_shape, decode, decode_arrays
from .errors import DataError
from .fashion_mnist import DEFAULT_DATASET
from .image_tensors import ImageTensors
from .sources import DataSource, check_path, load_source
from .summary import DataSummary, summarize_dataset, summarize_tensors
from .tensor_file import load_tensors


if TYPE_CHECKING:
    import datasets


def load_images(
    dataset_name: str = DEFAULT_DATASET,
    split: str = "train",
    *,
    resolution: int | tuple[int, int] | None = None,
    channels: int | None = None,
    **kwargs: Any,
) -> ImageTensors:
    """
    Loads a split and decodes it into memory.

    Args:
        dataset_name, split, kwargs: Arguments of [`DataSource`], such as `train_data_dir`.
        resolution (`int` or `tuple[int, int]`, *optional*), channels (`int`, *optional*):
            See [`decode`]. Default to the values of [`DataSummary`].

    Raises:
        `DataError`: If an argument is invalid, or if the data is missing, damaged or in an unexpected format.
    """
    # Invalid values are rejected before anything is loaded.
    check_shape(1 if resolution is None else resolution, 1 if channels is None else channels)
    source = DataSource(dataset_name=dataset_name, split=split, **kwargs)
    if source.is_tensor_file:
        tensors = _load_tensor_file(source)
        if resolution is None or channels is None:
            summary = summarize_tensors(tensors)
            resolution, channels = resolution or summary.resolution, channels or summary.channels
        height, width = check_shape(resolution, channels)
        if tensors.images.shape[1:] == (channels, height, width):
            return tensors
        check_decoded_size(len(tensors), height, width, channels)
        images = tensors.images
        arrays = images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
        images = torch.from_numpy(decode_arrays(arrays.numpy(), height, width, channels))
        return replace(tensors, images=images)
    dataset, _ = load_source(source)
    if resolution is None or channels is None:
        summary = summarize_dataset(dataset, ())
        resolution, channels = resolution or summary.resolution, channels or summary.channels
    return decode(dataset, resolution=resolution, channels=channels)


def inspect_images(dataset_name: str = DEFAULT_DATASET, split: str = "train", **kwargs: Any) -> DataSummary:
    """
    Summarizes the images and labels of a split without keeping the images in memory.

    Only the headers of the images are read, except to look for colors and transparent pixels.

    Args:
        dataset_name, split, kwargs: Arguments of [`DataSource`], such as `train_data_dir`.

    Raises:
        `DataError`: If an argument is invalid, or if the data is missing, damaged or in an unexpected format.
    """
    source = DataSource(dataset_name=dataset_name, split=split, **kwargs)
    if source.is_tensor_file:
        return summarize_tensors(_load_tensor_file(source))
    return summarize_dataset(*load_source(source))


def load_split(dataset_name: str = DEFAULT_DATASET, split: str = "train", **kwargs: Any) -> datasets.Dataset:
    """
    Loads a split as a `datasets.Dataset` with the column `image`, the column `label` if there are labels, and the
    column `text` if there are captions.

    Args:
        dataset_name, split, kwargs: Arguments of [`DataSource`], such as `train_data_dir`.

    Raises:
        `DataError`: If an argument is invalid, or if the data is missing, damaged or in an unexpected format.
    """
    source = DataSource(dataset_name=dataset_name, split=split, **kwargs)
    if source.is_tensor_file:
        path = check_path(source.name)
        raise DataError(
            f"The file {path} contains decoded images, which cannot be loaded as a dataset. Use `load_images`."
        )
    return load_source(source)[0]


def _load_tensor_file(source: DataSource) -> ImageTensors:
    for name, accepted in (
        ("image_column", (None,)),
        ("label_column", (None, NO_LABELS)),
        ("caption_column", (DEFAULT_CAPTION_COLUMN,)),
    ):
        value = getattr(source, name)
        if value not in accepted:
            raise DataError(
                f"`{name}` is not supported for safetensors files such as {source.name}, got {value!r}. Omit it."
            )
    tensors = load_tensors(check_path(source.name)).select(slice(source.max_samples))
    return replace(tensors, labels=None, label_names=None) if source.label_column == NO_LABELS else tensors
