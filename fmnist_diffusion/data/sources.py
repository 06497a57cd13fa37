"""Opens the source of a split: a dataset on the Hub, a folder or a parquet file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from .columns import NO_LABELS, standardize_columns
from .datasets_utils import import_datasets
from .errors import DataError, get_reason, list_names
from .folders import ANY_SPLIT, SPLIT_NAMES, list_folder
from .hub_dataset import load_hub_dataset
from .idx import find_idx_files, load_idx_folder
from .image_folder import find_images, load_image_folder
from .parquet import group_files, has_images, load_parquet


if TYPE_CHECKING:
    import datasets

Skipped = tuple[tuple[str, str], ...]


def load_source(
    dataset_name: str,
    split: str,
    *,
    dataset_config_name: str | None,
    train_data_dir: str | None,
    image_column: str | None,
    label_column: str | None,
    caption_column: str,
    max_samples: int | None,
    ignored_files: Collection[str],
) -> tuple[datasets.Dataset, Skipped]:
    """Loads a split (see [`load_split`]). Also returns the paths of files that are not used, with the reasons."""
    skipped: Skipped = ()
    if train_data_dir is None:
        source = dataset_name
        splits = load_hub_dataset(dataset_name, dataset_config_name, split)
    else:
        source = train_data_dir
        splits, skipped = _load_local(check_path(train_data_dir), split, label_column, ignored_files)
    name = split
    if split not in splits:
        name = ANY_SPLIT if ANY_SPLIT in splits else SPLIT_NAMES.get(split.lower(), split)
    if name not in splits:
        raise DataError(f"Could not find the split {split!r} in {source}. Choose one of: {', '.join(splits)}.")
    dataset = standardize_columns(splits, name, source, image_column, label_column, caption_column)
    if max_samples is not None:
        dataset = dataset.select(range(min(max_samples, len(dataset))))
    return dataset, skipped


def check_path(train_data_dir: str) -> Path:
    """Returns the path, or raises a [`DataError`] if it does not exist."""
    try:
        if train_data_dir and Path(train_data_dir).exists():
            return Path(train_data_dir)
    except (OSError, ValueError) as error:
        raise DataError(
            f"Could not open {train_data_dir!r} ({get_reason(error)}). Pass a different path as `train_data_dir`."
        ) from error
    raise DataError(
        f"Could not find {train_data_dir or repr('')}. Pass an existing file or folder as `train_data_dir`."
    )


def check_max_samples(max_samples: int | None) -> None:
    if max_samples is not None and (type(max_samples) is not int or max_samples < 1):
        raise DataError(f"`max_samples` must be at least 1 or None, got {max_samples!r}.")


def _load_local(
    path: Path, split: str, label_column: str | None, ignored_files: Collection[str]
) -> tuple[dict[str, datasets.Dataset], Skipped]:
    import_datasets()
    if path.suffix == ".parquet" and path.is_file():
        return load_parquet(path, {ANY_SPLIT: [path]}), ()
    if not path.is_dir():
        raise DataError(f"`train_data_dir` must be a folder, a .parquet file or a .safetensors file, got {path}.")
    contents = list_folder(path, ignored_files)
    idx_files = find_idx_files(contents)
    parquet_files = [file for file in contents.files if file.suffix.lower() == ".parquet"]
    images = find_images(contents)
    tables = parquet_files
    if images or idx_files:
        # Other parquet files next to images, such as embeddings, are skipped. metadata.parquet describes the images.
        tables = [file for file in parquet_files if file.name != "metadata.parquet" and has_images(path / file)]
    _check_one_kind(path, {"IDX": idx_files, "image": images, "parquet": tables})
    if images:
        splits = load_image_folder(contents, images, with_labels=label_column != NO_LABELS)
    elif idx_files:
        contents.skip_others(idx_files, "not an IDX file")
        splits = load_idx_folder(path / idx_files[0].parent, split)
    elif parquet_files:
        contents.skip_others(parquet_files, "not a parquet file")
        groups = group_files(path, parquet_files)
        splits = load_parquet(path, {name: [path / file for file in files] for name, files in groups.items()})
    else:
        advice = "Pass a different folder as `train_data_dir`."
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            advice = "To read a dataset from `save_to_disk`, save it with `to_parquet` instead."
        raise DataError(f"The folder {path} contains no IDX, image or parquet files. {advice}")
    return splits, tuple(sorted(contents.skipped))


def _check_one_kind(path: Path, kinds: dict[str, list[PurePath]]) -> None:
    found = {kind: files for kind, files in kinds.items() if files}
    if len(found) > 1:
        names = [f"{kind} files ({list_names([str(file) for file in files])})" for kind, files in found.items()]
        raise DataError(f"The folder {path} contains {' and '.join(names)}. Pass a folder with only one kind of file.")
