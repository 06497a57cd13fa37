"""Runs of a pipeline: settings, steps, and the results that the page and API clients receive."""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

import markup
from downloads import GRID_COLUMNS, save_grid
from engine import Step


# Number of frames of an interpolation per row.
FRAME_COLUMNS = 12

Update = Any


@dataclass(frozen=True)
class Run:
    """The settings of a valid request, the captions of its images, and the steps of its generation."""

    settings: dict[str, Any]
    captions: list[str]
    steps: Generator[Step]


def get_positions(num_images: int) -> list[str]:
    """Returns the position of each image of an interpolation between the first and the last one."""
    return [f"{round(100 * i / max(1, num_images - 1))}%" for i in range(num_images)]


def enable_download(path: Path) -> Update:
    """Returns an update of a download button. Gradio copies the file when a handler yields the update."""
    return gr.update(value=str(path), interactive=True)


def disable_download() -> Update:
    # Gradio modifies the updates that a handler yields, so this must be a new object for each one.
    return gr.update(value=None, interactive=False)


def show_live(run: Run, columns: int = 5) -> Iterator[tuple[str, str]]:
    """Yields a gallery and a progress bar: first the images that the first step predicts, then the final images."""
    with closing(run.steps):
        for step in run.steps:
            if step.number in (0, step.total):
                yield markup.gallery(step.predicted, run.captions, columns), markup.progress_bar(step)


def yield_final_grid(run: Run) -> Iterator[Update]:
    images = []
    with closing(run.steps):
        for step in run.steps:
            images = step.images
            yield None
    with tempfile.TemporaryDirectory() as folder:
        yield str(save_grid(images, GRID_COLUMNS, run.settings, Path(folder, "images.png")))
