"""The shipped statistics are those of the data, and each metric moves the way a known damage must move it."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fmnist_diffusion.data import ImageTensors
from fmnist_diffusion.evaluation import Classifier
from fmnist_diffusion.evaluation.classifier import CLASSIFIER_DIR
from fmnist_diffusion.evaluation.metrics import Moments, manifold_metrics
from fmnist_diffusion.evaluation.real_data import (
    SPLITS,
    add_noise,
    blur,
    cached_features,
    load_moments,
    load_real_metrics,
    load_test_distances,
    main,
    network_hash,
    save_statistics,
    set_metrics,
    statistics_path,
)


def test_shipped_moments_of_the_test_images_can_be_computed_anew(test_features: torch.Tensor):
    shipped, found = load_moments("classifier", "test"), Moments.of(test_features)
    assert shipped.num_images == len(test_features) == 10_000
    assert torch.allclose(shipped.mean, found.mean, rtol=1e-3, atol=1e-5)
    assert (shipped.covariance - found.covariance).norm() <= 1e-3 * found.covariance.norm()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("network", "num_features"), [("inception", 2048), ("classifier", 256)])
def test_shipped_covariances_are_covariances(network: str, num_features: int, split: str):
    moments = load_moments(network, split)
    assert moments.mean.shape == (num_features,)
    assert torch.equal(moments.covariance, moments.covariance.T)
    eigenvalues = torch.linalg.eigvalsh(moments.covariance)
    assert eigenvalues.min() > -1e-6 * eigenvalues.max()


def test_classifier_is_as_good_as_it_says(
    classifier: Classifier, real_test: ImageTensors, test_features: torch.Tensor
):
    accuracy = float((classifier.classify(test_features) == real_test.labels).float().mean())
    assert accuracy == pytest.approx(load_real_metrics()["classifier_accuracy"]["test"], abs=5e-4)
    assert accuracy >= 0.94
    assert (CLASSIFIER_DIR / "model.safetensors").stat().st_size <= 6e6


def test_features_are_float32_whatever_the_samples_were_drawn_in(
    classifier: Classifier, real_test: ImageTensors, test_features: torch.Tensor
):
    with torch.autocast("cpu", torch.bfloat16):
        features = classifier(real_test.images[:64])
    assert features.dtype == torch.float32
    assert torch.allclose(features, test_features[:64], atol=1e-4)


def test_the_floor_follows_from_the_shipped_moments():
    """FID of the test against the training images, by its formula (arXiv 1706.08500, equation 6)."""
    train, test = (load_moments("inception", split) for split in SPLITS)
    assert (train.num_images, test.num_images) == (60_000, 10_000)
    eigenvalues = torch.linalg.eigvals(train.covariance @ test.covariance)
    distance = (train.mean - test.mean).square().sum() + (train.covariance + test.covariance).trace()
    distance -= 2 * eigenvalues.sqrt().real.sum()
    assert float(distance) == pytest.approx(load_real_metrics()["inception"]["test"]["frechet_distance"], rel=1e-3)


def test_distances_of_test_images_are_those_of_images_that_are_no_copies():
    distances = load_test_distances()
    assert set(distances) == {"pixels", "classifier"}
    assert all(values.shape == (10_000,) and values.median() > 0 for values in distances.values())


def test_statistics_are_written_and_read_back(tmp_path, classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    images = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8)
    moments = save_statistics(classifier, {"train": ImageTensors(images)}, tmp_path)["train"]
    monkeypatch.setattr("fmnist_diffusion.evaluation.real_data.STATISTICS_DIR", tmp_path)
    read = load_moments("classifier", "train")
    assert read.num_images == 300
    assert torch.allclose(read.mean, moments.mean, rtol=1e-6)
    assert torch.allclose(read.covariance, moments.covariance, rtol=1e-6)


@pytest.mark.parametrize("in_cache", [True, False])
def test_features_are_taken_from_their_files_the_second_time(in_cache: bool, tmp_path: Path):
    class Network:
        name, calls = "classifier", 0

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return images.flatten(1)[:, :4].float()

    network, images = Network(), torch.randint(0, 256, (1500, 1, 28, 28), dtype=torch.uint8)
    folder = None if in_cache else tmp_path / "features"
    first = cached_features(network, images, folder=folder)
    assert network.calls == 2
    assert torch.equal(cached_features(network, images, folder=folder), first)
    assert network.calls == 2
    assert torch.equal(cached_features(network, images[:1000], folder=folder), first[:1000])
    assert network.calls == 2
    cached_features(network, images.flip(0), folder=folder)
    assert network.calls == 4
    assert len(list((tmp_path / "features").glob("*.safetensors"))) == (0 if in_cache else 4)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("network", ["inception", "classifier"])
def test_shipped_statistics_are_of_the_networks_that_measure(network: str, split: str):
    with safe_open(statistics_path(network, split), framework="pt") as file:
        assert file.metadata()["network_sha256"] == network_hash(network)


def test_damage_moves_each_metric_as_it_must(
    classifier: Classifier, real_test: ImageTensors, test_features: torch.Tensor
):
    """On the classifier's features of a slice; the other half of the test images is the reference."""
    reference, moments = test_features[5000:], Moments.of(test_features[5000:])
    first, labels = real_test.images[:2000], real_test.labels[:5000]
    clean = set_metrics(test_features[:2000], moments, reference)
    noisy = set_metrics(classifier(add_noise(first)), moments, reference)
    blurred = set_metrics(classifier(blur(first)), moments, reference)
    five = set_metrics(test_features[:5000][labels < 5], moments, reference)
    for damaged in (noisy, blurred, five):
        assert damaged["frechet_distance"] > 2 * clean["frechet_distance"]
        assert damaged["kernel_distance"] > clean["kernel_distance"]
    for damaged in (noisy, blurred):
        assert damaged["precision"] < clean["precision"]
        assert damaged["density"] < clean["density"]
    assert five["recall"] < clean["recall"] - 0.2
    assert five["coverage"] < clean["coverage"] - 0.2


def test_images_that_repeat_cover_less(test_features: torch.Tensor):
    reference = test_features[5000:7000]
    whole = manifold_metrics(test_features[:2000], reference)
    twice = manifold_metrics(torch.cat([test_features[:1000]] * 2), reference)
    assert twice["coverage"] < whole["coverage"]
    assert twice["recall"] < whole["recall"]
    assert twice["precision"] == pytest.approx(whole["precision"], abs=0.05)


@pytest.mark.parametrize("network", ["inception", "classifier"])
def test_the_shipped_table_of_damage_is_in_order(network: str):
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


def test_missing_data_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        main(["--train-data-dir", str(tmp_path / "none"), "--output-dir", str(tmp_path)])
    assert error.value.code == 2
    assert "error:" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
