"""Evaluates a pipeline or existing samples and writes `metrics.json` and `report.png`."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images
from fmnist_diffusion.sampling import MAX_SEED, Samples, SamplingConfig, copy_pipeline, generate

from .bundled_statistics import (
    NUM_REFERENCE_IMAGES,
    SPLITS,
    TRAIN_SHA256,
    get_statistics_path,
    load_moments,
    load_real_metrics,
    load_test_distances,
)
from .classifier import Classifier
from .features import cached_features, to_pixel_vectors
from .inception import InceptionFeatures
from .provenance import file_hash, get_device_name, get_versions, images_hash, weights_hash
from .report import save_report
from .sample_metrics import Measurement, classifier_metrics, inception_metrics, measure_memorization
from .samples import RESOLUTION, EvaluationSamples, load_part, save_part


# Evaluation seed k uses the random seeds from k * 2**20, so samples of different seeds never share noise.
IMAGES_PER_SEED = 2**20
NUM_SEEDS = (MAX_SEED + 1) // IMAGES_PER_SEED
PROTOCOL = (
    "uint8 images of 28x28, gray repeated to 3 channels, resized bilinearly to 299x299 (align_corners false), scaled"
    " to [-1, 1]; float32 features of the last pooling layer; statistics in float64. KID (100 pairs of subsets of"
    " 1,000), precision, recall, density and coverage (5 nearest neighbors) against the first 10,000 training images;"
    " precision, recall, density and coverage of at most 10,000 samples"
)
FAST_PROTOCOL = "uint8 images of 28x28; features of this package's classifier; statistics in float64"


def evaluate_pipeline(
    pipe: FashionMNISTPipeline,
    folder: Path,
    *,
    name: str,
    sampling: SamplingConfig,
    conditional: bool,
    num_samples: int = 10_000,
    seeds: Sequence[int] = (0,),
    batch_size: int = 100,
    inception: InceptionFeatures | None = None,
    train_data_dir: str | None = None,
) -> dict[str, Any]:
    r"""
    Generates samples, evaluates them, and writes `metrics.json` and `report.png`.

    Every batch is saved in `folder`. After an interruption, the same call continues from the saved batches.

    Args:
        pipe ([`FashionMNISTPipeline`]): A pipeline for grayscale 28x28 images; it is not changed.
        folder (`Path`): A new folder, or the folder of an earlier call with the same settings.
        name (`str`): Name of the pipeline in the results.
        sampling ([`SamplingConfig`]): The sampling settings. `seed` is replaced by `seeds`.
        conditional (`bool`): Whether to cycle through the ten classes or to sample unconditionally.
        num_samples (`int`, defaults to 10000): Number of samples per seed, at most 2**20.
        seeds (`Sequence[int]`, defaults to `(0,)`):
            Evaluation seeds from 0 to 4095. Image i of a seed uses the random seed `seed * 2**20 + i`. With several
            seeds, the results contain the mean and the minimum over the seeds.
        batch_size (`int`, defaults to 100): Number of images per batch; it does not affect the samples.
        inception ([`InceptionFeatures`], *optional*): Network for FID. By default, only the classifier is used.
        train_data_dir (`str`, *optional*): See [`Evaluator`].

    Returns:
        `dict`: The content of `metrics.json`.

    Raises:
        `ValueError`: If an argument is out of range, the pipeline generates images of a different size or classes,
            a sample has NaN or infinite pixels, `folder` contains other files, or the real images are not available.
    """
    check_num_samples(num_samples, inception)
    check_pipeline(pipe, conditional)
    if num_samples > IMAGES_PER_SEED:
        raise ValueError(f"`num_samples` must be at most {IMAGES_PER_SEED}, got {num_samples}.")
    if not all(0 <= seed < NUM_SEEDS for seed in seeds):
        raise ValueError(f"`seeds` must be between 0 and {NUM_SEEDS - 1}, got {', '.join(map(str, seeds))}.")
    if sampling.guidance_scale != 1 and not conditional:
        raise ValueError(f"`guidance_scale` must be 1.0 for unconditional sampling, got {sampling.guidance_scale}.")
    pipe = copy_pipeline(pipe, sampling.scheduler)
    pipe.set_progress_bar_config(disable=True)
    sampling = replace(
        sampling,
        scheduler=None,
        num_inference_steps=sampling.num_inference_steps or pipe.config["num_inference_steps"],
    )
    scheduler_config = {key: to_json(value) for key, value in pipe.scheduler.config.items() if key[0] != "_"}
    settings = {
        "source": name,
        "unet_sha256": weights_hash(pipe),
        "num_samples": num_samples,
        "seeds": list(seeds),
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "guidance_interval": list(sampling.guidance_interval),
        "conditional": conditional,
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": scheduler_config,
        "timestep_power": pipe.config["timestep_power"],
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": get_device_name(pipe.unet.device),
        "inception": inception is not None,
        "versions": get_versions(),
    }
    prepare_folder(folder, settings)
    evaluator = Evaluator(inception, pipe.unet.device, train_data_dir)
    class_labels = range(len(FASHION_MNIST_LABELS)) if conditional else None
    runs = (
        generate_samples(
            pipe,
            replace(sampling, seed=seed * IMAGES_PER_SEED),
            num_samples,
            class_labels,
            batch_size,
            folder / f"seed-{seed}",
            inception,
        )
        for seed in seeds
    )
    return evaluator.evaluate(runs, folder, settings)


def evaluate_samples(
    samples: Samples,
    folder: Path,
    *,
    name: str,
    inception: InceptionFeatures | None = None,
    train_data_dir: str | None = None,
) -> dict[str, Any]:
    """Evaluates existing samples; see [`evaluate_pipeline`] for the arguments, results and errors."""
    check_num_samples(len(samples), inception)
    settings = {
        "source": name,
        "images_sha256": images_hash(samples.images),
        "num_samples": len(samples),
        "inception": inception is not None,
        "versions": get_versions(),
    }
    prepare_folder(folder, settings)
    evaluator = Evaluator(inception, inception.device if inception else "cpu", train_data_dir)
    features = cached_features(inception, samples.images, "samples", folder / "features") if inception else None
    return evaluator.evaluate([EvaluationSamples(samples, features)], folder, settings)


class Evaluator:
    r"""
    Evaluates samples against Fashion-MNIST.

    Args:
        inception ([`InceptionFeatures`], *optional*): Network for FID. By default, only the classifier is used.
        device (`str` or `torch.device`, defaults to `"cpu"`): Device of the classifier.
        train_data_dir (`str`, *optional*):
            A local copy of Fashion-MNIST, such as an IDX folder. Defaults to the dataset on the Hub.

    Raises:
        `ValueError`: If the training images cannot be loaded. With `inception`, also if they differ from the original
            60,000 images, for which the bundled statistics were computed.
    """

    def __init__(
        self,
        inception: InceptionFeatures | None = None,
        device: str | torch.device = "cpu",
        train_data_dir: str | None = None,
    ):
        self.train = load_images(split="train", train_data_dir=train_data_dir).images
        if inception is not None and images_hash(self.train) != TRAIN_SHA256:
            raise ValueError(
                "FID requires the 60,000 training images of Fashion-MNIST in their original order, but"
                f" {train_data_dir or 'the default dataset'} contains different images. Pass a different"
                " `train_data_dir`."
            )
        self.classifier = Classifier(device)
        self.inception = inception

    def evaluate(self, runs: Iterable[EvaluationSamples], folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """
        Measures the samples of each seed and writes `metrics.json` and, for the first seed, `report.png`.

        Args:
            runs (`Iterable[EvaluationSamples]`): The samples of each seed.
            folder (`Path`): Output folder.
            settings (`dict`): Provenance of the samples, which is saved in `metrics.json`.

        Returns:
            `dict`: The content of `metrics.json`.
        """
        metrics, first = [], None
        for run in runs:
            measurement = self.measure(run)
            metrics.append(measurement.metrics)
            first = first or measurement
        assert first is not None
        results = {**settings, "metrics": summarize(metrics), **self.describe_references()}
        save_report(folder / "report.png", results, first, self.train)
        (folder / "metrics.json").write_text(json.dumps(results, indent=2) + "\n")
        return results

    def measure(self, run: EvaluationSamples) -> Measurement:
        """Computes all metrics of the samples of one seed."""
        samples = run.samples
        features = self.classifier(samples.images)
        predicted_classes = self.classifier.classify(features)
        metrics = classifier_metrics(features, predicted_classes, samples.labels)
        if self.inception is not None:
            assert run.inception_features is not None
            reference = cached_features(self.inception, self.train[:NUM_REFERENCE_IMAGES], "training images")
            metrics = inception_metrics(run.inception_features, reference) | metrics

        test_distances = load_test_distances()
        train_features = cached_features(self.classifier, self.train, "training images")
        memorization = {
            "pixels": measure_memorization(
                to_pixel_vectors(samples.images), to_pixel_vectors(self.train), test_distances["pixels"]
            ),
            "classifier": measure_memorization(features, train_features, test_distances["classifier"]),
        }
        metrics |= {f"nearest_{space}": found.summarize() for space, found in memorization.items()}
        if samples.seconds:
            metrics["evaluations_per_image"] = samples.num_function_evaluations / len(samples)
            metrics["images_per_second"] = len(samples) / samples.seconds
        return Measurement(samples, predicted_classes, memorization, metrics)

    def describe_references(self) -> dict[str, Any]:
        """Returns the entries of `metrics.json` that describe the real images, feature networks and protocol."""
        networks = [self.classifier] if self.inception is None else [self.classifier, self.inception]
        num_images, hashes = {}, {network.name: network.sha256 for network in networks}
        for network in networks:
            for split in SPLITS:
                num_images[f"{network.name}_{split}"] = load_moments(network.name, split).num_images
                statistics_hash = file_hash(get_statistics_path(network.name, split))
                hashes[f"statistics_{network.name}_{split}"] = statistics_hash
        return {
            "real": load_real_metrics(),
            "num_real_images": {**num_images, "nearest": len(self.train)},
            "protocol": FAST_PROTOCOL if self.inception is None else PROTOCOL,
            "num_threads": torch.get_num_threads(),
            "sha256": hashes,
        }


def generate_samples(
    pipe: FashionMNISTPipeline,
    sampling: SamplingConfig,
    num_samples: int,
    class_labels: Sequence[int] | None,
    batch_size: int,
    folder: Path,
    inception: InceptionFeatures | None,
) -> EvaluationSamples:
    """
    Generates the samples of one seed and computes their Inception features.

    Every batch is saved in `folder` and named by the index of its first image. Existing batches are loaded.
    """
    parts: list[EvaluationSamples] = []
    start = 0
    with tqdm(total=num_samples, desc=folder.name, unit="image", disable=None) as bar:
        while start < num_samples:
            path = folder / f"{start:07d}.safetensors"
            if path.is_file():
                part = load_part(path)
            else:
                count = min(batch_size, num_samples - start)
                (samples,) = generate(pipe, sampling, count, class_labels=class_labels, batch_size=count, start=start)
                part = EvaluationSamples(samples, inception(samples.images) if inception else None)
                save_part(part, path)
            parts.append(part)
            start += len(part.samples)
            bar.update(len(part.samples))
    return EvaluationSamples.concatenate(parts)


def check_num_samples(num_samples: int, inception: InceptionFeatures | None) -> None:
    num_features = (inception or Classifier).num_features
    if num_samples <= num_features:
        alternative = ", or pass `fast` to skip FID" if inception else ""
        raise ValueError(
            f"The Fréchet distance requires at least {num_features + 1:,} samples, got {num_samples:,}. Evaluate more"
            f" samples{alternative}."
        )


def check_pipeline(pipe: FashionMNISTPipeline, conditional: bool) -> None:
    config = pipe.unet.config
    size = config["sample_size"]
    if config["in_channels"] != 1 or size not in (RESOLUTION, [RESOLUTION] * 2, (RESOLUTION,) * 2):
        raise ValueError(
            f"The pipeline must generate grayscale images of {RESOLUTION}x{RESOLUTION} pixels, got"
            f" {config['in_channels']} channel(s) of size {size}."
        )
    num_classes = config["num_class_embeds"]
    if conditional and num_classes != len(FASHION_MNIST_LABELS):
        raise ValueError(
            f"The pipeline must have the {len(FASHION_MNIST_LABELS)} classes of Fashion-MNIST, got"
            f" {num_classes or 'no'} classes. Evaluate it with unconditional samples."
        )


def prepare_folder(folder: Path, settings: dict[str, Any]) -> None:
    """
    Creates `folder` with a `settings.json`, or accepts the folder of an earlier run with the same settings.

    A folder that only contains the `settings.json` of a different run is reused, because that run saved no samples.

    Raises:
        `ValueError`: If the folder contains other files.
    """
    path = folder / "settings.json"
    text = json.dumps(settings, indent=2) + "\n"
    found = path.read_text() if path.is_file() else ""
    if found == text:
        return
    # The first key identifies a settings.json of this program.
    is_unused_run = found.startswith(text.partition(":")[0])
    if folder.exists() and (
        not folder.is_dir() or any(file != path or not is_unused_run for file in folder.iterdir())
    ):
        raise ValueError(
            f"The folder {folder} contains a different run or other files. Pass a different folder, or the settings of"
            " that run to continue it."
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def to_json(value: Any) -> Any:
    """Converts infinite numbers and NaN to strings, because JSON cannot represent them."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Summarizes the results of several seeds.

    Numbers become their mean, their minimum and the values of all seeds, and lists become their mean. The results of a
    single seed are not changed.
    """
    if len(results) == 1:
        return results[0]
    summary: dict[str, Any] = {}
    for name, value in results[0].items():
        values = [result[name] for result in results]
        if isinstance(value, dict):
            summary[name] = summarize(values)
        elif isinstance(value, list):
            summary[name] = [sum(column) / len(column) for column in zip(*values, strict=True)]
        else:
            summary[name] = {"mean": sum(values) / len(values), "min": min(values), "seeds": values}
    return summary
