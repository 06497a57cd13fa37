from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fmnist_diffusion.evaluation import load_parts, load_samples
from fmnist_diffusion.evaluation.samples import EvaluationSamples, load_part, save_part
from fmnist_diffusion.sampling import Samples


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


def test_num_samples_limits_the_samples(tmp_path: Path):
    write_images(tmp_path)
    assert len(load_samples(tmp_path, 2)) == 2
    with pytest.raises(ValueError, match=r"`num_samples` must be at most 3, .*, got 4\."):
        load_samples(tmp_path, 4)


def test_rgb_images_with_equal_channels_are_grayscale(tmp_path: Path):
    Image.fromarray(IMAGES[0]).convert("RGB").save(tmp_path / "0000.png")
    assert np.array_equal(load_samples(tmp_path).images[0, 0].numpy(), IMAGES[0])


def test_color_images_are_rejected(tmp_path: Path):
    Image.new("RGB", (28, 28), "red").save(tmp_path / "0000.png")
    with pytest.raises(ValueError, match=r"0000\.png must be a grayscale 8-bit image .*, got mode RGB"):
        load_samples(tmp_path)
    # The pixels of a palette image are indices of colors.
    Image.fromarray(IMAGES[0]).convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(tmp_path / "0000.png")
    with pytest.raises(ValueError, match=r"0000\.png must be a grayscale 8-bit image .*, got mode P"):
        load_samples(tmp_path)


def test_images_of_another_size_are_rejected(tmp_path: Path):
    write_images(tmp_path)
    Image.new("L", (32, 28)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png must be .* of 28x28 pixels, got mode L and 32x28 pixels\."):
        load_samples(tmp_path)


def test_truncated_images_are_rejected(tmp_path: Path):
    write_images(tmp_path)
    path = tmp_path / "0001.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"Could not read .*0001\.png .* Remove the file or write it again\."):
        load_samples(tmp_path)


def test_missing_samples_are_reported(tmp_path: Path):
    with pytest.raises(ValueError, match=r"Could not find any PNG images in .* Pass a folder"):
        load_samples(tmp_path)
    with pytest.raises(ValueError, match=r"Could not find samples at .*missing\.npz\. Pass a folder"):
        load_samples(tmp_path / "missing.npz")


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_files_may_have_different_layouts(tmp_path: Path, shape: tuple[int, ...], dtype: type):
    images = IMAGES if dtype is np.uint8 else (IMAGES / 255).astype(dtype)
    np.savez(tmp_path / "x.npz", images=images.reshape(4, *shape), labels=np.array([3, 1, 0, 9]))
    samples = load_samples(tmp_path / "x.npz")
    assert np.array_equal(samples.images[:, 0].numpy(), IMAGES)
    assert samples.labels is not None
    assert samples.labels.tolist() == [3, 1, 0, 9]


def test_the_only_array_of_an_npz_file_may_have_any_name(tmp_path: Path):
    np.savez(tmp_path / "x.npz", IMAGES)
    assert np.array_equal(load_samples(tmp_path / "x.npz").images[:, 0].numpy(), IMAGES)


INVALID_ARRAYS = {
    "shape": ({"images": np.zeros((4, 32, 32), np.uint8)}, r"must have the shape .*, got \(4, 32, 32\)\."),
    "channels": ({"images": np.zeros((4, 3, 28, 28), np.uint8)}, "must have the shape"),
    "no images": ({"images": IMAGES[:0]}, "must have the shape"),
    "int64": ({"images": IMAGES.astype(np.int64)}, "must be uint8, or floats .*, got int64"),
    "negative": ({"images": np.full((4, 28, 28), -1.0)}, r"must be in \[0, 1\], got values from -1 to -1"),
    "above 1": ({"images": IMAGES + 1.0}, r"must be in \[0, 1\], got values from 1 to 256"),
    "NaN": ({"images": IMAGES + np.nan}, "contains NaN or infinite pixels"),
    "names": ({"x": IMAGES, "y": IMAGES}, "must contain an array called `images`, got x, y"),
    "objects": ({"images": np.array([object()])}, r"Could not read .* as an \.npz file"),
    "number of labels": ({"images": IMAGES, "labels": np.zeros(3, int)}, r"must be 4 integers, .*, got int64"),
    "range of labels": ({"images": IMAGES, "labels": np.full(4, 10)}, "must be between 0 and 9, got 10 to 10"),
}


@pytest.mark.parametrize("name", INVALID_ARRAYS)
def test_invalid_arrays_are_rejected(tmp_path: Path, name: str):
    arrays, message = INVALID_ARRAYS[name]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_samples(tmp_path / "x.npz")


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


@pytest.mark.parametrize("with_labels", [True, False])
def test_parts_are_saved_and_loaded(tmp_path: Path, with_labels: bool):
    labels = torch.arange(4) if with_labels else None
    samples = Samples(torch.from_numpy(IMAGES)[:, None], labels, num_function_evaluations=80, seconds=1.5)
    part = EvaluationSamples(samples, torch.rand(4, 2048) if with_labels else None)
    save_part(part, tmp_path / "seed-0" / "0000000.safetensors")
    loaded = load_part(tmp_path / "seed-0" / "0000000.safetensors")
    assert torch.equal(loaded.samples.images, samples.images)
    assert (loaded.samples.num_function_evaluations, loaded.samples.seconds) == (80, 1.5)
    if with_labels:
        assert torch.equal(loaded.samples.labels, labels)
        assert torch.equal(loaded.inception_features, part.inception_features)
    else:
        assert loaded.samples.labels is None and loaded.inception_features is None


def test_parts_of_a_run_are_loaded_in_order(tmp_path: Path):
    images = torch.from_numpy(IMAGES)[:, None]
    for i, path in enumerate(("seed-0/0000000", "seed-0/0000002", "seed-1/0000000")):
        save_part(EvaluationSamples(Samples(images[i : i + 1])), tmp_path / f"{path}.safetensors")
    assert torch.equal(torch.cat([samples.images for samples in load_parts(tmp_path)]), images[:3])
    with pytest.raises(ValueError, match="Could not find any samples in"):
        list(load_parts(tmp_path / "seed-0"))
