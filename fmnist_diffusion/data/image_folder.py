"""Reader of image folders such as `train/CLASS/NAME.png`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import PurePath
from typing import TYPE_CHECKING

from .class_names import sort_class_names
from .datasets_utils import import_datasets
from .errors import DataError, list_names
from .folders import ANY_SPLIT, FolderContents, split_by_folder
from .metadata_files import METADATA_FILES, load_metadata
from .reading import get_suffixes


if TYPE_CHECKING:
    import datasets

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
# Pillow may need a plugin for these images, and reading them without it is an error.
PLUGIN_SUFFIXES = frozenset({".avif", ".heic", ".heif", ".jxl"})
# Files without a known suffix are images if they start with the signature of PNG, JPEG or GIF.
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")


def find_images(contents: FolderContents) -> list[PurePath]:
    """Returns the image files of a folder."""
    suffixes = get_suffixes() | PLUGIN_SUFFIXES
    return [file for file in contents.files if file.suffix.lower() in suffixes or _has_signature(contents, file)]


def load_image_folder(
    contents: FolderContents, images: list[PurePath], with_labels: bool
) -> dict[str, datasets.Dataset]:
    """
    Loads all splits of an image folder.

    The class of an image is the name of the folder directly above it, unless the folder is the root of the split.

    Args:
        contents (`FolderContents`): The contents of the folder.
        images (`list[PurePath]`): The image files.
        with_labels (`bool`): Whether the folders above the images are classes.

    Raises:
        `DataError`: If the folder contains archives, misplaced images or invalid metadata files.
    """
    folder = contents.folder
    archives = [str(file) for file in contents.files if file.suffix.lower() in ARCHIVE_SUFFIXES]
    if archives:
        raise DataError(
            f"The image folder {folder} contains archives: {list_names(archives)}. Extract them or move them to a"
            " different folder."
        )
    metadata = [file for file in contents.files if file.name in METADATA_FILES]
    contents.skip_others([*images, *metadata], "not an image")
    splits, depth = split_by_folder(folder, images)
    if metadata:
        return load_metadata(folder, metadata, images, splits or {ANY_SPLIT: images})
    splits = splits or {ANY_SPLIT: images}
    if not with_labels:
        return {split: _create_dataset(contents, files, None, ()) for split, files in splits.items()}
    classes = {split: _find_classes(folder, files, depth) for split, files in splits.items()}
    names = sort_class_names({name for labels in classes.values() if labels is not None for name in labels})
    return {split: _create_dataset(contents, files, classes[split], names) for split, files in splits.items()}


def _has_signature(contents: FolderContents, file: PurePath) -> bool:
    path = contents.folder / file
    if file.suffix.lower() in (*ARCHIVE_SUFFIXES, ".parquet") or file.name in METADATA_FILES or not path.is_file():
        return False
    try:
        with path.open("rb") as opened:
            return opened.read(8).startswith(SIGNATURES)
    except OSError:
        return False


def _find_classes(folder: PurePath, files: list[PurePath], depth: int) -> list[str] | None:
    """Returns the class of each file, or `None` if no file has a class folder below the first `depth` folders."""
    depths = Counter(len(file.parts) - 1 - depth for file in files)
    if len(depths) > 1:
        usual = max(depths, key=lambda level: (depths[level], level))
        misplaced = [str(file) for file in files if len(file.parts) - 1 - depth != usual]
        raise DataError(
            f"The image folder {folder} has images at different levels. Move {list_names(misplaced)} into the class"
            " folders, or set `label_column` to none to ignore the classes."
        )
    if 0 in depths:
        return None
    parents: dict[str, set[PurePath]] = {}
    for parent in {file.parent for file in files}:
        parents.setdefault(parent.name, set()).add(parent)
    for name, same in parents.items():
        if len(same) > 1:
            raise DataError(
                f"The image folder {folder} has several class folders called {name!r}:"
                f" {list_names(sorted(map(str, same)))}. Merge or rename them, or set `label_column` to none to ignore"
                " the classes."
            )
    return [file.parent.name for file in files]


def _create_dataset(
    contents: FolderContents, files: list[PurePath], classes: list[str] | None, names: Collection[str]
) -> datasets.Dataset:
    datasets = import_datasets()
    import pyarrow as pa

    paths = pa.array([str(contents.folder / file) for file in files], type=pa.string())
    features: dict[str, object] = {"image": datasets.Image()}
    columns = [pa.StructArray.from_arrays([pa.nulls(len(files), pa.binary()), paths], ["bytes", "path"])]
    if classes is not None:
        indices = {name: index for index, name in enumerate(names)}
        features["label"] = datasets.ClassLabel(names=list(names))
        columns.append(pa.array([indices[name] for name in classes], type=pa.int64()))
    return datasets.Dataset(pa.table(columns, schema=datasets.Features(features).arrow_schema))
