"""The order in which images are trained on, and how they reach the device."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from fmnist_diffusion.data import ImageTensors


MAX_SHIFT = 2


class Batches:
    """Shuffled batches, the same for a seed and an epoch, of which each process takes its own share.

    The order depends on nothing else, so a resumed run goes on where it stopped. An epoch drops the incomplete last
    batch. `images` are either decoded and in memory, and then live on `device`, or a data set whose items are decoded
    one by one in `num_workers` processes.
    """

    def __init__(
        self,
        images: ImageTensors | torch.utils.data.Dataset,
        batch_size: int,
        seed: int,
        device: torch.device,
        process_index: int = 0,
        num_processes: int = 1,
        num_workers: int = 0,
    ):
        if batch_size % num_processes:
            raise ValueError(
                f"train_batch_size is {batch_size} over {num_processes} processes; give a multiple of {num_processes}."
            )
        if len(images) < batch_size:  # pyright: ignore[reportArgumentType]
            raise ValueError(
                f"there are {len(images)} images for a batch of {batch_size}; give a smaller --train_batch_size."  # pyright: ignore[reportArgumentType]
            )
        self.images = self.labels = self.dataset = None
        if isinstance(images, ImageTensors):
            self.images = images.images.to(device)
            self.labels = None if images.labels is None else images.labels.to(device)
        else:
            self.dataset = images
        self.num_images = len(images)  # pyright: ignore[reportArgumentType]
        self.batch_size, self.seed, self.device, self.num_workers = batch_size, seed, device, num_workers
        self.process_index, self.num_processes = process_index, num_processes

    def __len__(self) -> int:
        return self.num_images // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yields images, uint8 (B, C, H, W), and labels, int64 (B,) or None, from batch `start` of `epoch` on."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
        order = torch.randperm(self.num_images, generator=generator)[: len(self) * self.batch_size]
        order = order.view(len(self), self.num_processes, -1)[start:, self.process_index]
        if self.images is not None:
            for index in order.to(self.device):
                yield self.images[index], None if self.labels is None else self.labels[index]
            return
        loader = DataLoader(
            self.dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=order.tolist(),
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            # Of its own, or it would draw from the random numbers of training.
            generator=torch.Generator(),
        )
        for batch in loader:
            labels = batch.get("labels")
            yield (
                batch["images"].to(self.device, non_blocking=True),
                None if labels is None else labels.to(self.device, non_blocking=True),
            )


def augment(sample: torch.Tensor, augmentation: str) -> torch.Tensor:
    """Augments images (B, C, H, W), each on its own: `"flip"`, `"shift"` (edge pixels repeated) or `"none"`."""
    batch, channels, height, width = sample.shape
    device = sample.device
    if augmentation == "flip":
        flipped = torch.rand(batch, 1, 1, 1, device=device) < 0.5
        return torch.where(flipped, sample.flip(-1), sample)
    if augmentation == "shift":
        padded = F.pad(sample, [MAX_SHIFT] * 4, mode="replicate")
        top, left = torch.randint(2 * MAX_SHIFT + 1, (2, batch, 1), device=device)
        rows = (torch.arange(height, device=device) + top)[:, None, :, None]
        columns = (torch.arange(width, device=device) + left)[:, None, None, :]
        image = torch.arange(batch, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        return padded[image, channel, rows, columns]
    return sample
