"""What is measured of a set of samples: by the classifier, by the Inception network, and against memorisation."""

from dataclasses import dataclass
from typing import Any

import torch

from .classifier import Classifier
from .inception import InceptionFeatures, find_inception
from .metrics import (
    class_shares,
    distance_from_uniform,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    nearest_neighbours,
)
from .real_data import load_moments
from .samples import Samples


def classifier_metrics(features: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor | None) -> dict[str, Any]:
    """What the classifier sees in samples, in seconds: the metric to follow while a model trains.

    Args:
        features, classes (`torch.Tensor`): Of [`Classifier`], `(num_images, 256)` and `(num_images,)`.
        labels (`torch.Tensor`, *optional*): The classes that the samples were asked to be of.

    Returns:
        `dict`: the Fréchet distances to the training and test images in the classifier's features; the share
            of each class; their distance from equal shares; and, with labels, the share classified as asked.
    """
    shares = class_shares(classes)
    metrics = {
        "classifier_frechet_distance_train": frechet_distance(features, load_moments("classifier", "train")),
        "classifier_frechet_distance_test": frechet_distance(features, load_moments("classifier", "test")),
        "class_distance_from_uniform": distance_from_uniform(shares),
        "class_shares": shares,
    }
    if labels is not None:
        metrics["class_agreement"] = float((classes == labels).float().mean())
    return metrics


def inception_metrics(features: torch.Tensor, reference: torch.Tensor | None = None) -> dict[str, float]:
    """FID against all training and all test images; with the features of a `reference` of real images also the kernel
    distance to them, and precision, recall, density and coverage, of at most as many samples."""
    metrics = {
        "fid_train": frechet_distance(features, load_moments("inception", "train")),
        "fid_test": frechet_distance(features, load_moments("inception", "test")),
    }
    if reference is not None:
        metrics["kid_train"] = kernel_distance(features, reference)
        metrics |= manifold_metrics(features[: len(reference)], reference)
    return metrics


class FastMetrics:
    """What a training run and the benchmarks measure of samples: the classifier's metrics, and FID of samples that are
    enough for it, where its network is in the cache.

    Args:
        num_samples (`int`): How many samples there will be.
        device (`str` or `torch.device`, defaults to `"cpu"`): Where the feature networks run.

    Raises:
        `ValueError`: the file that `FMNIST_DIFFUSION_INCEPTION` names is missing or another, or OpenVINO is missing.
    """

    def __init__(self, num_samples: int, device: str | torch.device = "cpu"):
        self.classifier = Classifier(device)
        weights = find_inception() if num_samples > InceptionFeatures.num_features else None
        self.inception = None if weights is None else InceptionFeatures(weights, device)

    def __call__(self, samples: Samples) -> dict[str, Any]:
        """The metrics by name."""
        features = self.classifier(samples.images)
        metrics = classifier_metrics(features, self.classifier.classify(features), samples.labels)
        if self.inception is not None:
            metrics |= inception_metrics(self.inception(samples.images))
        return metrics


@dataclass
class Memorisation:
    """The nearest training image of each sample, in one space.

    Attributes:
        distances (`torch.Tensor`): From each sample to it, float32 `(num_images,)`.
        indices (`torch.Tensor`): Its place among the training images, int64 `(num_images,)`.
        test_distances (`torch.Tensor`): From each test image to the training image nearest to that.
    """

    distances: torch.Tensor
    indices: torch.Tensor
    test_distances: torch.Tensor

    @classmethod
    def of(cls, samples: torch.Tensor, train: torch.Tensor, test_distances: torch.Tensor) -> "Memorisation":
        """Of vectors of samples and of training images, `(count, num_features)`."""
        distances, indices = nearest_neighbours(samples, train)
        return cls(distances[:, 0], indices[:, 0], test_distances)

    def summary(self) -> dict[str, float]:
        """Medians, and the share of samples that are nearer than 99 % of test images are: 0.01 where nothing is
        memorised."""
        return {
            "median": float(self.distances.median()),
            "test_median": float(self.test_distances.median()),
            "nearer_than_99_percent_of_test": float(
                (self.distances < self.test_distances.quantile(0.01)).float().mean()
            ),
        }
