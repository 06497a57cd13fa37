import numpy as np
import pytest
import torch
from image_files import get_error, save_image, save_image_folder

from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images


def test_subfolders_are_classes(tmp_path, fashion_mnist):
    save_image_folder(tmp_path, fashion_mnist.images[:40], fashion_mnist.labels[:40])
    tensors = load_images(train_data_dir=str(tmp_path))
    names = sorted(name.replace("/", "-") for name in FASHION_MNIST_LABELS)
    assert list(tensors.label_names) == names
    originals = zip(fashion_mnist.images, fashion_mnist.labels, strict=True)
    expected = {image.numpy().tobytes(): label for image, label in originals}
    assert len(tensors) == 40
    for image, label in zip(tensors.images, tensors.labels, strict=True):
        assert names[label] == FASHION_MNIST_LABELS[expected[image.numpy().tobytes()]].replace("/", "-")


def test_train_and_test_folders_are_splits_of_rgb_images(tmp_path, fashion_mnist):
    images = torch.cat([fashion_mnist.images[:8], torch.zeros(8, 2, 28, 28, dtype=torch.uint8)], dim=1)
    save_image_folder(tmp_path / "train", images, [0, 1] * 4, label_names=("red", "scarlet"))
    save_image_folder(tmp_path / "test", images[:2], [1, 1], label_names=("red", "scarlet"))
    train = load_images(train_data_dir=str(tmp_path), channels=3)
    assert train.images.shape == (8, 3, 28, 28)
    assert train.images[:, 0].any()
    assert not train.images[:, 1:].any()
    test = load_images(train_data_dir=str(tmp_path), split="test", channels=3)
    assert test.labels.tolist() == [1, 1]
    assert test.label_names == ("red", "scarlet")
    message = get_error(tmp_path, split="dev")
    assert message == f"Could not find the split 'dev' in {tmp_path}. Choose one of: train, test."


def test_images_without_class_folders_have_no_labels(tmp_path, fashion_mnist):
    for index in range(3):
        save_image(tmp_path / f"{index}.png", fashion_mnist.images[index, 0].numpy())
    tensors = load_images(train_data_dir=str(tmp_path))
    assert torch.equal(tensors.images, fashion_mnist.images[:3])
    assert tensors.labels is None
    assert tensors.label_names is None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lambda raw: raw[:200], "image file is truncated"), (lambda raw: b"text", "unknown image format")],
    ids=["truncated", "text"],
)
def test_unreadable_image_is_an_error_that_names_the_file(tmp_path, fashion_mnist, damage, reason):
    save_image_folder(tmp_path, fashion_mnist.images[:4], fashion_mnist.labels[:4])
    path = sorted(tmp_path.rglob("*.png"))[1]
    path.write_bytes(damage(path.read_bytes()))
    assert get_error(tmp_path) == f"Could not read the image {path} ({reason}). Replace or remove it."


def test_16_bit_image_is_an_error(tmp_path):
    save_image(tmp_path / "deep.png", np.full((28, 28), 30_000, dtype=np.uint16))
    assert "deep.png (it has more than 8 bits per channel; convert it to 8 bits)" in get_error(tmp_path)
