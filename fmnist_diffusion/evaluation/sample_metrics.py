"""Classifier metrics, Inception metrics and memorization (nearest training images) of a set of samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fmnist_diffusion.sampling import Samples

from .bundled_statistics import load_moments
from .classifier import Classifier
from .distances import (
    class_shares,
    distance_from_uniform,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    nearest_neighbors,
)
from .inception import InceptionFeatures, find_inception


def classifier_metrics(
    features: torch.Tensor, predicted_classes: torch.Tensor, labels: torch.Tensor | None
) -> dict[str, Any]:
    """
    Computes the metrics in the feature space of the bundled classifier.

    Args:
        features (`torch.Tensor`): Features of [`Classifier`], float32 `(num_images, 256)`.
        predicted_classes (`torch.Tensor`): Classes predicted by [`Classifier`], int64 `(num_images,)`.
        labels (`torch.Tensor`, *optional*): Class labels that the samples were generated with, int64 `(num_images,)`.

    Returns:
        `dict`: Fréchet distances to the training and test images in classifier features, the share of each predicted
            class and its distance from the uniform distribution, and, with labels, the class accuracy.
    """
    shares = class_shares(predicted_classes)
    metrics = {
        "classifier_frechet_distance_train": frechet_distance(features, load_moments("classifier", "train")),
        "classifier_frechet_distance_test": frechet_distance(features, load_moments("classifier", "test")),
        "class_distance_from_uniform": distance_from_uniform(shares),
        "class_shares": shares,
    }
    if labels is not None:
        metrics["class_accuracy"] = float((predicted_classes == labels).float().mean())
    return metrics


def inception_metrics(features: torch.Tensor, reference: torch.Tensor | None = None) -> dict[str, float]:
    """
    Computes the metrics in Inception features.

    Args:
        features (`torch.Tensor`): Features of the samples, float32 `(num_images, 2048)`.
        reference (`torch.Tensor`, *optional*): Features of real images, float32 `(num_real_images, 2048)`.

    Returns:
        `dict[str, float]`: FID relative to all training images and to all test images if there are more than 2,048
            samples. With `reference`, also KID, precision, recall, density and coverage. The last four use at most
            `num_real_images` samples.
    """
    metrics = {}
    if len(features) > features.shape[1]:
        metrics["fid_train"] = frechet_distance(features, load_moments("inception", "train"))
        metrics["fid_test"] = frechet_distance(features, load_moments("inception", "test"))
    if reference is not None:
        metrics["kid_train"] = kernel_distance(features, reference)[0]
        metrics |= manifold_metrics(features[: len(reference)], reference)
    return metrics


class FastMetrics:
    """
    Computes metrics that are fast enough for evaluation during training.

    They are the metrics of the bundled classifier. With more than 2,048 samples, FID is also computed if the Inception
    network is available (see [`find_inception`]).

    Args:
        num_samples (`int`): Number of samples to evaluate.
        device (`str` or `torch.device`, defaults to `"cpu"`): Device of the feature networks.

    Raises:
        `ValueError`: If `FMNIST_DIFFUSION_INCEPTION` is set to a file that does not exist or is not the Inception
            network, or if OpenVINO is required but not installed.
    """

    def __init__(self, num_samples: int, device: str | torch.device = "cpu"):
        self.classifier = Classifier(device)
        weights = find_inception() if num_samples > InceptionFeatures.num_features else None
        self.inception = None if weights is None else InceptionFeatures(weights, device)

    def __call__(self, samples: Samples) -> dict[str, Any]:
        """Computes the metrics by name; see [`classifier_metrics`] and [`inception_metrics`]."""
        features = self.classifier(samples.images)
        metrics = classifier_metrics(features, self.classifier.classify(features), samples.labels)
        if self.inception is not None:
            metrics |= inception_metrics(self.inception(samples.images))
        return metrics


@dataclass
class Memorization:
    """
    Distances of the samples and of real images to their nearest training images, in one feature space.

    Attributes:
        distances (`torch.Tensor`): Distance of each sample to its nearest training image, float32 `(num_images,)`.
        indices (`torch.Tensor`): Index of that training image, int64 `(num_images,)`.
        real_distances (`torch.Tensor`): Distance of each real image to its nearest training image, float32.
    """

    distances: torch.Tensor
    indices: torch.Tensor
    real_distances: torch.Tensor

    def summarize(self, real_name: str) -> dict[str, float]:
        """
        Returns the median distances, and the share of samples that are at least as near to a training image as the
        nearest 1% of the real images.

        The share is about 0.01 if the model has not memorized training images.

        Args:
            real_name (`str`): Name of the real images in the keys, such as `"test"`.
        """
        threshold = self.real_distances.quantile(0.01)
        return {
            "median": float(self.distances.median()),
            f"{real_name}_median": float(self.real_distances.median()),
            f"nearer_than_99_percent_of_{real_name}": float((self.distances <= threshold).float().mean()),
        }


def measure_memorization(
    samples: torch.Tensor, real_images: torch.Tensor, real_distances: torch.Tensor
) -> Memorization:
    """
    Finds the nearest training image of each sample.

    Args:
        samples, real_images (`torch.Tensor`): Vectors of the samples and the real images, `(count, num_features)`.
        real_distances (`torch.Tensor`): Distances of the real images in the same space; see [`Memorization`].
    """
    distances, indices = nearest_neighbors(samples, real_images)
    return Memorization(distances[:, 0], indices[:, 0], real_distances)


@dataclass
class Measurement:
    """
    All results for one set of samples.

    Attributes:
        samples ([`Samples`]): The samples.
        memorization (`dict[str, Memorization]`): Nearest training images by feature space, such as `"pixels"`.
        metrics (`dict`): Metrics by name.
        predicted_classes (`torch.Tensor`, *optional*):
            Classes predicted by the bundled classifier, int64 `(num_images,)`.
    """

    samples: Samples
    memorization: dict[str, Memorization]
    metrics: dict[str, Any]
    predicted_classes: torch.Tensor | None = None


def make_measurement(
    samples: Samples,
    metrics: dict[str, Any],
    spaces: Mapping[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    real_name: str,
    predicted_classes: torch.Tensor | None = None,
) -> Measurement:
    """
    Finds the nearest training image of each sample, and combines `metrics` with the distances and the sampling speed.

    Args:
        samples ([`Samples`]): The samples.
        metrics (`dict`): Other metrics by name.
        spaces (`Mapping[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]`):
            The arguments of [`measure_memorization`] for each feature space, such as `"pixels"`.
        real_name (`str`): See [`Memorization.summarize`].
        predicted_classes (`torch.Tensor`, *optional*): See [`Measurement`].
    """
    memorization = {space: measure_memorization(*tensors) for space, tensors in spaces.items()}
    metrics = metrics | {f"nearest_{space}": found.summarize(real_name) for space, found in memorization.items()}
    # The number of function evaluations and the speed of existing samples are unknown.
    if samples.seconds:
        metrics["num_function_evaluations"] = samples.num_function_evaluations // len(samples)
        metrics["images_per_second"] = len(samples) / samples.seconds
    return Measurement(samples, memorization, metrics, predicted_classes)
