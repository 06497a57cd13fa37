import numpy as np
import pytest
from PIL import Image, ImageSequence

from fmnist_diffusion.images import image_grid, save_gif, upscale


def make_image(*rows: list[int]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def test_upscale_repeats_each_pixel():
    image = upscale(make_image([0, 255], [7, 0]), 2)
    assert np.array_equal(image, np.kron([[0, 255], [7, 0]], np.ones((2, 2))))


@pytest.mark.parametrize(
    ("columns", "border", "expected"),
    [
        (2, 0, [[1, 2], [3, 0]]),
        (2, 1, [[1, 0, 2], [0, 0, 0], [3, 0, 0]]),
        (1, 0, [[1], [2], [3]]),
        # The grid is not wider than its images.
        (9, 1, [[1, 0, 2, 0, 3]]),
    ],
)
def test_image_grid_fills_rows_from_left_to_right(columns: int, border: int, expected: list[list[int]]):
    grid = image_grid([make_image([value]) for value in (1, 2, 3)], columns, border)
    assert grid.mode == "L"
    assert np.asarray(grid).tolist() == expected


def test_image_grid_keeps_the_mode_of_color_images():
    grid = image_grid([Image.new("RGB", (2, 3), color) for color in ("red", "blue")], columns=2)
    assert (grid.mode, grid.size) == ("RGB", (4, 3))
    assert grid.getpixel((3, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("values", "hold", "durations"), [((0, 100, 255), 500, [40, 40, 540]), ((7,), 0, [40]), ((9, 9, 9), 0, [120])]
)
def test_save_gif_shows_each_image_for_its_duration(tmp_path, values, hold, durations):
    save_gif([Image.new("L", (4, 4), value) for value in values], tmp_path / "frames.gif", duration=40, hold=hold)
    with Image.open(tmp_path / "frames.gif") as image:
        frames = [
            (frame.convert("L").getpixel((0, 0)), frame.info["duration"]) for frame in ImageSequence.Iterator(image)
        ]
        assert image.info["loop"] == 0
    # Pillow merges equal frames.
    assert frames == list(zip(dict.fromkeys(values), durations, strict=True))
