"""Reads uploaded images safely and converts them to model inputs."""

import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

from engine import RequestError
from fmnist_diffusion.data import FASHION_MNIST_LABELS, DataError, convert_image, read_header, read_image


MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS = 5_000_000, 25_000_000
# The first bytes of PNG, JPEG, WEBP, GIF and BMP files. Pillow's other decoders are not needed.
SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"GIF8", b"BM")
# The file names start with the index of the class.
EXAMPLES = {
    FASHION_MNIST_LABELS[int(path.name.partition("-")[0])]: path
    for path in sorted((Path(__file__).parent / "examples").glob("*.png"))
}


def open_upload(path: str | os.PathLike) -> Image.Image:
    """
    Opens an uploaded image and applies its EXIF orientation. Broken metadata is ignored.

    Raises:
        [`RequestError`]: If the file does not exist, is too large or is not an image. The dimensions are checked
            before the pixels are decoded.
    """
    # The server deletes uploads after some time.
    if not os.path.exists(path):
        raise RequestError("The uploaded file no longer exists. Upload it again.")
    if os.path.getsize(path) > MAX_UPLOAD_BYTES:
        raise RequestError(f"The file is larger than {MAX_UPLOAD_BYTES // 10**6} MB. Upload a smaller file.")
    try:
        with open(path, "rb") as file:
            if not file.read(12).startswith(SIGNATURES):
                raise DataError("The format is not supported.")
        height, width, *_ = read_header(path, "the upload")
        if height * width <= MAX_UPLOAD_PIXELS:
            image = read_image(path, "the upload")
            # PIL clips 16-bit pixels when it converts them to 8 bits, so they are scaled first.
            return image.point(lambda value: value / 256).convert("L") if image.mode.startswith("I") else image
    except DataError as error:
        raise RequestError(
            "Could not read the image. Upload a PNG, JPEG, WEBP, GIF or BMP file with at most"
            f" {MAX_UPLOAD_PIXELS // 10**6} megapixels."
        ) from error
    raise RequestError(f"The image has more than {MAX_UPLOAD_PIXELS // 10**6} megapixels. Upload a smaller image.")


def to_model_size(image: Image.Image, height: int, width: int, channels: int) -> Image.Image:
    """Converts an image to the size and channels of a model, by the rules of the training data."""
    return Image.fromarray(convert_image(image, height, width, channels).transpose(1, 2, 0).squeeze())


def to_fashion_mnist(image: Image.Image, size: tuple[int, int] = (28, 28)) -> Image.Image:
    """
    Converts an image to the style of Fashion-MNIST: a grayscale image of a light object that fills the frame, on a
    black background.

    Transparent pixels become background. An image with light corners is inverted, and so is a dark object on a
    transparent background.
    """
    rgba = image.convert("RGBA")
    rgba.thumbnail((1024, 1024))
    gray, alpha = rgba.convert("L"), rgba.getchannel("A")
    if any(alpha.histogram()[:128]):
        opaque = binarize(alpha, 127)
        dark = opaque.getbbox() is not None and ImageStat.Stat(gray, opaque).mean[0] < 80
        gray = ImageChops.multiply(ImageChops.invert(gray) if dark else gray, alpha)
    elif has_light_corners(gray):
        gray = ImageChops.invert(gray)
    return gray if gray.size == size else fit_object(gray, size)


def binarize(image: Image.Image, threshold: int) -> Image.Image:
    return image.point([255 * (value > threshold) for value in range(256)])


def has_light_corners(image: Image.Image) -> bool:
    """Returns whether most pixels in the four corners of a grayscale image are light."""
    side = max(1, min(image.size) // 8)
    light = total = 0
    for left in (0, image.width - side):
        for top in (0, image.height - side):
            histogram = image.crop((left, top, left + side, top + side)).histogram()
            light += sum(histogram[128:])
            total += sum(histogram)
    return light > total / 2


def fit_object(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Crops a grayscale image to its light pixels and scales them to fit into the center of a black `size` image."""
    box = binarize(image, 24).getbbox() or (0, 0, *image.size)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(size[0] / width, size[1] / height)
    fitted = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS, box)
    frame = Image.new("L", size)
    frame.paste(fitted, ((size[0] - fitted.width) // 2, (size[1] - fitted.height) // 2))
    return frame


def parse_mask(text: Any, size: tuple[int, int]) -> Image.Image | None:
    """
    Converts a string with one character for each pixel, row by row, to a mask: 1 to inpaint the pixel, 0 to keep it.

    Args:
        text: The input of an event, which can have any JSON type.
        size (`tuple[int, int]`): Width and height of the model input.

    Returns:
        `PIL.Image.Image`: The mask, white in the region to inpaint; `None` if the string is empty.

    Raises:
        [`RequestError`]: If `text` is not a mask of this size.
    """
    if text is None or text == "":
        return None
    width, height = size
    if not isinstance(text, str) or len(text) != width * height or not set(text) <= {"0", "1"}:
        raise RequestError(
            f"The mask must be a string of {width * height} characters, 0 or 1, one for each of the {width}x{height}"
            " pixels."
        )
    return Image.frombytes("L", size, bytes(255 * (character == "1") for character in text))
