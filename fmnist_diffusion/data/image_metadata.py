"""Applies the orientation of images and removes metadata that Pillow cannot parse."""

import re
import struct

import PIL.Image
from PIL.ExifTags import Base


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Other PNG chunks do not change the pixels.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG_SIGNATURE = b"\xff\xd8"
JPEG_START_OF_SCAN = 0xDA
JPEG_COMMENT = 0xFE
# The Adobe segment contains the color transform. The other application segments contain metadata.
JPEG_APPLICATION_SEGMENTS = range(0xE0, 0xF0)
JPEG_ADOBE = 0xEE
# Pillow raises these exceptions for broken metadata.
METADATA_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
TRANSPOSITIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


def read_orientation(image: PIL.Image.Image) -> int:
    """Returns the EXIF orientation of an image, from 1 to 8; 1 (upright) if it is missing or not valid."""
    try:
        orientation = image.getexif().get(Base.Orientation)
    except METADATA_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def rotate_upright(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """Applies the EXIF orientation, from 1 to 8. An upright image is returned without a copy."""
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def remove_metadata(encoded: bytes) -> bytes | None:
    """Returns a PNG, JPEG or AVIF image without metadata, and `None` for other formats."""
    if encoded.startswith(PNG_SIGNATURE):
        return _remove_png_metadata(encoded)
    if encoded.startswith(JPEG_SIGNATURE):
        return _remove_jpeg_metadata(encoded)
    if encoded[4:12] in (b"ftypavif", b"ftypavis"):
        # Decoders ignore items of an unknown type.
        return re.sub(rb"(infe.{8})(Exif|mime)", rb"\1none", encoded, flags=re.DOTALL)
    return None


def _remove_png_metadata(encoded: bytes) -> bytes:
    kept = [PNG_SIGNATURE]
    start = len(PNG_SIGNATURE)
    while start + 12 <= len(encoded):
        end = start + 12 + int.from_bytes(encoded[start : start + 4], "big")
        if encoded[start + 4 : start + 8] in PNG_CHUNKS:
            kept.append(encoded[start:end])
        start = end
    return b"".join(kept)


def _remove_jpeg_metadata(encoded: bytes) -> bytes:
    kept = [JPEG_SIGNATURE]
    start = len(JPEG_SIGNATURE)
    while start + 4 <= len(encoded) and encoded[start] == 0xFF:
        marker = encoded[start + 1]
        if marker == JPEG_START_OF_SCAN:
            break
        end = start + 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
        is_metadata = marker == JPEG_COMMENT or (marker in JPEG_APPLICATION_SEGMENTS and marker != JPEG_ADOBE)
        if not is_metadata:
            kept.append(encoded[start:end])
        start = end
    kept.append(encoded[start:])
    return b"".join(kept)
