import pytest
import torch

from batches import Batches
from fmnist_diffusion.data import DataError, ImageTensors, to_uint8


CPU = torch.device("cpu")


def make_numbered_images(count: int) -> ImageTensors:
    numbers = torch.arange(count, dtype=torch.uint8)
    return ImageTensors(numbers[:, None, None, None].expand(-1, 1, 2, 2).clone(), numbers.long(), None)


class NumberedDataset(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict:
        return {"images": torch.full((1, 2, 2), index, dtype=torch.uint8), "labels": index}


class BrokenDataset(NumberedDataset):
    def __getitem__(self, index: int) -> dict:
        if index == 13:
            raise DataError("Image 13 cannot be decoded.")
        return super().__getitem__(index)


@pytest.mark.parametrize("images", [make_numbered_images(20), NumberedDataset()], ids=["memory", "streaming"])
def test_an_epoch_contains_every_image_in_a_new_order(images: ImageTensors | NumberedDataset):
    batches = Batches(images, 5, seed=0, device=CPU)
    orders = []
    for epoch in range(2):
        order = []
        for batch, labels, _ in batches.epoch(epoch):
            assert batch.shape == (5, 1, 2, 2)
            assert labels is not None
            assert torch.equal(to_uint8(batch)[:, 0, 0, 0].long(), labels)
            order += labels.tolist()
        assert sorted(order) == list(range(20))
        orders.append(order)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("num_images", "accumulation", "expected"), [(20, 1, 4), (24, 1, 4), (20, 3, 3), (30, 3, 6)])
def test_an_epoch_has_no_incomplete_steps(num_images: int, accumulation: int, expected: int):
    batches = Batches(make_numbered_images(num_images), 5, 0, CPU, gradient_accumulation_steps=accumulation)
    assert len(batches) == len(list(batches.epoch(0))) == expected


def test_memory_and_streaming_use_the_same_order():
    first, second = (Batches(images, 5, 3, CPU).epoch(1) for images in (make_numbered_images(20), NumberedDataset()))
    for (_, labels, _), (_, streamed, _) in zip(first, second, strict=True):
        assert labels is not None and streamed is not None
        assert torch.equal(labels, streamed)


def test_epoch_can_start_at_any_batch():
    batches = Batches(make_numbered_images(20), 5, seed=0, device=CPU)
    labels = [labels for _, labels, _ in batches.epoch(4)]
    rest = [labels for _, labels, _ in batches.epoch(4, start=2)]
    assert torch.equal(torch.stack(rest), torch.stack(labels[2:]))


def test_processes_share_each_batch():
    single = [set(labels.tolist()) for _, labels, _ in Batches(make_numbered_images(20), 4, 0, CPU).epoch(0)]
    parts = [
        [
            set(labels.tolist())
            for _, labels, _ in Batches(
                make_numbered_images(20), 4, 0, CPU, process_index=rank, num_processes=2
            ).epoch(0)
        ]
        for rank in range(2)
    ]
    for batch, first, second in zip(single, *parts, strict=True):
        assert len(first) == len(second) == 2
        assert first | second == batch


def test_invalid_batch_sizes_raise():
    with pytest.raises(ValueError, match=r"must be a multiple of the number of processes \(2\), got 5\."):
        Batches(make_numbered_images(20), 5, 0, CPU, num_processes=2)
    with pytest.raises(ValueError, match=r"must be at most the number of images \(20\), got 21\."):
        Batches(make_numbered_images(20), 21, 0, CPU)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_errors_keep_their_message(num_workers: int):
    with pytest.raises(DataError) as error:
        list(Batches(BrokenDataset(), 5, seed=0, device=CPU, num_workers=num_workers).epoch(0))
    assert str(error.value) == "Image 13 cannot be decoded."
