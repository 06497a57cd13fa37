"""Image grids and animations for display."""

import os
from collections.abc import Sequence

from PIL import Image


def upscale(image: Image.Image, factor: int) -> Image.Image:
    """Enlarges `image` by an integer `factor` with nearest-neighbor interpolation."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def image_grid(images: Sequence[Image.Image], columns: int, border: int = 0) -> Image.Image:
    """
    Arranges images in a grid with at most `columns` images per row.

    Unlike diffusers' `make_image_grid`, this function keeps grayscale images grayscale and accepts an incomplete row.

    Args:
        images (`Sequence[PIL.Image.Image]`): One or more images of equal size and mode.
        columns (`int`): Maximum number of images per row.
        border (`int`, defaults to 0): Width of the black border between images, in pixels.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = images[0].size
    size = (columns * (width + border) - border, rows * (height + border) - border)
    grid = Image.new(images[0].mode, size)
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * (width + border), i // columns * (height + border)))
    return grid


def save_gif(frames: Sequence[Image.Image], path: str | os.PathLike, duration: int = 100, hold: int = 0) -> None:
    """
    Saves `frames` as a GIF that loops indefinitely.

    Args:
        frames (`Sequence[PIL.Image.Image]`): One or more frames of equal size.
        path (`str` or `os.PathLike`): Path of the file to write.
        duration (`int`, defaults to 100): Duration of each frame, in milliseconds.
        hold (`int`, defaults to 0): Additional duration of the last frame, in milliseconds.
    """
    durations = [duration] * len(frames)
    durations[-1] += hold
    frames[0].save(
        path, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False, disposal=1
    )
