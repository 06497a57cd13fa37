from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fmnist_diffusion.data import load_images
from fmnist_diffusion.evaluation import Classifier
from fmnist_diffusion.evaluation.bundled_statistics import (
    SPLITS,
    TRAIN_SHA256,
    get_statistics_path,
    load_moments,
    load_real_metrics,
    load_test_distances,
)
from fmnist_diffusion.evaluation.distances import compute_moments
from fmnist_diffusion.evaluation.inception import INCEPTION_SHA256
from fmnist_diffusion.evaluation.provenance import tensor_hash


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("network", "num_features"), [("inception", 2048), ("classifier", 256)])
def test_bundled_moments_are_valid(network: str, num_features: int, split: str):
    moments = load_moments(network, split)
    assert moments.num_images == {"train": 60_000, "test": 10_000}[split]
    assert moments.mean.shape == (num_features,)
    assert torch.equal(moments.covariance, moments.covariance.T)
    jitter = 1e-6 * moments.covariance.trace() * torch.eye(num_features)
    # The Cholesky decomposition raises an error for matrices that are not positive definite.
    torch.linalg.cholesky(moments.covariance + jitter)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("network", ["inception", "classifier"])
def test_bundled_statistics_belong_to_the_feature_networks(network: str, split: str, classifier: Classifier):
    with safe_open(get_statistics_path(network, split), framework="pt") as file:
        expected = INCEPTION_SHA256 if network == "inception" else classifier.sha256
        assert file.metadata()["network_sha256"] == expected


def test_bundled_classifier_features_can_be_recomputed(classifier: Classifier, fashion_mnist_folder: Path):
    for split in SPLITS:
        images = load_images(split=split, train_data_dir=str(fashion_mnist_folder)).images
        with safe_open(get_statistics_path("classifier", split), framework="pt") as file:
            expected = file.get_tensor("first_features")
        assert torch.allclose(classifier(images[: len(expected)]), expected, atol=1e-4)


@pytest.mark.slow
def test_bundled_moments_of_the_test_images_can_be_recomputed(test_features: torch.Tensor):
    moments, expected = load_moments("classifier", "test"), compute_moments(test_features)
    assert torch.allclose(moments.mean, expected.mean, rtol=1e-3, atol=1e-5)
    assert (moments.covariance - expected.covariance).norm() <= 1e-3 * expected.covariance.norm()


@pytest.mark.slow
def test_fid_of_the_test_images_follows_from_the_bundled_moments():
    train, test = (load_moments("inception", split) for split in SPLITS)
    eigenvalues = torch.linalg.eigvals(train.covariance @ test.covariance)
    distance = (train.mean - test.mean).square().sum() + (train.covariance + test.covariance).trace()
    distance -= 2 * eigenvalues.sqrt().real.sum()
    assert float(distance) == pytest.approx(load_real_metrics()["inception"]["test"]["frechet_distance"], rel=1e-3)


def test_training_images_have_the_expected_hash(complete_fashion_mnist_folder: Path):
    assert tensor_hash(load_images(train_data_dir=str(complete_fashion_mnist_folder)).images) == TRAIN_SHA256


def test_bundled_test_distances_are_positive():
    distances = load_test_distances()
    assert set(distances) == {"pixels", "classifier"}
    assert all(values.shape == (10_000,) and values.median() > 0 for values in distances.values())


@pytest.mark.parametrize("network", ["inception", "classifier"])
def test_bundled_metrics_of_altered_images_are_worse(network: str):
    rows = load_real_metrics()[network]
    first = next(row for title, row in rows.items() if "the first" in title)
    for title in ("the same with noise", "the same blurred", "test, five classes only"):
        assert rows[title]["frechet_distance"] > first["frechet_distance"]
        assert rows[title]["kernel_distance"] > first["kernel_distance"]
    for title in ("the same with noise", "the same blurred"):
        assert rows[title]["precision"] < first["precision"]
    assert rows["test, five classes only"]["recall"] < rows["test"]["recall"]
    assert rows["half of test, each image twice"]["frechet_distance"] > rows["test"]["frechet_distance"]
    assert rows["half of test, each image twice"]["coverage"] < rows["test"]["coverage"]
