import numpy as np
import PIL.Image
import pytest
from PIL import TiffImagePlugin

from fmnist_diffusion.data import DataError, convert_image, inspect_images, load_images


COLORS = [(255, 0, 0), (0, 200, 40)]


def create_image(mode, hidden):
    """An image with a left half that is opaque and gray, and a right half that is transparent with a hidden color."""
    if mode == "P":
        image = PIL.Image.new("P", (8, 4))
        image.putpalette([100, 100, 100, *hidden])
        image.info["transparency"] = b"\xff\x00"
        image.paste(1, (4, 0, 8, 4))
        return image
    gray, transparent = (100, 100, 100, 255), (*hidden, 0)
    image = PIL.Image.new("RGBA", (8, 4), gray)
    image.paste(transparent, (4, 0, 8, 4))
    if mode == "PA":
        palette = PIL.Image.new("P", (8, 4))
        palette.putpalette([100, 100, 100, *hidden])
        palette.paste(1, (4, 0, 8, 4))
        result = palette.convert("PA")
        result.putalpha(image.getchannel("A"))
        return result
    if mode == "La":
        return image.convert("LA").convert("La")
    if mode == "RGB":
        image = image.convert("RGB")
        image.info["transparency"] = hidden
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa", "P", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("hidden", COLORS)
def test_transparent_pixels_are_white(mode, channels, hidden):
    pixels = convert_image(create_image(mode, hidden), 4, 8, channels)
    assert pixels.shape == (channels, 4, 8)
    assert np.unique(pixels[..., :4]).tolist() == [100]
    assert np.unique(pixels[..., 4:]).tolist() == [255]


def test_half_transparent_pixels_are_mixed_with_white():
    image = PIL.Image.new("RGBA", (4, 4), (0, 100, 200, 51))
    assert convert_image(image, 4, 4, 3)[:, 0, 0].tolist() == [204, 224, 244]


def test_four_channels_keep_the_transparency():
    image = PIL.Image.new("RGBA", (4, 4), (10, 20, 30, 40))
    assert convert_image(image, 4, 4, 4)[:, 0, 0].tolist() == [10, 20, 30, 40]
    assert convert_image(image.convert("RGB"), 4, 4, 4)[:, 0, 0].tolist() == [10, 20, 30, 255]


@pytest.mark.parametrize("image_format", ["png", "webp", "tif"])
def test_hidden_colors_do_not_change_the_data(tmp_path, image_format):
    for index, hidden in enumerate(COLORS):
        folder = tmp_path / str(index)
        folder.mkdir()
        image = create_image("RGBA", hidden).resize((16, 8), PIL.Image.Resampling.NEAREST)
        image.save(folder / f"a.{image_format}", lossless=True)
        summary = inspect_images(train_data_dir=str(folder))
        assert (summary.channels, summary.num_transparent) == (1, 1)
        images = load_images(train_data_dir=str(folder)).images
        assert images.shape == (1, 1, 8, 16)
        assert images[0, 0, 0].tolist() == [100] * 8 + [255] * 8


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_all_common_modes_are_converted(mode, channels):
    image = PIL.Image.new("L", (10, 6), 255).convert("RGB").convert(mode)
    pixels = convert_image(image, 6, 10, channels)
    assert pixels.dtype == np.uint8
    assert pixels.min() >= 254


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "LAB"])
def test_other_modes_are_errors(mode):
    with pytest.raises(DataError, match=r"convert it to (8 bits|RGB)\)\.") as error:
        convert_image(PIL.Image.new(mode, (8, 8)), 8, 8, 1)
    assert str(error.value).startswith("Could not read the image (it")


def test_orientation_is_applied_without_changing_the_image():
    image = PIL.Image.new("L", (8, 4), 50)
    image.paste(200, (0, 0, 4, 4))
    image.getexif()[0x0112] = 6
    image.getexif()[0x011A] = TiffImagePlugin.IFDRational(-1, 0)
    pixels = convert_image(image, 8, 4, 1)
    assert pixels[0, :4].min() == 200
    assert pixels[0, 4:].max() == 50
    assert image.size == (8, 4)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_extreme_sizes_are_resized(width, height):
    assert np.unique(convert_image(PIL.Image.new("RGB", (width, height), (7, 7, 7)), 28, 20, 3)).tolist() == [7]
