"""Selects the image, label and caption columns of a dataset and standardizes their names and types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .class_names import sort_class_names
from .datasets_utils import get_arrow_column, is_uint8_array
from .errors import DataError
from .fashion_mnist import normalize_label_names
from .image_tensors import check_label_range


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

# This value of `label_column` ignores the labels.
NO_LABELS = "none"
# diffusers' train_text_to_image.py has the same default.
DEFAULT_CAPTION_COLUMN = "text"


def standardize_columns(
    splits: dict[str, datasets.Dataset],
    split: str,
    source: str,
    image_column: str | None,
    label_column: str | None,
    caption_column: str,
) -> datasets.Dataset:
    """
    Returns a split with the column `image`, the column `label` of type `ClassLabel` if there are labels, and the
    column `text` of strings if there are captions.

    Args:
        splits (`dict[str, datasets.Dataset]`):
            All splits. Their labels are combined, so that each class has the same index in every split.
        split (`str`):
            Name of the split to return.
        source (`str`):
            Path or name of the dataset for error messages.
        image_column, label_column (`str`, *optional*), caption_column (`str`):
            See [`DataSource`].
    """
    import datasets

    dataset = splits[split]
    columns = {"image_column": image_column, "label_column": label_column}
    if caption_column != DEFAULT_CAPTION_COLUMN:
        columns["caption_column"] = caption_column
    for argument, column in columns.items():
        if column is not None and column not in dataset.features and (argument, column) != ("label_column", NO_LABELS):
            raise DataError(
                f"Could not find the column {column!r} in {source}. Set `{argument}` to {_list_columns(dataset)}."
            )
    if image_column is None:
        image_column = _find_image_column(dataset, source)
    if label_column is None:
        label_column = _find_label_column(dataset, source, image_column)
    elif label_column == NO_LABELS:
        label_column = None

    images = _cast_images(dataset.select_columns([image_column]), image_column, source)
    _check_missing(images, image_column, source, "Remove their rows.")
    images = images.rename_columns({image_column: "image"})
    # Error messages about images contain this name.
    images.info.dataset_name = source
    captions = _read_captions(dataset, source, caption_column)
    if captions is not None:
        images = images.add_column("text", captions, feature=datasets.Value("string"))  # pyright: ignore
    if label_column is None:
        return images
    labels = dataset.select_columns([label_column])
    _check_missing(labels, label_column, source, "Fill them in, or set `label_column` to none to ignore the labels.")
    if isinstance(labels.features[label_column], datasets.ClassLabel):
        values = get_arrow_column(labels, label_column).to_numpy()
        names = normalize_label_names(labels.features[label_column].names)
        check_label_range(values, len(names), source)
    else:
        values, names = _number_labels(splits, split, label_column, source)
    feature = datasets.ClassLabel(names=names)
    return images.add_column("label", values, feature=feature)  # pyright: ignore[reportArgumentType]


def _find_image_column(dataset: datasets.Dataset, source: str) -> str:
    column = _find_column(dataset, _is_image, "image", source)
    if column is None:
        raise DataError(f"Could not find an image column in {source}. Set `image_column` to {_list_columns(dataset)}.")
    return column


def _find_label_column(dataset: datasets.Dataset, source: str, image_column: str) -> str | None:
    import datasets

    column = _find_column(dataset, lambda feature: isinstance(feature, datasets.ClassLabel), "label", source)
    if column is None and "label" in dataset.features and image_column != "label":
        return "label"
    return column


def _find_column(dataset: datasets.Dataset, is_match: Callable[[Any], bool], default: str, source: str) -> str | None:
    columns = [name for name, feature in dataset.features.items() if is_match(feature)]
    if default in columns:
        return default
    if len(columns) > 1:
        raise DataError(
            f"Found several {default} columns in {source}. Set `{default}_column` to one of: {', '.join(columns)}."
        )
    return columns[0] if columns else None


def _cast_images(dataset: datasets.Dataset, column: str, source: str) -> datasets.Dataset:
    import datasets

    if isinstance(dataset.features[column], datasets.Image) or is_uint8_array(dataset.features[column]):
        return dataset
    try:
        return dataset.cast_column(column, datasets.Image())
    except (NotImplementedError, TypeError, ValueError) as error:  # pyarrow raises subclasses of these
        raise DataError(
            f"The column {column!r} of {source} does not contain images. Set `image_column` to a different column."
        ) from error


def _number_labels(
    splits: dict[str, datasets.Dataset], split: str, column: str, source: str
) -> tuple[np.ndarray, list[str]]:
    """
    Returns the class indices of a split, int64 of shape `(num_images,)`, and the class names: the distinct labels of
    all splits.
    """
    import datasets

    feature = splits[split].features[column]
    kind = _get_kind(feature)
    if kind is None:
        dtype = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        raise DataError(
            f"The column {column!r} of {source} must contain class labels, integers, booleans or strings, got {dtype}."
            " Set `label_column` to a different column, or to none to ignore the labels."
        )
    encoded = {}
    for name, other in splits.items():
        other_feature = other.features.get(column)
        # The column of another split may be missing or empty.
        if other_feature in (None, datasets.Value("null")) or isinstance(other_feature, datasets.ClassLabel):
            continue
        if _get_kind(other_feature) != kind:
            raise DataError(f"The column {column!r} must have the same type in all splits of {source}.")
        encoded[name] = _encode_labels(other, column)
    distinct = {value for labels in encoded.values() for value in labels.dictionary.to_pylist()}
    values = sort_class_names(distinct) if kind == "string" else sorted(distinct)
    positions = {value: index for index, value in enumerate(values)}
    labels = encoded[split]
    indices = np.array([positions[value] for value in labels.dictionary.to_pylist()], dtype=np.int64)
    return indices[labels.indices.to_numpy()], [str(value) for value in values]


def _get_kind(feature: Any) -> str | None:
    """Returns "integer", "bool" or "string", or `None` for other types."""
    import datasets

    if not isinstance(feature, datasets.Value):
        return None
    kinds = {"bool": "bool", "string": "string", "large_string": "string", "string_view": "string"}
    return "integer" if feature.dtype.startswith(("int", "uint")) else kinds.get(feature.dtype)


def _encode_labels(dataset: datasets.Dataset, column: str) -> pa.DictionaryArray:
    """Returns the distinct labels, without missing values, and the index of each label."""
    import pyarrow as pa

    labels = get_arrow_column(dataset, column)
    if labels.type == pa.string_view():
        labels = labels.cast(pa.large_string())
    return labels.dictionary_encode().combine_chunks()


def _check_missing(dataset: datasets.Dataset, column: str, source: str, advice: str) -> None:
    num_missing = get_arrow_column(dataset, column).null_count
    if num_missing:
        raise DataError(
            f"The column {column!r} of {source} must not contain missing values, got {num_missing}. {advice}"
        )


def _read_captions(dataset: datasets.Dataset, source: str, column: str) -> list[str] | None:
    if _get_kind(dataset.features.get(column)) == "string":
        return [caption or "" for caption in dataset[column]]
    if column == DEFAULT_CAPTION_COLUMN:
        return None
    raise DataError(
        f"The column {column!r} of {source} must contain strings. Set `caption_column` to {_list_columns(dataset)}."
    )


def _list_columns(dataset: datasets.Dataset) -> str:
    return f"one of: {', '.join(dataset.column_names)}"


def _is_image(feature: Any) -> bool:
    import datasets

    # Parquet files without the metadata of `datasets` store images as a structure or as bytes.
    is_structure = isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
    is_bytes = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return isinstance(feature, datasets.Image) or is_structure or is_bytes or is_uint8_array(feature)
