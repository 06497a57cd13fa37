"""Summarizes the size, color and labels of images before training."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .conversion import inspect_pixels
from .datasets_utils import get_arrow_column, is_uint8_array
from .decoding import disable_decoding, get_encoded, name_row
from .errors import ImageError, combine_image_errors
from .image_tensors import ImageTensors
from .reading import read_header, read_image


if TYPE_CHECKING:
    import datasets

MIN_SIDE, MAX_SIDE = 8, 128
MAX_MEDIAN_SIDE = 64
GRAYSCALE_MODES = ("1", "L", "LA", "La")


@dataclass(frozen=True)
class DataSummary:
    """
    Properties of the images of a split.

    Attributes:
        num_images (`int`):
            Number of images.
        sizes (`dict[tuple[int, int], int]`):
            Number of images of each size `(height, width)`, in pixels.
        channels (`int`):
            1 if all images are grayscale or have equal color channels, and 3 otherwise.
        num_transparent (`int`):
            Number of images with transparent pixels.
        label_names (`tuple[str, ...]`, *optional*):
            Class names; `None` if there are no labels.
        class_counts (`tuple[int, ...]`, *optional*):
            Number of images of each class; `None` if there are no labels.
        skipped (`tuple[tuple[str, str], ...]`):
            Paths of the files that are not used, with the reasons.
        has_captions (`bool`, defaults to `False`):
            Whether the images have captions.
    """

    num_images: int
    sizes: dict[tuple[int, int], int]
    channels: int
    num_transparent: int
    label_names: tuple[str, ...] | None
    class_counts: tuple[int, ...] | None
    skipped: tuple[tuple[str, str], ...]
    has_captions: bool = False

    @property
    def resolution(self) -> tuple[int, int]:
        """
        The default height and width of a model for these images, in pixels.

        If all images have the same size, with sides from 8 to 128, this is their size. Otherwise, it is a square whose
        side is the median of the shorter sides, rounded down to a multiple of 4 and clamped to [8, 64].
        """
        if len(self.sizes) == 1:
            size = next(iter(self.sizes))
            if all(MIN_SIDE <= side <= MAX_SIDE for side in size):
                return size
        shorter_sides = Counter[int]()
        for size, count in self.sizes.items():
            shorter_sides[min(size)] += count
        median = int(statistics.median(list(shorter_sides.elements())))
        side = min(max(median - median % 4, MIN_SIDE), MAX_MEDIAN_SIDE)
        return side, side


def summarize_dataset(dataset: datasets.Dataset, skipped: tuple[tuple[str, str], ...]) -> DataSummary:
    """
    Summarizes a dataset returned by [`load_split`].

    Raises:
        `DataError`: If the header of an image cannot be read.
    """
    if is_uint8_array(dataset.features["image"]):
        sizes, channels, num_transparent = {tuple(dataset.features["image"].shape): len(dataset)}, 1, 0
    else:
        sizes, channels, num_transparent = _summarize_images(disable_decoding(dataset))
    label_names = class_counts = None
    if "label" in dataset.features:
        label_names = tuple(dataset.features["label"].names)
        class_counts = _count_classes(get_arrow_column(dataset, "label").to_numpy(), len(label_names))
    return DataSummary(
        len(dataset),
        sizes,
        channels,
        num_transparent,
        label_names,
        class_counts,
        skipped,
        has_captions="text" in dataset.features,
    )


def summarize_tensors(tensors: ImageTensors) -> DataSummary:
    """Summarizes decoded images."""
    images = tensors.images
    num_images, channels, height, width = images.shape
    is_gray = channels == 1 or bool(torch.equal(images, images[:, :1].expand_as(images)))
    class_counts = None
    if tensors.labels is not None and tensors.label_names is not None:
        class_counts = _count_classes(tensors.labels.numpy(), len(tensors.label_names))
    sizes = {(height, width): num_images}
    return DataSummary(
        num_images,
        sizes,
        1 if is_gray else 3,
        0,
        tensors.label_names,
        class_counts,
        (),
        has_captions=tensors.captions is not None,
    )


def _summarize_images(dataset: datasets.Dataset) -> tuple[dict[tuple[int, int], int], int, int]:
    sizes = Counter[tuple[int, int]]()
    channels, num_transparent = 1, 0
    errors = []
    for index, encoded_image in enumerate(dataset["image"]):
        try:
            encoded, name = get_encoded(encoded_image, name_row(dataset, index))
            height, width, mode, may_be_transparent = read_header(encoded, name)
            sizes[height, width] += 1
            may_have_color = channels == 1 and mode not in GRAYSCALE_MODES
            if may_be_transparent or may_have_color:
                is_transparent, is_grayscale = inspect_pixels(read_image(encoded, name), name)
                num_transparent += is_transparent
                channels = channels if is_grayscale else 3
        except ImageError as error:
            errors.append(error)
    if errors:
        raise combine_image_errors(errors)
    return dict(sizes), channels, num_transparent


def _count_classes(labels: np.ndarray, num_classes: int) -> tuple[int, ...]:
    # The null label follows the class indices.
    return tuple(np.bincount(labels, minlength=num_classes)[:num_classes].tolist())
