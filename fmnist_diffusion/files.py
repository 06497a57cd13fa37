"""Finds source folders, and writes files and folders atomically."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError


if TYPE_CHECKING:
    import torch


INCOMPLETE, DELETED, PREVIOUS = ".incomplete-", ".deleted-", ".previous-"


def find_source_folder(name: str) -> Path:
    """Returns the folder `space` or `training`. It is inside the package in a wheel, and next to it in a checkout."""
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


class WriteError(OSError):
    """A file or folder could not be written, for example because the disk is full."""


@contextmanager
def describe_write_errors(path: Path) -> Iterator[None]:
    """Turns each `OSError` and `SafetensorError` into a [`WriteError`] that names `path` or a file in it."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        # The name of a temporary file or of the source of a copy would not help the user.
        name = str(error.filename) if str(error.filename).startswith(str(path)) else str(path)
        raise WriteError(f"Could not write {name}: {error.strerror or error}.") from error
    except SafetensorError as error:
        # This is how `safetensors.torch.save_file` reports a full disk.
        raise WriteError(f"Could not write {path}: {error}.") from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file with the default permissions. `save_file` makes it readable for its owner only."""
    from safetensors.torch import save

    contents = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.write_bytes(save(contents, None if metadata is None else dict(metadata)))


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Provides a temporary path beside `path` with the same suffix. After the block, the file is written to disk and
    renamed to `path`, which is therefore always complete.

    Raises:
        `WriteError`: If the file cannot be written. In this case, `path` is unchanged.
    """
    temporary = get_temporary_path(path)
    with describe_write_errors(path):
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Provides a new, empty folder beside `folder`. After the block, its files are written to disk and it takes the
    place of `folder`.

    An interruption between the two renames leaves the previous folder under another name, which
    [`remove_temporary_files`] reverts.

    Raises:
        `WriteError`: If a file cannot be written. In this case, `folder` is unchanged.
    """
    with describe_write_errors(folder):
        # Neither "." nor a symbolic link can be renamed in place of the folder that it refers to.
        folder = folder.resolve()
        temporary, previous = get_temporary_path(folder), folder.with_name(f"{PREVIOUS}{folder.name}")
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                sync(path)
            if folder.exists():
                # An interrupted call may have left `previous`, which `rename` would not replace.
                if previous.exists():
                    remove_folder(previous)
                folder.rename(previous)
            temporary.rename(folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if previous.exists() and not folder.exists():
                previous.rename(folder)
            raise
        if previous.exists():
            remove_folder(previous)


def remove_folder(folder: Path) -> None:
    """Removes `folder`. An interruption leaves either the complete folder or one with a different name.

    Raises:
        `WriteError`: If the folder cannot be renamed. Files that cannot be deleted remain under a different name.
    """
    deleted = folder.with_name(f"{DELETED}{secrets.token_hex(4)}-{folder.name}")
    with describe_write_errors(folder):
        folder.rename(deleted)
    # On NFS, files that another process has open cannot be deleted yet. `remove_temporary_files` deletes them later.
    shutil.rmtree(deleted, ignore_errors=True)


def remove_temporary_files(folder: Path) -> None:
    """Removes temporary files that interrupted calls of this module left in `folder`, and restores replaced folders.

    No other process may write to `folder` at the same time.

    Raises:
        `WriteError`: If a file cannot be removed.
    """
    with describe_write_errors(folder):
        for previous in folder.glob(f"{PREVIOUS}*"):
            target = folder / previous.name.removeprefix(PREVIOUS)
            if target.exists():
                remove_folder(previous)
            else:
                previous.rename(target)
        for pattern in (f"{INCOMPLETE}*", f"{DELETED}*"):
            for path in folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until the file or folder `path` is written to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support fsync on folders.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def get_temporary_path(path: Path) -> Path:
    # A process id is not unique, because processes on other machines or in other containers can write to the same
    # folder.
    return path.with_name(f"{INCOMPLETE}{secrets.token_hex(4)}-{path.name}")
