import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import torch
from image_files import get_error
from PIL import TiffImagePlugin

from fmnist_diffusion.data import DataError, ImageStream, inspect_images, load_images, load_split, read_image


PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def encode(image_format, pixels=PIXELS, **kwargs):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, image_format, **kwargs)
    return buffer.getvalue()


def create_exif(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def add_png_chunk(encoded, name, contents, checksum=None):
    checksum = zlib.crc32(name + contents) if checksum is None else checksum
    chunk = struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", checksum)
    # The chunk follows the signature and IHDR.
    return encoded[:33] + chunk + encoded[33:]


def add_jpeg_segment(encoded, marker, contents):
    return encoded[:2] + struct.pack(">BBH", 0xFF, marker, len(contents) + 2) + contents + encoded[2:]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(image_format, orientation):
    kwargs = {"lossless": True} if image_format == "WEBP" else {}
    expected = np.asarray(PIL.Image.open(io.BytesIO(encode(image_format, **kwargs))).convert("RGB"))
    if orientation >= 5:
        expected = expected.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        expected = expected[::-1]
    if orientation in (2, 3, 6, 7):
        expected = expected[:, ::-1]
    image = read_image(encode(image_format, exif=create_exif(orientation), **kwargs))
    assert np.array_equal(np.asarray(image.convert("RGB")), expected)


@pytest.mark.parametrize("orientation", [2, 3, 5, 6, 8])
def test_orientation_of_grayscale_tiff_files_is_applied(tmp_path, orientation):
    path = tmp_path / "a.tif"
    path.write_bytes(encode("TIFF", PIXELS[..., 0], exif=create_exif(orientation)))
    # If Pillow opens such a file by its path, it memory-maps the file and scrambles the pixels.
    expected = read_image(encode("PNG", PIXELS[..., 0], exif=create_exif(orientation)))
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(expected))


def make_resolution_signed(encoded):
    """Changes the resolution in EXIF data to the SRATIONAL (-1, 0), which Pillow cannot write back."""
    header = encoded.index(b"MM\x00*") if b"MM\x00*" in encoded else encoded.index(b"II*\x00")
    order = ">" if encoded[header : header + 2] == b"MM" else "<"
    entry = encoded.index(struct.pack(f"{order}HHI", 0x011A, 5, 1))
    value = header + struct.unpack_from(f"{order}I", encoded, entry + 8)[0]
    changed = bytearray(encoded)
    struct.pack_into(f"{order}H", changed, entry + 2, 10)
    struct.pack_into(f"{order}ii", changed, value, -1, 0)
    return bytes(changed)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_if_other_exif_data_is_broken(image_format):
    exif = create_exif(6)
    exif[0x011A] = TiffImagePlugin.IFDRational(3, 2)
    if image_format == "TIFF":
        encoded = make_resolution_signed(encode("TIFF", exif=exif))
    else:
        encoded = encode(image_format, exif=make_resolution_signed(exif.tobytes()))
    image = read_image(encoded)
    assert image.size == (16, 24)
    plain = read_image(encode(image_format))
    assert np.array_equal(np.asarray(image), np.asarray(plain.transpose(PIL.Image.Transpose.ROTATE_270)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning", "ignore:Image appears to be a malformed MPO")
@pytest.mark.parametrize(
    ("marker", "contents"),
    [
        (0xE1, b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + bytes(30)),
        (0xE1, b"Exif\x00\x00II"),
        (0xE1, b"Exif\x00\x00"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta tiff:Orientation='9'"),
        (0xE2, b"ICC_PROFILE\x00\x01\x09broken"),
        (0xE2, b"MPF\x00MM\x00*\x00\x00\x00\x08\x00\x01\xb0\x00\x00\x07"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\xff"),
        (0xE0, b"JFIF\x00"),
    ],
)
def test_broken_jpeg_metadata_is_ignored(marker, contents):
    encoded = encode("JPEG")
    image = read_image(add_jpeg_segment(encoded, marker, contents))
    assert np.array_equal(np.asarray(image), np.asarray(read_image(encoded)))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize(
    ("name", "contents", "checksum"),
    [
        (b"eXIf", b"MM\x00*\x00", None),
        (b"eXIf", b"Exif", 7),
        (b"iCCP", b"sRGB\x00\x00" + zlib.compress(bytes(3 * 1024**2)), None),
        (b"iCCP", b"sRGB\x00\x00broken", None),
        (b"zTXt", b"text\x00\x00" + zlib.compress(bytes(3 * 1024**2)), None),
        (b"zTXt", b"Raw profile type exif\x00\x00" + zlib.compress(b"\nexif\n8\nxyz"), None),
        (b"tEXt", b"Raw profile type exif\x00\n", 1),
        (b"pHYs", b"\x00", None),
        (b"gAMA", b"", None),
    ],
)
def test_broken_png_metadata_is_ignored(name, contents, checksum):
    encoded = add_png_chunk(encode("PNG"), name, contents, checksum)
    assert np.array_equal(np.asarray(read_image(encoded)), PIXELS)


@pytest.mark.parametrize(
    "image_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "DDS", "QOI", "TGA", "PPM", "ICO"]
)
def test_truncated_image_is_an_error_that_names_it(image_format):
    PIL.Image.init()
    encoded = encode(image_format, PIXELS if image_format != "ICO" else PIXELS[:16, :16])
    for length in (*range(0, 64, 7), len(encoded) // 2):
        with pytest.raises(DataError, match=r"^Could not read the image broken \([^\n]+\)\. Replace or remove it\.$"):
            read_image(encoded[:length], "the image broken")


@pytest.mark.parametrize("suffix", [".jp2", ".j2k"])
def test_truncated_jpeg_2000_image_is_an_error(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    PIL.Image.fromarray(PIXELS).save(path, irreversible=False)
    encoded = path.read_bytes()
    assert np.array_equal(np.asarray(read_image(encoded)), PIXELS)
    for length in range(len(encoded)):
        # Pillow's decoder ignores the missing pixels.
        with pytest.raises(DataError, match=r"^Could not read an image \("):
            read_image(encoded[:length])


@pytest.mark.parametrize("image_format", ["CIELAB", "16 bits"])
def test_image_of_an_unsupported_mode_is_an_error(tmp_path, image_format):
    path = tmp_path / "a.tif"
    PIL.Image.new("LAB" if image_format == "CIELAB" else "I;16", (8, 8)).save(path)
    assert f"Could not read the image {path} (it" in get_error(tmp_path, channels=3)
    stream = ImageStream(load_split(train_data_dir=str(tmp_path)), resolution=8, channels=3)
    with pytest.raises(DataError, match=r"Could not read the image .*a\.tif \(it"):
        stream[0]


def test_all_broken_images_are_named(tmp_path):
    PIL.Image.new("L", (8, 8)).save(tmp_path / "good.png")
    for index in range(7):
        (tmp_path / f"{index}.png").write_bytes(b"text")
    for load in (load_images, inspect_images):
        with pytest.raises(DataError, match=r"^Could not read 7 images: .*0\.png \(unknown.*4\.png .* and 2 more\."):
            load(train_data_dir=str(tmp_path))


def create_png_header(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (10_000, 10_000), (9_000, 8_000), (2**31 - 1, 1)])
def test_decompression_bomb_is_an_error(width, height):
    data = zlib.compress(bytes(1024**2))
    encoded = create_png_header(width, height) + struct.pack(">I", len(data)) + b"IDAT" + data + bytes(4)
    with pytest.raises(DataError, match="67,108,864 pixels"):
        read_image(encoded)


def test_directories_and_pipes_are_errors(tmp_path):
    with pytest.raises(DataError, match="not a regular file"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_image(tmp_path / "pipe")


def test_first_frame_of_an_animation_is_read(tmp_path):
    frames = [PIL.Image.new("L", (8, 8), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_images(train_data_dir=str(tmp_path)).images.unique().tolist() == [10]


def test_eps_is_not_decoded(tmp_path):
    with pytest.raises(DataError, match="unknown image format"):
        read_image(encode("EPS"), "a")


def test_images_may_be_streamed_in_worker_processes(tmp_path):
    for index in range(4):
        PIL.Image.new("L", (8, 8), index).save(tmp_path / f"{index}.png")
    stream = ImageStream(load_split(train_data_dir=str(tmp_path)), resolution=8, channels=1)
    loader = torch.utils.data.DataLoader(stream, batch_size=4, num_workers=1)
    assert next(iter(loader))["images"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
