import pytest
import torch

from fmnist_diffusion.data import ImageTensors
from fmnist_diffusion.evaluation import Classifier, FastMetrics
from fmnist_diffusion.evaluation.inception import WEIGHTS_VARIABLE
from fmnist_diffusion.evaluation.sample_metrics import classifier_metrics, inception_metrics, measure_memorization
from fmnist_diffusion.sampling import Samples


@pytest.mark.slow
def test_features_of_the_test_distribution_have_zero_kid():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2100, 2048, generator=generator)
    metrics = inception_metrics(features, torch.rand(2100, 2048, generator=generator))
    assert metrics["fid_train"] > 10
    assert metrics["fid_test"] > 10
    assert metrics["kid_train"] == pytest.approx(0, abs=1e-3)
    assert metrics["coverage"] > 0.9


@pytest.mark.slow
def test_classifier_metrics_recognize_real_images(
    test_features: torch.Tensor, real_test: ImageTensors, classifier: Classifier
):
    labels = real_test.labels
    classes = classifier.classify(test_features)
    metrics = classifier_metrics(test_features, classes, labels)
    assert metrics["classifier_frechet_distance_test"] == pytest.approx(0, abs=1e-2)
    assert metrics["class_distance_from_uniform"] < 0.02
    assert metrics["class_accuracy"] > 0.9
    shirts = classifier_metrics(test_features[labels == 6], classes[labels == 6], None)
    assert shirts["class_distance_from_uniform"] > 0.5
    assert "class_accuracy" not in shirts


@pytest.mark.usefixtures("cache_folder")
def test_fast_metrics_need_no_inception_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    images = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    metrics = FastMetrics(10_000)(Samples(images, torch.arange(300) % 10))
    assert metrics.keys() == {
        "classifier_frechet_distance_train",
        "classifier_frechet_distance_test",
        "class_distance_from_uniform",
        "class_shares",
        "class_accuracy",
    }


def test_memorized_training_images_are_detected():
    generator = torch.Generator().manual_seed(0)
    train, test, new = (torch.rand(count, 20, generator=generator) for count in (500, 400, 400))
    test_distances = measure_memorization(test, train, torch.ones(1)).distances
    copies = measure_memorization(train[100:500] + 1e-4, train, test_distances)
    assert copies.indices.tolist() == list(range(100, 500))
    assert copies.summarize("test")["nearer_than_99_percent_of_test"] == 1
    assert measure_memorization(new, train, test_distances).summarize("test")["nearer_than_99_percent_of_test"] < 0.05
    # The distance between duplicates in the reference is zero.
    exact = measure_memorization(train, train, torch.tensor([0.0] * 5 + [1.0] * 95))
    assert exact.summarize("reference")["nearer_than_99_percent_of_reference"] == 1
