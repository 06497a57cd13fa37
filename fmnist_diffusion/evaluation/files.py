"""Writes files so that interruptions leave no incomplete files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Provides a temporary path in the folder of `path`, and renames it to `path` after the block has written it."""
    temporary = path.with_suffix(f".{os.getpid()}")
    yield temporary
    temporary.replace(path)
