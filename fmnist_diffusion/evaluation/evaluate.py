"""The measurement of a pipeline or of samples, from the noise to `metrics.json` and `report.png`."""

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images

from .classifier import Classifier
from .inception import InceptionFeatures
from .real_data import (
    NUM_REFERENCE_IMAGES,
    SPLITS,
    TRAIN_SHA256,
    cached_features,
    load_moments,
    load_real_metrics,
    load_test_distances,
    network_hash,
    pixel_vectors,
    statistics_path,
)
from .report import draw_report
from .sample_metrics import Memorisation, classifier_metrics, inception_metrics
from .samples import IMAGES_PER_SEED, RESOLUTION, Samples, SamplingSettings, draw


PROTOCOL = (
    "uint8 images of 28x28, grey repeated to 3 channels, resized bilinearly to 299x299 (align_corners false), scaled"
    " to [-1, 1]; float32 features of the last pooling layer; statistics in float64. KID (100 pairs of subsets of"
    " 1,000), precision, recall, density and coverage (5 nearest neighbours) against the first 10,000 training images,"
    " the latter four of at most as many samples"
)
FAST_PROTOCOL = "uint8 images of 28x28; features of this package's classifier; statistics in float64"
PACKAGES = ("fmnist-diffusion", "torch", "diffusers", "transformers", "torchmetrics", "openvino", "numpy")


def draw_and_measure(
    pipe: Any,
    settings: SamplingSettings,
    num_samples: int,
    seed: int,
    folder: Path,
    inception: InceptionFeatures | None,
    batch_size: int,
) -> Samples:
    """Draws samples and takes their features in one pass, which goes on where the last one in `folder` stopped.

    Each batch becomes a file `{first}.safetensors` in `folder`.
    """
    parts: list[Samples] = []
    with tqdm(total=num_samples, desc=f"seed {seed}", unit="image", disable=None) as bar:
        while (start := sum(len(part) for part in parts)) < num_samples:
            path = folder / f"{start:06d}.safetensors"
            if path.is_file():
                part = load_part(path)
            else:
                samples = draw(pipe, settings, start, min(batch_size, num_samples - start), seed)
                part = replace(samples, inception=inception(samples.images) if inception else None)
                save_part(part, path)
            parts.append(part)
            bar.update(len(part))
    return Samples.joined(parts)


def save_part(part: Samples, path: Path) -> None:
    tensors = {"images": part.images, "labels": part.labels, "inception": part.inception}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, {"evaluations": str(part.evaluations), "seconds": str(part.seconds)})
    unfinished.replace(path)


def load_part(path: Path) -> Samples:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    return Samples(**tensors, evaluations=int(metadata["evaluations"]), seconds=float(metadata["seconds"]))


def load_parts(folder: Path) -> Iterator[Samples]:
    """Yields the batches that [`evaluate_pipeline`] left in `folder`, one seed after another.

    Raises:
        `ValueError`: there are none.
    """
    paths = sorted(folder.glob("seed-*/*.safetensors"))
    if not paths:
        raise ValueError(f"{folder} holds no samples; give a folder that fmnist-diffusion evaluate wrote.")
    yield from map(load_part, paths)


class Evaluation:
    r"""
    Measures samples against Fashion-MNIST.

    Args:
        inception ([`InceptionFeatures`], *optional*): Without it there are the classifier's metrics only.
        device (`str` or `torch.device`, defaults to `"cpu"`): Where the classifier runs.
        train_data_dir (`str`, *optional*): A local copy of Fashion-MNIST, such as an IDX folder; the Hub's or
            Debian's without it.

    Raises:
        `ValueError`: the real images cannot be had, or, with `inception`, are not the training images of
            Fashion-MNIST in their order, of which its statistics are.
    """

    def __init__(
        self,
        inception: InceptionFeatures | None = None,
        device: str | torch.device = "cpu",
        train_data_dir: str | None = None,
    ):
        self.train = load_images(split="train", train_data_dir=train_data_dir).images
        if inception is not None and hashlib.sha256(self.train.numpy().tobytes()).hexdigest() != TRAIN_SHA256:
            raise ValueError(
                f"{train_data_dir or 'the default source'} holds other images than the 60,000 training images of"
                " Fashion-MNIST in their order, against which FID is measured: give another --train-data-dir"
            )
        self.classifier = Classifier(device)
        self.inception = inception

    def measure(self, samples: Samples) -> tuple[dict[str, Any], dict[str, Memorisation], torch.Tensor]:
        """Returns the metrics, the nearest training images by space, and the class that each sample is taken for.

        Raises:
            `ValueError`: there are too few samples.
        """
        features = self.classifier(samples.images)
        classes = self.classifier.classify(features)
        metrics = classifier_metrics(features, classes, samples.labels)
        if samples.inception is not None:
            assert self.inception is not None
            reference = self.train[:NUM_REFERENCE_IMAGES]
            real = cached_features(self.inception, reference, "real images, once")
            metrics = inception_metrics(samples.inception, real) | metrics

        test = load_test_distances()
        train = cached_features(self.classifier, self.train, "training images")
        memorisation = {
            "pixels": Memorisation.of(pixel_vectors(samples.images), pixel_vectors(self.train), test["pixels"]),
            "classifier": Memorisation.of(features, train, test["classifier"]),
        }
        metrics |= {f"nearest_{space}": found.summary() for space, found in memorisation.items()}
        if samples.seconds:
            metrics["evaluations_per_image"] = samples.evaluations / len(samples)
            metrics["images_per_second"] = len(samples) / samples.seconds
        return metrics, memorisation, classes

    def write(self, runs: Iterable[Samples], folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measures the samples of each seed; writes `metrics.json`, and a `report.png` of the first seed, into
        `folder`; returns what is in the former."""
        results, shown = [], None
        for samples in runs:
            metrics, memorisation, classes = self.measure(samples)
            results.append(metrics)
            shown = shown or (samples, classes, memorisation)
        networks = ["classifier"] if self.inception is None else ["classifier", "inception"]
        statistics = {f"{name}_{split}": (name, split) for name in networks for split in SPLITS}
        facts = {
            **settings,
            "metrics": summarise(results),
            "real": load_real_metrics(),
            "num_real_images": {
                **{key: load_moments(*of).num_images for key, of in statistics.items()},
                "nearest": len(self.train),
            },
            "protocol": FAST_PROTOCOL if self.inception is None else PROTOCOL,
            "num_threads": torch.get_num_threads(),
            "sha256": {
                **{name: network_hash(name) for name in networks},
                **{
                    f"statistics_{key}": hashlib.sha256(statistics_path(*of).read_bytes()).hexdigest()
                    for key, of in statistics.items()
                },
            },
        }
        assert shown is not None
        draw_report(folder / "report.png", facts, *shown, train=self.train)
        (folder / "metrics.json").write_text(json.dumps(facts, indent=2) + "\n")
        return facts


def check_num_samples(num_samples: int, inception: bool) -> None:
    """Raises `ValueError` where a covariance of that few samples would say nothing."""
    num_features = (InceptionFeatures if inception else Classifier).num_features
    if num_samples <= num_features:
        instead = " (10000 and 50000 are usual), or give --fast" if inception else ""
        raise ValueError(
            f"{num_samples} samples are too few for the covariance of {num_features} features: take"
            f" {num_features + 1} or more{instead}"
        )


def prepare_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Makes `folder`, or finds in it an earlier run of the same `settings`, whose samples are then used, or of others
    that drew nothing.

    Raises:
        `ValueError`: the folder is that of another run, or of something else.
    """
    path = folder / "settings.json"
    text = json.dumps(settings, indent=2) + "\n"
    kept = path.read_text() if path.is_file() else ""
    if kept == text:
        return
    # Another run's file begins with the same key.
    ours = kept.startswith(text.partition(":")[0])
    if folder.exists() and (not folder.is_dir() or any(other != path or not ours for other in folder.iterdir())):
        raise ValueError(f"{folder} holds another run or other files: give another --output-dir")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def pipeline_hash(pipe: Any) -> str:
    """A sha256 over the names and values of the weights, as loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(pipe.unet.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def as_json(value: Any) -> Any:
    """That value; an infinite one, for which JSON has no number, in words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Those of this package and of what it measures with; on a GPU, OpenVINO may be missing."""
    installed = {distribution.name.lower(): distribution.version for distribution in distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and minimum over the seeds of every number; of one seed, its numbers."""
    if len(results) == 1:
        return results[0]
    summary: dict[str, Any] = {}
    for name, value in results[0].items():
        values = [result[name] for result in results]
        if isinstance(value, dict):
            summary[name] = summarise(values)
        elif isinstance(value, list):
            summary[name] = [sum(column) / len(column) for column in zip(*values, strict=True)]
        else:
            summary[name] = {"mean": sum(values) / len(values), "min": min(values), "seeds": values}
    return summary


def evaluate_pipeline(
    pipe: Any,
    folder: Path,
    *,
    name: str,
    sampling: SamplingSettings,
    num_samples: int = 10_000,
    seeds: Sequence[int] = (0,),
    batch_size: int = 100,
    inception: InceptionFeatures | None = None,
    train_data_dir: str | None = None,
) -> dict[str, Any]:
    r"""
    Draws samples, measures them, and writes `metrics.json` and `report.png`.

    Stopped, the same call goes on where it was: every batch is kept in `folder`.

    Args:
        pipe ([`FashionMNISTPipeline`]): Of grey 28x28 images.
        folder (`Path`): A new folder, or that of an earlier call with the same settings.
        name (`str`): What the results call the pipeline.
        sampling ([`SamplingSettings`]): How to draw.
        num_samples (`int`, defaults to 10000): How many, with each of the seeds.
        seeds (`Sequence[int]`, defaults to `(0,)`): Of several, mean and minimum are reported.
        batch_size (`int`, defaults to 100): Images drawn at a time; changes none of them.
        inception ([`InceptionFeatures`], *optional*): Without it, the classifier's metrics only.
        train_data_dir (`str`, *optional*): As in [`Evaluation`].

    Returns:
        `dict`: what is in `metrics.json`.

    Raises:
        `ValueError`: the samples would be too few, or are not finite; the model draws other images than these; the
            folder holds something else.
    """
    check_num_samples(num_samples, inception is not None)
    if num_samples > IMAGES_PER_SEED:
        raise ValueError(
            f"{num_samples} samples of one seed would repeat: give --num-samples {IMAGES_PER_SEED} or less"
        )
    shape = (pipe.unet.config.in_channels, pipe.unet.config.sample_size)
    if shape not in ((1, RESOLUTION), (1, [RESOLUTION] * 2), (1, (RESOLUTION,) * 2)):
        raise ValueError(
            f"{name} draws {shape[0]}-channel images of size {shape[1]}, which cannot be compared with grey 28x28"
            " ones: give another pipeline"
        )
    num_classes = pipe.unet.config.num_class_embeds
    if sampling.conditional and num_classes != len(FASHION_MNIST_LABELS):
        raise ValueError(
            f"{name} knows {num_classes} classes, which are not those of Fashion-MNIST: give --unconditional, or"
            " another pipeline"
        )
    settings = {
        "source": name,
        "unet_sha256": pipeline_hash(pipe),
        "num_samples": num_samples,
        "seeds": list(seeds),
        **asdict(sampling) | {"guidance_interval": list(sampling.guidance_interval)},
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": {key: as_json(value) for key, value in pipe.scheduler.config.items() if key[0] != "_"},
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": device_name(pipe.unet.device),
        "inception": inception is not None,
        "versions": versions(),
    }
    prepare_folder(folder, settings)
    evaluation = Evaluation(inception, pipe.unet.device, train_data_dir)
    pipe.set_progress_bar_config(disable=True)
    runs = (
        draw_and_measure(pipe, sampling, num_samples, seed, folder / f"seed-{seed}", inception, batch_size)
        for seed in seeds
    )
    return evaluation.write(runs, folder, settings)


def evaluate_samples(
    samples: Samples,
    folder: Path,
    *,
    name: str,
    inception: InceptionFeatures | None = None,
    train_data_dir: str | None = None,
) -> dict[str, Any]:
    """Measures samples that exist already; otherwise as [`evaluate_pipeline`]."""
    check_num_samples(len(samples), inception is not None)
    settings = {
        "source": name,
        "images_sha256": hashlib.sha256(samples.images.numpy().tobytes()).hexdigest(),
        "num_samples": len(samples),
        "inception": inception is not None,
        "versions": versions(),
    }
    prepare_folder(folder, settings)
    evaluation = Evaluation(inception, inception.device if inception else "cpu", train_data_dir)
    features = cached_features(inception, samples.images, "samples", folder / "features") if inception else None
    measured = replace(samples, inception=features)
    return evaluation.write([measured], folder, settings)
