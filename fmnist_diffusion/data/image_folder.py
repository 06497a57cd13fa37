"""Reader of image folders such as `train/CLASS/NAME.png`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .datasets_utils import import_datasets, load_files


if TYPE_CHECKING:
    import datasets


def is_image_folder(folder: Path) -> bool:
    import_datasets()
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    return any(path.suffix.lower() in ImageFolder.EXTENSIONS for path in folder.rglob("*"))


def load_image_folder(folder: Path) -> dict[str, datasets.Dataset]:
    return load_files("imagefolder", folder, data_dir=str(folder))
