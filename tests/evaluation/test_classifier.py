import pytest
import torch

from fmnist_diffusion.data import ImageTensors
from fmnist_diffusion.evaluation import Classifier
from fmnist_diffusion.evaluation.bundled_statistics import load_real_metrics
from fmnist_diffusion.evaluation.classifier import CLASSIFIER_DIR, to_classifier_input


def test_classifier_input_is_enlarged_to_56_pixels():
    assert to_classifier_input(torch.zeros(2, 1, 28, 28)).shape == (2, 1, 56, 56)


def test_weights_are_smaller_than_6_mb():
    assert (CLASSIFIER_DIR / "model.safetensors").stat().st_size <= 6e6


def test_features_are_float32_within_autocast(classifier: Classifier):
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = classifier(images)
    with torch.autocast("cpu", torch.bfloat16):
        features = classifier(images)
    assert features.dtype == torch.float32
    assert features.shape == (64, classifier.num_features)
    assert torch.allclose(features, expected, atol=1e-4)


@pytest.mark.slow
def test_accuracy_is_at_least_94_percent(classifier: Classifier, real_test: ImageTensors, test_features: torch.Tensor):
    accuracy = float((classifier.classify(test_features) == real_test.labels).float().mean())
    assert accuracy == pytest.approx(load_real_metrics()["classifier_accuracy"]["test"], abs=5e-4)
    assert accuracy >= 0.94
