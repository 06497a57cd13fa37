"""Helpers that write image files and read the errors of loading them."""

import datasets
import PIL.Image
import pytest

from fmnist_diffusion.data import FASHION_MNIST_LABELS, DataError, load_images, to_pil


def save_image_folder(folder, images, labels, label_names=FASHION_MNIST_LABELS):
    """Writes images of shape (num_images, channels, height, width) to one subfolder per class."""
    for index, (image, label) in enumerate(zip(to_pil(images), labels, strict=True)):
        path = folder / label_names[label].replace("/", "-") / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def write_parquet(path, images, features=None, **columns):
    features = datasets.Features(image=datasets.Image(), **(features or {}))
    datasets.Dataset.from_dict({"image": to_pil(images), **columns}, features=features).to_parquet(path)
    return str(path)


def save_image(path, pixels):
    PIL.Image.fromarray(pixels).save(path)


def get_error(path, **kwargs):
    """Returns the message of the DataError that loading raises. It must be one line of sentences with the path."""
    with pytest.raises(DataError) as error:
        load_images(train_data_dir=str(path), **kwargs)
    message = str(error.value)
    assert str(path) in message
    assert message[0].isupper() or message[0] == "`"
    assert message.endswith(".")
    assert "\n" not in message
    return message
