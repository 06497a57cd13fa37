"""Reader of parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .datasets_utils import load_files


if TYPE_CHECKING:
    import datasets


def is_parquet_folder(folder: Path) -> bool:
    return any(path.suffix.lower() == ".parquet" for path in folder.rglob("*"))


def load_parquet(path: Path, split: str) -> dict[str, datasets.Dataset]:
    """Loads all splits of a folder, or one file as the requested split."""
    if path.is_dir():
        return load_files("parquet", path, data_dir=str(path))
    return load_files("parquet", path, data_files={split: str(path)})
