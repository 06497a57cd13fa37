"""Finds the files of a folder and its splits."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from .errors import DataError, list_names


MAX_FOLDERS = 100_000
MAX_DEPTH = 32
# The files of a folder without splits are loaded for any split.
ANY_SPLIT = "*"
# Folders with these names, in upper or lower case, are splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}


@dataclass
class FolderContents:
    """
    Files of a folder and its subfolders, sorted by path.

    Attributes:
        folder (`Path`): The folder.
        files (`list[PurePath]`): Paths relative to the folder. Hidden files are left out.
        skipped (`list[tuple[str, str]]`): Paths of files that are not used, with the reasons.
    """

    folder: Path
    files: list[PurePath] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, file: PurePath, reason: str) -> None:
        self.skipped.append((str(self.folder / file), reason))

    def skip_others(self, files: Collection[PurePath], reason: str) -> None:
        """Skips all files except `files`."""
        used = set(files)
        for file in self.files:
            if file not in used:
                self.skip(file, reason)


def list_folder(folder: Path, ignored_files: Collection[str] = ()) -> FolderContents:
    """
    Lists the files of a folder and its subfolders. Symbolic links are followed.

    Args:
        folder (`Path`): The folder.
        ignored_files (`Collection[str]`): Names of files to leave out.

    Raises:
        `DataError`: If a folder cannot be read, or if there are too many.
    """
    contents = FolderContents(folder)
    num_folders = 0
    # Each entry has the path relative to `folder` and the identities of the folders above, which detect loops.
    pending: list[tuple[PurePath, tuple[tuple[int, int], ...]]] = [(PurePath(), ())]
    while pending:
        relative, parents = pending.pop()
        num_folders += 1
        if num_folders > MAX_FOLDERS or len(parents) > MAX_DEPTH:
            raise DataError(
                f"The folder {folder} must have at most {MAX_FOLDERS:,} subfolders, nested at most {MAX_DEPTH} levels"
                " deep. Pass a smaller folder."
            )
        path = folder / relative
        try:
            status = path.stat()
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"Could not read the folder {path} ({error.strerror}). Check its permissions.") from error
        identity = (status.st_dev, status.st_ino)
        if identity in parents:
            contents.skip(relative, "a symbolic link to a folder that contains it")
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in ignored_files:
                continue
            file = relative / entry.name
            _check_name(folder, file)
            # Unlike `DirEntry.is_dir`, `os.path.isdir` does not raise an error for a link to itself.
            if os.path.isdir(entry):
                pending.append((file, (*parents, identity)))
            # Broken links are listed too, so that the image reader reports them as errors.
            elif entry.is_symlink() or entry.is_file():
                contents.files.append(file)
            else:
                contents.skip(file, "not a regular file")
    contents.files.sort()
    contents.skipped.sort()
    return contents


def split_by_folder(folder: Path, files: Collection[PurePath]) -> tuple[dict[str, list[PurePath]] | None, int]:
    """
    Groups files by the split folder that contains them.

    Only top-level folders with a name in `SPLIT_NAMES` are splits, and only if every top-level folder is one of these.
    If there is only one top-level folder and it is not a split, the folders in it can be splits, and so on.

    Returns:
        `tuple[dict[str, list[PurePath]] | None, int]`: The files of each split, relative to `folder`, and the number
            of folders above the content of a split; `(None, 0)` if the folder has no splits.

    Raises:
        `DataError`: If there are files next to the split folders, or if several folders are the same split.
    """
    parent = PurePath()
    found: tuple[dict[str, list[PurePath]] | None, int] = None, 0
    while True:
        relative = {file.relative_to(parent): file for file in files}
        names = {file.parts[0] for file in relative}
        has_files = any(len(file.parts) == 1 for file in relative)
        if parent.parts and has_files:
            return found
        # Several splits in a folder like `training/` take precedence over this folder.
        if found[0] is None or len({SPLIT_NAMES.get(name.lower()) for name in names} - {None}) > 1:
            splits = _split_by_top_folder(folder / parent, relative)
            if splits is not None:
                parts = {name: [relative[file] for file in part] for name, part in splits.items()}
                found = parts, len(parent.parts) + 1
        if has_files or len(names) != 1:
            return found
        parent /= names.pop()


def _split_by_top_folder(folder: Path, files: Collection[PurePath]) -> dict[str, list[PurePath]] | None:
    names = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    split_names = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if not names or len(split_names) < len(names):
        return None
    splits: dict[str, list[PurePath]] = {}
    for split in dict.fromkeys(SPLIT_NAMES.values()):
        folders = [name for name in names if split_names[name] == split]
        if len(folders) > 1:
            raise DataError(
                f"The folder {folder} contains several folders for the split {split}: {', '.join(folders)}. Rename or"
                " remove all but one."
            )
        if folders:
            splits[split] = []
    misplaced = [str(file) for file in files if len(file.parts) == 1]
    if misplaced:
        raise DataError(
            f"The folder {folder} contains files next to its splits {', '.join(names)}: {list_names(misplaced)}. Move"
            " them into one of the splits."
        )
    for file in files:
        splits[split_names[file.parts[0]]].append(file)
    return splits


def _check_name(folder: Path, file: PurePath) -> None:
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(file).decode(errors="backslashreplace")
        raise DataError(f"The name of the file {name} in {folder} is not valid UTF-8. Rename it.") from error
