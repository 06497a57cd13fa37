"""Classification accuracy score (CAS, arXiv 1905.10887)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from fmnist_diffusion.data import ImageTensors
from fmnist_diffusion.sampling import Samples

from .classifier_training import ClassifierTrainingConfig, measure_accuracy, train_classifier
from .config import LABELS_REQUIRED
from .inception import cache_dir
from .provenance import tensor_hash
from .reference import Reference
from .verified_tensors import load_verified, save_verified


def check_cas(reference: Reference, label_names: Sequence[str] | None) -> None:
    """
    Raises `ValueError` if CAS cannot be measured.

    Args:
        reference ([`Reference`]): The real images, which must have classes and a test split.
        label_names (`Sequence[str]`, *optional*):
            Class names of the samples; `None` if they have no labels. They must include all classes of the reference.
    """
    if label_names is None:
        raise ValueError(LABELS_REQUIRED)
    names = reference.label_names
    if names is None:
        raise ValueError(
            "`cas` requires a reference with classes. Pass class folders or a labeled dataset as `reference`."
        )
    missing = [name for name in names if name not in label_names]
    if missing:
        raise ValueError(
            f"`cas` requires samples of all classes of the reference, but {missing[0]!r} is missing. Add samples of"
            " this class, or omit `cas`."
        )
    labels = reference.real_images.labels
    # The null label of a .safetensors file is not a class.
    if labels is None or int(labels.max()) >= len(names):
        raise ValueError(
            "`cas` requires a reference whose images all have a class. Remove the images without a class."
        )
    if torch.equal(reference.load_test_images().images, reference.real_images.images):
        raise ValueError(
            "`cas` requires a reference with a separate test split. Pass a folder with the subfolders train and test,"
            " or a dataset with these splits."
        )


def measure_cas(
    samples: Samples,
    label_names: Sequence[str],
    reference: Reference,
    config: ClassifierTrainingConfig | None = None,
) -> dict[str, Any]:
    """
    Trains a classifier on samples and another one on as many real images, and tests both on real images. If there are
    more samples than real images, only the first samples are used.

    The accuracy of the classifier that is trained on real images is cached by their content.

    Args:
        samples ([`Samples`]): Labeled samples.
        label_names (`Sequence[str]`): Class names of the samples, which [`check_cas`] accepts.
        reference ([`Reference`]): The real images.
        config ([`ClassifierTrainingConfig`], *optional*): Settings of both training runs.

    Returns:
        `dict`: Accuracies `samples` and `real` in [0, 1], the numbers of images, and the settings.
    """
    config = config or ClassifierTrainingConfig()
    test, train = reference.load_test_images(), reference.real_images
    assert samples.labels is not None and train.labels is not None and train.label_names is not None
    samples = Samples(samples.images[: len(train)], samples.labels[: len(train)])
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: len(samples)]
    real = train.select(order)
    names = list(train.label_names)
    # The classes of the samples can be in a different order.
    labels = torch.tensor([names.index(name) if name in names else -1 for name in label_names])[samples.labels]
    generated = ImageTensors(samples.images.expand(-1, reference.shape[0], -1, -1), labels, train.label_names)
    classifier = train_classifier(generated, config, reference.device, "classifier trained on samples")
    return {
        "samples": measure_accuracy(classifier, test),
        "real": measure_real_accuracy(real, test, config, reference.device),
        "num_samples": len(samples),
        "num_real_images": len(real),
        "num_test_images": len(test),
        "training": asdict(config),
    }


def measure_real_accuracy(
    train: ImageTensors, test: ImageTensors, config: ClassifierTrainingConfig, device: torch.device
) -> float:
    """Returns the accuracy on `test` of a classifier that is trained on `train`, or loads it from the cache."""
    assert train.labels is not None and test.labels is not None
    hashes = [tensor_hash(tensor) for tensor in (train.images, train.labels, test.images, test.labels)]
    key = hashlib.sha256(json.dumps([hashes, list(train.images.shape), asdict(config)]).encode()).hexdigest()
    path = cache_dir() / "cas" / f"{key}.safetensors"
    cached = load_verified(path)
    if cached is not None:
        return float(cached[0]["accuracy"])
    classifier = train_classifier(train, config, device, "classifier trained on real images")
    accuracy = measure_accuracy(classifier, test)
    save_verified(path, {"accuracy": torch.tensor(accuracy, dtype=torch.float64)})
    return accuracy
