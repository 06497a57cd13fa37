import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from image_files import save_image, save_image_folder

from fmnist_diffusion.data import DataError, ImageStream, decode, load_images, load_split


def test_decoding_respects_a_selection(fashion_mnist_folder, fashion_mnist):
    dataset = load_split(train_data_dir=str(fashion_mnist_folder))
    for indices in ([7, 3, 500], range(100, 105)):
        tensors = decode(dataset.select(indices), resolution=28, channels=1)
        assert torch.equal(tensors.images, fashion_mnist.images[list(indices)])
        assert torch.equal(tensors.labels, fashion_mnist.labels[list(indices)])


@pytest.mark.parametrize(("resolution", "channels"), [(28, 3), (32, 1), (14, 3), ((20, 40), 1)])
def test_images_are_converted_to_resolution_and_channels(fashion_mnist_folder, fashion_mnist, resolution, channels):
    tensors = load_images(
        train_data_dir=str(fashion_mnist_folder), resolution=resolution, channels=channels, max_samples=8
    )
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert tensors.images.shape == (8, channels, height, width)
    assert (tensors.images == tensors.images[:, :1]).all()
    if resolution in (14, 32):
        mean = fashion_mnist.images[:8].float().mean((1, 2, 3))
        torch.testing.assert_close(tensors.images.float().mean((1, 2, 3)), mean, atol=2.0, rtol=0)


def test_rgb_is_converted_to_luma(tmp_path):
    PIL.Image.new("RGB", (28, 28), (200, 100, 50)).save(tmp_path / "a.png")
    images = load_images(train_data_dir=str(tmp_path), channels=1).images
    assert images.unique().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]


def test_resizing_keeps_the_aspect_ratio(tmp_path):
    pixels = np.zeros((20, 60), dtype=np.uint8)
    pixels[:, 20:40] = 255
    save_image(tmp_path / "a.png", pixels)
    assert load_images(train_data_dir=str(tmp_path), resolution=10).images.float().mean() > 240


@pytest.mark.parametrize(
    "kwargs", [{"resolution": 0}, {"resolution": (28, -1)}, {"channels": 2}, {"channels": 0}], ids=str
)
def test_invalid_resolution_or_channels_is_an_error(fashion_mnist_folder, kwargs):
    name = next(iter(kwargs))
    with pytest.raises(DataError, match=f"^`{name}` must be .*, got "):
        load_images(train_data_dir=str(fashion_mnist_folder), **kwargs)


@pytest.mark.parametrize("source", ["idx", "image folder"])
def test_streaming_returns_the_same_pixels_as_decoding(fashion_mnist_folder, fashion_mnist, tmp_path, source):
    if source == "image folder":
        save_image_folder(tmp_path, fashion_mnist.images[:20], fashion_mnist.labels[:20])
        dataset = load_split(train_data_dir=str(tmp_path))
    else:
        dataset = load_split(train_data_dir=str(fashion_mnist_folder)).select(range(20))
    expected = decode(dataset, resolution=32, channels=3)
    loader = torch.utils.data.DataLoader(ImageStream(dataset, resolution=32, channels=3), batch_size=8)
    batches = list(loader)
    assert torch.equal(torch.cat([batch["images"] for batch in batches]), expected.images)
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), expected.labels)


def test_stream_can_be_pickled_for_worker_processes(fashion_mnist_folder):
    stream = ImageStream(load_split(train_data_dir=str(fashion_mnist_folder)), resolution=28, channels=1)
    assert torch.equal(pickle.loads(pickle.dumps(stream))[3]["images"], stream[3]["images"])


def test_streaming_an_unreadable_image_is_an_error_that_names_the_file(tmp_path, fashion_mnist):
    save_image(tmp_path / "a.png", fashion_mnist.images[0, 0].numpy())
    (tmp_path / "b.png").write_bytes(b"text")
    stream = ImageStream(load_split(train_data_dir=str(tmp_path)), resolution=28, channels=1)
    assert set(stream[0]) == {"images"}
    with pytest.raises(DataError, match=r"Could not read the image .*b\.png"):
        stream[1]
