import pytest
import torch

from fmnist_diffusion.data.augmentation import augment


def test_flip_mirrors_half_of_the_images():
    torch.manual_seed(0)
    images = torch.arange(3.0).expand(1000, 2, 4, 3)
    flipped = augment(images, "flip")
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 400 < mirrored.sum() < 600


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_moves_each_image_by_up_to_two_pixels(channels: int):
    torch.manual_seed(0)
    images = torch.zeros(500, channels, 9, 9)
    images[:, :, 4, 4] = torch.arange(1.0, channels + 1)
    shifted = augment(images, "shift")
    assert shifted.shape == images.shape
    assert torch.equal(shifted.sum((2, 3)), images.sum((2, 3)))
    positions = shifted[:, 0].flatten(1).argmax(1)
    assert {(int(p) // 9 - 4, int(p) % 9 - 4) for p in positions} == {
        (y, x) for y in range(-2, 3) for x in range(-2, 3)
    }
    # All channels move together.
    for channel in range(channels):
        assert torch.equal(shifted[:, channel].flatten(1).argmax(1), positions)


def test_no_augmentation_returns_the_images():
    images = torch.randn(2, 1, 4, 4)
    assert augment(images, "none") is images
