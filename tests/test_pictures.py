import numpy as np
import pytest
from PIL import Image

from fmnist_diffusion.pictures import enlarge, image_grid


def picture(*rows: list[int]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def test_enlarged_pixels_are_hard():
    assert np.array_equal(enlarge(picture([0, 255], [7, 0]), 2), np.kron([[0, 255], [7, 0]], np.ones((2, 2))))


@pytest.mark.parametrize(
    ("columns", "border", "expected"),
    [
        (2, 0, [[1, 2], [3, 0]]),
        (2, 1, [[1, 0, 2], [0, 0, 0], [3, 0, 0]]),
        # No wider than its pictures.
        (9, 1, [[1, 0, 2, 0, 3]]),
    ],
)
def test_grid(columns: int, border: int, expected: list[list[int]]):
    grid = image_grid([picture([value]) for value in (1, 2, 3)], columns, border)
    assert grid.mode == "L"
    assert np.asarray(grid).tolist() == expected
