"""Helpers for the optional `datasets` package and the Arrow data of its datasets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def import_datasets():
    """Imports `datasets`, or raises a [`DataError`] that explains how to install it."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "Reading this data requires the `datasets` package. Run `pip install 'fmnist-diffusion[train]'`."
        ) from error
    return datasets


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
