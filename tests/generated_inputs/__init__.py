"""Generates random inputs and checks that each one leads to the expected result or error."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
from hypothesis.strategies import SearchStrategy

from . import configurations, folders, images, labels, model_folders


@dataclass(frozen=True)
class Kind:
    """
    A kind of input.

    Attributes:
        strategy: Generates inputs.
        check: Raises an error if the project handles an input incorrectly. It may write to the given folder.
    """

    strategy: SearchStrategy[Any]
    check: Callable[[Any, Path], None]


KINDS = {
    "folders": Kind(folders.image_folders(), folders.check_image_folder),
    "labels": Kind(labels.label_columns(), labels.check_label_column),
    "images": Kind(images.encoded_images(), images.check_encoded_image),
    "configurations": Kind(configurations.configurations(), configurations.check_configuration),
    "model folders": Kind(model_folders.model_folders(), model_folders.check_model_folder),
}


def check_input(kind: str, value: Any) -> None:
    """Checks how the project handles an input, in an empty folder and with an empty cache of `datasets`."""
    with tempfile.TemporaryDirectory(prefix="generated-inputs-") as folder:
        cache = Path(folder) / "cache"
        with mock.patch.object(datasets.config, "HF_DATASETS_CACHE", cache):
            KINDS[kind].check(value, Path(folder))
