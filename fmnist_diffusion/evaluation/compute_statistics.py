"""Computes the reference statistics of real images, and the metrics of unchanged and altered real images.

`python -m fmnist_diffusion.evaluation.compute_statistics` writes them to the `statistics` folder of the package. This
takes two hours on two CPU cores, mostly for the Inception network. An interrupted run resumes from its cached
features.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image, ImageFilter

from fmnist_diffusion.data import ImageTensors, load_images
from fmnist_diffusion.files import write_tensors
from fmnist_diffusion.loading import get_device

from .bundled_statistics import NUM_REFERENCE_IMAGES, SPLITS, STATISTICS_DIR, get_statistics_path
from .classifier import Classifier
from .distances import (
    Moments,
    compute_moments,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    nearest_neighbors,
)
from .features import FeatureExtractor, cached_features
from .inception import InceptionFeatures, download_inception, find_inception
from .run_folder import write_json


NUM_CHECK_IMAGES = 16


def save_statistics(extractor: FeatureExtractor, splits: dict[str, ImageTensors], folder: Path) -> dict[str, Moments]:
    """
    Computes and saves the moments of each split. The features of the first 16 images are saved for tests.

    Args:
        extractor ([`InceptionFeatures`] or [`Classifier`]): The feature network.
        splits (`dict[str, ImageTensors]`): The images of each split.
        folder (`Path`): Output folder.

    Returns:
        `dict[str, Moments]`: The moments of each split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moments = {}
    for split, images in splits.items():
        features = cached_features(extractor, images.images, f"{extractor.name} features, {split}")
        moments[split] = compute_moments(features)
        rows, columns = torch.triu_indices(extractor.num_features, extractor.num_features)
        tensors = {
            "mean": moments[split].mean.float(),
            "covariance": moments[split].covariance[rows, columns].float(),
            "first_features": features[:NUM_CHECK_IMAGES].clone(),
        }
        metadata = {"num_images": str(len(images)), "network_sha256": extractor.sha256}
        write_tensors(get_statistics_path(extractor.name, split, folder), tensors, metadata)
    return moments


def add_noise(images: torch.Tensor) -> torch.Tensor:
    """Adds Gaussian noise with a standard deviation of 10% of the range of pixel values to uint8 images."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 25.5
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def blur(images: torch.Tensor) -> torch.Tensor:
    """Applies Gaussian blur with a standard deviation of 1 pixel to uint8 images `(num_images, 1, height, width)`."""
    blurred = torch.empty_like(images)
    for i, image in enumerate(images[:, 0]):
        pil_image = Image.fromarray(image.numpy()).filter(ImageFilter.GaussianBlur(1.0))
        blurred[i, 0] = torch.frombuffer(bytearray(pil_image.tobytes()), dtype=torch.uint8).view(image.shape)
    return blurred


def compute_real_metrics(
    extractor: FeatureExtractor, train: torch.Tensor, moments: Moments, test: ImageTensors, num_altered: int
) -> dict[str, dict[str, float]]:
    """
    Compares unchanged and altered test images with the training images.

    Args:
        extractor ([`InceptionFeatures`] or [`Classifier`]): The feature network.
        train (`torch.Tensor`): Training images for the kernel distance and the manifold metrics.
        moments ([`Moments`]): Moments of all training images.
        test ([`ImageTensors`]): The test images with labels.
        num_altered (`int`): Number of test images to alter with noise and with blur.
    """
    assert test.labels is not None
    reference = cached_features(extractor, train, f"{extractor.name} features, train")
    features = cached_features(extractor, test.images, f"{extractor.name} features, test")
    first, half = test.images[:num_altered], features[: len(features) // 2]
    sets = {
        "test": features,
        f"test, the first {num_altered:,}": features[:num_altered],
        "the same with noise": cached_features(extractor, add_noise(first), f"{extractor.name} features, noise"),
        "the same blurred": cached_features(extractor, blur(first), f"{extractor.name} features, blur"),
        "test, five classes only": features[test.labels < 5],
        "half of test, each image twice": torch.cat([half, half]),
    }
    return {title: compute_set_metrics(features, moments, reference) for title, features in sets.items()}


def compute_set_metrics(features: torch.Tensor, moments: Moments, reference: torch.Tensor) -> dict[str, float]:
    """Computes the Fréchet distance to `moments`, and the other metrics relative to the features `reference`."""
    return {
        "num_images": len(features),
        "frechet_distance": frechet_distance(features, moments),
        "kernel_distance": kernel_distance(features, reference)[0],
        **manifold_metrics(features, reference),
    }


def save_classifier_references(classifier: Classifier, splits: dict[str, ImageTensors], folder: Path) -> float:
    """Saves the distances of the test images to their nearest training images and returns the test accuracy."""
    train, test = splits["train"], splits["test"]
    features = {split: cached_features(classifier, images.images) for split, images in splits.items()}
    neighbors = {
        "pixels": nearest_neighbors(test.images.flatten(1), train.images.flatten(1)),
        "classifier": nearest_neighbors(features["test"], features["train"]),
    }
    distances = {space: values.flatten() for space, (values, _) in neighbors.items()}
    write_tensors(folder / "test_distances.safetensors", distances)
    return float((classifier.classify(features["test"]) == test.labels).float().mean())


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recompute the reference statistics of Fashion-MNIST.")
    parser.add_argument("--train-data-dir", help="local data, such as an IDX folder (default: the dataset on the Hub)")
    parser.add_argument("--output-dir", type=Path, default=STATISTICS_DIR, help="output folder (default: %(default)s)")
    parser.add_argument(
        "--num-altered", type=int, default=2500, help="number of test images to alter (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="device of the feature networks (default: %(default)s)")
    parser.add_argument("--only", choices=("inception", "classifier"), help="network to use (default: both)")
    options = parser.parse_args(args)
    try:
        run(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def run(options: argparse.Namespace) -> None:
    device = get_device(options.device, "--device")
    networks = [network for network in (Classifier, InceptionFeatures) if options.only in (None, network.name)]
    minimum = 1 + max(network.num_features for network in networks)
    if options.num_altered < minimum:
        raise ValueError(f"`--num-altered` must be at least {minimum}, got {options.num_altered}.")
    splits = {split: load_images(split=split, train_data_dir=options.train_data_dir) for split in SPLITS}
    extractors: list[FeatureExtractor] = []
    if Classifier in networks:
        extractors.append(Classifier(device))
    if InceptionFeatures in networks:
        extractors.append(InceptionFeatures(find_inception() or download_inception(), device))

    path = options.output_dir / "real.json"
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    reference, test = splits["train"].images[:NUM_REFERENCE_IMAGES], splits["test"]
    for extractor in extractors:
        moments = save_statistics(extractor, splits, options.output_dir)["train"]
        metrics[extractor.name] = compute_real_metrics(extractor, reference, moments, test, options.num_altered)
        if isinstance(extractor, Classifier):
            accuracy = save_classifier_references(extractor, splits, options.output_dir)
            metrics["classifier_accuracy"] = {"test": accuracy}
    write_json(path, metrics)


if __name__ == "__main__":
    main()
