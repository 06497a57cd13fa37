import sys

import pytest
import torch
from image_files import get_error
from safetensors.torch import save_file

from fmnist_diffusion.data import (
    FASHION_MNIST_LABELS,
    DataError,
    ImageTensors,
    inspect_images,
    load_images,
    load_split,
    save_tensors,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "split.safetensors"


def test_saved_tensors_are_loaded_without_the_datasets_package(path, fashion_mnist, monkeypatch):
    save_tensors(fashion_mnist, path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    tensors = load_images(train_data_dir=str(path), split="anything")
    assert torch.equal(tensors.images, fashion_mnist.images)
    assert torch.equal(tensors.labels, fashion_mnist.labels)
    assert tensors.label_names == FASHION_MNIST_LABELS
    assert len(load_images(train_data_dir=str(path), max_samples=5)) == 5


def test_labels_may_include_the_null_label(path, fashion_mnist):
    labels = fashion_mnist.labels.clone()
    labels[0] = len(FASHION_MNIST_LABELS)
    save_tensors(ImageTensors(fashion_mnist.images, labels, FASHION_MNIST_LABELS), path)
    assert torch.equal(load_images(train_data_dir=str(path)).labels, labels)


def test_tensors_may_have_no_labels(path, fashion_mnist):
    save_tensors(ImageTensors(fashion_mnist.images[:4]), path)
    tensors = load_images(train_data_dir=str(path))
    assert tensors.labels is None
    assert tensors.label_names is None


def test_saved_tensors_may_have_captions(path, fashion_mnist):
    captions = ("a bag", "", "zwei Schuhe für 5 €", "a boot")
    save_tensors(ImageTensors(fashion_mnist.images[:4], captions=captions), path)
    assert load_images(train_data_dir=str(path)).captions == captions
    assert load_images(train_data_dir=str(path), resolution=20, max_samples=2).captions == captions[:2]


@pytest.mark.parametrize("captions", ['["a"]', '["a", 2]', "a"])
def test_invalid_captions_are_an_error(path, fashion_mnist, captions):
    save_file({"images": fashion_mnist.images[:2].contiguous()}, path, metadata={"captions": captions})
    assert "must be a JSON list with one string per image (2)" in get_error(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_are_resized_like_other_images(fashion_mnist_folder, path, channels):
    source = str(fashion_mnist_folder)
    save_tensors(load_images(train_data_dir=source, max_samples=6, channels=channels), path)
    tensors = load_images(train_data_dir=str(path), resolution=20, channels=3)
    expected = load_images(train_data_dir=source, max_samples=6, resolution=20, channels=3)
    assert torch.equal(tensors.images, expected.images)


def test_unreadable_file_is_an_error(path):
    path.write_bytes(b"text")
    assert get_error(path).startswith(f"Could not read {path} (")


def test_invalid_tensors_are_errors(path):
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for invalid in (images.float(), images[0], images.expand(2, 2, 8, 8)):
        save_tensors(ImageTensors(invalid), path)
        assert "must contain a uint8 tensor `images`" in get_error(path)
    for empty in (images[:0], images[:, :, :0], images[..., :0]):
        save_tensors(ImageTensors(empty), path)
        assert "contains no images or images without pixels" in get_error(path)
    save_tensors(ImageTensors(images, torch.tensor([1])), path)
    assert "one label per image (2)" in get_error(path)
    save_tensors(ImageTensors(images, torch.tensor([0, 1])), path)
    assert "contains labels but no label names" in get_error(path)
    save_tensors(ImageTensors(images, torch.tensor([0, 3]), ("a", "b")), path)
    assert f"The labels in {path} must be between 0 and 2, got 3." in get_error(path)


def test_other_suffix_is_an_error(tmp_path, fashion_mnist):
    with pytest.raises(DataError, match=r"^`path` must end with \.safetensors, got .*split\.pt\.$"):
        save_tensors(fashion_mnist, tmp_path / "split.pt")


@pytest.mark.parametrize("name", ["image_column", "label_column", "caption_column"])
@pytest.mark.parametrize("function", [load_images, inspect_images])
def test_column_names_are_an_error(path, fashion_mnist, function, name):
    save_tensors(fashion_mnist, path)
    with pytest.raises(DataError, match=rf"^`{name}` is not supported for safetensors files .*, got 'other'\."):
        function(train_data_dir=str(path), **{name: "other"})


def test_other_users_can_read_the_file(path, fashion_mnist):
    save_tensors(fashion_mnist, path)
    expected = path.with_name("other")
    expected.touch()
    assert path.stat().st_mode == expected.stat().st_mode


def test_saved_tensors_cannot_be_streamed(path, fashion_mnist):
    save_tensors(fashion_mnist, path)
    with pytest.raises(DataError, match=r"cannot be loaded as a dataset\. Use `load_images`"):
        load_split(train_data_dir=str(path))


@pytest.mark.parametrize("label_names", ["a, b", "3", "null", '{"a": 1}', "[1, 2]", '["a", "a"]', "[" * 100_000])
def test_label_names_must_be_a_list(path, label_names):
    contents = {"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "labels": torch.tensor([0, 1])}
    save_file(contents, path, metadata={"label_names": label_names})
    assert f"The metadata `label_names` of {path} must be a JSON list" in get_error(path)


def test_folder_named_like_a_file_is_an_error(path):
    path.mkdir()
    assert get_error(path).startswith(f"Could not read {path} (")
