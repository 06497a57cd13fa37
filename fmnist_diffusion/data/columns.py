"""Selects the image and label columns of a dataset and standardizes their names and types."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .datasets_utils import get_arrow_column, is_uint8_array
from .errors import DataError
from .image_tensors import check_label_range


if TYPE_CHECKING:
    import datasets


def standardize_columns(
    splits: dict[str, datasets.Dataset], split: str, source: str, image_column: str | None, label_column: str | None
) -> datasets.Dataset:
    """
    Returns a split with the column `image` and, if there are labels, the column `label` of type `ClassLabel`.

    Args:
        splits (`dict[str, datasets.Dataset]`):
            All splits. Their labels are combined, so that each class has the same index in every split.
        split (`str`): Name of the split to return.
        source (`str`): Path or name of the dataset for error messages.
        image_column, label_column (`str`, *optional*): See [`load_split`].
    """
    dataset = splits[split]
    for argument, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and column not in dataset.features:
            raise DataError(
                f"Could not find the column {column!r} in {source}. Set `{argument}` to {_list_columns(dataset)}."
            )
    if image_column is None:
        image_column = _find_image_column(dataset, source)
    if label_column is None:
        label_column = _find_label_column(dataset, source, image_column)

    dataset = _cast_images(dataset, image_column, source)
    names = {image_column: "image"}
    if label_column is not None:
        dataset = _cast_labels(dataset, splits, label_column, source)
        names[label_column] = "label"
    dataset = dataset.select_columns(list(names))
    _check_values(dataset, label_column, source)
    return dataset.rename_columns(names)


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

    if _is_image(dataset.features[column]):
        return dataset
    try:
        return dataset.cast_column(column, datasets.Image())
    except (NotImplementedError, TypeError, ValueError) as error:  # pyarrow raises subclasses of these
        raise DataError(
            f"The column {column!r} of {source} does not contain images. Set `image_column` to"
            f" {_list_columns(dataset)}."
        ) from error


def _cast_labels(
    dataset: datasets.Dataset, splits: dict[str, datasets.Dataset], column: str, source: str
) -> datasets.Dataset:
    import datasets

    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return dataset
    dtype = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
    if dtype in ("string", "large_string"):
        names = sorted(_get_distinct_labels(splits, column))
        return dataset.cast_column(column, datasets.ClassLabel(names=names))
    if not dtype.lstrip("u").startswith("int"):
        raise DataError(
            f"The column {column!r} of {source} must contain class labels, integers or strings, got {dtype}."
            f" Set `label_column` to {_list_columns(dataset)}."
        )
    labels = _get_distinct_labels(splits, column)
    if min(labels, default=0) < 0:
        raise DataError(f"The labels in {source} must not be negative, got {min(labels)}. Number them from 0.")
    return dataset.cast_column(column, datasets.ClassLabel(num_classes=max(labels, default=0) + 1))


def _get_distinct_labels(splits: dict[str, datasets.Dataset], column: str) -> set[Any]:
    labeled = [dataset for dataset in splits.values() if column in dataset.features]
    return {label for dataset in labeled for label in dataset.unique(column)} - {None}


def _check_values(dataset: datasets.Dataset, label_column: str | None, source: str) -> None:
    for column in dataset.column_names:
        num_missing = get_arrow_column(dataset, column).null_count
        if num_missing:
            raise DataError(
                f"The column {column!r} of {source} must not contain missing values, got {num_missing}."
                " Fill them in or remove their rows."
            )
    if label_column is not None:
        labels = get_arrow_column(dataset, label_column).to_numpy()
        check_label_range(labels, len(dataset.features[label_column].names), source)


def _list_columns(dataset: datasets.Dataset) -> str:
    return f"one of: {', '.join(dataset.column_names)}"


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image) or is_uint8_array(feature)
