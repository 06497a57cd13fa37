"""Conversion of `image` to the size and channels of a model, with the same rules as `fmnist_diffusion.data`."""

import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fmnist_diffusion.data.conversion import convert_image
from tiny_pipelines import get_pipeline, sample


RGBA = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
SIZES = ((24, 20), (8, 8), (12, 9), (40, 16))
SAMPLE_SIZES = (*range(8, 129, 5), (8, 128), (128, 8), (33, 17), (9, 64))
MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBA", "RGBa")


def make_image(mode: str) -> Image.Image:
    image = Image.fromarray(RGBA)
    if mode in ("La", "RGBa"):
        return image.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode == "PA":
        return image.convert("P").convert("PA")
    return image.convert(mode if mode in ("LA", "RGBA") else "RGB").convert(mode)


def make_rotated_image(orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(RGBA).save(file, "PNG", exif=exif)
    return Image.open(file)


def convert(image: Any, height: int, width: int, channels: int) -> torch.Tensor:
    """Returns the uint8 pixels of the model input."""
    pipe = get_pipeline(in_channels=channels, out_channels=channels)
    return ((pipe._preprocess_image(image, height, width) + 1) * 127.5).round().to(torch.uint8)


def check_same_pixels(image: Image.Image, channels: int) -> None:
    for height, width in SIZES:
        expected = torch.from_numpy(convert_image(image.copy(), height, width, channels).copy())
        assert torch.equal(convert(image, height, width, channels)[0], expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_the_training_data(mode: str, channels: int):
    check_same_pixels(make_image(mode), channels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_made_upright(orientation: int):
    image = make_rotated_image(orientation)
    check_same_pixels(image, 3)
    upright = np.asarray(Image.fromarray(RGBA))
    if orientation == 6:
        upright = np.rot90(upright, -1)
        expected = torch.from_numpy(upright.copy()).permute(2, 0, 1)
        assert torch.equal(convert(image, *upright.shape[:2], 4)[0], expected)


def test_broken_metadata_is_ignored():
    image = Image.fromarray(RGBA)
    image.info["exif"] = b"Exif\0\0broken"
    assert torch.equal(convert(image, 24, 20, 4)[0], torch.from_numpy(RGBA).permute(2, 0, 1))


@pytest.mark.parametrize("transparency", [0, 255, (1, 2, 3), bytes([0, 255, 128])])
def test_transparency_of_palettes_and_colors(transparency: Any):
    image = make_image({int: "L", tuple: "RGB", bytes: "P"}[type(transparency)])
    image.info["transparency"] = transparency
    for channels in (1, 3, 4):
        check_same_pixels(image, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_colors_under_transparent_pixels_are_hidden(channels: int):
    hidden = np.zeros((8, 8, 4), np.uint8)
    hidden[..., :3] = RGBA[:8, :8, :3]
    for image in (Image.fromarray(hidden), hidden, torch.from_numpy(hidden).permute(2, 0, 1), hidden / 255):
        assert (convert(image, 8, 8, channels) == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("image_channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_arrays_and_tensors_follow_the_same_rules(image_channels: int, channels: int, height: int, width: int):
    array = RGBA[..., :image_channels]
    pil = Image.fromarray(array.squeeze(-1) if image_channels == 1 else array)
    expected = convert(pil, height, width, channels)
    assert torch.equal(convert(array, height, width, channels), expected)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    assert torch.equal(convert(tensor, height, width, channels), expected)
    floats, expected = convert(tensor / 255, height, width, channels).float(), expected.float()
    assert floats.shape == expected.shape
    if image_channels == channels == 4:
        # The colors of nearly transparent pixels are arbitrary, so premultiplied colors are compared.
        for pixels in (floats, expected):
            pixels[:, :3] *= pixels[:, 3:] / 255
    # Pillow rounds and clips uint8 pixels after each of its passes.
    difference = (floats - expected).abs()
    assert difference.mean() < 0.6 and difference.max() <= 10


def test_colors_under_transparent_pixels_do_not_change_the_neighbors():
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, :7, 0] = 255
    image[:, 7:, 2:] = 255
    expected = convert(Image.fromarray(image), 8, 8, 4)
    floats = convert(image / 255, 8, 8, 4)
    assert not expected[:, 0].any() and not floats[:, 0].any()
    assert (floats.float() - expected.float()).abs().max() <= 1


def test_truncated_image_is_an_error():
    file = io.BytesIO()
    Image.fromarray(RGBA).save(file, "PNG")
    image = Image.open(io.BytesIO(file.getvalue()[:-200]))
    with pytest.raises(ValueError, match="`image` could not be decoded"):
        convert(image, 8, 8, 3)


@pytest.mark.parametrize("suffix", ["PNG", "JPEG", "GIF", "BMP"])
def test_closed_image_is_an_error(suffix: str):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, suffix)
    with Image.open(file) as image:
        pass
    with pytest.raises(ValueError, match=r"`image` could not be decoded \(.+\)\. Pass a different image\."):
        convert(image, 8, 8, 3)


def test_other_numbers_of_channels_need_arrays():
    image = torch.full((1, 2, 16, 16), 0.5)
    assert (convert(image, 8, 8, 2) == 128).all()
    with pytest.raises(ValueError, match="must be an array or a tensor with 2 channels, got a PIL image"):
        convert(Image.fromarray(RGBA), 8, 8, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "channels"), [*zip(SAMPLE_SIZES, itertools.cycle((1, 3, 4)), strict=False)], ids=str)
def test_all_sizes_are_sampled_saved_and_loaded(tmp_path, size: int | tuple[int, int], channels: int):
    height, width = (size, size) if isinstance(size, int) else size
    config = {"sample_size": size, "in_channels": channels, "out_channels": channels}
    pipe = get_pipeline(block_out_channels=(4, 4, 8, 8), norm_type="batch", attention_head_dim=4, **config)
    images = sample(pipe, [1], image=Image.fromarray(RGBA), strength=1.0)
    assert images.shape == (1, channels, height, width)
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    # The memory layout of the weights affects the rounding.
    assert_close(sample(loaded, [1], image=Image.fromarray(RGBA), strength=1.0), images, atol=1e-3, rtol=0)
    if channels != 4:
        (image,) = sample(pipe, [1], output_type="pil")
        assert image.size == (width, height)
