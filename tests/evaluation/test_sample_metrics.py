"""What is measured of samples, on real and made-up ones."""

import pytest
import torch

from fmnist_diffusion.data import ImageTensors
from fmnist_diffusion.evaluation.sample_metrics import Memorisation, classifier_metrics, inception_metrics


def test_inception_metrics_of_a_whole_set():
    """On made-up features: the numbers of the shipped statistics' space, finite and in range."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2100, 2048, generator=generator)
    metrics = inception_metrics(features, torch.rand(2100, 2048, generator=generator))
    assert metrics["fid_train"] > 10
    assert metrics["fid_test"] > 10
    assert metrics["kid_train"] == pytest.approx(0, abs=1e-3)
    assert metrics["coverage"] > 0.9


def test_classifier_metrics_tell_balance_and_agreement(
    test_features: torch.Tensor, real_test: ImageTensors, classifier
):
    labels = real_test.labels
    classes = classifier.classify(test_features)
    whole = classifier_metrics(test_features, classes, labels)
    shirts = classifier_metrics(test_features[labels == 6], classes[labels == 6], None)
    assert whole["classifier_frechet_distance_test"] == pytest.approx(0, abs=1e-2)
    assert whole["class_distance_from_uniform"] < 0.02
    assert shirts["class_distance_from_uniform"] > 0.5
    assert whole["class_agreement"] > 0.9
    assert "class_agreement" not in shirts


def test_copies_are_found():
    generator = torch.Generator().manual_seed(0)
    train = torch.rand(500, 20, generator=generator)
    test_distances = Memorisation.of(torch.rand(400, 20, generator=generator), train, torch.ones(1)).distances
    fresh = Memorisation.of(torch.rand(400, 20, generator=generator), train, test_distances)
    copies = Memorisation.of(train[100:500] + 1e-4, train, test_distances)
    assert copies.indices.tolist() == list(range(100, 500))
    assert copies.summary()["nearer_than_99_percent_of_test"] == 1
    assert fresh.summary()["nearer_than_99_percent_of_test"] < 0.05
