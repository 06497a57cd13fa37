import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmnist_diffusion.data import FASHION_MNIST_LABELS, ImageTensors, save_tensors
from fmnist_diffusion.evaluation import load_samples
from fmnist_diffusion.evaluation import samples as samples_module


SHAPE = (1, 28, 28)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)


def write_images(folder: Path, count: int = 3) -> None:
    for i, image in enumerate(IMAGES[:count]):
        Image.fromarray(image).save(folder / f"{i:04d}.png")


def test_folders_are_read_in_alphabetical_order_without_grids(tmp_path: Path):
    write_images(tmp_path)
    for name in ("grid.png", "report.png"):
        Image.new("L", (56, 56)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    samples = load_samples(tmp_path)
    assert np.array_equal(samples.images[:, 0].numpy(), IMAGES[:3])
    assert samples.labels is None


def test_num_samples_selects_images_of_all_classes(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("L", (8, 8), 100 * (name == "b") + i).save(tmp_path / name / f"{i:04d}.png")
    samples = load_samples(tmp_path, 20, label_names=("b", "a"))
    assert samples.labels is not None
    assert 5 < samples.labels.sum() < 15
    assert torch.equal(samples.labels == 0, samples.images[:, 0, 0, 0] >= 100)
    assert torch.equal(load_samples(tmp_path, 20).images, samples.images)
    assert load_samples(tmp_path, label_names=("a", "c")).labels is None
    with pytest.raises(ValueError, match=r"`num_samples` must be at most 40, .*, got 41\."):
        load_samples(tmp_path, 41)


def test_class_folders_may_be_links(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    write_images(tmp_path / "elsewhere")
    (tmp_path / "samples" / "a").mkdir(parents=True)
    write_images(tmp_path / "samples" / "a", 1)
    (tmp_path / "samples" / "b").symlink_to(tmp_path / "elsewhere")
    samples = load_samples(tmp_path / "samples", label_names=("a", "b"))
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 1, 1]
    (tmp_path / "samples" / "a").rename(tmp_path / "moved")
    (tmp_path / "samples" / "a").symlink_to(tmp_path / "moved")
    assert torch.equal(load_samples(tmp_path / "samples").images, samples.images)


def test_labels_of_a_tensor_file_are_matched_by_name(tmp_path: Path):
    names = FASHION_MNIST_LABELS[::-1]
    save_tensors(
        ImageTensors(torch.from_numpy(IMAGES)[:, None], torch.tensor([0, 1, 9, 3]), names), tmp_path / "x.safetensors"
    )
    samples = load_samples(tmp_path / "x.safetensors", shape=SHAPE, label_names=FASHION_MNIST_LABELS)
    assert samples.labels is not None
    assert samples.labels.tolist() == [9, 8, 0, 6]


def test_integer_labels_of_fashion_mnist_are_matched_in_order(tmp_path: Path):
    names = tuple("0123456789")
    save_tensors(
        ImageTensors(torch.from_numpy(IMAGES[:2])[:, None], torch.tensor([8, 3]), names), tmp_path / "a.safetensors"
    )
    samples = load_samples(tmp_path / "a.safetensors", label_names=FASHION_MNIST_LABELS)
    assert samples.labels is not None and samples.labels.tolist() == [8, 3]


def test_rgb_images_with_equal_channels_are_grayscale(tmp_path: Path):
    Image.fromarray(IMAGES[0]).convert("RGB").save(tmp_path / "0000.png")
    assert np.array_equal(load_samples(tmp_path).images[0, 0].numpy(), IMAGES[0])


def test_fashion_mnist_requires_grayscale_images_of_its_size(tmp_path: Path):
    write_images(tmp_path)
    Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    with pytest.raises(
        ValueError, match=r"must be grayscale images of 28x28 pixels .*, got RGB images of 28x28 pixels"
    ):
        load_samples(tmp_path, shape=SHAPE)
    assert load_samples(tmp_path).images.shape == (4, 3, 28, 28)
    (tmp_path / "red.png").unlink()
    Image.new("L", (32, 28)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"got grayscale images of 28x32 pixels\. Pass `reference`"):
        load_samples(tmp_path, shape=SHAPE)


def test_truncated_images_are_rejected(tmp_path: Path):
    write_images(tmp_path)
    path = tmp_path / "0001.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"Could not read .*0001\.png"):
        load_samples(tmp_path)


def test_missing_samples_are_reported(tmp_path: Path):
    with pytest.raises(ValueError, match=f"{tmp_path}.*contains no") as error:
        load_samples(tmp_path)
    assert "train_data_dir" not in str(error.value)
    with pytest.raises(ValueError, match=r"Could not find the file .*missing\.npz\. Pass a folder"):
        load_samples(tmp_path / "missing.npz")


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_files_may_have_different_layouts(tmp_path: Path, shape: tuple[int, ...], dtype: type):
    images = IMAGES if dtype is np.uint8 else (IMAGES / 255).astype(dtype)
    np.savez(tmp_path / "x.npz", images=images.reshape(4, *shape), labels=np.array([3, 1, 0, 9]))
    samples = load_samples(tmp_path / "x.npz", shape=SHAPE, label_names=FASHION_MNIST_LABELS)
    assert np.array_equal(samples.images[:, 0].numpy(), IMAGES)
    assert samples.labels is not None
    assert samples.labels.tolist() == [3, 1, 0, 9]


@pytest.mark.parametrize("shape", [(4, 3, 12, 16), (4, 12, 16, 3)])
def test_npz_files_may_contain_rgb_images(tmp_path: Path, shape: tuple[int, ...]):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images)
    expected = images if shape[1] == 3 else images.transpose(0, 3, 1, 2)
    assert np.array_equal(load_samples(tmp_path / "x.npz").images.numpy(), expected)


def write_header(path: Path, header: bytes, version: int = 1, **kwargs: Any) -> None:
    """Writes an .npz file whose only array has this header and no pixels."""
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        archive.writestr("images.npy", b"\x93NUMPY" + bytes([version, 0]) + length + header)


def assert_rejected_without_decompression(path: Path, message: str, max_bytes: int = 50_000_000) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as error:
            load_samples(path)
        assert str(path) in str(error.value)
        assert tracemalloc.get_traced_memory()[1] < max_bytes
    finally:
        tracemalloc.stop()


def test_headers_that_declare_too_much_data_are_rejected(tmp_path: Path):
    path = tmp_path / "x.npz"
    write_header(path, b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 28, 28)}\n")
    assert_rejected_without_decompression(
        path, r"The arrays in .*x\.npz require 862,017,116,176,384 bytes, more than the limit of 2,147,483,648\."
    )
    write_header(path, b"{'descr': '|V2000000000', 'fortran_order': False, 'shape': (2,)}\n")
    assert_rejected_without_decompression(path, "require 4,000,000,000 bytes, more than the limit")


def test_headers_that_are_too_long_are_rejected(tmp_path: Path):
    path = tmp_path / "x.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4)}" + b" " * 100_000_000
    write_header(path, header, version=2, compression=zipfile.ZIP_DEFLATED)
    assert_rejected_without_decompression(path, "Could not read .* as an .npz file")


def write_zeros(path: Path, count: int, num_bytes: int) -> None:
    """Writes an .npz file with `count` arrays of zeros, which are compressed to a thousandth of their size."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (num_bytes // 784, 28, 28)}
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(count):
            with archive.open(f"arr_{index}.npy", "w") as file:
                file.write(header.getvalue() + bytes(num_bytes))


def test_small_archives_that_expand_to_too_much_data_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.npz"
    monkeypatch.setattr(samples_module, "MAX_NPZ_SIZE", 200_000_000)
    # Each array is below the limit, but all arrays together exceed it.
    write_zeros(path, count=3, num_bytes=78_400_000)
    assert path.stat().st_size < 300_000
    assert_rejected_without_decompression(path, r"require 235,200,\d+ bytes, more than the limit of 200,000,000\.")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_methods_are_rejected(tmp_path: Path, compression: int):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images.npy", bytes(100_000_000))
    assert path.stat().st_size < 100_000
    assert_rejected_without_decompression(path, r"\(images\.npy has an unsupported compression method\)")


HEADERS = {
    "not a dictionary": b"[1, 2]",
    "nested": b"{'descr': " + b"(" * 9000,
    "operators": b"-" * 9000 + b"1",
    "unhashable": b"{[]: 1}",
    "code": b"__import__('os').abort()",
    "missing keys": b"{'descr': '|u1'}",
    "dtype": b"{'descr': 'nothing', 'fortran_order': False, 'shape': (1,)}",
    "dtype of tuples": b"{'descr': ((), ()), 'fortran_order': False, 'shape': (1,)}",
    "negative shape": b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2, 2)}",
    "long integer": b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"9" * 9000 + b",)}",
    "too few pixels": b"{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4)}",
    "objects": b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 4, 4)}",
    "nested objects": b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2, 4, 4)}",
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_invalid_headers_are_rejected(tmp_path: Path, name: str, version: int):
    path = tmp_path / "x.npz"
    write_header(path, HEADERS[name] + b"\n", version)
    with pytest.raises(ValueError, match=r"Could not read .*x\.npz as an \.npz file \(\S.*\)\. Write it") as error:
        load_samples(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1_000


def test_pixels_of_all_float_types_are_rounded(tmp_path: Path):
    for dtype in (np.float16, np.float32, np.float64):
        np.savez(tmp_path / "x.npz", images=np.full((2, 4, 4), 0.6, dtype))
        assert load_samples(tmp_path / "x.npz").images.unique().tolist() == [153]


def test_the_only_array_of_an_npz_file_may_have_any_name(tmp_path: Path):
    np.savez(tmp_path / "x.npz", IMAGES)
    assert np.array_equal(load_samples(tmp_path / "x.npz").images[:, 0].numpy(), IMAGES)


INVALID_ARRAYS = {
    "shape": (
        {"images": np.zeros((4, 32, 32), np.uint8)},
        r"must be grayscale images of 28x28 pixels .*, got grayscale images of 32x32",
    ),
    "channels": ({"images": np.zeros((4, 3, 28, 28), np.uint8)}, "got RGB images of 28x28 pixels"),
    "dimensions": ({"images": np.zeros((4, 2, 28, 28), np.uint8)}, "must have the shape"),
    "no images": ({"images": IMAGES[:0]}, "must have the shape"),
    "int64": ({"images": IMAGES.astype(np.int64)}, "must be uint8, or floats .*, got int64"),
    "negative": ({"images": np.full((4, 28, 28), -1.0)}, r"must be in \[0, 1\], got values from -1 to -1"),
    "above 1": ({"images": IMAGES + 1.0}, r"must be in \[0, 1\], got values from 1 to 256"),
    "NaN": ({"images": IMAGES + np.nan}, "contains NaN or infinite pixels"),
    "names": ({"x": IMAGES, "y": IMAGES}, "must contain an array called `images`, got x, y"),
    "objects": (
        {"images": np.array([object()])},
        r"Could not read .* as an \.npz file \(images\.npy contains Python objects, which require pickle\)",
    ),
    "number of labels": ({"images": IMAGES, "labels": np.zeros(3, int)}, r"of shape \(4,\), .* of shape \(3,\)"),
    "range of labels": ({"images": IMAGES, "labels": np.full(4, 10)}, "must be between 0 and 9, got 10 to 10"),
}


@pytest.mark.parametrize("name", INVALID_ARRAYS)
def test_invalid_arrays_are_rejected(tmp_path: Path, name: str):
    arrays, message = INVALID_ARRAYS[name]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_samples(tmp_path / "x.npz", shape=SHAPE, label_names=FASHION_MNIST_LABELS)


def test_damaged_npz_files_are_rejected(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, images=IMAGES)
    content = path.read_bytes()
    np.save(tmp_path / "array.npy", IMAGES)
    flipped = content[:1000] + bytes([content[1000] ^ 255]) + content[1001:]
    for damaged in (b"", b"PK not a zip", content[:1000], flipped, (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"Could not read .*x\.npz as an \.npz file"):
            load_samples(path)
