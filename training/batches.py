"""Order and augmentation of the training images."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from fmnist_diffusion.data import DataError, ImageTensors, augment, to_model_input


class ImageDataset(Protocol):
    """A dataset whose items are dictionaries with `images`, uint8 `(C, H, W)`, and optionally `labels`, an `int`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Batches:
    """Shuffled batches of training images. Each process gets its own part of every batch.

    The order of the images and all random numbers only depend on `seed`, the epoch and the position of the batch, so
    a resumed run continues with the remaining images, and any number of processes trains on the same batches. Each
    epoch has the number of batches that [`count_batches`] returns.

    Args:
        images: Images in memory (uint8 pixels or float32 latents), which are moved to `device`, or a dataset that
            `num_workers` processes read.
        batch_size: Total number of images per batch, across all processes.
        seed: Seed of the order of the images and of all random numbers.
        device: Device of the batches.
        augmentation: Name of an augmentation; see [`augment`].
        process_index, num_processes: Index of this process and number of processes that share each batch.
        num_workers: Number of processes that read a dataset.
        gradient_accumulation_steps: Number of batches per optimizer step, which divides the number of batches.
        make_token_ids: Function that takes the seed of an epoch and returns the token ids of the captions of all
            images, `(N, L)`. The token ids replace the labels of images in memory.

    Raises:
        `ValueError`: If the batch size is not a multiple of the number of processes or exceeds the number of images.
    """

    def __init__(
        self,
        images: ImageTensors | ImageDataset,
        batch_size: int,
        seed: int,
        device: torch.device,
        *,
        augmentation: str = "none",
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
        gradient_accumulation_steps: int = 1,
        make_token_ids: Callable[[int], torch.Tensor] | None = None,
    ):
        self.num_images = len(images)
        self.num_batches = count_batches(self.num_images, batch_size, gradient_accumulation_steps)
        check_batch_size(batch_size, self.num_images, num_processes)
        if isinstance(images, ImageTensors):
            labels = None if images.labels is None else images.labels.to(device)
            images = ImageTensors(images.images.to(device), labels, images.label_names)
        self.images, self.augmentation = images, augmentation
        self.batch_size, self.seed, self.device, self.num_workers = batch_size, seed, device, num_workers
        self.process_index, self.num_processes, self.make_token_ids = process_index, num_processes, make_token_ids

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self.num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Generator]]:
        """Yields the batches of `epoch`, starting with batch `start`: augmented images in [-1, 1] or latents, float32
        `(B, C, H, W)`; labels, int64 `(B,)`, or token ids, `(B, L)`, or `None`; and a random generator for the noise,
        which has the same state in all processes.

        Raises:
            `DataError`: If an image of a streamed dataset cannot be decoded.
        """
        epoch_seed = 1_000_003 * self.seed + epoch
        generator = torch.Generator().manual_seed(epoch_seed)
        order = torch.randperm(self.num_images, generator=generator)[: len(self) * self.batch_size]
        order = order.view(len(self), self.num_processes, -1)[start:, self.process_index]
        batches = self._index(order, epoch_seed) if isinstance(self.images, ImageTensors) else self._stream(order)
        for batch, (images, labels) in enumerate(batches, start):
            generator = torch.Generator(self.device).manual_seed(make_seed(self.seed, epoch, batch))
            if images.dtype == torch.uint8:
                images = to_model_input(images)
            images = augment(images, self.augmentation, generator, self.process_index, self.num_processes)
            yield images, labels, generator

    def _index(self, order: torch.Tensor, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        assert isinstance(self.images, ImageTensors)
        labels = self.images.labels if self.make_token_ids is None else self.make_token_ids(seed).to(self.device)
        for index in order.to(self.device):
            yield self.images.images[index], None if labels is None else labels[index]

    def _stream(self, order: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        assert not isinstance(self.images, ImageTensors)
        loader = DataLoader(
            DatasetWithErrors(self.images),
            batch_sampler=order.tolist(),
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            collate_fn=collate,
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            labels = batch.get("labels")
            yield (
                batch["images"].to(self.device, non_blocking=True),
                None if labels is None else labels.to(self.device, non_blocking=True),
            )


def make_seed(*numbers: int) -> int:
    """Combines non-negative `numbers` into a 32-bit seed, because torch's CPU generator only uses 32 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def count_batches(num_images: int, batch_size: int, gradient_accumulation_steps: int = 1) -> int:
    """Returns the number of batches in an epoch, without the batches of an incomplete last optimizer step."""
    return num_images // (batch_size * gradient_accumulation_steps) * gradient_accumulation_steps


def check_batch_size(batch_size: int, num_images: int, num_processes: int) -> None:
    """Raises `ValueError` if `batch_size` is not a multiple of `num_processes` or exceeds `num_images`."""
    if batch_size % num_processes:
        raise ValueError(
            f"`--train_batch_size` must be a multiple of the number of processes ({num_processes}), got {batch_size}."
        )
    if num_images < batch_size:
        raise ValueError(
            f"`--train_batch_size` must be at most the number of images ({num_images}), got {batch_size}."
        )


class DatasetWithErrors(Dataset):
    """A dataset that returns a [`DataError`] instead of raising it.

    DataLoader's worker processes would replace the message of an exception with a traceback.
    """

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Any] | DataError:
        try:
            return self.dataset[index]
        except DataError as error:
            return error


def collate(items: list[dict[str, Any] | DataError]) -> dict[str, torch.Tensor] | DataError:
    """Returns a batch, or the first error among `items`."""
    errors = [item for item in items if isinstance(item, DataError)]
    return errors[0] if errors else default_collate(items)
