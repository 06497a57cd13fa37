import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

import uploads
from engine import RequestError
from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images
from uploads import open_upload, parse_mask, to_fashion_mnist, to_model_size


class TestOpenUpload:
    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
    def test_common_formats_are_opened(self, tmp_path, suffix):
        path = tmp_path / f"upload.{suffix}"
        Image.new("RGB", (60, 30), "red").save(path)
        assert open_upload(path).size == (60, 30)

    @pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"<svg/>"])
    def test_other_files_are_rejected(self, tmp_path, content):
        (tmp_path / "upload.png").write_bytes(content)
        with pytest.raises(RequestError, match=r"Could not read the image\. Upload a PNG"):
            open_upload(tmp_path / "upload.png")

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_image_with_broken_exif_data_is_upright(self, tmp_path, orientation):
        # Pillow cannot write the tag 0x011A, a signed fraction of -1 and 0.
        entries = struct.pack("<HHII", 0x0112, 3, 1, orientation) + struct.pack("<HHII", 0x011A, 10, 1, 38)
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4) + struct.pack("<ii", -1, 0)
        upright = np.zeros((32, 48), dtype=np.uint8)
        upright[:16, :16] = 255
        # Each transposition of these pixels is stored; the orientation tells how to invert it.
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.T,
            6: np.rot90(upright),
            7: upright[::-1, ::-1].T,
            8: np.rot90(upright, -1),
        }[orientation]
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "upload.jpg", exif=exif, quality=95)
        image = open_upload(tmp_path / "upload.jpg")
        for result in (image, to_model_size(image, 32, 48, 1)):
            np.testing.assert_allclose(np.asarray(result).astype(int), upright, atol=60)

    def test_16_bit_pixels_are_scaled(self, tmp_path):
        ramp = np.linspace(0, 65535, 28 * 28).reshape(28, 28).astype(np.uint16)
        Image.fromarray(ramp).save(tmp_path / "upload.png")
        image = open_upload(tmp_path / "upload.png")
        assert image.mode == "L"
        np.testing.assert_allclose(np.asarray(image).astype(float), ramp / 256, atol=1)

    def test_truncated_file_is_rejected(self, tmp_path):
        path = tmp_path / "upload.png"
        Image.effect_noise((200, 200), 50).save(path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(RequestError, match="Could not read the image"):
            open_upload(path)

    @pytest.mark.parametrize("size, message", [(8_000, "more than 25 megapixels"), (40_000, "at most 25 megapixels")])
    def test_decompression_bomb_is_not_decoded(self, tmp_path, monkeypatch, size, message):
        """The header of a small file declares 64 or 1,600 megapixels."""

        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        (tmp_path / "upload.png").write_bytes(content + chunk(b"IEND", b""))
        monkeypatch.setattr(uploads, "read_image", None)
        with pytest.raises(RequestError, match=message):
            open_upload(tmp_path / "upload.png")

    def test_too_many_pixels_are_rejected(self, tmp_path):
        Image.new("L", (6000, 5000)).save(tmp_path / "upload.png")
        with pytest.raises(RequestError, match="more than 25 megapixels"):
            open_upload(tmp_path / "upload.png")

    def test_deleted_file_is_reported(self, tmp_path):
        with pytest.raises(RequestError, match=r"The uploaded file no longer exists\. Upload it again\."):
            open_upload(tmp_path / "deleted.png")

    def test_large_file_is_rejected(self, tmp_path):
        (tmp_path / "upload.bmp").write_bytes(b"BM" + b"\0" * uploads.MAX_UPLOAD_BYTES)
        with pytest.raises(RequestError, match="larger than 5 MB"):
            open_upload(tmp_path / "upload.bmp")


class TestToFashionMNIST:
    @pytest.mark.parametrize(
        "ink, paper, mode",
        [
            ("white", "black", "RGB"),
            ("black", "white", "RGB"),
            ("navy", "#eeeeee", "RGB"),
            ((255, 255, 255, 255), (0, 0, 0, 0), "RGBA"),
            ((0, 0, 40, 255), (0, 0, 0, 0), "RGBA"),
            ((30, 30, 30, 255), (255, 255, 255, 0), "RGBA"),
            ((0, 0, 0, 254), (255, 255, 255, 254), "RGBA"),
        ],
    )
    def test_result_is_a_light_object_on_black_that_fills_the_frame(self, ink, paper, mode):
        image = Image.new(mode, (300, 200), paper)
        ImageDraw.Draw(image).rectangle((120, 40, 180, 160), fill=ink)
        pixels = np.asarray(to_fashion_mnist(image))
        assert pixels.shape == (28, 28)
        assert pixels[:, :4].max() < 30 and pixels[:, -4:].max() < 30
        assert pixels[2:-2, 12:16].min() > 150

    def test_images_of_the_dataset_are_not_changed(self, fashion_mnist_folder):
        images = load_images(split="test", train_data_dir=str(fashion_mnist_folder)).images[:, 0].numpy()
        results = [np.asarray(to_fashion_mnist(Image.fromarray(image))) for image in images]
        # A few images have an object in the corners and are inverted.
        assert np.mean([np.array_equal(*pair) for pair in zip(images, results, strict=True)]) > 0.95

    @pytest.mark.parametrize("size", [(1, 3000), (3000, 2), (1, 1)])
    @pytest.mark.parametrize("color", ["white", "black"])
    def test_extreme_sizes_are_converted(self, size, color):
        assert to_fashion_mnist(Image.new("L", size, color)).size == (28, 28)

    def test_colors_of_transparent_pixels_have_no_effect(self):
        results = []
        for hidden in ("red", "white"):
            image = Image.new("RGBA", (90, 60), hidden)
            image.putalpha(0)
            ImageDraw.Draw(image).rectangle((20, 10, 60, 50), fill=(150, 180, 90, 255))
            results.append(np.asarray(to_fashion_mnist(image)))
        np.testing.assert_array_equal(*results)

    def test_transparent_image_becomes_black(self):
        assert np.asarray(to_fashion_mnist(Image.new("RGBA", (90, 90), (9, 9, 9, 0)))).max() == 0


def test_there_is_an_example_for_each_class():
    assert tuple(uploads.EXAMPLES) == FASHION_MNIST_LABELS
    for path in uploads.EXAMPLES.values():
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (28, 28))


def test_mask_has_a_character_for_each_pixel():
    mask = parse_mask("010" + "111", (3, 2))
    assert mask is not None and mask.size == (3, 2)
    np.testing.assert_array_equal(np.asarray(mask), [[0, 255, 0], [255, 255, 255]])
    assert parse_mask("", (3, 2)) is parse_mask(None, (3, 2)) is None


@pytest.mark.parametrize("text", ["0", "0" * 7, "01012x", "\u0661" * 6, 10101, True, ["0"] * 6, {"path": "x"}])
def test_invalid_mask_is_an_error(text):
    with pytest.raises(RequestError, match=r"^The mask must be a string of 6 characters, .* 3x2 pixels\.$"):
        parse_mask(text, (3, 2))
