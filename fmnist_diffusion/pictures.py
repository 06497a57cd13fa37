"""Pictures to look at: enlarged, and put together."""

from collections.abc import Sequence

from PIL import Image


def enlarge(image: Image.Image, factor: int) -> Image.Image:
    """`image` with each pixel as a square of `factor` by `factor`."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def image_grid(images: Sequence[Image.Image], columns: int, border: int = 0) -> Image.Image:
    """Equal images in rows of `columns`, or all in one row if they are fewer, with `border` black pixels between; what
    is left of the last row is black. diffusers' `make_image_grid` needs full rows, and makes grey images coloured."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = (size + border for size in images[0].size)
    grid = Image.new(images[0].mode, (columns * width - border, rows * height - border))
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    return grid
