"""Loads the bundled reference statistics of the real images.

They were computed with `python -m fmnist_diffusion.evaluation.compute_statistics`.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from .distances import Moments


STATISTICS_DIR = Path(__file__).parent / "statistics"
SPLITS = ("train", "test")
# KID, precision, recall, density and coverage compare samples with the first 10,000 training images.
NUM_REFERENCE_IMAGES = 10_000
# This is the `tensor_hash` of the 60,000 training images in their original order.
TRAIN_SHA256 = "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"


def get_statistics_path(extractor_name: str, split: str, folder: Path = STATISTICS_DIR) -> Path:
    return folder / f"{extractor_name}-{split}.safetensors"


def load_moments(extractor_name: str, split: str, folder: Path = STATISTICS_DIR) -> Moments:
    """Loads the moments of `"inception"` or `"classifier"` features of the `"train"` or `"test"` split."""
    with safe_open(get_statistics_path(extractor_name, split, folder), framework="pt") as file:
        mean, upper = file.get_tensor("mean").double(), file.get_tensor("covariance").double()
        num_images = int(file.metadata()["num_images"])
    rows, columns = torch.triu_indices(len(mean), len(mean))
    covariance = torch.empty(len(mean), len(mean), dtype=torch.float64)
    covariance[rows, columns] = covariance[columns, rows] = upper
    return Moments(mean, covariance, num_images)


def load_real_metrics() -> dict[str, Any]:
    """Loads the metrics of unchanged and altered real images."""
    return json.loads((STATISTICS_DIR / "real.json").read_text())


def load_test_metrics() -> dict[str, float]:
    """Loads the metrics of the test images, with the same keys as the metrics of samples."""
    real = load_real_metrics()
    inception = real["inception"]["test"]
    return {
        "num_images": inception["num_images"],
        "fid_train": inception["frechet_distance"],
        "kid_train": inception["kernel_distance"],
        **{name: inception[name] for name in ("precision", "recall", "density", "coverage")},
        "classifier_frechet_distance_train": real["classifier"]["test"]["frechet_distance"],
        "class_accuracy": real["classifier_accuracy"]["test"],
    }


def load_test_distances() -> dict[str, torch.Tensor]:
    """
    Loads the distance of each test image to its nearest training image.

    Returns:
        `dict[str, torch.Tensor]`: Distances in `"pixels"` and in `"classifier"` features, float32 `(10000,)`.
    """
    return load_file(STATISTICS_DIR / "test_distances.safetensors")
