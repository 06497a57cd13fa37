"""What the evaluation knows of the real images: moments of their features, and how far they are from one another.

`python -m fmnist_diffusion.evaluation.real_data` measures all of it anew, into the `statistics` folder of the
package. On a CPU that takes two hours, most of it in the Inception network; stopped, it goes on where it was.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from fmnist_diffusion.data import DataError, ImageTensors, load_images

from .classifier import CLASSIFIER_DIR, Classifier
from .inception import INCEPTION_SHA256, InceptionFeatures, cache_dir, download_inception, find_inception
from .metrics import Moments, frechet_distance, kernel_distance, manifold_metrics, nearest_neighbours


STATISTICS_DIR = Path(__file__).parent / "statistics"
SPLITS = ("train", "test")
NUM_SLICE_IMAGES = 16
# Of the first training images, with which precision, recall and the kernel distance compare samples.
NUM_REFERENCE_IMAGES = 10_000
# Of the pixels of the 60,000 training images, in their order.
TRAIN_SHA256 = "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"
CHUNK = 1000
FeatureNetwork = InceptionFeatures | Classifier


def statistics_path(name: str, split: str, folder: Path | None = None) -> Path:
    return (folder or STATISTICS_DIR) / f"{name}-{split}.safetensors"


def load_moments(name: str, split: str) -> Moments:
    """Those of the features of `"inception"` or `"classifier"` on the `"train"` or `"test"` split."""
    with safe_open(statistics_path(name, split), framework="pt") as file:
        mean, upper = file.get_tensor("mean").double(), file.get_tensor("covariance").double()
        num_images = int(file.metadata()["num_images"])
    rows, columns = torch.triu_indices(len(mean), len(mean))
    covariance = torch.empty(len(mean), len(mean), dtype=torch.float64)
    covariance[rows, columns] = covariance[columns, rows] = upper
    return Moments(mean, covariance, num_images)


def load_real_metrics() -> dict:
    """The metrics of real images, whole and damaged: what the metrics of samples are to be read beside."""
    return json.loads((STATISTICS_DIR / "real.json").read_text())


def load_test_distances() -> dict[str, torch.Tensor]:
    """From each test image to the nearest training image: `"pixels"` and `"classifier"`, float32 `(10000,)`."""
    return load_file(STATISTICS_DIR / "test_distances.safetensors")


def pixel_vectors(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 `(num_images, height * width)` in [0, 1]."""
    return images.flatten(1).float() / 255


def network_hash(network: str) -> str:
    """The sha256 of the weights of `"inception"` or `"classifier"`."""
    if network == "inception":
        return INCEPTION_SHA256
    return hashlib.sha256((CLASSIFIER_DIR / "model.safetensors").read_bytes()).hexdigest()


def cached_features(
    network: FeatureNetwork, images: torch.Tensor, progress: str | None = None, folder: Path | None = None
) -> torch.Tensor:
    """`network(images)`, kept in files of a thousand images, from where it is taken the next time.

    Args:
        network ([`InceptionFeatures`] or [`Classifier`]): The feature network.
        images (`torch.Tensor`): uint8 images `(num_images, 1, height, width)`.
        progress (`str`, *optional*): The title of a progress bar, shown in a terminal.
        folder (`Path`, *optional*): Where the files are; in the cache without it.
    """
    folder = folder or cache_dir() / "features" / f"{network.name}-{network_hash(network.name)[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    features = []
    with tqdm(total=len(images), desc=progress, unit="image", disable=None if progress else True) as bar:
        for chunk in images.split(CHUNK):
            path = folder / f"{hashlib.sha256(chunk.contiguous().numpy().tobytes()).hexdigest()[:16]}.safetensors"
            if path.is_file():
                features.append(load_file(path)["features"])
            else:
                features.append(network(chunk))
                unfinished = path.with_suffix(f".{os.getpid()}")
                save_file({"features": features[-1]}, unfinished)
                unfinished.replace(path)
            bar.update(len(chunk))
    return torch.cat(features)


def save_statistics(network: FeatureNetwork, splits: dict[str, ImageTensors], folder: Path) -> dict[str, Moments]:
    """Writes the moments of each split, and the features of its first images, by which they can be checked."""
    folder.mkdir(parents=True, exist_ok=True)
    moments = {}
    for split, images in splits.items():
        features = cached_features(network, images.images, f"{network.name} on {split}")
        moments[split] = Moments.of(features)
        rows, columns = torch.triu_indices(network.num_features, network.num_features)
        tensors = {
            "mean": moments[split].mean.float(),
            "covariance": moments[split].covariance[rows, columns].float(),
            "first_features": features[:NUM_SLICE_IMAGES].clone(),
        }
        metadata = {"num_images": str(len(images)), "network_sha256": network_hash(network.name)}
        save_file(tensors, statistics_path(network.name, split, folder), metadata)
    return moments


def add_noise(images: torch.Tensor, std: float = 25.5, seed: int = 0) -> torch.Tensor:
    """Gaussian noise on uint8 images, of `std` in steps of 255, clamped."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)) * std
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def blur(images: torch.Tensor, radius: float = 1.0) -> torch.Tensor:
    """A Gaussian blur of uint8 images `(num_images, 1, height, width)`, of a standard deviation of `radius` pixels."""
    out = torch.empty_like(images)
    for i, image in enumerate(images[:, 0]):
        blurred = Image.fromarray(image.numpy()).filter(ImageFilter.GaussianBlur(radius))
        out[i, 0] = torch.frombuffer(bytearray(blurred.tobytes()), dtype=torch.uint8).view(image.shape)
    return out


def real_metrics(
    network: FeatureNetwork, train: torch.Tensor, moments: Moments, test: ImageTensors, num_altered: int
) -> dict[str, dict[str, float]]:
    """The metrics, against training images, of the test images and of sets of them with a known fault.

    Args:
        network ([`InceptionFeatures`] or [`Classifier`]): The feature network.
        train (`torch.Tensor`): The training images that the kernel distance and the manifolds are of.
        moments ([`Moments`]): Of all training images.
        test ([`ImageTensors`]): The test images.
        num_altered (`int`): How many of them are blurred, and how many noised.
    """
    assert test.labels is not None
    reference = cached_features(network, train, f"{network.name} on train")
    features = cached_features(network, test.images, f"{network.name} on test")
    first, half = test.images[:num_altered], features[: len(features) // 2]
    sets = {
        "test": features,
        f"test, the first {num_altered:,}": features[:num_altered],
        "the same with noise": cached_features(network, add_noise(first), f"{network.name} on noise"),
        "the same blurred": cached_features(network, blur(first), f"{network.name} on blur"),
        "test, five classes only": features[test.labels < 5],
        "half of test, each image twice": torch.cat([half, half]),
    }
    return {title: set_metrics(features, moments, reference) for title, features in sets.items()}


def set_metrics(features: torch.Tensor, moments: Moments, reference: torch.Tensor) -> dict[str, float]:
    """All metrics of one set of features: its Fréchet distance to `moments`, the others to features `reference`."""
    return {
        "num_images": len(features),
        "frechet_distance": frechet_distance(features, moments),
        "kernel_distance": kernel_distance(features, reference),
        **manifold_metrics(features, reference),
    }


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Measures the real images, for the statistics that the package ships."
    )
    parser.add_argument("--train-data-dir", help="local data, such as an IDX folder (default: the Hub's)")
    parser.add_argument("--output-dir", type=Path, default=STATISTICS_DIR, help="(default: %(default)s)")
    parser.add_argument("--num-altered", type=int, default=2500, help="images that are blurred (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--only", choices=("inception", "classifier"), help="measure with this network alone")
    options = parser.parse_args(args)

    try:
        splits = {split: load_images(split=split, train_data_dir=options.train_data_dir) for split in SPLITS}
    except DataError as error:
        parser.error(str(error))
    train, test = splits["train"].images, splits["test"]
    networks: list[FeatureNetwork] = []
    if options.only != "inception":
        networks.append(Classifier(options.device))
    if options.only != "classifier":
        networks.append(InceptionFeatures(find_inception() or download_inception(), options.device))

    path = options.output_dir / "real.json"
    metrics = json.loads(path.read_text()) if path.is_file() else {}
    for network in networks:
        moments = save_statistics(network, splits, options.output_dir)
        reference = train[:NUM_REFERENCE_IMAGES]
        metrics[network.name] = real_metrics(network, reference, moments["train"], test, options.num_altered)
        if isinstance(network, Classifier):
            features = {split: cached_features(network, images.images) for split, images in splits.items()}
            near = {
                "pixels": nearest_neighbours(pixel_vectors(test.images), pixel_vectors(train))[0],
                "classifier": nearest_neighbours(features["test"], features["train"])[0],
            }
            distances = {space: values.flatten() for space, values in near.items()}
            save_file(distances, options.output_dir / "test_distances.safetensors")
            agreement = (network.classify(features["test"]) == test.labels).float().mean()
            metrics["classifier_accuracy"] = {"test": float(agreement)}
    path.write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    main()
