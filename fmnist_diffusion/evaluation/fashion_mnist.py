"""Comparison of samples with Fashion-MNIST and its bundled statistics."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.captions import find_directions, make_captions
from fmnist_diffusion.data import FASHION_MNIST_LABELS, ImageTensors, has_fashion_mnist_order, load_images
from fmnist_diffusion.data.errors import list_names
from fmnist_diffusion.files import hash_file

from .bundled_statistics import (
    NUM_REFERENCE_IMAGES,
    SPLITS,
    TRAIN_SHA256,
    get_statistics_path,
    load_moments,
    load_test_distances,
    load_test_metrics,
)
from .classifier import Classifier
from .distances import KID_SUBSET_SIZE, KID_SUBSETS, NEAREST_K
from .features import cached_features
from .generation import EvaluationSamples
from .inception import InceptionFeatures
from .processes import Processes
from .provenance import tensor_hash
from .reference import Reference
from .sample_metrics import (
    Measurement,
    classifier_metrics,
    inception_metrics,
    make_measurement,
)
from .samples import describe_shape


PROTOCOL = (
    "28x28 uint8 images with the gray channel repeated three times, resized bilinearly to 299x299 (align_corners"
    " false), scaled to [-1, 1]; float32 features of the last pooling layer; statistics in float64. KID"
    f" ({KID_SUBSETS} pairs of subsets of {KID_SUBSET_SIZE:,}), precision, recall, density and coverage ({NEAREST_K}"
    f" nearest neighbors) against the first {NUM_REFERENCE_IMAGES:,} training images; precision, recall, density and"
    f" coverage of at most {NUM_REFERENCE_IMAGES:,} samples"
)
FAST_PROTOCOL = "28x28 uint8 images; features of this package's classifier; statistics in float64"


class FashionMNISTReference(Reference):
    r"""
    Fashion-MNIST with the bundled statistics and the bundled classifier.

    Args:
        inception ([`InceptionFeatures`], *optional*):
            Network for FID. By default, only the classifier is used, and the nearest training images are only searched
            in pixels, which takes seconds.
        device (`str` or `torch.device`, defaults to `"cpu"`): Device of the classifier.
        train_data_dir (`str`, *optional*):
            A local copy of Fashion-MNIST, such as an IDX folder. Defaults to the dataset on the Hub.
    """

    shape = (1, 28, 28)

    def __init__(
        self,
        inception: InceptionFeatures | None = None,
        device: str | torch.device = "cpu",
        train_data_dir: str | None = None,
    ):
        self.inception, self.device, self.train_data_dir = inception, torch.device(device), train_data_dir
        self.reference_features = self.train_features = None

    @cached_property
    def real_images(self) -> ImageTensors:
        """
        The training images.

        Raises:
            `ValueError`: If they cannot be loaded. With `inception`, also if they differ from the original 60,000
                images, for which the bundled statistics were computed.
        """
        train = load_images(split="train", train_data_dir=self.train_data_dir, resolution=28, channels=1)
        if self.inception is not None and tensor_hash(train.images) != TRAIN_SHA256:
            raise ValueError(
                "FID requires the 60,000 training images of Fashion-MNIST in their original order, but"
                f" {self.train_data_dir or 'the default dataset'} contains different images. Pass a different"
                " `train_data_dir`."
            )
        return train

    @cached_property
    def classifier(self) -> Classifier:
        return Classifier(self.device)

    def load_test_images(self) -> ImageTensors:
        return load_images(split="test", train_data_dir=self.train_data_dir, resolution=28, channels=1)

    @classmethod
    def check_num_samples(cls, num_samples: int) -> None:
        if num_samples <= Classifier.num_features:
            raise ValueError(
                f"The Fréchet distance requires at least {Classifier.num_features + 1} samples, got {num_samples}."
                " Evaluate more samples."
            )

    def check_pipeline(self, pipe: FashionMNISTPipeline, conditional: bool) -> None:
        if pipe.image_shape != self.shape:
            raise ValueError(
                f"The pipeline must generate {describe_shape(self.shape)} for a comparison with Fashion-MNIST, got"
                f" {describe_shape(pipe.image_shape)}. Pass `reference` to compare them with other images."
            )
        if conditional and pipe.text_encoder is None and not has_fashion_mnist_order(pipe.label_names):
            unnamed = f"{pipe.num_classes} classes without names" if pipe.num_classes else "no classes"
            names = list_names(pipe.label_names or [unnamed])
            advice = ", or pass images of its classes as `reference`" if pipe.num_classes else ""
            raise ValueError(
                f"The pipeline must have the classes of Fashion-MNIST in their original order, got {names}. Pass"
                f" `conditional=False`{advice}."
            )

    def choose_conditions(self, pipe: FashionMNISTPipeline, num_samples: int) -> dict[str, Sequence[Any]]:
        """Returns all classes or, for a text-conditional pipeline, the captions and labels of the test images."""
        if pipe.text_encoder is None:
            return {"class_labels": range(len(FASHION_MNIST_LABELS))}
        test = self.load_test_images()
        assert test.labels is not None
        directions = find_directions(test.images, test.labels)
        prompts = make_captions(test.labels, directions, torch.Generator().manual_seed(0))
        return {"prompts": prompts, "class_labels": test.labels.tolist()}

    def get_label_names(self, pipe: FashionMNISTPipeline) -> Sequence[str]:
        return FASHION_MNIST_LABELS

    def get_settings(self, pipe: FashionMNISTPipeline | None = None) -> dict[str, Any]:
        return {}

    def prepare(self, processes: Processes) -> None:
        images = self.real_images.images
        if self.inception is not None:
            self.reference_features = cached_features(
                self.inception, images[:NUM_REFERENCE_IMAGES], "training images", processes=processes
            )
            self.train_features = cached_features(self.classifier, images, "training images", processes=processes)

    def measure(self, run: EvaluationSamples) -> Measurement:
        samples = run.samples
        features = self.classifier(samples.images)
        predicted_classes = self.classifier.classify(features)
        metrics = classifier_metrics(features, predicted_classes, samples.labels)
        if run.inception_features is not None:
            metrics = inception_metrics(run.inception_features, self.reference_features) | metrics

        real_distances = load_test_distances()
        pixels = samples.images.flatten(1), self.real_images.images.flatten(1)
        spaces = {"pixels": (*pixels, real_distances["pixels"])}
        if self.train_features is not None:
            spaces["classifier"] = features, self.train_features, real_distances["classifier"]
        return make_measurement(samples, metrics, spaces, "test", predicted_classes)

    def describe(self) -> dict[str, Any]:
        networks = [self.classifier] if self.inception is None else [self.classifier, self.inception]
        num_images, hashes = {}, {network.name: network.sha256 for network in networks}
        for network in networks:
            for split in SPLITS:
                num_images[f"{network.name}_{split}"] = load_moments(network.name, split).num_images
                statistics_hash = hash_file(get_statistics_path(network.name, split))
                hashes[f"statistics_{network.name}_{split}"] = statistics_hash
        return {
            "real_metrics": load_test_metrics(),
            "num_real_images": {**num_images, "nearest": len(self.real_images)},
            "protocol": FAST_PROTOCOL if self.inception is None else PROTOCOL,
            "num_threads": torch.get_num_threads(),
            "sha256": hashes,
        }
