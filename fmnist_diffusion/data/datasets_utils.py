"""Helpers for the optional `datasets` package and the Arrow data of its datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError, get_reason


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def import_datasets():
    """Imports `datasets`, or raises a [`DataError`] that explains how to install it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "Reading this data requires the `datasets` package. Install it with"
            " `pip install 'fmnist-diffusion[train]'`."
        ) from error
    return datasets


def load_files(builder_name: str, path: Path, **load_kwargs: Any) -> dict[str, datasets.Dataset]:
    """Loads all splits of the local files at `path` with a builder of `datasets`, such as `"imagefolder"`."""
    datasets = import_datasets()
    from datasets.exceptions import DatasetsError

    try:
        splits = datasets.load_dataset(builder_name, **load_kwargs)
    except (DatasetsError, OSError, ValueError) as error:
        # The message of a DatasetGenerationError is generic. Its cause is the error of the reader.
        reason = get_reason(error.__cause__ or error)
        raise DataError(f"Could not read {path} as {builder_name} data ({reason}). Check its files.") from error
    return {str(name): dataset for name, dataset in splits.items()}


def is_uint8_array(feature: Any) -> bool:
    """Returns whether a column stores uint8 pixels instead of encoded images."""
    import datasets

    return isinstance(feature, datasets.Array2D) and feature.dtype == "uint8" and None not in feature.shape


def get_arrow_column(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def get_array_column(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """Returns the pixels of an `Array2D` column, `(num_images, height, width)`, without creating Python objects."""
    chunks = [chunk.storage.flatten().flatten().to_numpy() for chunk in get_arrow_column(dataset, name).chunks]
    return np.concatenate(chunks).reshape(-1, *dataset.features[name].shape)
