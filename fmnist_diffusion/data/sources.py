"""Describes the source of a split, which is a Hub dataset or local data, and loads it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from .columns import DEFAULT_CAPTION_COLUMN, NO_LABELS, standardize_columns
from .datasets_utils import import_datasets
from .errors import DataError, get_reason, list_names
from .fashion_mnist import DEFAULT_DATASET
from .folders import ANY_SPLIT, SPLIT_NAMES, list_folder
from .hub_dataset import load_hub_dataset
from .idx import find_idx_files, load_idx_folder
from .image_folder import find_images, load_image_folder
from .parquet import group_files, has_images, load_parquet
from .tensor_file import SAFETENSORS_SUFFIX


if TYPE_CHECKING:
    import datasets

Skipped = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """
    A split of a dataset on the Hub or of local data.

    Attributes:
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
              class folders have no labels. The top-level folders, or the folders in a single top-level
              folder, are splits if each of them is called `train`, `training`, `test`, `testing`, `val`, `valid` or
              `validation`, in upper or lower case. A file
              `metadata.csv`, `metadata.jsonl` or `metadata.parquet` adds columns and replaces the class folders, as in
              `datasets`.
            - a folder of parquet files. The top-level folders are splits under the same condition. Otherwise, the
              file names determine the splits if each of them contains the name of a split as a separate word, such as
              `train-00000-of-00001.parquet`.
            - a parquet file.
            - a folder with the four IDX files of Fashion-MNIST or of a dataset with the same file names, such as
              MNIST, plain or compressed with gzip.
            - a `.safetensors` file written by [`save_tensors`], which contains one split. It does not require the
              `datasets` package. [`load_split`] does not support it.

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
        `DataError`: If `max_samples` is neither a positive integer nor `None`.
    """

    dataset_name: str = DEFAULT_DATASET
    split: str = "train"
    dataset_config_name: str | None = None
    train_data_dir: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str = DEFAULT_CAPTION_COLUMN
    max_samples: int | None = None
    ignored_files: Collection[str] = ()

    def __post_init__(self):
        if self.max_samples is not None and (type(self.max_samples) is not int or self.max_samples < 1):
            raise DataError(f"`max_samples` must be at least 1 or None, got {self.max_samples!r}.")

    @property
    def name(self) -> str:
        """The path of local data, otherwise the name of the Hub dataset."""
        return self.dataset_name if self.train_data_dir is None else self.train_data_dir

    @property
    def is_tensor_file(self) -> bool:
        return self.train_data_dir is not None and Path(self.train_data_dir).suffix == SAFETENSORS_SUFFIX


def load_source(source: DataSource) -> tuple[datasets.Dataset, Skipped]:
    """Loads a split; see [`DataSource`]. Also returns the paths of files that are not used, with the reasons."""
    skipped: Skipped = ()
    if source.train_data_dir is None:
        splits = load_hub_dataset(source.dataset_name, source.dataset_config_name, source.split)
    else:
        splits, skipped = _load_local(check_path(source.train_data_dir), source)
    name = source.split
    if name not in splits:
        name = ANY_SPLIT if ANY_SPLIT in splits else SPLIT_NAMES.get(name.lower(), name)
    if name not in splits:
        raise DataError(
            f"Could not find the split {source.split!r} in {source.name}. Choose one of: {', '.join(splits)}."
        )
    if len(splits[name]) == 0:
        raise DataError(f"The split {name!r} of {source.name} contains no images. Choose a different split.")
    dataset = standardize_columns(
        splits, name, source.name, source.image_column, source.label_column, source.caption_column
    )
    if source.max_samples is not None:
        dataset = dataset.select(range(min(source.max_samples, len(dataset))))
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


def _load_local(path: Path, source: DataSource) -> tuple[dict[str, datasets.Dataset], Skipped]:
    import_datasets()
    if path.suffix == ".parquet" and path.is_file():
        return load_parquet(path, {ANY_SPLIT: [path]}), ()
    if not path.is_dir():
        raise DataError(f"`train_data_dir` must be a folder, a .parquet file or a .safetensors file, got {path}.")
    contents = list_folder(path, source.ignored_files)
    idx_files = find_idx_files(contents)
    parquet_files = [file for file in contents.files if file.suffix.lower() == ".parquet"]
    images = find_images(contents)
    tables = parquet_files
    if images or idx_files:
        # Other parquet files next to images, such as embeddings, are skipped. metadata.parquet describes the images.
        tables = [file for file in parquet_files if file.name != "metadata.parquet" and has_images(path / file)]
    _check_one_kind(path, {"IDX": idx_files, "image": images, "parquet": tables})
    if images:
        splits = load_image_folder(contents, images, with_labels=source.label_column != NO_LABELS)
    elif idx_files:
        contents.skip_others(idx_files, "not an IDX file")
        splits = load_idx_folder(path / idx_files[0].parent, source.split)
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
