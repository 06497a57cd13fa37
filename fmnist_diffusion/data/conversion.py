"""Converts PIL images to pixels of a fixed size and number of channels."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageOps

from .errors import ImageError
from .image_metadata import read_orientation, rotate_upright
from .reading import DECODER_ERRORS, describe_error


SUPPORTED_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBA", "RGBa")
# Conversion of these modes to RGBA needs an intermediate step.
STRAIGHT_ALPHA_MODES = {"La": "LA", "RGBa": "RGBA"}


def convert_image(
    image: PIL.Image.Image, height: int, width: int, channels: int, name: str = "the image"
) -> np.ndarray:
    """
    Converts an image to the size and channels of a model.

    - The EXIF orientation is applied. Broken EXIF data is ignored.
    - Transparent pixels are composited over white, unless `channels` is 4.
    - An image of a different size is resized with an antialiased bicubic filter to cover the target size and then
      center-cropped. An image of the same size keeps its exact pixels.

    Args:
        image (`PIL.Image.Image`):
            The image, in any mode with 8 bits per channel or less.
        height, width (`int`):
            Size of the result in pixels.
        channels (`int`):
            1 for grayscale (ITU-R 601-2 luma), 3 for RGB or 4 for RGBA.
        name (`str`, defaults to "the image"):
            Name of the image in error messages.

    Returns:
        `np.ndarray`: uint8 pixels of shape `(channels, height, width)`.

    Raises:
        `DataError`: If the image cannot be decoded, has more than 8 bits per channel, or has a mode that Pillow
            cannot convert.
    """
    try:
        image.load()
        image = _composite_over_white(rotate_upright(image, read_orientation(image)), channels)
        if image.size != (width, height):
            image = PIL.ImageOps.fit(image, (width, height), method=PIL.Image.Resampling.BICUBIC)
    except DECODER_ERRORS as error:
        raise ImageError(name, describe_error(error)) from error
    pixels = np.array(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def inspect_pixels(image: PIL.Image.Image, name: str) -> tuple[bool, bool]:
    """
    Returns whether a decoded image is transparent and whether it is grayscale.

    An image is transparent if one of its pixels is not opaque. It is grayscale if its color channels are equal after
    compositing over white.

    Raises:
        `DataError`: See [`convert_image`].
    """
    try:
        red, green, blue = _composite_over_white(image, 3).split()
        is_transparent = image.has_transparency_data and _to_rgba(image).getchannel("A").getextrema() != (255, 255)
    except DECODER_ERRORS as error:
        raise ImageError(name, describe_error(error)) from error
    return is_transparent, red.tobytes() == green.tobytes() == blue.tobytes()


def _composite_over_white(image: PIL.Image.Image, channels: int) -> PIL.Image.Image:
    # Pillow clips most values of these modes to white when it converts them to 8 bits.
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError("it has more than 8 bits per channel; convert it to 8 bits")
    if image.mode not in SUPPORTED_MODES:
        raise ValueError(f"its mode {image.mode} is not supported; convert it to RGB")
    if channels == 4:
        return _to_rgba(image)
    if image.has_transparency_data:
        background = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(background, _to_rgba(image))
    elif channels == 1 and image.mode in ("1", "L"):
        return image.convert("L")
    image = image.convert("RGB")
    return image.convert("L") if channels == 1 else image


def _to_rgba(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode in STRAIGHT_ALPHA_MODES:
        image = image.convert(STRAIGHT_ALPHA_MODES[image.mode])
    return image.convert("RGBA")
