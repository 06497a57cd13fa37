import pytest
import torch

from fmnist_diffusion.data import ImageTensors
from training.batches import Batches, augment


CPU = torch.device("cpu")


def numbered_images(count: int) -> ImageTensors:
    numbers = torch.arange(count, dtype=torch.uint8)
    return ImageTensors(numbers[:, None, None, None].expand(-1, 1, 2, 2).clone(), numbers.long(), None)


class NumberedDataset(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict:
        return {"images": torch.full((1, 2, 2), index, dtype=torch.uint8), "labels": index}


@pytest.mark.parametrize("images", [numbered_images(20), NumberedDataset()], ids=["memory", "streaming"])
def test_an_epoch_is_a_new_order_of_every_image(images):
    batches = Batches(images, 5, seed=0, device=CPU)
    orders = []
    for epoch in range(2):
        order = []
        for pixels, labels in batches.epoch(epoch):
            assert pixels.shape == (5, 1, 2, 2)
            assert labels is not None
            assert torch.equal(pixels[:, 0, 0, 0].long(), labels)
            order += labels.tolist()
        assert sorted(order) == list(range(20))
        orders.append(order)
    assert orders[0] != orders[1]


def test_memory_and_streaming_have_the_same_order():
    first, second = (Batches(images, 5, 3, CPU).epoch(1) for images in (numbered_images(20), NumberedDataset()))
    for (_, labels), (_, streamed) in zip(first, second, strict=True):
        assert labels is not None and streamed is not None
        assert torch.equal(labels, streamed)


def test_an_epoch_can_start_in_its_middle():
    batches = Batches(numbered_images(20), 5, seed=0, device=CPU)
    whole = [labels.tolist() for _, labels in batches.epoch(4)]
    assert [labels.tolist() for _, labels in batches.epoch(4, start=2)] == whole[2:]


def test_processes_share_the_batches_of_one():
    alone = [set(labels.tolist()) for _, labels in Batches(numbered_images(20), 4, 0, CPU).epoch(0)]
    shares = [
        [set(labels.tolist()) for _, labels in Batches(numbered_images(20), 4, 0, CPU, rank, 2).epoch(0)]
        for rank in range(2)
    ]
    for batch, first, second in zip(alone, *shares, strict=True):
        assert len(first) == len(second) == 2
        assert first | second == batch


def test_batches_that_do_not_work_out_are_refused():
    with pytest.raises(ValueError, match="multiple of 2"):
        Batches(numbered_images(20), 5, 0, CPU, 0, 2)
    with pytest.raises(ValueError, match="smaller --train_batch_size"):
        Batches(numbered_images(20), 21, 0, CPU)


def test_flip_mirrors_half_of_the_images():
    torch.manual_seed(0)
    sample = torch.arange(3.0).expand(1000, 2, 4, 3)
    flipped = augment(sample, "flip")
    mirrored = (flipped == sample.flip(-1)).flatten(1).all(1)
    kept = (flipped == sample).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 400 < mirrored.sum() < 600


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_moves_each_image_by_up_to_two_pixels(channels: int):
    torch.manual_seed(0)
    sample = torch.zeros(500, channels, 9, 9)
    sample[:, :, 4, 4] = torch.arange(1.0, channels + 1)
    shifted = augment(sample, "shift")
    assert shifted.shape == sample.shape
    assert torch.equal(shifted.sum((2, 3)), sample.sum((2, 3)))
    positions = shifted[:, 0].flatten(1).argmax(1)
    assert {(int(p) // 9 - 4, int(p) % 9 - 4) for p in positions} == {
        (y, x) for y in range(-2, 3) for x in range(-2, 3)
    }
    # All channels alike.
    for channel in range(channels):
        assert torch.equal(shifted[:, channel].flatten(1).argmax(1), positions)


def test_no_augmentation_changes_nothing():
    sample = torch.randn(2, 1, 4, 4)
    assert augment(sample, "none") is sample
