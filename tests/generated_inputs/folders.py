"""Image folders: class folders, splits, links, hidden files, stray files and metadata files."""

import csv
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePath

import datasets
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from fmnist_diffusion.data import ImageStream, inspect_images, load_images, load_split

from .messages import get_result


SPLITS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
CLASS_FOLDERS = ("bus", "car", "0", "10", "2", "a b", "[v2]", "x::y", "ü", "__background__", "train", "Test", "a.png")
STEMS = ("a", "b", "shoe_train_6", "0", "test", "ü", "a.b", "*")
# Files without a known suffix are recognized by their contents.
IMAGE_SUFFIXES = (".png", ".PNG", ".jpg", ".gif", ".bmp", ".tif", ".webp", "", ".dat")
FORMATS = {".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP"}
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".7z")
OTHER_SUFFIXES = (".txt", ".json", ".csv", ".eps", ".parquet", "")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FAULTS = ("missing row", "additional row", "repeated row", "no file_name", "no rows")
NUM_LINKED = 2
LABELS = {"numbers": ("7", "30", "-1"), "names": ("shoe", "Bag", "ünder")}


@dataclass(frozen=True)
class ImageFolder:
    """
    An image folder.

    Attributes:
        name: Name of the folder.
        files: Contents of the files by their paths: image, damaged, text, archive, table, table with images, pipe,
            link to image, broken link, link to folder, link to parent or IDX.
        metadata: Name and kind of labels of the metadata files, and whether there is one in each folder.
        fault: What is wrong with the last metadata file.
        label_column: Argument of `load_images`.
    """

    name: str
    files: dict[str, str]
    metadata: tuple[str, str | None, bool] | None
    fault: str | None
    label_column: str | None


def is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePath(path).parts)


@st.composite
def folder_layouts(choose: st.DrawFn) -> list[PurePath]:
    """Generates the folders that contain images. Most of them form a valid layout."""
    classes = st.lists(st.sampled_from(CLASS_FOLDERS), min_size=1, max_size=3, unique=True)
    layout = choose(st.sampled_from(("classes", "classes", "flat", "splits", "nested", "mixed")))
    if layout == "flat":
        return [PurePath()]
    if layout == "classes":
        return [PurePath(name) for name in choose(classes)]
    if layout == "nested":
        return [PurePath(group, name) for group in choose(classes) for name in choose(classes)]
    if layout == "mixed":
        return choose(
            st.lists(st.lists(st.sampled_from(CLASS_FOLDERS), max_size=3), max_size=3).map(
                lambda folders: [PurePath(*parts) for parts in folders]
            )
        )
    splits = choose(st.lists(st.sampled_from(tuple(SPLITS)), min_size=1, max_size=3, unique=True))
    has_classes = choose(st.booleans())
    return [PurePath(split, name) for split in splits for name in (choose(classes) if has_classes else [""])]


@st.composite
def image_folders(choose: st.DrawFn) -> ImageFolder:
    folders = choose(folder_layouts())
    files: dict[str, str] = {}

    def add(path: PurePath, content: str) -> None:
        parents = {str(parent) for parent in path.parents}
        is_folder = any(str(path) in map(str, PurePath(other).parents) for other in files)
        if str(path) not in files and not is_folder and not parents & files.keys():
            files[str(path)] = content

    names = st.builds("{}{}".format, st.sampled_from(STEMS), st.sampled_from(IMAGE_SUFFIXES))
    for folder in folders:
        for name in choose(st.lists(names, min_size=1, max_size=3)):
            add(folder / name, "image")
    other_folders = [*folders, PurePath(), PurePath("other"), PurePath(".hidden"), PurePath("train")]
    extras = {
        "image": IMAGE_SUFFIXES,
        "damaged": (".png", ".jpg", ".gif"),
        "text": OTHER_SUFFIXES,
        "archive": ARCHIVE_SUFFIXES,
        "table": (".parquet",),
        "table with images": (".parquet",),
        "pipe": (".png", ""),
        "link to image": IMAGE_SUFFIXES,
        "broken link": (".png", ".txt"),
        "link to folder": ("",),
        "link to parent": ("", ".png"),
        "IDX": ("",),
    }
    for content in choose(st.lists(st.sampled_from(tuple(extras)), max_size=2)):
        stem = "train-images-idx3-ubyte" if content == "IDX" else choose(st.sampled_from(("c", ".c", *STEMS)))
        add(choose(st.sampled_from(other_folders)) / f"{stem}{choose(st.sampled_from(extras[content]))}", content)
    metadata = fault = None
    if choose(st.integers(0, 3)) == 0:
        kind = choose(st.sampled_from((None, *LABELS)))
        metadata = (choose(st.sampled_from(METADATA)), kind, choose(st.booleans()))
        fault = choose(st.sampled_from((None, None, *FAULTS)))
    name = choose(st.sampled_from(("data", "[v2]", "a::b", "train", ".cache", "*?")))
    return ImageFolder(name, files, metadata, fault, choose(st.sampled_from((None, None, "none"))))


def create_image(path: Path, value: int, suffix: str) -> None:
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}
    image_format = FORMATS.get(suffix.lower(), "PNG")
    PIL.Image.new("L", (8, 8), value).save(path, image_format, **options.get(image_format, {}))


def write_files(data: ImageFolder, root: Path, outside: Path) -> dict[str, int]:
    """Writes the files except metadata files, and returns the value of the pixels of each image that can be read."""
    for path in (root, outside / "linked"):
        path.mkdir(parents=True)
    values: dict[str, int] = {}

    def add_image(name: str, path: Path) -> None:
        values[name] = (37 * len(values) + 5) % 256
        create_image(path, values[name], path.suffix)

    for index, (name, content) in enumerate(data.files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == "image":
            add_image(name, path)
        elif content == "link to image":
            target = outside / f"{index}{path.suffix}"
            add_image(name, target)
            path.symlink_to(target)
        elif content == "link to folder":
            target = outside / str(index)
            target.mkdir()
            for number in range(NUM_LINKED):
                add_image(f"{name}/{number}.png", target / f"{number}.png")
            path.symlink_to(target)
        elif content == "link to parent":
            path.symlink_to(path.parent)
        elif content == "broken link":
            path.symlink_to(outside / "missing")
        elif content == "pipe":
            os.mkfifo(path)
        elif content.startswith("table"):
            column = [b"text"] if content == "table with images" else [0.5]
            pyarrow.parquet.write_table(pyarrow.table({"column": column}), path)
        else:
            path.write_bytes(b"text")
    return values


def write_metadata(data: ImageFolder, root: Path, images: list[str]) -> dict[str, str | None]:
    """Writes the metadata files and returns the label of each image."""
    assert data.metadata is not None
    name, kind, in_each_folder = data.metadata
    labels: dict[str, str | None] = {}
    tables: dict[PurePath, list[dict[str, str | int]]] = {}
    for index, image in enumerate(images):
        folder = PurePath(image).parent if in_each_folder else PurePath()
        labels[image] = None if kind is None else LABELS[kind][index % 3]
        row: dict[str, str | int] = {"file_name": str(PurePath(image).relative_to(folder))}
        label = labels[image]
        if label is not None:
            row["label"] = int(label) if kind == "numbers" else label
        tables.setdefault(folder, []).append(row)
    rows = tables[max(tables)]
    if data.fault == "missing row":
        rows.pop()
    elif data.fault == "additional row":
        rows.append(rows[0] | {"file_name": "missing.png"})
    elif data.fault == "repeated row":
        rows.append(rows[0])
    elif data.fault == "no file_name":
        rows[:] = [{"file": row["file_name"]} for row in rows]
    elif data.fault == "no rows":
        rows.clear()
    for folder, rows in tables.items():
        write_table(root / folder / name, rows)
    return labels


def write_table(path: Path, rows: list[dict[str, str | int]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0] if rows else ["file_name", "label"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def find_splits(images: list[str]) -> tuple[dict[str, list[str]] | None, int]:
    """Returns the images of each split folder, and the number of folders above the content of a split."""
    found: tuple[dict[str, list[str]] | None, int] = None, 0
    depth = 0
    while True:
        parts = {image: PurePath(image).parts[depth:] for image in images}
        tops = {names[0] for names in parts.values() if len(names) > 1}
        has_files = any(len(names) == 1 for names in parts.values())
        if depth and has_files:
            return found
        splits = {SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
        if tops and {top.lower() for top in tops} <= SPLITS.keys() and (found[0] is None or len(splits) > 1):
            split_of = {image: SPLITS.get(parts[image][0].lower()) for image in images}
            found = {split: [image for image in images if split_of[image] == split] for split in splits}, depth + 1
        if has_files or len(tops) != 1:
            return found
        depth += 1


def find_layout_errors(images: list[str], has_classes: bool) -> set[str]:
    """Returns names, one of which the error message must contain. There are none if the layout is valid."""
    splits, depth = find_splits(images)
    errors: set[str] = set()
    if splits is not None:
        tops = sorted({PurePath(image).parts[depth - 1] for image in images if len(PurePath(image).parts) > depth})
        for split in splits:
            folders = [top for top in tops if SPLITS[top.lower()] == split]
            if len(folders) > 1:
                errors.add(", ".join(folders))
        errors |= {image for image in images if len(PurePath(image).parts) == 1}
    for files in (splits or {"": images}).values() if has_classes else ():
        if len({len(PurePath(image).parts) for image in files}) > 1:
            errors |= set(files)
        parents = {PurePath(image).parent for image in files}
        counts = Counter(parent.name for parent in parents)
        errors |= {repr(name) for name, count in counts.items() if count > 1}
    return errors


def sort_names(names: set[str]) -> tuple[str, ...]:
    """Sorts class names: by value if all are numbers."""
    is_number = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int) if is_number else sorted(names))


def check_image_folder(data: ImageFolder, folder: Path) -> None:
    """Every image must be loaded with its label, or an error must name a file that prevents this."""
    root = folder / data.name
    values = write_files(data, root, folder / "outside")
    contents = {name: content for name, content in data.files.items() if not is_hidden(name)}
    unreadable = [
        name
        for name, content in contents.items()
        if content == "damaged" or (content == "broken link" and name.endswith(".png"))
    ]
    images = sorted([*(name for name in values if not is_hidden(name)), *unreadable])
    metadata_labels = None if data.metadata is None or not images else write_metadata(data, root, images)
    errors = find_layout_errors(images, data.label_column is None and metadata_labels is None)
    errors |= {name for name, content in contents.items() if content in ("archive", "table with images", "IDX")}
    if "IDX" in contents.values():
        errors.add("IDX files")
    if metadata_labels is not None and data.fault is not None:
        errors.add("metadata")
    if not images:
        errors = {data.name}
    splits, folders = (None, 0) if errors else find_splits(images)
    labels: dict[str, str | None] = {}
    for image in images:
        depth = len(PurePath(image).parts) - 1 - folders
        labels[image] = PurePath(image).parent.name if depth > 0 else None
    if data.label_column == "none":
        labels = dict.fromkeys(images)
    elif metadata_labels is not None:
        labels = metadata_labels
    class_names = sort_names({label for label in labels.values() if label is not None})
    skipped = {
        str(root / name)
        for name, content in contents.items()
        if content in ("text", "table", "pipe", "link to parent") or (content, name[-4:]) == ("broken link", ".txt")
    }
    arguments = {"train_data_dir": str(root), "label_column": data.label_column}
    for split in ("train", "test", "validation"):
        selected = images if splits is None else splits.get(split, [])
        split_errors = errors or ({split} if not selected else {name for name in unreadable if name in selected})
        summary = get_result(inspect_images, split_errors, split=split, **arguments)
        tensors = get_result(load_images, split_errors, split=split, **arguments)
        if summary is None or tensors is None:
            continue
        dataset = load_split(split=split, **arguments)
        paths = [
            os.path.relpath(row["path"], root)
            for row in dataset.cast_column("image", datasets.Image(decode=False))["image"]
        ]
        assert sorted(paths) == selected
        assert {path for path, _ in summary.skipped} == skipped
        assert (summary.num_images, summary.sizes) == (len(selected), {(8, 8): len(selected)})
        expected = np.array([values[path] for path in paths])
        assert np.abs(tensors.images.numpy() - expected[:, None, None, None]).max() <= 1
        if tensors.labels is None:
            assert summary.label_names is tensors.label_names is None
            assert all(labels[path] is None for path in paths)
        else:
            assert tensors.label_names == summary.label_names == class_names
            assert [class_names[index] for index in tensors.labels] == [labels[path] for path in paths]
            counts = Counter(labels[path] for path in paths)
            assert summary.class_counts == tuple(counts[name] for name in class_names)
        stream = ImageStream(dataset, resolution=8, channels=1)
        assert all((stream[index]["images"] == tensors.images[index]).all() for index in range(len(stream)))
