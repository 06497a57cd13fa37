"""The output folder of an evaluation."""

import json
from pathlib import Path
from typing import Any

from fmnist_diffusion.files import INCOMPLETE, describe_write_errors, write_atomically


def prepare_folder(folder: Path, settings: dict[str, Any]) -> None:
    """
    Creates `folder` with a `settings.json`, or accepts the folder of an earlier run with the same settings.

    A folder that only contains the `settings.json` of a different run is reused, because that run saved no samples.

    Raises:
        `ValueError`: If the folder contains other files.
        `WriteError`: If the folder cannot be written to.
    """
    path = folder / "settings.json"
    text = json.dumps(settings, indent=2) + "\n"
    found = path.read_text() if path.is_file() else ""
    if found == text:
        return
    # The first key identifies a settings.json of this program.
    is_unused_run = found.startswith(text.partition(":")[0])
    # A killed run can leave incomplete files.
    if folder.exists() and not (
        folder.is_dir()
        and all(file.name.startswith(INCOMPLETE) or (file == path and is_unused_run) for file in folder.iterdir())
    ):
        raise ValueError(
            f"The folder {folder} contains a different run or other files. Pass a different `output_dir`, or resume"
            " that run with its settings."
        )
    with describe_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
