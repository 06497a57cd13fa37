"""Container for decoded images and labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .errors import DataError


@dataclass(frozen=True)
class ImageTensors:
    """
    Images and labels of a split, decoded into memory.

    Attributes:
        images (`torch.Tensor`):
            uint8 pixels in [0, 255], of shape `(num_images, channels, height, width)`. For training a latent diffusion
            model, they are float32 latents instead.
        labels (`torch.Tensor`, *optional*):
            int64 class indices of shape `(num_images,)`. The index `len(label_names)` is the null label for
            unconditional training.
        label_names (`tuple[str, ...]`, *optional*):
            Class names, indexed by label; `None` if there are no labels.
        captions (`tuple[str, ...]`, *optional*):
            A caption for each image; `None` if there are no captions.
    """

    images: torch.Tensor
    labels: torch.Tensor | None = None
    label_names: tuple[str, ...] | None = None
    captions: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: torch.Tensor | slice) -> "ImageTensors":
        """Returns the images at the positions `index` (int64 tensor or slice), with their labels and captions."""
        labels = None if self.labels is None else self.labels[index]
        captions = None
        if self.captions is not None:
            captions = tuple(self.captions[i] for i in torch.arange(len(self))[index].tolist())
        return ImageTensors(self.images[index], labels, self.label_names, captions)


def check_label_range(labels: np.ndarray | torch.Tensor, num_labels: int, source: str | Path) -> None:
    """Raises a [`DataError`] that names `source` if a label is not between 0 and `num_labels - 1`."""
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < num_labels:
            raise DataError(
                f"The labels in {source} must be between 0 and {num_labels - 1}, got {label}. Fix the labels."
            )
