import numpy as np
import pytest
import torch

from fmnist_diffusion.data import get_height_width, to_model_input, to_pil, to_uint8


def test_conversion_to_model_input_and_back_is_exact():
    pixels = torch.arange(256, dtype=torch.uint8)
    sample = to_model_input(pixels)
    assert sample.dtype == torch.float32
    assert (sample.min(), sample.max()) == (-1, 1)
    assert torch.equal(to_uint8(sample), pixels)


def test_to_uint8_clamps_and_rounds():
    sample = torch.tensor([-1.5, -1.0, 0.0, 1.0, 7.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1])
    assert to_uint8(sample).tolist() == [0, 0, 128, 255, 255, 0, 1]
    assert to_uint8(sample[:5].bfloat16()).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_to_pil_keeps_the_pixels(channels, mode):
    pixels = torch.arange(2 * channels * 4 * 5, dtype=torch.uint8).reshape(2, channels, 4, 5)
    images = to_pil(pixels)
    assert len(images) == 2
    for image, expected in zip(images, pixels, strict=True):
        assert image.mode == mode
        assert image.size == (5, 4)
        array = np.asarray(image).reshape(4, 5, channels)
        assert np.array_equal(array, expected.permute(1, 2, 0).numpy())


def test_to_pil_of_no_images_is_an_empty_list():
    assert to_pil(torch.zeros(0, 1, 28, 28, dtype=torch.uint8)) == []


def test_size_is_a_side_length_or_height_and_width():
    assert get_height_width(28) == (28, 28)
    assert get_height_width((12, 16)) == get_height_width([12, 16]) == (12, 16)
