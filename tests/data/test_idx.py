import gzip
import shutil

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from image_files import get_error

from fmnist_diffusion.data import FASHION_MNIST_LABELS, inspect_images, load_images, load_split


IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"


def test_split_is_a_dataset_with_image_and_label_columns(fashion_mnist_folder):
    dataset = load_split(train_data_dir=str(fashion_mnist_folder))
    assert isinstance(dataset, datasets.Dataset)
    assert dataset.column_names == ["image", "label"]
    assert dataset.features["label"].names == list(FASHION_MNIST_LABELS)
    assert len(dataset) == 512
    assert np.shape(dataset[0]["image"]) == (28, 28)
    assert FASHION_MNIST_LABELS[dataset[0]["label"]] == "Ankle boot"


@pytest.mark.parametrize(("split", "count"), [("train", 512), ("test", 128)])
def test_shapes_and_labels_of_both_splits(fashion_mnist_folder, split, count):
    tensors = load_images(split=split, train_data_dir=str(fashion_mnist_folder))
    assert len(tensors) == count
    assert tensors.images.shape == (count, 1, 28, 28)
    assert tensors.images.dtype == torch.uint8
    assert tensors.labels.shape == (count,)
    assert tensors.labels.dtype == torch.int64
    assert tensors.label_names == FASHION_MNIST_LABELS
    assert tensors.labels.unique().tolist() == list(range(10))


def test_pixels_equal_the_bytes_of_the_file(fashion_mnist_folder, fashion_mnist):
    raw = gzip.decompress((fashion_mnist_folder / f"{IMAGES}.gz").read_bytes())[16:]
    assert fashion_mnist.images.numpy().tobytes() == raw


def test_uncompressed_files_equal_gz_files(idx_folder, fashion_mnist):
    tensors = load_images(train_data_dir=str(idx_folder))
    assert torch.equal(tensors.images, fashion_mnist.images)
    assert torch.equal(tensors.labels, fashion_mnist.labels)


@pytest.mark.parametrize(("name", "kind"), [(IMAGES, "images"), (LABELS, "labels")])
def test_wrong_magic_number_is_an_error(idx_folder, name, kind):
    path = idx_folder / name
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])
    assert f"the magic number of IDX {kind}. Replace it" in get_error(idx_folder)


def test_swapped_files_are_an_error(idx_folder):
    shutil.copy(idx_folder / LABELS, idx_folder / IMAGES)
    assert "does not start with 2051" in get_error(idx_folder)


@pytest.mark.parametrize("contents", [b"", b"\x00\x00", b"\x00\x00\x08\x03", b"\x00\x00\x08\x03\x00\x00\x02\x00"])
def test_truncated_header_is_an_error(idx_folder, contents):
    (idx_folder / IMAGES).write_bytes(contents)
    assert IMAGES in get_error(idx_folder)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\x00"], ids=["short", "long"])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_size_that_differs_from_the_header_is_an_error(idx_folder, name, change):
    path = idx_folder / name
    path.write_bytes(change(path.read_bytes()))
    assert "bytes, but its header requires" in get_error(idx_folder)


def test_file_without_images_is_an_error(idx_folder):
    (idx_folder / IMAGES).write_bytes(b"\x00\x00\x08\x03" + bytes(4) + b"\x00\x00\x00\x1c" * 2)
    assert f"{IMAGES} contains no images" in get_error(idx_folder)


def truncate(raw):
    return raw[: len(raw) // 2]


def corrupt_payload(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes(64) + raw[middle + 64 :]


def corrupt_checksum(raw):
    return raw[:-8] + bytes([raw[-8] ^ 255]) + raw[-7:]


def replace_with_text(raw):
    return b"not a gzip file"


@pytest.mark.parametrize("damage", [truncate, corrupt_payload, corrupt_checksum, replace_with_text])
def test_damaged_gz_file_is_an_error(fashion_mnist_folder, tmp_path, damage):
    folder = shutil.copytree(fashion_mnist_folder, tmp_path / "gz")
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert f"Could not read {path} (" in get_error(folder)


def test_different_numbers_of_images_and_labels_are_an_error(idx_folder):
    shutil.copy(idx_folder / "t10k-labels-idx1-ubyte", idx_folder / LABELS)
    message = get_error(idx_folder)
    assert f"in {idx_folder / IMAGES} (512) must equal the number of labels in {idx_folder / LABELS} (128)" in message


def test_label_out_of_range_is_an_error(idx_folder):
    path = idx_folder / LABELS
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    assert f"The labels in {path} must be between 0 and 9, got 10." in get_error(idx_folder)


def test_other_labels_are_the_names_of_the_classes(idx_folder):
    """For example, the files of MNIST have the same names."""
    for name, change in ((LABELS, 0), ("t10k-labels-idx1-ubyte", 3)):
        raw = (idx_folder / name).read_bytes()
        (idx_folder / name).write_bytes(raw[:8] + bytes(2 * label + change for label in raw[8:]))
    train, test = (load_images(split=split, train_data_dir=str(idx_folder)) for split in ("train", "test"))
    even, odd = range(0, 20, 2), range(3, 23, 2)
    assert train.label_names == test.label_names == tuple(map(str, sorted([*even, *odd])))
    assert [int(train.label_names[label]) for label in train.labels[:10]] == [18, 0, 0, 6, 0, 4, 14, 4, 10, 10]
    assert [int(test.label_names[label]) for label in test.labels[:10]] == [21, 7, 5, 5, 15, 5, 11, 15, 13, 17]
    assert inspect_images(train_data_dir=str(idx_folder)).class_counts[2] == 0
    (idx_folder / "t10k-labels-idx1-ubyte").unlink()
    assert load_images(train_data_dir=str(idx_folder)).label_names == tuple(map(str, even))


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_missing_file_is_an_error(idx_folder, name):
    (idx_folder / name).unlink()
    assert f"Could not find {name} or {name}.gz" in get_error(idx_folder)


def test_unknown_split_is_an_error(idx_folder):
    message = get_error(idx_folder, split="validation")
    assert message.startswith("Could not find the split 'validation'")
    assert message.endswith("Choose one of: train, test.")


def test_complete_dataset_has_the_expected_images(complete_fashion_mnist_folder):
    train = load_images(train_data_dir=str(complete_fashion_mnist_folder))
    test = load_images(split="test", train_data_dir=str(complete_fashion_mnist_folder))
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [6_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert train.images.sum().item() / train.images.numel() == pytest.approx(72.94, abs=0.005)


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("subfolder", ["", "raw", "FashionMNIST/raw"])
def test_other_names_of_idx_files_are_found(idx_folder, tmp_path, fashion_mnist, separator, subfolder):
    folder = tmp_path / "data"
    (folder / subfolder).mkdir(parents=True)
    for path in idx_folder.iterdir():
        shutil.copy(path, folder / subfolder / path.name.replace("-idx", f"{separator}idx"))
    assert torch.equal(load_images(train_data_dir=str(folder)).images, fashion_mnist.images)
    assert len(load_images(train_data_dir=str(folder), split="test")) == 128


def test_several_idx_folders_are_an_error(idx_folder):
    shutil.copytree(idx_folder, idx_folder / "MNIST" / "raw")
    assert "contains IDX files in several folders: ., MNIST/raw." in get_error(idx_folder)


def test_other_files_next_to_idx_files_are_skipped(idx_folder):
    (idx_folder / "README.md").write_text("text")
    (idx_folder / ".hidden").write_text("text")
    summary = inspect_images(train_data_dir=str(idx_folder))
    assert summary.skipped == ((str(idx_folder / "README.md"), "not an IDX file"),)


def test_images_next_to_idx_files_are_an_error(idx_folder):
    PIL.Image.new("L", (8, 8)).save(idx_folder / "a.png")
    message = get_error(idx_folder)
    assert message.startswith(f"The folder {idx_folder} contains IDX files (t10k-images-idx3-ubyte, ")
    assert message.endswith(" and image files (a.png). Pass a folder with only one kind of file.")


def test_decompression_bomb_is_an_error(idx_folder):
    # 64 MB of zeros follow the header, which promises 3 GB.
    header = b"\x00\x00\x08\x03" + (4_000_000).to_bytes(4, "big") + (28).to_bytes(4, "big") * 2
    path = idx_folder / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress(header + bytes(64_000_000), 1))
    (idx_folder / IMAGES).unlink()
    assert f"The header of {path} requires 3,136,000,016 bytes, more than the limit of 1,073,741,824." in get_error(
        idx_folder
    )


def test_surplus_data_is_not_decompressed(idx_folder):
    path = idx_folder / f"{IMAGES}.gz"
    path.write_bytes(gzip.compress((idx_folder / IMAGES).read_bytes() + bytes(64_000_000), 1))
    (idx_folder / IMAGES).unlink()
    assert f"The file {path} has more than 401424 bytes, but its header requires 401424." in get_error(idx_folder)
