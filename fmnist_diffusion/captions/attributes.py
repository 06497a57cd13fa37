"""Attributes of Fashion-MNIST classes: a measurement, the words for low and high values, and their thresholds."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from fmnist_diffusion.data import FASHION_MNIST_LABELS

from .measures import (
    measure_arch,
    measure_brightness,
    measure_height,
    measure_shaft,
    measure_shoulder_ratio,
    measure_shoulder_width,
    measure_sleeve_span,
    measure_top_gap,
    measure_torso_length,
    measure_width,
)


THRESHOLDS_PATH = Path(__file__).with_name("thresholds.json")


@dataclass(frozen=True)
class Attribute:
    """
    An attribute of a class.

    Attributes:
        measure (`Callable[[torch.Tensor], torch.Tensor]`):
            Maps uint8 pixels `(batch, 28, 28)` to values `(batch,)`.
        low, high (`tuple[str, ...]`):
            Synonyms for values below and above the thresholds: adjectives, or phrases that start with "with".
        quantiles (`tuple[float, float]`):
            Quantiles of the class. A caption only mentions values below the first or above the second one.
    """

    measure: Callable[[torch.Tensor], torch.Tensor]
    low: tuple[str, ...]
    high: tuple[str, ...]
    quantiles: tuple[float, float]

    def get_words(self, direction: int) -> tuple[str, ...]:
        """Returns the synonyms of a direction: -1 for low and 1 for high values."""
        return self.high if direction > 0 else self.low


@dataclass(frozen=True)
class Thresholds:
    """The two quantiles and the median of an attribute in the training images of a class."""

    low: float
    median: float
    high: float


BRIGHTNESS = Attribute(
    measure_brightness, ("dark", "black", "dark-colored"), ("bright", "light", "white", "pale"), (0.25, 0.75)
)
LENGTH = Attribute(measure_torso_length, ("short", "cropped"), ("long",), (0.2, 0.75))
SHAFT_WORDS = (("short", "with a short shaft"), ("tall", "with a tall shaft", "with a high shaft"))
NARROW, WIDE = ("narrow", "slim"), ("wide", "loose")

ATTRIBUTES: dict[str, dict[str, Attribute]] = {
    "T-shirt/top": {
        "brightness": BRIGHTNESS,
        "sleeve": Attribute(measure_shoulder_width, ("sleeveless", "without sleeves"), ("with sleeves",), (0.08, 0.6)),
    },
    "Trouser": {
        "brightness": BRIGHTNESS,
        "width": Attribute(measure_width, (*NARROW, "skinny"), (*WIDE, "baggy"), (0.25, 0.75)),
    },
    "Pullover": {
        "brightness": BRIGHTNESS,
        "width": Attribute(measure_width, NARROW, WIDE, (0.2, 0.8)),
        "length": LENGTH,
    },
    "Dress": {
        "brightness": BRIGHTNESS,
        "width": Attribute(measure_width, NARROW, WIDE, (0.25, 0.75)),
        "sleeve": Attribute(
            measure_shoulder_ratio, ("sleeveless", "without sleeves"), ("sleeved", "with sleeves"), (0.2, 0.65)
        ),
    },
    "Coat": {
        "brightness": BRIGHTNESS,
        "width": Attribute(measure_width, NARROW, WIDE, (0.2, 0.8)),
        "length": LENGTH,
    },
    "Sandal": {
        "brightness": BRIGHTNESS,
        "heel": Attribute(
            measure_height,
            ("flat", "low-heeled"),
            ("high-heeled", "with a high heel", "with high heels"),
            (0.35, 0.65),
        ),
    },
    "Shirt": {
        "brightness": BRIGHTNESS,
        "sleeve": Attribute(
            measure_sleeve_span,
            ("short-sleeved", "with short sleeves"),
            ("long-sleeved", "with long sleeves"),
            (0.3, 0.6),
        ),
    },
    "Sneaker": {
        "brightness": BRIGHTNESS,
        "shaft": Attribute(measure_shaft, ("low", "low-top"), ("high", "high-top"), (0.2, 0.8)),
    },
    "Bag": {
        "brightness": BRIGHTNESS,
        "height": Attribute(measure_height, ("flat", "low"), ("tall", "high"), (0.2, 0.6)),
        "handle": Attribute(
            measure_top_gap, ("without a handle", "without handles"), ("with a handle", "with handles"), (0.35, 0.65)
        ),
    },
    "Ankle boot": {
        "brightness": BRIGHTNESS,
        "heel": Attribute(
            measure_arch,
            ("flat", "low-heeled", "with a low heel"),
            ("high-heeled", "with a high heel"),
            (0.25, 0.75),
        ),
        "shaft": Attribute(measure_shaft, *SHAFT_WORDS, (0.25, 0.75)),
    },
}


def compute_thresholds(images: torch.Tensor, labels: torch.Tensor) -> dict[str, dict[str, Thresholds]]:
    """
    Computes the thresholds of every attribute of every class.

    Args:
        images (`torch.Tensor`): uint8 pixels `(num_images, 1, 28, 28)` with images of every class.
        labels (`torch.Tensor`): int64 class indices `(num_images,)`.
    """
    thresholds = {}
    for label, name in enumerate(FASHION_MNIST_LABELS):
        pixels = images[labels == label].squeeze(1)
        thresholds[name] = {}
        for key, attribute in ATTRIBUTES[name].items():
            low, high = attribute.quantiles
            quantiles = attribute.measure(pixels).double().quantile(torch.tensor([low, 0.5, high]).double())
            thresholds[name][key] = Thresholds(*quantiles.tolist())
    return thresholds


@cache
def load_thresholds() -> dict[str, dict[str, Thresholds]]:
    """Loads the results of [`compute_thresholds`] for the 60,000 training images, rounded to four decimals."""
    contents = json.loads(THRESHOLDS_PATH.read_text())
    return {
        name: {key: Thresholds(**values) for key, values in attributes.items()}
        for name, attributes in contents.items()
    }


def find_directions(images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, int]]:
    """
    Finds the attributes of each image that are clearly low or high for its class.

    Args:
        images (`torch.Tensor`): uint8 pixels `(num_images, 1, 28, 28)`.
        labels (`torch.Tensor`): int64 class indices `(num_images,)`.

    Returns:
        `list[dict[str, int]]`: The direction of each of these attributes: -1 for low and 1 for high values.
    """
    directions: list[dict[str, int]] = [{} for _ in range(len(images))]
    for label, name in enumerate(FASHION_MNIST_LABELS):
        indices = (labels == label).nonzero().flatten()
        pixels = images[indices].squeeze(1)
        for key, attribute in ATTRIBUTES[name].items():
            thresholds = load_thresholds()[name][key]
            values = attribute.measure(pixels)
            # If an attribute has few distinct values, such as a number of rows, a threshold can equal the median.
            is_low = (values <= thresholds.low) & (values < thresholds.median)
            is_high = (values >= thresholds.high) & (values > thresholds.median)
            for index, direction in zip(indices.tolist(), (is_high.int() - is_low.int()).tolist(), strict=True):
                if direction:
                    directions[index][key] = direction
    return directions


def check_directions(
    images: torch.Tensor, labels: torch.Tensor, directions: Sequence[dict[str, int]]
) -> list[dict[str, bool]]:
    """
    Checks whether the requested attributes of each image are on the requested side of the class median.

    Args:
        images (`torch.Tensor`): uint8 pixels `(num_images, 1, 28, 28)`.
        labels (`torch.Tensor`): int64 requested class indices `(num_images,)`.
        directions (`Sequence[dict[str, int]]`): Requested attributes, as [`find_directions`] returns them.

    Returns:
        `list[dict[str, bool]]`: A result for each requested attribute of each image.
    """
    results: list[dict[str, bool]] = [{} for _ in range(len(images))]
    for label, name in enumerate(FASHION_MNIST_LABELS):
        indices = (labels == label).nonzero().flatten()
        pixels = images[indices].squeeze(1)
        for key, attribute in ATTRIBUTES[name].items():
            median = load_thresholds()[name][key].median
            for index, value in zip(indices.tolist(), attribute.measure(pixels).tolist(), strict=True):
                if key in directions[index]:
                    results[index][key] = directions[index][key] * (value - median) > 0
    return results
