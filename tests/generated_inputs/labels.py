"""Label columns of all types, in parquet files and metadata files."""

import datetime
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.csv
import pyarrow.parquet
from hypothesis import strategies as st

from fmnist_diffusion.data import inspect_images, load_images, load_split

from .folders import create_image
from .messages import get_result


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
STRINGS = st.sampled_from(("cat", "Dog", "10", "9", "", "01", "1", "²", "none", "-1", "null", "a" * 300)) | TEXT


def integers(bits: int, is_signed: bool) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    return st.sampled_from((low, high, 0, 1)) | st.integers(max(low, -3), 12) | st.integers(low, high)


# Labels of these types are classes.
CLASS_TYPES: dict[str, tuple[pyarrow.DataType, st.SearchStrategy[Any]]] = {
    "bool": (pyarrow.bool_(), st.booleans()),
    "string": (pyarrow.string(), STRINGS),
    "large_string": (pyarrow.large_string(), STRINGS),
    "string_view": (pyarrow.string_view(), STRINGS),
    "dictionary of strings": (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), STRINGS),
    "dictionary of integers": (pyarrow.dictionary(pyarrow.int32(), pyarrow.int64()), integers(64, True)),
    **{f"int{bits}": (pyarrow.from_numpy_dtype(f"int{bits}"), integers(bits, True)) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (pyarrow.from_numpy_dtype(f"uint{bits}"), integers(bits, False)) for bits in (8, 16, 32, 64)},
}
NUMBERS = st.integers(-2, 9)
DATES = st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1))
TIMES = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))
OTHER_TYPES: dict[str, tuple[pyarrow.DataType, st.SearchStrategy[Any]]] = {
    "float16": (pyarrow.float16(), st.floats(width=16)),
    "float32": (pyarrow.float32(), st.floats(width=32)),
    "float64": (pyarrow.float64(), st.floats() | NUMBERS.map(float)),
    "decimal": (pyarrow.decimal128(5, 1), NUMBERS.map(Decimal)),
    "date32": (pyarrow.date32(), DATES),
    "date64": (pyarrow.date64(), DATES),
    "timestamp": (pyarrow.timestamp("us"), TIMES),
    "timestamp in UTC": (pyarrow.timestamp("ns", "UTC"), TIMES),
    "time": (pyarrow.time64("us"), st.times()),
    "duration": (pyarrow.duration("s"), NUMBERS.map(lambda seconds: datetime.timedelta(seconds=seconds))),
    "binary": (pyarrow.binary(), st.binary(max_size=4)),
    "fixed_size_binary": (pyarrow.binary(2), st.binary(min_size=2, max_size=2)),
    "list": (pyarrow.list_(pyarrow.int64()), st.lists(NUMBERS | st.none(), max_size=3)),
    "list of 2": (pyarrow.list_(pyarrow.int8(), 2), st.lists(NUMBERS, min_size=2, max_size=2)),
    "list of strings": (pyarrow.list_(pyarrow.string()), st.lists(STRINGS, max_size=2)),
    "struct": (pyarrow.struct([("a", pyarrow.int8())]), st.fixed_dictionaries({"a": NUMBERS})),
    "null": (pyarrow.null(), st.none()),
}
TYPES = CLASS_TYPES | OTHER_TYPES
CONTAINERS = ("file", "files", "folders", "metadata.parquet", "metadata.jsonl", "metadata.csv", "ClassLabel")
IMAGE_TYPE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@dataclass(frozen=True)
class LabelColumn:
    """
    Labels of images.

    Attributes:
        container: The files of the images and labels, one of `CONTAINERS`.
        column: Name of the column.
        argument: Argument `label_column` of `load_images`.
        types: Type of the labels of each split.
        labels: Labels of each split.
    """

    container: str
    column: str
    argument: str | None
    types: dict[str, str]
    labels: dict[str, list[Any]]


@st.composite
def label_columns(choose: st.DrawFn) -> LabelColumn:
    container = choose(st.sampled_from(CONTAINERS))
    names = {"metadata.csv": ("string", "int64", "bool"), "metadata.jsonl": ("string", "int64", "bool", "float64")}
    groups = st.sampled_from((tuple(CLASS_TYPES), tuple(CLASS_TYPES), tuple(OTHER_TYPES)))
    name = choose(st.sampled_from(names[container]) if container in names else groups.flatmap(st.sampled_from))
    if container == "ClassLabel":
        name = "int64"
    types = {split: name for split in ("train", "test") if container in ("files", "folders") or split == "train"}
    if "test" in types and choose(st.integers(0, 3)) == 0:
        types["test"] = choose(st.sampled_from(tuple(TYPES)))
    labels = {}
    for split, type_name in types.items():
        values = TYPES[type_name][1]
        if container == "metadata.csv" and name == "string":
            # A CSV file does not distinguish strings from other values.
            values = st.sampled_from(("cat", "Dog", "a,b", 'a"b', "ünder", "x\ny"))
        elif container == "metadata.jsonl":
            # JSON has no infinite values, and pyarrow parses strings of dates.
            values = {"string": st.sampled_from(("cat", "Dog", "10", "", "ünder")), "float64": st.just(0.5)}.get(
                name, values
            )
        elif container == "ClassLabel":
            values = st.integers(-1, 4)
        missing = choose(st.integers(0, 5)) == 0 and not container.startswith("metadata.")
        labels[split] = choose(st.lists(values | st.none() if missing else values, min_size=1, max_size=6))
    column = choose(st.sampled_from(("label", "label", "class", "a b", "ünder")))
    arguments = [None, "none", *([column, column] if column != "label" or container != "ClassLabel" else [])]
    return LabelColumn(container, column, choose(st.sampled_from(arguments)), types, labels)


def write_labels(data: LabelColumn, folder: Path) -> Path:
    """Writes the images and labels, and returns the path to load. The pixels of image i have the value i."""
    images = folder / "images"
    images.mkdir()
    for index in range(max(map(len, data.labels.values()))):
        create_image(images / f"{index}.png", index, ".png")
    if data.container.startswith("metadata."):
        names = [f"{index}.png" for index in range(len(data.labels["train"]))]
        table = pyarrow.table({"file_name": names, data.column: make_array(data, "train")})
        path = images / data.container
        if data.container == "metadata.csv":
            pyarrow.csv.write_csv(table, path)
        elif data.container == "metadata.jsonl":
            path.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()), encoding="utf-8")
        else:
            pyarrow.parquet.write_table(table, path)
        return images
    root = folder / "data"
    for split in data.labels:
        path = root / (f"{split}/0.parquet" if data.container == "folders" else f"{split}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = [
            {"bytes": (images / f"{index}.png").read_bytes(), "path": None} for index in range(len(data.labels[split]))
        ]
        table = pyarrow.table({"image": pyarrow.array(encoded, IMAGE_TYPE), data.column: make_array(data, split)})
        if data.container == "ClassLabel":
            features = datasets.Features(
                {"image": datasets.Image(), data.column: datasets.ClassLabel(names=["d", "c", "b", "a"])}
            )
            table = table.cast(features.arrow_schema)
        pyarrow.parquet.write_table(table, path)
    return root / "train.parquet" if data.container in ("file", "ClassLabel") else root


def make_array(data: LabelColumn, split: str) -> pyarrow.Array:
    return pyarrow.array(data.labels[split], TYPES[data.types[split]][0])


def has_missing(values: Iterable[Any]) -> bool:
    return any(value is None for value in values)


def sort_classes(values: Iterable[Any]) -> list[Any]:
    """Sorts classes: by value if they are numbers or strings of digits."""
    values = set(values)
    if all(isinstance(value, str) and value.isascii() and value.isdigit() for value in values):
        return sorted(values, key=lambda value: (int(value), len(value), value))
    return sorted(values)


def find_label_errors(data: LabelColumn, split: str) -> set[str]:
    """Returns names, one of which the error message must contain. There are none if the labels are valid."""
    labels, type_name = data.labels[split], data.types[split]
    column = repr(data.column)
    if has_missing(labels):
        return {column}
    if data.container == "ClassLabel":
        return set() if all(0 <= label <= 3 for label in labels) else {"labels"}
    if type_name in OTHER_TYPES:
        return {column}
    kinds = {get_kind(name) for name in data.types.values()} - {"null"}
    return {column} if len(kinds) > 1 else set()


def get_kind(type_name: str) -> str:
    if "string" in type_name and type_name in CLASS_TYPES:
        return "strings"
    return "integers" if "int" in type_name else type_name


def check_label_column(data: LabelColumn, folder: Path) -> None:
    """The classes must be the sorted distinct labels, or an error must name the column."""
    path = write_labels(data, folder)
    arguments = {"train_data_dir": str(path), "label_column": data.argument}
    is_found = data.argument is not None or data.column == "label" or data.container == "ClassLabel"
    for split, labels in data.labels.items():
        is_used = is_found and data.argument != "none"
        errors = find_label_errors(data, split) if is_used else set()
        tensors = get_result(load_images, errors, split=split, **arguments)
        summary = get_result(inspect_images, errors, split=split, **arguments)
        dataset = get_result(load_split, errors, split=split, **arguments)
        if tensors is None or summary is None or dataset is None:
            continue
        assert tensors.images[:, 0, 0, 0].tolist() == list(range(len(labels)))
        if not is_used:
            assert tensors.labels is tensors.label_names is summary.class_counts is None
            assert dataset.column_names == ["image"]
            continue
        if data.container == "ClassLabel":
            names = ("d", "c", "b", "a")
            expected = labels
        else:
            classes = sort_classes(value for values in data.labels.values() for value in values if value is not None)
            names = tuple(map(str, classes))
            expected = [classes.index(label) for label in labels]
        assert tensors.label_names == tuple(dataset.features["label"].names) == summary.label_names == names
        assert tensors.labels.tolist() == dataset["label"][:] == expected
        counts = Counter(expected)
        assert summary.class_counts == tuple(counts[index] for index in range(len(names)))
