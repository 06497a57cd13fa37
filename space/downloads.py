"""Files of the generated images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine import Step
from fmnist_diffusion.images import image_grid, save_gif, upscale


# Images are enlarged by an integer factor of at most 8, and to at most 224 pixels per side.
MAX_GRID_SCALE, MAX_GRID_CELL = 8, 224
GRID_COLUMNS, STRIP_COLUMNS = 10, 10
MAX_GIF_FRAMES, GIF_CELL_SIZE = 40, 112


def get_scale(image: Image.Image) -> int:
    return min(MAX_GRID_SCALE, max(1, MAX_GRID_CELL // max(image.size)))


def save_grid(images: Sequence[Image.Image], columns: int, settings: dict[str, Any], path: Path) -> Path:
    """Saves a grid of the images as a PNG, with the settings in its text chunk `parameters`."""
    info = PngInfo()
    info.add_text("parameters", json.dumps(settings))
    upscale(image_grid(images, columns, border=1), get_scale(images[0])).save(path, pnginfo=info)
    return path


def make_denoising_strip(steps: Sequence[Step]) -> Image.Image:
    """Returns the first image at several steps: noisy images (top) and predicted x0 (bottom)."""
    columns = min(STRIP_COLUMNS, len(steps))
    shown = [steps[round(i * (len(steps) - 1) / max(1, columns - 1))] for i in range(columns)]
    return image_grid([step.images[0] for step in shown] + [step.predicted[0] for step in shown], columns, border=1)


def save_denoising_gif(steps: Sequence[Step], path: Path) -> Path:
    shown = list(steps[:: -(-len(steps) // MAX_GIF_FRAMES)])
    if shown[-1] is not steps[-1]:
        shown.append(steps[-1])
    factor = max(1, GIF_CELL_SIZE // steps[0].images[0].width)
    frames = [upscale(image_grid(step.images, GRID_COLUMNS, border=1), factor) for step in shown]
    save_gif(frames, path, duration=80, hold=1500)
    return path


def save_interpolation_gif(images: Sequence[Image.Image], path: Path) -> Path:
    """Saves an animation from the first to the last image and back."""
    frames = [upscale(image, get_scale(image)) for image in images]
    save_gif([*frames, *frames[-2:0:-1]], path, duration=110)
    return path
