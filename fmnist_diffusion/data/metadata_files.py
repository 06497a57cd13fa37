"""Reader of the metadata files of image folders: metadata.csv, metadata.jsonl or metadata.parquet."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from .datasets_utils import import_datasets
from .errors import DataError, get_reason, list_names


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
MAX_METADATA_SIZE = 1024**3  # bytes
FILE_NAME = "file_name"


def load_metadata(
    folder: Path, metadata: list[PurePath], images: list[PurePath], splits: dict[str, list[PurePath]]
) -> dict[str, datasets.Dataset]:
    """
    Loads the images of a folder with the columns of its metadata files.

    The format is that of `datasets`: the column `file_name` contains the path of the image relative to the metadata
    file. A metadata file may be in the folder itself, in a split or in a subfolder.

    Raises:
        `DataError`: If a metadata file is invalid, if an image is missing, or if an image is not listed.
    """
    folders = [file.parent for file in metadata]
    for parent in folders:
        if folders.count(parent) > 1:
            raise DataError(f"The folder {folder / parent} contains several metadata files. Remove all but one.")
    tables = [_read_table(folder, file) for file in metadata]
    split_names = {file: split for split, files in splits.items() for file in files}
    # macOS decomposes accented letters in file names. An exact match takes precedence.
    paths = {unicodedata.normalize("NFC", str(file)): file for file in images} | {str(file): file for file in images}
    rows: dict[str, list[tuple[int, int]]] = {split: [] for split in splits}
    listed: dict[PurePath, PurePath] = {}
    for table_index, (file, table) in enumerate(zip(metadata, tables, strict=True)):
        for row, name in enumerate(table[FILE_NAME].to_pylist()):
            image = None if name is None else _find_image(file.parent, str(name), paths)
            if image is None:
                raise DataError(f"Could not find the image {name} that {folder / file} lists. Remove its row.")
            if image in listed:
                raise DataError(
                    f"The metadata file {folder / file} lists the image {image}, which is already listed. Remove one"
                    " of the two rows."
                )
            listed[image] = file
            rows[split_names[image]].append((table_index, row))
    missing = [str(image) for image in images if image not in listed]
    if missing:
        raise DataError(
            f"The metadata files of {folder} do not list {list_names(missing)}. Add rows or remove the images."
        )
    return {split: _create_dataset(folder, metadata, tables, rows[split], paths) for split in splits}


def _find_image(parent: PurePath, name: str, paths: Mapping[str, PurePath]) -> PurePath | None:
    path = os.path.normpath(parent / name)
    return paths.get(path) or paths.get(unicodedata.normalize("NFC", path))


def _read_table(folder: Path, file: PurePath) -> pa.Table:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    path = folder / file
    try:
        if path.stat().st_size > MAX_METADATA_SIZE:
            raise ValueError(f"it is larger than the limit of {MAX_METADATA_SIZE:,} bytes")
        with path.open("rb") as opened:
            if file.suffix == ".csv":
                table = pyarrow.csv.read_csv(
                    opened,
                    parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                    convert_options=pyarrow.csv.ConvertOptions(column_types={FILE_NAME: pa.string()}),
                )
                # pyarrow reads a column of text in a different encoding as binary data.
                if any(pa.types.is_binary(column_type) for column_type in table.schema.types):
                    raise ValueError("it is not encoded in UTF-8")
                table = _empty_to_null(table)
            elif file.suffix == ".jsonl":
                table = pyarrow.json.read_json(opened)
            else:
                table = _cast_views(pyarrow.parquet.read_table(opened))
    except (OSError, ValueError, NotImplementedError, pa.ArrowException) as error:
        raise DataError(f"Could not read the metadata file {path} ({get_reason(error)}). Fix or remove it.") from error
    if FILE_NAME not in table.column_names:
        raise DataError(
            f"Could not find the column {FILE_NAME} in the metadata file {path}. Add it with the paths of the images"
            " relative to this file, or rename the file."
        )
    if table.num_rows == 0:
        raise DataError(f"The metadata file {path} lists no images. Fix or remove it.")
    return table


def _empty_to_null(table: pa.Table) -> pa.Table:
    """Replaces the empty strings that pyarrow reads from empty cells of string columns."""
    import pyarrow as pa

    for index, (name, values) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if pa.types.is_string(values.type) and name != FILE_NAME:
            values = pa.array([value or None for value in values.to_pylist()], values.type)
            table = table.set_column(index, name, values)
    return table


def _cast_views(table: pa.Table) -> pa.Table:
    """Casts columns of the type `string_view`, whose rows pyarrow cannot select."""
    import pyarrow as pa

    fields = [
        field.with_type(pa.large_string()) if field.type == pa.string_view() else field for field in table.schema
    ]
    # The metadata of the schema contains the class names of `ClassLabel` columns.
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def _create_dataset(
    folder: Path,
    metadata: list[PurePath],
    tables: list[pa.Table],
    rows: list[tuple[int, int]],
    paths: Mapping[str, PurePath],
) -> datasets.Dataset:
    datasets = import_datasets()
    import pyarrow as pa

    parts = []
    for table_index, (file, table) in enumerate(zip(metadata, tables, strict=True)):
        indices = [row for index, row in rows if index == table_index]
        if not indices:
            continue
        try:
            part = table.take(indices)
        except NotImplementedError as error:
            raise DataError(
                f"Could not read the metadata file {folder / file} ({get_reason(error)}). Remove columns of this type."
            ) from error
        for name in part.column_names:
            if name == FILE_NAME or name.endswith(f"_{FILE_NAME}"):
                values = part[name].to_pylist()
                wrong = next((value for value in values if not isinstance(value, str | None)), None)
                if wrong is not None:
                    raise DataError(
                        f"The column {name} of {folder / file} must contain file names, got {wrong!r}. Rename the"
                        " column if it does not refer to images."
                    )
                rows_of_images = [
                    {
                        "bytes": None,
                        "path": str(folder / (_find_image(file.parent, value, paths) or file.parent / value)),
                    }
                    if value
                    else None
                    for value in values
                ]
                images = pa.array(rows_of_images, type=datasets.Image().pa_type)
                column = name.removesuffix(FILE_NAME).removesuffix("_") or "image"
                index = part.column_names.index(name)
                if column in part.column_names:
                    raise DataError(
                        f"The metadata file {folder / file} contains both {name} and {column}. Rename the second."
                    )
                part = part.set_column(index, column, images)
        parts.append(part)
    try:
        features = [datasets.Features.from_arrow_schema(part.schema) for part in parts]
        for name in features[0]:
            labels = [item[name] for item in features if isinstance(item.get(name), datasets.ClassLabel)]
            if len({tuple(label.names) for label in labels}) > 1:
                raise ValueError(f"the column {name} has different class names")
        table = pa.concat_tables(parts, promote_options="permissive")
        features = datasets.Features.from_arrow_schema(table.schema)
        for column, feature in features.items():
            if feature == {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}:
                features[column] = datasets.Image()
        return datasets.Dataset(table.cast(features.arrow_schema))
    except (TypeError, ValueError, LookupError, AttributeError, NotImplementedError, pa.ArrowException) as error:
        raise DataError(
            f"Could not combine the metadata files of {folder} ({get_reason(error)}). Use the same columns and types"
            " in all of them."
        ) from error
