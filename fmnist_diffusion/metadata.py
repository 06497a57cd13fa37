"""Training settings and metrics that are stored next to the weights of a pipeline."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from .data import DEFAULT_DATASET
from .hub_client import is_repo_id
from .pipelines.pipeline_fmnist import MODELS


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Metric(NamedTuple):
    """
    A metric of generated images.

    Attributes:
        type (`str`): Metric type in the metadata of the Hub, such as `"fid"`.
        title (`str`): Display name.
        value (`float`): Value for the generated images, averaged over the seeds.
        real_value (`float`, *optional*): Value for the real test images, or for two halves of the reference images;
            `None` if it is unknown.
    """

    type: str
    title: str
    value: float
    real_value: float | None


# Each entry is a key in metrics.json, the type and the title. `fid` and `kid` refer to the images of `--reference`.
METRICS = (
    ("fid_train", "fid", "FID (training images)"),
    ("fid", "fid", "FID"),
    ("kid_train", "kid", "KID (training images)"),
    ("kid", "kid", "KID"),
    ("precision", "precision", "Precision"),
    ("recall", "recall", "Recall"),
    ("density", "density", "Density"),
    ("coverage", "coverage", "Coverage"),
    ("classifier_frechet_distance_train", "classifier_frechet_distance", "FD-classifier (training images)"),
    ("class_accuracy", "accuracy", "Class accuracy"),
)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or `None` if it does not exist; raises `ValueError` if it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Fix or remove the file.") from error


def read_train_config(path: Path) -> dict[str, Any] | None:
    """
    Reads the settings that the trainer saved.

    Args:
        path (`Path`): Path of `train_config.json`.

    Returns:
        `dict`, *optional*: The settings; `None` if the file does not exist.

    Raises:
        `ValueError`: If the file is not a JSON object.
    """
    config = read_json(path)
    if config is not None and not isinstance(config, dict):
        raise ValueError(f"{path} must contain a JSON object, got {type(config).__name__}. Fix or remove the file.")
    return config


def read_metrics(path: Path) -> dict[str, Any] | None:
    """
    Reads the metrics that `fmnist-diffusion evaluate` saved.

    Args:
        path (`Path`): Path of `metrics.json`.

    Returns:
        `dict`, *optional*: The metrics; `None` if the file does not exist or was written by another program.

    Raises:
        `ValueError`: If the file is damaged.
    """
    metrics = read_json(path)
    if not isinstance(metrics, dict) or not {"metrics", "real_metrics", "num_samples"} <= metrics.keys():
        return None
    try:
        measured = measured_metrics(metrics)
        numbers = [metric.value for metric in measured]
        # Half of another reference may be too small for a metric.
        numbers += [m.real_value for m in measured if m.real_value is not None or "reference" not in metrics]
        valid = metrics["num_samples"] > 0 and all(isinstance(number, int | float) for number in numbers)
        list(metrics.get("seeds", []))
    except (AttributeError, KeyError, TypeError):
        valid = False
    if not valid:
        raise ValueError(f"{path} contains damaged metrics. Remove the file, or evaluate the pipeline again.")
    return metrics


def weights_hash(pipe: DiffusionPipeline, dtype: torch.dtype | None = None) -> str:
    """
    Returns the SHA-256 hash of a pipeline's weights and buffers (their names and float32 values).

    Args:
        pipe ([`DiffusionPipeline`]): The pipeline.
        dtype (`torch.dtype`, *optional*): Dtype to convert the weights to first. By default, they are not converted.
    """
    digest = hashlib.sha256()
    for model in (getattr(pipe, name) for name in MODELS):
        for name, tensor in sorted(model.state_dict().items()) if model is not None else ():
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().data)
    return digest.hexdigest()


def has_same_weights(metrics: Mapping[str, Any], pipe: DiffusionPipeline) -> bool:
    """Returns whether the content of `metrics.json` was measured with these weights, possibly in a different dtype."""
    dtype = getattr(torch, str(metrics.get("dtype")), None)
    return isinstance(dtype, torch.dtype) and metrics.get("weights_sha256") == weights_hash(pipe, dtype)


def measured_metrics(metrics: Mapping[str, Any]) -> list[Metric]:
    """Returns the main metrics from the content of `metrics.json` with their values for real images."""
    values, real_values = metrics["metrics"], metrics["real_metrics"]
    return [
        Metric(metric_type, title, get_mean(values[key]), real_values.get(key))
        for key, metric_type, title in METRICS
        if values.get(key) is not None
    ]


def get_mean(value: Any) -> float:
    """Returns the mean of a metric over the seeds. With only one seed, `value` is a plain number."""
    return value["mean"] if isinstance(value, dict) else value


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens nested settings into pairs such as `("optimizer.learning_rate", 1e-4)`."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def get_dataset(train_config: Mapping[str, Any] | None) -> str | None:
    """Returns the Hub dataset that a model was trained on, or `None` for local files or an unknown dataset."""
    data = (train_config or {}).get("data")
    if not isinstance(data, dict) or data.get("train_data_dir"):
        return None
    name = data.get("dataset_name")
    return name if isinstance(name, str) and is_repo_id(name) else None


def get_license(train_config: dict[str, Any] | None) -> str | None:
    """Returns `mit` if the model was trained on Fashion-MNIST from the Hub, which has this license, else `None`."""
    return "mit" if get_dataset(train_config) == DEFAULT_DATASET else None


def format_count(number: int, noun: str, plural: str | None = None) -> str:
    """Formats a count with the singular or plural of `noun`, such as "1 image" or "2 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_number(value: float | None) -> str:
    """Formats `value` with four significant digits and without an exponent. Returns an empty string for `None`."""
    if value is None:
        return ""
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{Decimal(f'{value + 0.0:.4g}'):f}"


def weights_dtypes(path: Path) -> set[str]:
    """
    Returns the floating-point dtypes in a safetensors file, such as `{"F16"}`.

    Raises:
        `ValueError`: If the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {dtype for name in file.keys() if "F" in (dtype := file.get_slice(name).get_dtype())}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file ({error}). Download or save it again.") from error


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Returns the dtype of each model in a pipeline folder; float32 if the weights of a model have several dtypes."""
    dtypes: dict[str, set[str]] = {}
    for path in folder.glob("*/*.safetensors"):
        dtypes.setdefault(path.parent.name, set()).update(weights_dtypes(path))
    return {
        name: DTYPES.get(next(iter(found)), torch.float32) if len(found) == 1 else torch.float32
        for name, found in dtypes.items()
    }


def count_parameters(pipe: DiffusionPipeline) -> dict[str, int]:
    """Returns the number of parameters of each model of a pipeline, such as `unet` and `text_encoder`."""
    models = {name: model for name, model in pipe.components.items() if isinstance(model, torch.nn.Module)}
    return {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
