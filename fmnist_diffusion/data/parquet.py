"""Reader of parquet files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, cast

from .datasets_utils import import_datasets
from .errors import DataError, get_reason, list_names
from .folders import ANY_SPLIT, SPLIT_NAMES, split_by_folder


if TYPE_CHECKING:
    import datasets
    import pyarrow.parquet as pq

MAX_ROWS = 20_000_000
MAX_ROW_GROUP_SIZE = 1024**3  # decoded bytes
MAX_BATCH_SIZE = 128 * 1024**2  # decoded bytes
VALUE_SIZE = 8  # maximum number of bytes of a decoded number
# The Hub names files like train-00000-of-00002.parquet.
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]+)?", re.ASCII)


def has_images(path: Path) -> bool:
    """Returns whether a parquet file has a column of encoded images."""
    import_datasets()
    import pyarrow as pa
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, ValueError, NotImplementedError, pa.ArrowException):
        return False
    types = [field.type for field in schema]
    return any(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        for kind in types
    )


def group_files(folder: Path, files: list[PurePath]) -> dict[str, list[PurePath]]:
    """
    Groups the parquet files of a folder by split.

    If there are split folders, they determine the split of each file (see [`split_by_folder`]). Otherwise, if every
    file name contains one of the words in `SPLIT_NAMES`, such as test-00000-of-00001.parquet, this word is the split
    of the file. In all other cases, all files belong to one split.

    Raises:
        `DataError`: If the folder has several configurations, or if it has several splits and some files belong to
            none of them.
    """
    splits, _ = split_by_folder(folder, files)
    if splits is not None:
        return splits
    _check_one_configuration(folder, files)
    names = {file: _get_split(file) for file in files}
    known = {name for name in names.values() if name is not None}
    if known:
        # Other splits, such as unlabeled-00000-of-00001.parquet, follow the naming scheme of the Hub.
        shards = {file: SHARD.fullmatch(file.stem) for file in files}
        if all(shards.values()):
            names = {file: names[file] or match[1] for file, match in shards.items() if match}
    others = [str(file) for file, name in names.items() if name is None]
    if others and len(known) > 1:
        raise DataError(
            f"The folder {folder} contains parquet files of the splits {', '.join(sorted(known))} and files that"
            f" belong to no split: {list_names(others)}. Rename or move these files."
        )
    if others:
        return {ANY_SPLIT: files}
    order = list(SPLIT_NAMES.values())
    splits = sorted({str(name) for name in names.values()})
    splits.sort(key=lambda name: order.index(name) if name in order else len(order))
    return {split: [file for file, name in names.items() if name == split] for split in splits}


def load_parquet(source: Path, files: dict[str, list[Path]]) -> dict[str, datasets.Dataset]:
    """Loads parquet files through the cache of `datasets`."""
    import_datasets()
    from datasets.exceptions import DatasetsError

    for path in [path for paths in files.values() for path in paths]:
        _check_size(path)
    try:
        return {split: _load_files(split, paths) for split, paths in files.items()}
    except (DatasetsError, OSError, TypeError, ValueError, NotImplementedError) as error:
        # The message of a DatasetGenerationError is generic. Its cause is the error of the reader.
        reason = get_reason(error.__cause__ or error)
        raise DataError(f"Could not read {source} as parquet data ({reason}). Check its files.") from error


def _load_files(split: str, paths: list[Path]) -> datasets.Dataset:
    import datasets
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.parquet.parquet import Parquet

    # The split names of `datasets` must be identifiers.
    name = "train" if split == ANY_SPLIT else re.sub(r"\W+", "_", split)
    # load_dataset would interpret paths that contain [, * or :: as patterns.
    files = DataFilesList([_get_path(path) for path in paths], [_get_version(path) for path in paths])
    builder = Parquet(data_files=DataFilesDict({name: files}))
    builder.download_and_prepare()
    return cast(datasets.Dataset, builder.as_dataset(name))


def _check_one_configuration(folder: Path, files: list[PurePath]) -> None:
    """Raises an error if several top-level folders contain split folders or files of the same split."""
    common = os.path.commonpath([file.parent for file in files])
    parents = [file.relative_to(common).parent for file in files]
    has_splits = any(part.lower() in SPLIT_NAMES for parent in parents for part in parent.parts[1:])
    shards = [file.name for file in files if SHARD.fullmatch(file.stem) or _get_split(file)]
    if has_splits or len(shards) > len(set(shards)):
        names = list_names(sorted({str(file.parent) for file in files}))
        raise DataError(
            f"The folder {folder} contains several configurations or splits in the folders {names}. Pass a folder with"
            " a single configuration."
        )


def _get_split(file: PurePath) -> str | None:
    splits = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", file.stem.lower()) if word in SPLIT_NAMES}
    return splits.pop() if len(splits) == 1 else None


def _get_path(path: Path) -> str:
    """Returns an absolute path that fsspec can open. It is a link if the path contains `::`, fsspec's separator."""
    from datasets import config

    absolute = os.path.abspath(path)
    if "::" not in absolute:
        return absolute
    link = Path(config.HF_DATASETS_CACHE) / "links" / f"{hashlib.sha256(absolute.encode()).hexdigest()}.parquet"
    link.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(absolute)
    return str(link)


def _get_version(path: Path) -> tuple[str, str]:
    status = path.stat()
    return str(status.st_mtime_ns), str(status.st_size)


def _check_size(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            num_rows = file.metadata.num_rows
            size = max((_get_size(file, index) for index in range(file.num_row_groups)), default=0)
    except (OSError, ValueError, NotImplementedError, pa.ArrowException) as error:
        raise DataError(f"Could not read {path} as parquet data ({get_reason(error)}). Check the file.") from error
    if num_rows == 0:
        raise DataError(f"The file {path} contains no rows. Remove it or replace it.")
    if num_rows > MAX_ROWS:
        raise DataError(f"The file {path} has {num_rows:,} rows, more than the limit of {MAX_ROWS:,}. Split it.")
    if size > MAX_ROW_GROUP_SIZE:
        raise DataError(
            f"The file {path} has a row group of at least {size:,} bytes after decoding, more than the limit of"
            f" {MAX_ROW_GROUP_SIZE:,}. Write it again with smaller row groups."
        )


def _get_size(file: pq.ParquetFile, index: int) -> int:
    """Returns a lower bound of the decoded size of a row group in bytes, which shows whether it exceeds the limit."""
    row_group = file.metadata.row_group(index)
    columns = [row_group.column(number) for number in range(row_group.num_columns)]
    bytes_columns = [column for column in columns if column.physical_type == "BYTE_ARRAY"]
    numbers_size = sum(
        column.num_values * max(VALUE_SIZE, file.schema.column(number).length)
        for number, column in enumerate(columns)
        if column.physical_type != "BYTE_ARRAY"
    )
    size = max(row_group.total_byte_size, numbers_size)
    # Parquet can store a repeated value only once, so each decoded value can be as large as the whole encoded column.
    max_row_size = sum(column.total_uncompressed_size for column in bytes_columns)
    if size > MAX_ROW_GROUP_SIZE or row_group.num_rows * max_row_size <= MAX_ROW_GROUP_SIZE:
        return size
    batches = file.iter_batches(
        batch_size=max(1, MAX_BATCH_SIZE // max_row_size),
        row_groups=[index],
        columns=[column.path_in_schema for column in bytes_columns],
    )
    size = numbers_size
    for batch in batches:
        size += batch.nbytes
        if size > MAX_ROW_GROUP_SIZE:
            break
    return size
