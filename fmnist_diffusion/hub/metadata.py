"""Training settings and metrics that are stored next to the weights of a pipeline."""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Metric(NamedTuple):
    """
    A metric of generated images.

    Attributes:
        type (`str`): Metric type in the metadata of the Hub, such as `"fid"`.
        title (`str`): Display name.
        value (`float`): Value for the generated images, averaged over the seeds.
        test_value (`float`): Value for the real test images.
    """

    type: str
    title: str
    value: float
    test_value: float


# Each entry is a key in metrics.json, the type, the title, and the path of the test value in the "real" section.
METRICS = (
    ("fid_train", "fid", "FID (training images)", ("inception", "test", "frechet_distance")),
    ("kid_train", "kid", "KID (training images)", ("inception", "test", "kernel_distance")),
    ("precision", "precision", "Precision", ("inception", "test", "precision")),
    ("recall", "recall", "Recall", ("inception", "test", "recall")),
    ("density", "density", "Density", ("inception", "test", "density")),
    ("coverage", "coverage", "Coverage", ("inception", "test", "coverage")),
    (
        "classifier_frechet_distance_train",
        "classifier_frechet_distance",
        "FD-classifier (training images)",
        ("classifier", "test", "frechet_distance"),
    ),
    ("class_agreement", "accuracy", "Class accuracy", ("classifier_accuracy", "test")),
)


def read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
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
        `ValueError`: If the file is not valid JSON.
    """
    metrics = read_json(path)
    return metrics if isinstance(metrics, dict) and {"metrics", "num_samples", "real"} <= metrics.keys() else None


def measured_metrics(metrics: Mapping[str, Any]) -> list[Metric]:
    """Returns the main metrics from the content of `metrics.json` with their values for the real test images."""
    measured = []
    for key, metric_type, title, path in METRICS:
        value = metrics["metrics"].get(key)
        if value is not None:
            test_value = metrics["real"]
            for name in path:
                test_value = test_value[name]
            measured.append(
                Metric(metric_type, title, value["mean"] if isinstance(value, dict) else value, test_value)
            )
    return measured


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Flattens nested settings to pairs such as `("optimizer.learning_rate", 1e-4)`."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def format_number(value: float) -> str:
    """Formats `value` with four significant digits and without an exponent."""
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


def stored_dtype(folder: Path) -> torch.dtype:
    """Returns the dtype of the model weights in a pipeline folder, or float32 if there are several dtypes."""
    dtypes = {dtype for path in (folder / "unet").glob("*.safetensors") for dtype in weights_dtypes(path)}
    return DTYPES.get(dtypes.pop(), torch.float32) if len(dtypes) == 1 else torch.float32
