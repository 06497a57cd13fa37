"""Loads a split from the Hub, from local files or from a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .columns import standardize_columns
from .decoding import decode, decode_arrays, get_height_width
from .errors import DataError
from .fashion_mnist import DEFAULT_DATASET
from .hub_dataset import load_hub_dataset
from .idx import is_idx_folder, load_idx_folder
from .image_folder import is_image_folder, load_image_folder
from .image_tensors import ImageTensors
from .parquet import is_parquet_folder, load_parquet
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
    resolution: int | tuple[int, int] = 28,
    channels: int = 1,
    max_samples: int | None = None,
) -> ImageTensors:
    """
    Loads a split and decodes it into memory.

    Args:
        dataset_name, split, dataset_config_name, image_column, label_column:
            See [`load_split`].
        train_data_dir (`str`, *optional*):
            See [`load_split`], or a `.safetensors` file written by [`save_tensors`]. Such a file contains one split,
            which is loaded for any `split`, and does not require the `datasets` package.
        resolution (`int` or `tuple[int, int]`, defaults to 28), channels (`int`, defaults to 1):
            See [`decode`].
        max_samples (`int`, *optional*):
            Maximum number of images to load, from the start of the split.

    Raises:
        `DataError`: If an argument is invalid, or if the data is missing, corrupted or in an unexpected format.
    """
    if max_samples is not None and max_samples < 1:
        raise DataError(f"`max_samples` must be at least 1 or None, got {max_samples}.")
    height, width = get_height_width(resolution, channels)
    if train_data_dir is not None and Path(train_data_dir).suffix == SAFETENSORS_SUFFIX:
        _check_exists(Path(train_data_dir))
        tensors = load_tensors(Path(train_data_dir))
        images = tensors.images[:max_samples]
        labels = None if tensors.labels is None else tensors.labels[:max_samples]
        if images.shape[1:] != (channels, height, width):
            arrays = images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
            images = torch.from_numpy(decode_arrays(arrays.numpy(), height, width, channels))
        return ImageTensors(images, labels, tensors.label_names)
    dataset = load_split(
        dataset_name,
        split,
        dataset_config_name=dataset_config_name,
        train_data_dir=train_data_dir,
        image_column=image_column,
        label_column=label_column,
    )
    if max_samples is not None:
        dataset = dataset.select(range(min(max_samples, len(dataset))))
    return decode(dataset, resolution=resolution, channels=channels)


def load_split(
    dataset_name: str = DEFAULT_DATASET,
    split: str = "train",
    *,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> datasets.Dataset:
    """
    Loads a split as a `datasets.Dataset` with the columns `image` and, if there are labels, `label`.

    Args:
        dataset_name (`str`, defaults to `"zalando-datasets/fashion_mnist"`):
            Name of a dataset on the Hub. If the Hub is not reachable, the dataset is loaded from the local cache. If
            the default dataset is not cached either, it is loaded from the IDX files of the Debian package
            `dataset-fashion-mnist`.
        split (`str`, defaults to `"train"`):
            Name of the split.
        dataset_config_name (`str`, *optional*):
            Configuration of the Hub dataset, required if the dataset has several.
        train_data_dir (`str`, *optional*):
            Local data to load instead of a Hub dataset. It can be a folder with the four IDX files of Fashion-MNIST
            (plain or `.gz`), an image folder with one subfolder per class (optionally inside `train/` and `test/`), a
            folder of parquet files, or one parquet file, which is loaded for any `split`.
        image_column (`str`, *optional*):
            Name of the column with the images. By default, it is the only column that contains images.
        label_column (`str`, *optional*):
            Name of the column with the labels: class labels, integers (the class names are "0", "1", ...) or strings
            (the classes are sorted). Defaults to the column of type `ClassLabel`, or else to the column `label`.

    Raises:
        `DataError`: If the data is missing, corrupted or in an unexpected format.
    """
    if train_data_dir is not None:
        source = train_data_dir
        splits = _load_local(Path(train_data_dir), split)
    else:
        source = dataset_name
        splits = load_hub_dataset(dataset_name, dataset_config_name, split)
    if split not in splits:
        raise DataError(f"Could not find the split {split!r} in {source}. Choose one of: {', '.join(splits)}.")
    return standardize_columns(splits, split, source, image_column, label_column)


def _load_local(path: Path, split: str) -> dict[str, datasets.Dataset]:
    _check_exists(path)
    if path.suffix == SAFETENSORS_SUFFIX:
        raise DataError(
            f"The file {path} contains decoded images, which cannot be loaded as a dataset. Use `load_images`, or pass"
            " --data.streaming=false."
        )
    if path.suffix == ".parquet":
        return load_parquet(path, split)
    if not path.is_dir():
        raise DataError(f"`train_data_dir` must be a folder, a .parquet file or a .safetensors file, got {path}.")
    if is_idx_folder(path):
        return load_idx_folder(path, split)
    if is_parquet_folder(path):
        return load_parquet(path, split)
    if is_image_folder(path):
        return load_image_folder(path)
    raise DataError(
        f"The folder {path} contains no IDX, image or parquet files. Pass a different folder as `train_data_dir`."
    )


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise DataError(f"Could not find {path}. Pass an existing file or folder as `train_data_dir`.")
