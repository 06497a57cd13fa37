"""Comparison of samples with any images, in the features of the Inception network."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.data import DataSummary, ImageTensors, inspect_images, load_images
from fmnist_diffusion.data.errors import rename_arguments

from .distances import (
    KID_SUBSET_SIZE,
    KID_SUBSETS,
    NEAREST_K,
    compute_moments,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    nearest_neighbors,
)
from .features import cached_features
from .generation import EvaluationSamples
from .inception import InceptionFeatures, cache_dir
from .processes import Processes
from .provenance import tensor_hash
from .reference import Reference
from .sample_metrics import Measurement, make_measurement
from .samples import describe_shape
from .verified_tensors import load_verified, save_verified


MIN_IMAGES = 50
# KID, precision, recall, density, coverage and the distances within the reference use at most this number of images.
MAX_IMAGES = 10_000
DEFAULT_SPLIT, TEST_SPLIT = "train", "test"
ARGUMENT_NAMES = {"`train_data_dir`": "`reference`", "`dataset_name`": "`reference`"}


@dataclass(frozen=True)
class ImageSource:
    """
    A folder, a file or a dataset on the Hub, and one of its splits.

    Attributes:
        name (`str`): Name for the results, without local folders.
        split (`str`): Name of the split.
        arguments (`dict`): Arguments of [`load_images`] that select the data.
    """

    name: str
    split: str = DEFAULT_SPLIT
    arguments: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def parse(text: str, **columns: str) -> "ImageSource":
        """
        Parses `FOLDER_OR_DATASET[:split]`. An existing file or folder may have a colon in its name.

        Args:
            text (`str`): The text.
            columns (`str`): Other arguments of [`load_images`], such as `label_column`.
        """
        path, separator, split = text.rpartition(":")
        if Path(text).exists() or not separator:
            path, split = text, DEFAULT_SPLIT
        if not path or not split:
            raise ValueError(
                f"`reference` must be a folder, a file or a dataset, optionally with :split, got {text!r}."
            )
        if Path(path).exists():
            return ImageSource(Path(path).resolve().name, split, {"train_data_dir": path, **columns})
        if path.count("/") > 1 or path.startswith((".", "/", "~")):
            raise ValueError(f"Could not find the folder or file {path}. Pass an existing one as `reference`.")
        return ImageSource(path, split, {"dataset_name": path, **columns})

    @cached_property
    def summary(self) -> DataSummary:
        """The sizes, channels and classes of the images; raises `ValueError` if they cannot be read."""
        with rename_arguments(ARGUMENT_NAMES, ValueError):
            return inspect_images(split=self.split, **self.arguments)

    def load(self, shape: tuple[int, int, int], split: str | None = None) -> ImageTensors:
        """
        Loads the images.

        Args:
            shape (`tuple[int, int, int]`): Number of channels, height and width of the images.
            split (`str`, *optional*): Name of another split.
        """
        with rename_arguments(ARGUMENT_NAMES, ValueError):
            return load_images(split=split or self.split, channels=shape[0], resolution=shape[1:], **self.arguments)


class ImageReference(Reference):
    r"""
    Images of any source, which are resized and center-cropped to the size of the samples.

    Features, the metrics of the reference itself (`floor`) and its nearest neighbors are cached by the content of the
    images.

    Args:
        source ([`ImageSource`]): The images.
        inception ([`InceptionFeatures`]): The network for the metrics.
        shape (`tuple[int, int, int]`): Number of channels, height and width of the samples.

    Raises:
        `ValueError`: If the images cannot be read, or if there are fewer than 50.
    """

    def __init__(self, source: ImageSource, inception: InceptionFeatures, shape: tuple[int, int, int]):
        self.source, self.device = source, inception.device
        self.inception: InceptionFeatures = inception  # pyright: ignore[reportIncompatibleVariableOverride]
        # If one set is grayscale and the other RGB, missing or additional colors must increase the distance.
        self.shape = (max(shape[0], source.summary.channels), *shape[1:])
        if source.summary.num_images < MIN_IMAGES:
            raise ValueError(
                f"`reference` must have at least {MIN_IMAGES} images, got {source.summary.num_images}. Pass more"
                " images."
            )

    @cached_property
    def real_images(self) -> ImageTensors:
        return self.source.load(self.shape)

    @property
    def label_names(self) -> Sequence[str] | None:
        return self.source.summary.label_names

    def load_test_images(self) -> ImageTensors:
        if self.source.split == TEST_SPLIT:
            raise ValueError(
                f"`reference` must not be the split {TEST_SPLIT}, because CAS uses this split for testing. Pass a"
                " different split."
            )
        test = self.source.load(self.shape, TEST_SPLIT)
        if test.labels is None or test.label_names != self.label_names:
            raise ValueError(
                f"The splits {self.source.split} and {TEST_SPLIT} of {self.source.name} must have the same classes."
                " Pass a different `reference`, or omit `cas`."
            )
        return test

    @classmethod
    def check_num_samples(cls, num_samples: int) -> None:
        if num_samples < MIN_IMAGES:
            raise ValueError(
                f"The metrics require at least {MIN_IMAGES} samples, got {num_samples}. Evaluate more samples."
            )

    def check_pipeline(self, pipe: FashionMNISTPipeline, conditional: bool) -> None:
        shape = pipe.image_shape
        if shape[0] not in (1, 3) or shape[1:] != self.shape[1:]:
            raise ValueError(
                f"The pipeline must generate grayscale or RGB images of {self.shape[1]}x{self.shape[2]} pixels, got"
                f" {describe_shape(shape)}. Pass a different pipeline."
            )
        if conditional and pipe.num_classes is None:
            raise ValueError("The pipeline must be class-conditional, got no classes. Pass `conditional=False`.")

    def choose_conditions(self, pipe: FashionMNISTPipeline, num_samples: int) -> dict[str, Sequence[Any]]:
        """
        Returns labels in the class proportions of the reference if the pipeline has all of its classes, and otherwise
        all classes of the pipeline in equal proportions.
        """
        proportions = self.get_class_proportions(pipe.label_names)
        if proportions is None:
            assert pipe.num_classes is not None
            return {"class_labels": range(pipe.num_classes)}
        return {"class_labels": distribute_classes(proportions, num_samples)}

    def get_class_proportions(self, label_names: Sequence[str] | None) -> torch.Tensor | None:
        """Returns the share of each class of `label_names` among the images, float64; `None` if the classes differ."""
        names, counts = self.label_names, self.source.summary.class_counts
        if label_names is None or names is None or counts is None or not set(names) <= set(label_names):
            return None
        shares = torch.zeros(len(label_names), dtype=torch.float64)
        shares[[label_names.index(name) for name in names]] = torch.tensor(counts, dtype=torch.float64)
        return shares / shares.sum()

    def get_label_names(self, pipe: FashionMNISTPipeline) -> Sequence[str] | None:
        return pipe.label_names

    def get_settings(self, pipe: FashionMNISTPipeline | None = None) -> dict[str, Any]:
        channels, height, width = self.shape
        settings = {}
        if pipe is not None:
            is_equal = self.get_class_proportions(pipe.label_names) is None
            settings["class_proportions"] = "equal" if is_equal else "reference"
        return settings | {
            "reference": {
                "name": self.source.name,
                "split": self.source.split,
                "num_images": len(self.real_images),
                "channels": channels,
                "resolution": [height, width],
                "images_sha256": self.sha256,
            }
        }

    @cached_property
    def sha256(self) -> str:
        return tensor_hash(self.real_images.images)

    def prepare(self, processes: Processes) -> None:
        images = self.real_images.images
        self.features = cached_features(self.inception, images, "reference", processes=processes)
        if processes.is_main_process:
            self.distances, self.floor = self.load_statistics()

    def load_statistics(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """
        Computes the statistics of the reference itself, or loads them from the cache.

        Returns:
            `tuple[dict[str, torch.Tensor], dict[str, Any]]`: For each feature space, the distance of at most 10,000
                images to their nearest other image; and the metrics between two random halves of the reference.
        """
        protocol = [
            self.shape,
            self.sha256,
            self.inception.sha256,
            KID_SUBSETS,
            KID_SUBSET_SIZE,
            NEAREST_K,
            MAX_IMAGES,
        ]
        key = hashlib.sha256(json.dumps(protocol).encode()).hexdigest()
        path = cache_dir() / "references" / f"{key}.safetensors"
        cached = load_verified(path)
        if cached is not None:
            return cached[0], json.loads(cached[1]["floor"])
        distances = {}
        for space, vectors in self.get_vectors().items():
            # The nearest image of each image is the image itself, which does not count.
            distances[space] = nearest_neighbors(select_images(vectors), vectors, k=2)[0][:, 1]
        half = len(self.features) // 2
        order = torch.randperm(len(self.features), generator=torch.Generator().manual_seed(0))
        metrics = compare_features(self.features[order[:half]], self.features[order[half : 2 * half]])
        floor = {"num_images": half, **metrics}
        save_verified(path, distances, {"floor": json.dumps(floor)})
        return distances, floor

    def get_vectors(self) -> dict[str, torch.Tensor]:
        return {"pixels": self.real_images.images.flatten(1), "inception": self.features}

    def measure(self, run: EvaluationSamples) -> Measurement:
        samples, features = run.samples, run.inception_features
        assert features is not None
        images = samples.images.expand(-1, self.shape[0], -1, -1)
        vectors = {"pixels": images.flatten(1), "inception": features}
        spaces = {space: (vectors[space], real, self.distances[space]) for space, real in self.get_vectors().items()}
        return make_measurement(samples, compare_features(features, self.features), spaces, "reference")

    def describe(self) -> dict[str, Any]:
        channels, height, width = self.shape
        kind = {1: "images with the gray channel repeated three times", 3: "RGB images"}[channels]
        return {
            "real_metrics": self.floor,
            "protocol": (
                f"{height}x{width} uint8 {kind}, resized bilinearly to 299x299"
                " (align_corners false), scaled to [-1, 1]; float32 features of the last pooling layer; statistics in"
                f" float64. KID ({KID_SUBSETS} pairs of subsets of {KID_SUBSET_SIZE:,} images, or half of the smaller"
                f" set), precision, recall, density and coverage ({NEAREST_K} nearest neighbors) of at most"
                f" {MAX_IMAGES:,} random images of each set. `real_metrics` compares two random halves of the"
                " reference"
            ),
            "num_threads": torch.get_num_threads(),
            "sha256": {self.inception.name: self.inception.sha256},
        }


def compare_features(features: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """
    Computes the metrics of a set of Inception features.

    Args:
        features, real (`torch.Tensor`): Features of the samples and of the real images, `(num_images, 2048)`.

    Returns:
        `dict[str, float]`: KID with its standard deviation, precision, recall, density, coverage, and FID if both sets
            have more than 2,048 images.
    """
    metrics = {}
    if min(len(features), len(real)) > features.shape[1]:
        metrics["fid"] = frechet_distance(features, compute_moments(real))
    features, real = select_images(features), select_images(real)
    metrics["kid"], metrics["kid_std"] = kernel_distance(features, real)
    return metrics | manifold_metrics(features, real)


def select_images(values: torch.Tensor) -> torch.Tensor:
    """Selects at most 10,000 rows at random with a fixed seed, because images are often sorted by class."""
    if len(values) <= MAX_IMAGES:
        return values
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))[:MAX_IMAGES]]


def distribute_classes(proportions: torch.Tensor, count: int) -> list[int]:
    """
    Returns `count` labels. Among the first n labels, each class occurs n times its proportion, up to rounding.

    Args:
        proportions (`torch.Tensor`): Share of each class, float64 `(num_classes,)`.
        count (`int`): Number of labels.
    """
    labels, counts = [], torch.zeros_like(proportions)
    for index in range(1, count + 1):
        label = int((proportions * index - counts).argmax())
        counts[label] += 1
        labels.append(label)
    return labels
