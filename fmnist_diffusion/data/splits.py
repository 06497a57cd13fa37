"""Loads and inspects a split from the Hub, from local files or from a safetensors file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import torch

from .columns import DEFAULT_CAPTION_COLUMN, NO_LABELS
from .decoding import check_decoded_size, check_shape, decode, decode_arrays
from .errors import DataError
from .fashion_mnist import DEFAULT_DATASET
from .image_tensors import ImageTensors
from .sources import check_max_samples, check_path, load_source
from .summary import DataSummary, summarize_dataset, summarize_tensors
from .tensor_file import SAFETENSORS_SUFFIX, load_tensors


if TYPE_CHECKING:
    import datasets


def load_images(
    dataset_name: str = DEFAULT_DATASET,
    split: str = "train",
    *,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str = DEFAULT_CAPTION_COLUMN,
    resolution: int | tuple[int, int] | None = None,
    channels: int | None = None,
    max_samples: int | None = None,
    ignored_files: Collection[str] = (),
) -> ImageTensors:
    """
    Loads a split and decodes it into memory.

    Args:
        dataset_name, split, dataset_config_name, image_column, label_column, caption_column, ignored_files:
            See [`load_split`].
        train_data_dir (`str`, *optional*):
            See [`load_split`], or a `.safetensors` file written by [`save_tensors`]. Such a file contains one split,
            which is loaded for any `split`, and does not require the `datasets` package.
        resolution (`int` or `tuple[int, int]`, *optional*), channels (`int`, *optional*):
            See [`decode`]. Default to the values of [`DataSummary`].
        max_samples (`int`, *optional*):
            Maximum number of images to load, from the start of the split.

    Raises:
        `DataError`: If an argument is invalid, or if the data is missing, corrupted or in an unexpected format.
    """
    # Invalid values are rejected before anything is loaded.
    check_shape(1 if resolution is None else resolution, 1 if channels is None else channels)
    check_max_samples(max_samples)
    if _is_tensor_file(train_data_dir):
        tensors = _load_tensor_file(train_data_dir, image_column, label_column, caption_column, max_samples)
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
    dataset, _ = load_source(
        dataset_name,
        split,
        dataset_config_name=dataset_config_name,
        train_data_dir=train_data_dir,
        image_column=image_column,
        label_column=label_column,
        caption_column=caption_column,
        max_samples=max_samples,
        ignored_files=ignored_files,
    )
    if resolution is None or channels is None:
        summary = summarize_dataset(dataset, ())
        resolution, channels = resolution or summary.resolution, channels or summary.channels
    return decode(dataset, resolution=resolution, channels=channels)


def inspect_images(
    dataset_name: str = DEFAULT_DATASET,
    split: str = "train",
    *,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str = DEFAULT_CAPTION_COLUMN,
    max_samples: int | None = None,
    ignored_files: Collection[str] = (),
) -> DataSummary:
    """
    Summarizes the images and labels of a split without keeping the images in memory.

    Only the headers of the images are read, except to look for colors and transparent pixels.

    Args:
        dataset_name, split, dataset_config_name, train_data_dir, image_column, label_column, caption_column,
        max_samples, ignored_files:
            See [`load_images`].

    Raises:
        `DataError`: If an argument is invalid, or if the data is missing, corrupted or in an unexpected format.
    """
    check_max_samples(max_samples)
    if _is_tensor_file(train_data_dir):
        return summarize_tensors(
            _load_tensor_file(train_data_dir, image_column, label_column, caption_column, max_samples)
        )
    dataset, skipped = load_source(
        dataset_name,
        split,
        dataset_config_name=dataset_config_name,
        train_data_dir=train_data_dir,
        image_column=image_column,
        label_column=label_column,
        caption_column=caption_column,
        max_samples=max_samples,
        ignored_files=ignored_files,
    )
    return summarize_dataset(dataset, skipped)


def load_split(
    dataset_name: str = DEFAULT_DATASET,
    split: str = "train",
    *,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str = DEFAULT_CAPTION_COLUMN,
    max_samples: int | None = None,
    ignored_files: Collection[str] = (),
) -> datasets.Dataset:
    """
    Loads a split as a `datasets.Dataset` with the column `image`, the column `label` if there are labels, and the
    column `text` if there are captions.

    Args:
        dataset_name (`str`, defaults to `"zalando-datasets/fashion_mnist"`):
            Name of a dataset on the Hub. If the Hub is not reachable, the dataset is loaded from the local cache. If
            the default dataset is not cached either, it is loaded from the IDX files of the Debian package
            `dataset-fashion-mnist`.
        split (`str`, defaults to `"train"`):
            Name of the split. A local file or a folder without splits is loaded for any `split`.
        dataset_config_name (`str`, *optional*):
            Configuration of the Hub dataset, required if the dataset has several.
        train_data_dir (`str`, *optional*):
            Local data to load instead of a Hub dataset:

            - a folder of images. The class of an image is the name of the folder directly above it. Images without
              class folders have no labels. The top-level folders are splits if each of them is called `train`,
              `training`, `test`, `testing`, `val`, `valid` or `validation`, in upper or lower case. A file
              `metadata.csv`, `metadata.jsonl` or `metadata.parquet` adds columns and replaces the class folders, as in
              `datasets`.
            - a folder of parquet files. The top-level folders are splits under the same condition. Otherwise, the
              file names determine the splits if each of them contains the name of a split as a separate word, such as
              `train-00000-of-00001.parquet`.
            - a parquet file.
            - a folder with the four IDX files of Fashion-MNIST, plain or compressed with gzip.

            Hidden files are ignored, and symbolic links are followed.
        image_column (`str`, *optional*):
            Name of the column with the images. Defaults to the column `image` if it contains images, otherwise to the
            only column that does.
        label_column (`str`, *optional*):
            Name of the column with the labels: class labels, integers, booleans or strings, or `"none"` to ignore the
            labels. The classes of integers, booleans and strings are their sorted distinct values. Defaults to the
            column of type `ClassLabel`, or to `label` if there are several such columns or none.
        caption_column (`str`, defaults to `"text"`):
            Name of the column with the captions, which must contain strings. Missing captions become empty strings.
            The default column `text` is optional: if it does not exist or contains other values, there are no
            captions.
        max_samples (`int`, *optional*): Maximum number of images. The first ones are kept.
        ignored_files (`Collection[str]`, defaults to `()`):
            Names of files to ignore in a folder.

    Raises:
        `DataError`: If the data is missing, corrupted or in an unexpected format.
    """
    check_max_samples(max_samples)
    if _is_tensor_file(train_data_dir):
        check_path(train_data_dir)
        raise DataError(
            f"The file {train_data_dir} contains decoded images, which cannot be loaded as a dataset. Use"
            " `load_images`."
        )
    dataset, _ = load_source(
        dataset_name,
        split,
        dataset_config_name=dataset_config_name,
        train_data_dir=train_data_dir,
        image_column=image_column,
        label_column=label_column,
        caption_column=caption_column,
        max_samples=max_samples,
        ignored_files=ignored_files,
    )
    return dataset


def _is_tensor_file(path: str | None) -> TypeGuard[str]:
    return path is not None and Path(path).suffix == SAFETENSORS_SUFFIX


def _load_tensor_file(
    path: str, image_column: str | None, label_column: str | None, caption_column: str, max_samples: int | None
) -> ImageTensors:
    for name, value, accepted in (
        ("image_column", image_column, (None,)),
        ("label_column", label_column, (None, NO_LABELS)),
        ("caption_column", caption_column, (DEFAULT_CAPTION_COLUMN,)),
    ):
        if value not in accepted:
            raise DataError(f"`{name}` is not supported for safetensors files such as {path}, got {value!r}. Omit it.")
    tensors = load_tensors(check_path(path)).select(slice(max_samples))
    return replace(tensors, labels=None, label_names=None) if label_column == NO_LABELS else tensors
