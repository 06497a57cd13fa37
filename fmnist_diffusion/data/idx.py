"""
Reader of the IDX files of Fashion-MNIST and of datasets with the same file names, such as MNIST. The format is
described at http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import re
import zlib
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np

from .datasets_utils import import_datasets
from .errors import DataError, get_reason, list_names
from .fashion_mnist import FASHION_MNIST_LABELS
from .folders import FolderContents
from .image_tensors import check_label_range


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)

FILE_PREFIXES = {"train": "train", "test": "t10k"}
MAGIC_NUMBERS = {"images": 2051, "labels": 2049}
# These first labels distinguish the files of Fashion-MNIST from those of MNIST and KMNIST.
FIRST_LABELS = {"train": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5], "test": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]}
IDX_FILE = re.compile(r"(train|t10k)-(images[-.]idx3|labels[-.]idx1)-ubyte(\.gz)?")
MAX_IDX_SIZE = 1024**3  # bytes; the training images of Fashion-MNIST take 47 MB


def find_idx_files(contents: FolderContents) -> list[PurePath]:
    """
    Returns the IDX files of a folder. They are in the folder itself or in a subfolder, such as torchvision's `raw`.

    Raises:
        `DataError`: If several folders contain IDX files.
    """
    files = [file for file in contents.files if IDX_FILE.fullmatch(file.name)]
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        names = list_names([str(folder) for folder in folders])
        raise DataError(
            f"The folder {contents.folder} contains IDX files in several folders: {names}. Pass one of these folders."
        )
    return files


def load_idx_folder(folder: Path, split: str) -> dict[str, datasets.Dataset]:
    """
    Loads one split from a folder with IDX files, plain or compressed with gzip.

    The labels of Fashion-MNIST get the names of its classes. The classes of other datasets are the distinct labels of
    both splits.
    """
    datasets = import_datasets()
    if split not in FILE_PREFIXES:
        raise DataError(
            f"Could not find the split {split!r} in the IDX folder {folder}."
            f" Choose one of: {', '.join(FILE_PREFIXES)}."
        )
    images_path = _find_file(folder, f"{FILE_PREFIXES[split]}-images", "idx3-ubyte")
    labels_path = _find_file(folder, f"{FILE_PREFIXES[split]}-labels", "idx1-ubyte")
    images = read_idx(images_path, "images")
    labels = read_idx(labels_path, "labels")
    if len(images) != len(labels):
        raise DataError(
            f"The number of images in {images_path} ({len(images)}) must equal the number of labels in {labels_path}"
            f" ({len(labels)}). Replace both with files of the same dataset."
        )
    names, labels = _name_labels(folder, split, labels, labels_path)
    features = datasets.Features(
        image=datasets.Array2D(shape=images.shape[1:], dtype="uint8"),
        label=datasets.ClassLabel(names=names),
    )
    return {split: _create_dataset(images, labels, features)}


def read_idx(path: Path, kind: str) -> np.ndarray:
    """
    Reads an IDX file of uint8 values.

    Args:
        path (`Path`): Path of the file, which is decompressed if it ends with `.gz`.
        kind (`str`): `"images"` or `"labels"`.

    Returns:
        `np.ndarray`: Images of shape `(num_images, height, width)` or labels of shape `(num_labels,)`.
    """
    magic_number = MAGIC_NUMBERS[kind]
    ndim = magic_number % 256
    header_size = 4 + 4 * ndim
    advice = "Replace it with an intact copy."
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(header_size)
            shape = tuple(int.from_bytes(header[start : start + 4], "big") for start in range(4, header_size, 4))
            size = header_size + math.prod(shape)
            # The header is checked before the pixels are decompressed.
            if int.from_bytes(header[:4], "big") != magic_number:
                raise DataError(
                    f"The file {path} does not start with {magic_number}, the magic number of IDX {kind}."
                    f" Replace it with an IDX file of {kind}."
                )
            if len(header) == header_size and 0 in shape:
                raise DataError(f"The file {path} contains no {kind}. Replace it with a non-empty file.")
            if size > MAX_IDX_SIZE:
                raise DataError(
                    f"The header of {path} requires {size:,} bytes, more than the limit of {MAX_IDX_SIZE:,}. {advice}"
                )
            contents = header + file.read(size - len(header) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Could not read {path} ({get_reason(error)}). {advice}") from error
    if len(contents) != size:
        number = f"more than {size}" if len(contents) > size else f"{len(contents)}"
        raise DataError(f"The file {path} has {number} bytes, but its header requires {size}. {advice}")
    return np.frombuffer(contents, dtype=np.uint8, offset=header_size).reshape(shape)


def _name_labels(folder: Path, split: str, labels: np.ndarray, path: Path) -> tuple[list[str], np.ndarray]:
    """Returns the class names and the class index of each label."""
    first = FIRST_LABELS[split]
    if labels[: len(first)].tolist() == first:
        check_label_range(labels, len(FASHION_MNIST_LABELS), path)
        return list(FASHION_MNIST_LABELS), labels
    logger.warning(
        "The labels in %s do not start like those of Fashion-MNIST, so the classes are called 0, 1 and so on.", path
    )
    distinct = np.unique(labels)
    # The other split can have additional classes, but may be missing.
    (other,) = FILE_PREFIXES.keys() - {split}
    with contextlib.suppress(DataError):
        other_labels = read_idx(_find_file(folder, f"{FILE_PREFIXES[other]}-labels", "idx1-ubyte"), "labels")
        distinct = np.union1d(distinct, other_labels)
    return list(map(str, distinct)), np.searchsorted(distinct, labels)


def _find_file(folder: Path, name: str, suffix: str) -> Path:
    for path in (folder / f"{name}{separator}{suffix}{gz}" for gz in ("", ".gz") for separator in "-."):
        if path.is_file():
            return path
    raise DataError(
        f"Could not find {name}-{suffix} or {name}-{suffix}.gz in the IDX folder {folder}. Add the file or pass a"
        " different folder."
    )


def _create_dataset(images: np.ndarray, labels: np.ndarray, features: datasets.Features) -> datasets.Dataset:
    # Dataset.from_dict takes seconds for 60,000 images, because it creates a Python object for each row of pixels.
    # Wrapping the existing buffer avoids this.
    import datasets
    import pyarrow as pa

    schema = features.arrow_schema
    image_type = schema.field("image").type
    _, height, width = images.shape
    rows = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), width)
    pixels = pa.FixedSizeListArray.from_arrays(rows, height).cast(image_type.storage_type)
    columns = [pa.ExtensionArray.from_storage(image_type, pixels), pa.array(labels, type=pa.int64())]
    return datasets.Dataset(pa.table(columns, schema=schema))
