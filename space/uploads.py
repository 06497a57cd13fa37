"""Reads uploaded images safely and converts them to the style of Fashion-MNIST."""

import os
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.exceptions import ComponentProcessingError
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from PIL import Image, ImageChops, ImageOps, ImageStat

from engine import RequestError
from fmnist_diffusion.data import FASHION_MNIST_LABELS


MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS = 5_000_000, 25_000_000
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# The file names start with the index of the class.
EXAMPLES = {
    FASHION_MNIST_LABELS[int(path.name.partition("-")[0])]: path
    for path in sorted((Path(__file__).parent / "examples").glob("*.png"))
}


class SafeBlocks(gr.Blocks):
    """
    Blocks that reject URLs as files and explain malformed inputs.

    By default, Gradio downloads the URL of a file, for every input and without a size limit.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        traverse(inputs, reject_url, is_file_obj_with_meta)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except (ComponentProcessingError, ValueError) as error:
            raise make_input_error(
                "An input has the wrong type. The API page describes the expected types."
            ) from error


def reject_url(file: dict[str, Any]) -> None:
    if is_http_url_like(file["path"]):
        raise make_input_error("URLs are not downloaded. Upload the image itself.")


def make_input_error(message: str) -> gr.Error:
    return gr.Error(message, title="Invalid request", print_exception=False)


def open_upload(path: str | os.PathLike) -> Image.Image:
    """
    Opens an uploaded image and reduces it to at most 1024x1024 pixels.

    Raises:
        [`RequestError`]: If the file is too large or not an image. The dimensions are checked before the pixels are
            decoded.
    """
    if os.path.getsize(path) > MAX_UPLOAD_BYTES:
        raise RequestError(f"The file is larger than {MAX_UPLOAD_BYTES // 10**6} MB. Upload a smaller file.")
    try:
        image = Image.open(path, formats=UPLOAD_FORMATS)
        too_large = image.width * image.height > MAX_UPLOAD_PIXELS
        if not too_large:
            image.draft("RGB", (512, 512))
            image.load()
            if image.mode.startswith("I"):
                # PIL clips 16-bit pixels when it converts them to 8 bits, so they are scaled first.
                image = image.point(lambda value: value / 256).convert("L")
            image.thumbnail((1024, 1024))
            return ImageOps.exif_transpose(image)
    # Pillow's decoders raise many types of exceptions for damaged files.
    except Exception as error:
        formats = f"{', '.join(UPLOAD_FORMATS[:-1])} or {UPLOAD_FORMATS[-1]}"
        raise RequestError(f"Could not read the image. Upload a {formats} file.") from error
    raise RequestError(f"The image has more than {MAX_UPLOAD_PIXELS // 10**6} megapixels. Upload a smaller image.")


def to_fashion_mnist(image: Image.Image, size: tuple[int, int] = (28, 28)) -> Image.Image:
    """
    Converts an image to the style of Fashion-MNIST: a light object on black that fills the frame, in grayscale.

    Transparent pixels become background. An image with light corners is inverted, and so is a dark object on a
    transparent background.
    """
    rgba = image.convert("RGBA")
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
