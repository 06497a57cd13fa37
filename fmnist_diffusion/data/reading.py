"""Reads encoded images with Pillow. Limits their size and tolerates broken metadata."""

from __future__ import annotations

import functools
import io
import os
import stat
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import PIL.Image

from .errors import ImageError, get_reason
from .image_metadata import METADATA_ERRORS, read_orientation, remove_metadata, rotate_upright


MAX_PIXELS = 64 * 1024**2  # 256 MiB as RGBA
MAX_FILE_SIZE = 1024**3  # bytes
# Pillow's decoders raise these exceptions for damaged files.
DECODER_ERRORS = (
    *METADATA_ERRORS,
    MemoryError,
    zlib.error,
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,
)
# Pillow runs Ghostscript to decode EPS files and cannot decode the others without additional software.
EXCLUDED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# These markers do not occur in the pixel data of JPEG 2000.
JPEG2000_DATA = b"\xff\x93"
JPEG2000_END = b"\xff\xd9"

Result = TypeVar("Result")


def read_image(source: bytes | str | os.PathLike[str], name: str | None = None) -> PIL.Image.Image:
    """
    Decodes an image and applies its EXIF orientation.

    Broken metadata, such as EXIF data or an ICC profile, is ignored. The first frame of an animation is returned.

    Args:
        source (`bytes`, `str` or `os.PathLike`):
            The encoded image, or the path of its file.
        name (`str`, *optional*):
            Name of the image in error messages. Defaults to the path.

    Returns:
        `PIL.Image.Image`: The upright image in its original mode, without EXIF data.

    Raises:
        `DataError`: If the image cannot be decoded, if it has more than 64 Mi pixels, or if its file is larger than
            1 GiB. The message contains `name`.
    """
    return _read(source, name, _decode)


def read_header(source: bytes | str | os.PathLike[str], name: str) -> tuple[int, int, str, bool]:
    """
    Reads the header of an image without decoding its pixels.

    Returns:
        `tuple[int, int, str, bool]`: Height and width of the upright image, its mode, and whether it may have
        transparent pixels.

    Raises:
        `DataError`: See [`read_image`].
    """
    return _read(source, name, _get_header)


def get_suffixes() -> frozenset[str]:
    """Returns the suffixes of the files that Pillow decodes, in lower case."""
    formats = _get_formats()
    return frozenset(suffix for suffix, name in PIL.Image.registered_extensions().items() if name in formats)


@functools.cache
def _get_formats() -> tuple[str, ...]:
    PIL.Image.init()
    return tuple(name for name in PIL.Image.ID if name not in EXCLUDED_FORMATS)


def _read(
    source: bytes | str | os.PathLike[str], name: str | None, function: Callable[[PIL.Image.Image], Result]
) -> Result:
    name = name or ("an image" if isinstance(source, bytes) else os.fspath(source))
    try:
        if not isinstance(source, bytes):
            _check_file(source)
    except (OSError, ValueError) as error:
        raise ImageError(name, describe_error(error)) from error
    try:
        # Pillow warns about broken metadata, which is ignored.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return _open(source, function)
    except DECODER_ERRORS as error:
        # Some versions of Pillow fail because of metadata, although they can decode the pixels.
        try:
            pixels = remove_metadata(source if isinstance(source, bytes) else Path(source).read_bytes())
            if pixels is not None:
                return _open(pixels, function)
        except DECODER_ERRORS:
            pass
        raise ImageError(name, describe_error(error)) from error


def _check_file(path: str | os.PathLike[str]) -> None:
    status = os.stat(path)
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > MAX_FILE_SIZE:
        raise ValueError(f"the file is larger than the limit of {MAX_FILE_SIZE:,} bytes")


def _open(source: bytes | str | os.PathLike[str], function: Callable[[PIL.Image.Image], Result]) -> Result:
    # Given a path, Pillow can memory-map the file, which scrambles the pixels of rotated TIFF images.
    with (
        io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
        PIL.Image.open(file, formats=_get_formats()) as image,
    ):
        if 0 in image.size:
            raise ValueError(f"it has {image.width}x{image.height} pixels")
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"it has {image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS:,} pixels"
            )
        return function(image)


def _get_header(image: PIL.Image.Image) -> tuple[int, int, str, bool]:
    width, height = image.size
    # Pillow's TIFF reader already swaps width and height.
    if image.format != "TIFF" and read_orientation(image) >= 5:
        width, height = height, width
    return height, width, image.mode, image.has_transparency_data


def _decode(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.format == "JPEG2000":
        _check_jpeg2000(image)
    orientation = read_orientation(image)
    if image.format == "TIFF":
        # Pillow's TIFF reader rotates the pixels itself and fails if the EXIF data is broken.
        exif = image.getexif()
        for tag in list(exif):
            del exif[tag]
    image.load()
    upright = rotate_upright(image, orientation).copy()
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _check_jpeg2000(image: PIL.Image.Image) -> None:
    # The decoder ignores missing data. The end marker follows the pixels, which start after the first data marker.
    file = image.fp  # pyright: ignore[reportAttributeAccessIssue]
    file.seek(0)
    encoded = file.read()
    file.seek(0)
    if encoded.rfind(JPEG2000_END) <= encoded.find(JPEG2000_DATA):
        raise ValueError("the file is truncated")


def describe_error(error: BaseException) -> str:
    """Returns a phrase that says why an image could not be decoded."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "unknown image format"
    if isinstance(error, (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)):
        return f"it has more than the limit of {MAX_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # The messages of other exceptions describe Pillow's code instead of the image.
    return get_reason(error)[:200] if isinstance(error, (OSError, SyntaxError, ValueError)) else "damaged data"
