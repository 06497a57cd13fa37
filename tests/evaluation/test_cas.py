from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
import torch

from fmnist_diffusion.data import ImageTensors
from fmnist_diffusion.evaluation import ClassifierTrainingConfig, measure_accuracy, train_classifier
from fmnist_diffusion.evaluation.cas import check_cas, measure_cas
from fmnist_diffusion.sampling import Samples


CONFIG = ClassifierTrainingConfig(num_epochs=5, num_plain_epochs=1, train_batch_size=16)
NAMES = ("dark", "bright")


def make_images(count: int, seed: int, channels: int = 1) -> ImageTensors:
    """Dark and bright noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 100, (count, channels, 8, 8), generator=generator) + 150 * labels[:, None, None, None]
    return ImageTensors(images.to(torch.uint8), labels, NAMES)


class FakeReference:
    device, shape = torch.device("cpu"), (1, 8, 8)

    @cached_property
    def real_images(self) -> ImageTensors:
        return make_images(96, seed=0)

    @property
    def label_names(self) -> Sequence[str] | None:
        return self.real_images.label_names

    def load_test_images(self) -> ImageTensors:
        return make_images(40, seed=1)


def test_classifier_learns_and_only_depends_on_the_seed():
    images = make_images(96, seed=0, channels=3)
    torch.manual_seed(5)
    first = train_classifier(images, CONFIG)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    second = train_classifier(images, CONFIG)
    assert not torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert measure_accuracy(first, make_images(40, seed=1, channels=3)) > 0.9
    one, other = (train_classifier(images, replace(CONFIG, num_epochs=1, seed=seed)) for seed in (CONFIG.seed, 1))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert not first.training
    assert first.config.id2label == dict(enumerate(NAMES))


@pytest.mark.usefixtures("cache_folder")
def test_cas_matches_classes_by_name(monkeypatch: pytest.MonkeyPatch):
    generated = make_images(96, seed=2)
    assert generated.labels is not None
    trained = []

    def train(images, *args):
        trained.append(images)
        return train_classifier(images, *args)

    monkeypatch.setattr("fmnist_diffusion.evaluation.cas.train_classifier", train)
    # The classes of the samples have a different order and an additional class without samples.
    samples, names = Samples(generated.images[:80], 2 - 2 * generated.labels[:80]), ("bright", "other", "dark")
    first = measure_cas(samples, names, FakeReference(), CONFIG)
    assert first["samples"] > 0.7 and first["real"] > 0.7
    assert (first["num_samples"], first["num_real_images"], first["num_test_images"]) == (80, 80, 40)
    assert torch.equal(trained[0].labels, generated.labels[:80])
    wrong = measure_cas(Samples(samples.images, 2 - samples.labels), names, FakeReference(), CONFIG)
    assert wrong["samples"] < 0.3
    # The accuracy of the classifier that is trained on real images is cached.
    assert len(trained) == 3
    assert wrong["real"] == first["real"]


def test_cas_compares_equal_numbers_of_images(monkeypatch: pytest.MonkeyPatch, cache_folder: Path):
    numbers = []

    def train(images, *args):
        numbers.append(len(images))
        return train_classifier(images, replace(CONFIG, num_epochs=1))

    monkeypatch.setattr("fmnist_diffusion.evaluation.cas.train_classifier", train)
    generated = make_images(200, seed=2)
    results = measure_cas(Samples(generated.images, generated.labels), NAMES, FakeReference(), CONFIG)
    assert numbers == [96, 96]
    assert (results["num_samples"], results["num_real_images"]) == (96, 96)


def test_cas_requires_the_classes_and_a_test_split_of_the_reference():
    reference = FakeReference()
    check_cas(reference, ("bright", "dark", "other"))
    with pytest.raises(ValueError, match="`cas` requires labeled samples"):
        check_cas(reference, None)
    with pytest.raises(ValueError, match="samples of all classes of the reference, but 'dark' is missing"):
        check_cas(reference, ("bright",))
    reference.real_images = reference.load_test_images()
    with pytest.raises(ValueError, match="`cas` requires a reference with a separate test split"):
        check_cas(reference, NAMES)
    # A dataset can contain images with the null label, which is not a class.
    reference.real_images = replace(make_images(96, seed=0), labels=torch.arange(96) % 3)
    with pytest.raises(ValueError, match="`cas` requires a reference whose images all have a class"):
        check_cas(reference, NAMES)
    reference.real_images = replace(reference.real_images, labels=None, label_names=None)
    with pytest.raises(ValueError, match="`cas` requires a reference with classes"):
        check_cas(reference, NAMES)
