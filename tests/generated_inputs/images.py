"""Images of many modes and formats, with EXIF data, transparent pixels and damage."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from hypothesis import strategies as st

from fmnist_diffusion.data import (
    DataError,
    ImageStream,
    convert_image,
    inspect_images,
    load_images,
    load_split,
    read_header,
    read_image,
)

from .damage import Change, changes, damage_bytes
from .messages import call_or_get_error, check_message


# Pillow writes these modes without loss of information.
LOSSLESS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LAB"),
    "GIF": ("1", "L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "TGA": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB"),
    "PCX": ("1", "L", "P"),
    "DDS": ("L", "LA", "RGB", "RGBA"),
    "QOI": ("RGB", "RGBA"),
    "SGI": ("L", "RGB", "RGBA"),
    "ICO": ("RGBA",),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
}
LOSSY = {"JPEG": ("L", "RGB", "CMYK"), "AVIF": ("RGB", "RGBA"), "MPO": ("RGB",)}
UNSUPPORTED_MODES = ("I;16", "F", "LAB")
# The EXIF data of these formats is separate from the pixels.
EXIF_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")
SUFFIXES = {"JPEG2000": ".jp2", "TIFF": ".tif", "MPO": ".jpg"}
SAVE_OPTIONS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "JPEG2000": {"irreversible": False}}
ORIENTATION, RESOLUTION, MAKER = 0x0112, 0x011A, 0x010F
EXIF_HEADER = b"Exif\0\0"
NAME = "the image generated"


@dataclass(frozen=True)
class EncodedImage:
    """
    An encoded image.

    Attributes:
        image_format: Name of the format in Pillow.
        mode: Mode of the image.
        size: Width and height in pixels.
        seed: Seed of the pixels.
        orientation: EXIF orientation, or `None` for no EXIF data.
        exif_damage: Positions and values of bytes of the EXIF data that are changed.
        damage: Changes of the encoded image.
        target: Height and width to resize the image to; if `None`, the size is kept.
        channels: Number of channels to convert the image to.
    """

    image_format: str
    mode: str
    size: tuple[int, int]
    seed: int
    orientation: int | None
    exif_damage: tuple[tuple[float, int], ...]
    damage: tuple[Change, ...]
    target: tuple[int, int] | None
    channels: int


@st.composite
def encoded_images(choose: st.DrawFn) -> EncodedImage:
    PIL.Image.init()
    formats = {name: modes for name, modes in (LOSSLESS | LOSSY).items() if name in PIL.Image.SAVE}
    image_format = choose(st.sampled_from(tuple(formats)))
    sides = st.integers(1, 24)
    fractions = st.floats(0, 1, exclude_max=True)
    orientation = None
    exif_damage: tuple[tuple[float, int], ...] = ()
    if image_format in (*EXIF_FORMATS, "TIFF"):
        orientation = choose(st.none() | st.integers(0, 9))
        if orientation is not None and image_format != "TIFF":
            exif_damage = tuple(choose(st.lists(st.tuples(fractions, st.integers(0, 255)), max_size=4)))
    truncation = st.tuples(st.just("truncate"), fractions, st.just(0)).map(lambda change: (change,))
    others = st.lists(changes("flip", "byte", "delete", "insert", "zeros", "ones"), max_size=3).map(tuple)
    damage = choose(st.just(()) | truncation | others)
    return EncodedImage(
        image_format,
        choose(st.sampled_from(formats[image_format])),
        (16, 16) if image_format == "ICO" else choose(st.tuples(sides, sides)),
        choose(st.integers(0, 1000)),
        orientation,
        exif_damage,
        damage,
        choose(st.none() | st.tuples(sides, sides)),
        choose(st.sampled_from((1, 3))),
    )


def make_pixels(data: EncodedImage, hidden: int) -> PIL.Image.Image:
    """Returns random pixels. The colors of transparent pixels are `hidden`."""
    width, height = data.size
    random = np.random.default_rng(data.seed)
    pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    pixels[..., 3] = random.choice([0, 255, 100], (height, width), p=[0.3, 0.5, 0.2])
    pixels[pixels[..., 3] == 0, :3] = hidden
    image = PIL.Image.fromarray(pixels)
    if data.mode == "I;16":
        return PIL.Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    if data.mode == "LAB":
        return PIL.Image.frombytes("LAB", data.size, pixels[..., :3].tobytes())
    if data.mode == "LA":
        return PIL.Image.fromarray(pixels[..., 2:])
    return image if data.mode == "RGBA" else image.convert("RGB").convert(data.mode)


def encode_image(data: EncodedImage, image: PIL.Image.Image, with_exif: bool = True) -> bytes:
    options: dict[str, Any] = dict(SAVE_OPTIONS.get(data.image_format, {}))
    contents = damaged = EXIF_HEADER
    if data.orientation is not None and with_exif:
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = data.orientation
        if data.image_format == "TIFF":
            options["exif"] = exif
        else:
            exif[RESOLUTION] = 72.0
            exif[MAKER] = "camera"
            contents = exif.tobytes()
            damage = [("byte", fraction, value) for fraction, value in data.exif_damage]
            damaged = contents[: len(EXIF_HEADER)] + damage_bytes(contents[len(EXIF_HEADER) :], damage)
            options["exif"] = damaged if data.image_format == "PNG" else contents
    buffer = io.BytesIO()
    image.save(buffer, data.image_format, **options)
    # Pillow does not write damaged EXIF data in all formats.
    return buffer.getvalue().replace(contents[len(EXIF_HEADER) :], damaged[len(EXIF_HEADER) :])


def list_orientations(pixels: np.ndarray) -> list[np.ndarray]:
    """Returns pixels `(channels, height, width)` in the EXIF orientations 1 to 8."""
    flipped, swapped = pixels[..., ::-1], pixels.transpose(0, 2, 1)
    rotated = pixels[:, ::-1, ::-1]
    return [
        pixels,
        flipped,
        rotated,
        pixels[:, ::-1],
        swapped,
        swapped[..., ::-1],
        swapped[:, ::-1, ::-1],
        swapped[:, ::-1],
    ]


def composite(image: PIL.Image.Image, channels: int) -> np.ndarray:
    """Returns the pixels of an image over white, `(channels, height, width)`."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    pixels = rgba[..., :3] * alpha + 255 * (1 - alpha)
    if channels == 1:
        pixels = pixels @ np.array([[0.299], [0.587], [0.114]])
    return pixels.transpose(2, 0, 1)


def read_or_get_message(source: bytes | Path) -> tuple[PIL.Image.Image | None, str | None]:
    name = NAME if isinstance(source, bytes) else str(source)
    try:
        return read_image(source, name), None
    except DataError as error:
        check_message(str(error), [name])
        return None, str(error)


def check_encoded_image(data: EncodedImage, folder: Path) -> None:
    """An intact image must have the right pixels. A damaged one may also raise an error that names it."""
    image = make_pixels(data, hidden=40)
    intact = encode_image(data, image)
    encoded = damage_bytes(intact, data.damage)
    path = folder / f"a{SUFFIXES.get(data.image_format, f'.{data.image_format.lower()}')}"
    path.write_bytes(encoded)
    result, message = read_or_get_message(path)
    from_memory, _ = read_or_get_message(encoded)
    # Pillow seeks before the start of damaged files, which only fails if they are not in memory.
    assert from_memory is not None or result is None
    is_intact = encoded == intact
    if is_intact:
        assert message is None, message
    if result is not None and data.mode not in UNSUPPORTED_MODES and is_intact:
        check_pixels(data, image, result)
    if [kind for kind, _, _ in data.damage] == ["truncate"] and result is not None:
        complete, _ = read_or_get_message(intact)
        assert complete is not None and np.array_equal(np.asarray(complete), np.asarray(result)), "truncated pixels"
    check_file(data, path, result, message)


def check_pixels(data: EncodedImage, image: PIL.Image.Image, result: PIL.Image.Image) -> None:
    """Checks orientation, compositing and hidden colors of an intact image."""
    height, width = result.height, result.width
    converted = convert_image(result, height, width, data.channels).astype(np.float64)
    if data.image_format in LOSSLESS:
        source = image
    else:
        source = PIL.Image.open(io.BytesIO(encode_image(data, image, with_exif=False)))
    orientations = list_orientations(composite(source, data.channels))
    if data.exif_damage:
        expected = orientations
    else:
        orientation = data.orientation if data.orientation in range(1, 9) else 1
        expected = [orientations[(orientation or 1) - 1]]
    differences = [np.abs(pixels - converted).max() for pixels in expected if pixels.shape == converted.shape]
    assert min(differences, default=255) <= 2, f"pixels differ by {differences}"
    if data.mode in ("RGBA", "LA") and data.image_format in LOSSLESS:
        other = read_image(encode_image(data, make_pixels(data, hidden=200)), NAME)
        assert np.array_equal(convert_image(other, height, width, data.channels), converted)


def check_file(data: EncodedImage, path: Path, image: PIL.Image.Image | None, message: str | None) -> None:
    """Checks that all functions handle an image file in the same way as `read_image`, which returned `image`."""
    height, width = data.target or ((image.height, image.width) if image is not None else (8, 8))
    pixels = None
    if image is not None:
        header = read_header(path, str(path))
        assert header[:2] == (image.height, image.width)
        try:
            pixels = convert_image(image, height, width, data.channels, f"the image {path}")
            assert pixels.shape == (data.channels, height, width) and pixels.dtype == np.uint8
        except DataError as error:
            message = str(error)
            check_message(message, [str(path)])
            assert data.damage or data.mode in UNSUPPORTED_MODES, message
    arguments = {"train_data_dir": str(path.parent), "label_column": "none", "ignored_files": ["cache"]}
    summary = call_or_get_error(lambda: inspect_images(**arguments), DataError, [str(path)])
    if summary is None:
        assert pixels is None
    else:
        assert (summary.num_images, summary.channels in (1, 3)) == (1, True)
        assert image is None or summary.sizes == {(image.height, image.width): 1}
    shape = {"resolution": (height, width), "channels": data.channels}
    tensors = call_or_get_error(lambda: load_images(**shape, **arguments), DataError, [str(path)])
    assert (tensors is None) == (pixels is None), message
    stream = ImageStream(load_split(**arguments), **shape)
    streamed = call_or_get_error(lambda: stream[0]["images"].numpy(), DataError, [str(path)])
    if tensors is None or pixels is None:
        assert streamed is None
    else:
        assert np.array_equal(tensors.images[0].numpy(), pixels) and np.array_equal(streamed, pixels)
