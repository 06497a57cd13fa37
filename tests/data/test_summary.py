import numpy as np
import PIL.Image
import pytest
import torch
from image_files import save_image

from fmnist_diffusion.data import DataSummary, ImageTensors, inspect_images, load_images, save_tensors


def test_summary_of_class_folders(tmp_path):
    for index, (label, size, color) in enumerate(
        [("a", (32, 24), (9, 9, 9)), ("a", (40, 24), (9, 9, 9)), ("b", (32, 24), (1, 2, 3))]
    ):
        (tmp_path / label).mkdir(exist_ok=True)
        PIL.Image.new("RGB", size, color).save(tmp_path / label / f"{index}.png")
    expected = DataSummary(
        num_images=3,
        sizes={(24, 32): 2, (24, 40): 1},
        channels=3,
        num_transparent=0,
        label_names=("a", "b"),
        class_counts=(2, 1),
        skipped=(),
    )
    assert inspect_images(train_data_dir=str(tmp_path)) == expected
    assert expected.resolution == (24, 24)
    first = inspect_images(train_data_dir=str(tmp_path), max_samples=2)
    assert (first.num_images, first.channels, first.class_counts) == (2, 1, (2, 0))
    unlabeled = inspect_images(train_data_dir=str(tmp_path), label_column="none")
    assert unlabeled.label_names is unlabeled.class_counts is None


@pytest.mark.parametrize(
    ("sizes", "resolution"),
    [
        ({(28, 28): 5}, (28, 28)),
        ({(8, 128): 5}, (8, 128)),
        ({(30, 50): 1}, (30, 50)),
        ({(7, 28): 5}, (8, 8)),
        ({(129, 129): 5}, (64, 64)),
        ({(218, 178): 5}, (64, 64)),
        ({(30, 50): 1, (50, 34): 1, (47, 90): 1}, (32, 32)),
        ({(30, 50): 1, (51, 90): 1}, (40, 40)),
        ({(2, 2): 3, (1, 1): 1}, (8, 8)),
    ],
)
def test_resolution_follows_the_sizes(sizes, resolution):
    assert DataSummary(sum(sizes.values()), sizes, 1, 0, None, None, ()).resolution == resolution


def test_resolution_and_channels_are_those_of_the_data(tmp_path):
    for index in range(2):
        PIL.Image.new("RGB", (20, 12), (1, 2, index)).save(tmp_path / f"{index}.png")
    assert load_images(train_data_dir=str(tmp_path)).images.shape == (2, 3, 12, 20)
    assert load_images(train_data_dir=str(tmp_path), channels=1).images.shape == (2, 1, 12, 20)
    assert load_images(train_data_dir=str(tmp_path), resolution=16).images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_palette_images_may_be_grayscale(tmp_path, channels):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    color = np.stack([pixels, pixels, pixels if channels == 1 else 255 - pixels], axis=-1)
    PIL.Image.fromarray(color).quantize(64).save(tmp_path / "a.png")
    assert inspect_images(train_data_dir=str(tmp_path)).channels == channels


def test_summary_accounts_for_the_orientation(tmp_path):
    image = PIL.Image.new("RGB", (20, 10))
    for name in ("a.jpg", "a.tif", "a.png"):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / name, exif=exif)
    assert inspect_images(train_data_dir=str(tmp_path)).sizes == {(20, 10): 3}


def test_summary_of_idx_files(fashion_mnist_folder):
    summary = inspect_images(train_data_dir=str(fashion_mnist_folder))
    assert (summary.num_images, summary.sizes, summary.channels) == (512, {(28, 28): 512}, 1)
    assert sum(summary.class_counts) == 512


def test_summary_of_tensors(tmp_path):
    images = torch.zeros(3, 3, 8, 12, dtype=torch.uint8)
    path = tmp_path / "a.safetensors"
    save_tensors(ImageTensors(images, torch.tensor([0, 2, 0]), ("a", "b")), path)
    summary = inspect_images(train_data_dir=str(path))
    assert summary == DataSummary(3, {(8, 12): 3}, 1, 0, ("a", "b"), (2, 0), ())
    assert load_images(train_data_dir=str(path)).images.shape == (3, 1, 8, 12)
    assert load_images(train_data_dir=str(path), label_column="none").labels is None
    images[1, 2, 3, 4] = 1
    save_tensors(ImageTensors(images), path)
    assert inspect_images(train_data_dir=str(path)).channels == 3


def test_inspection_finds_colors_after_gray_images(tmp_path):
    save_image(tmp_path / "0.png", np.zeros((8, 8), dtype=np.uint8))
    save_image(tmp_path / "1.png", np.zeros((8, 8, 3), dtype=np.uint8))
    save_image(tmp_path / "2.png", np.full((8, 8, 3), (0, 0, 1), dtype=np.uint8))
    assert inspect_images(train_data_dir=str(tmp_path)).channels == 3
    assert inspect_images(train_data_dir=str(tmp_path), max_samples=2).channels == 1
