"""Runs of a pipeline: settings, steps, and the results that the page and API clients receive."""

import html
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


FRAME_COLUMNS = 12

Update = Any


@dataclass(frozen=True)
class Run:
    """The settings of a valid request, warnings about them, the captions of the images, and the generation steps."""

    settings: dict[str, Any]
    warnings: list[str]
    captions: list[str]
    steps: Generator[Step]


def show_warnings(*runs: Run) -> None:
    for warning in dict.fromkeys(warning for run in runs for warning in run.warnings):
        # Gradio renders HTML in the message, and the warning contains words of the prompt.
        gr.Warning(html.escape(warning, quote=False))


def get_positions(num_images: int) -> list[str]:
    """Returns the position of each image of an interpolation between the first and the last one."""
    return [f"{round(100 * i / max(1, num_images - 1))}%" for i in range(num_images)]


def enable_download(path: Path) -> Update:
    """Returns an update of a download button. Gradio copies the file when a handler yields the update."""
    return gr.update(value=str(path), interactive=True)


def disable_download() -> Update:
    # Gradio modifies the updates that a handler yields, so this must be a new object for each one.
    return gr.update(value=None, interactive=False)


def show_steps(run: Run, columns: int = 5) -> Iterator[tuple[Step, tuple[str, str]]]:
    """Yields each step with a gallery of its images and a progress bar."""
    with closing(run.steps):
        for step in run.steps:
            yield step, (markup.gallery(step.images, run.captions, columns), markup.progress_bar(step))


def show_live(run: Run, columns: int = 5) -> Iterator[tuple[str, str]]:
    """Yields a gallery and a progress bar: first the images that the first step predicts, then the final images."""
    with closing(run.steps):
        for step in run.steps:
            if step.number in (0, step.total):
                yield markup.gallery(step.predicted, run.captions, columns), markup.progress_bar(step)


def yield_final_grid(run: Run) -> Iterator[Update]:
    show_warnings(run)
    images = []
    with closing(run.steps):
        for step in run.steps:
            images = step.images
            yield None
    with tempfile.TemporaryDirectory() as folder:
        yield str(save_grid(images, GRID_COLUMNS, run.settings, Path(folder, "images.png")))
