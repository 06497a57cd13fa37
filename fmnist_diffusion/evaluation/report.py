"""Creates `report.png`: samples by class, metrics, class balance and the nearest training images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmnist_diffusion.data import FASHION_MNIST_LABELS

from .distances import class_shares
from .sample_metrics import Measurement, Memorization
from .samples import RESOLUTION


NUM_CLASSES = len(FASHION_MNIST_LABELS)
IMAGES_PER_CLASS, NUM_PAIRS, PAIR_MARGIN = 8, 10, 4
SAMPLE_COLOR, REAL_COLOR, TEXT_COLOR = "#1f6fb4", "#9aa0a6", "#5f6368"
METRIC_TITLES = {
    "fid_train": "FID (training images)",
    "fid_test": "FID (test images)",
    "kid_train": "KID x 1000",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "classifier_frechet_distance_train": "FD-classifier",
    "class_agreement": "Class accuracy",
    "class_distance_from_uniform": "Distance from uniform classes",
    "evaluations_per_image": "Function evaluations per image",
    "images_per_second": "Images per second",
}
SPACE_TITLES = {"pixels": "pixels", "classifier": "classifier features"}


def save_report(path: Path, results: dict[str, Any], measurement: Measurement, train: torch.Tensor) -> None:
    """
    Writes a PNG of about 1500x1700 pixels.

    Args:
        path (`Path`): Path of the PNG file.
        results (`dict`): Content of `metrics.json`.
        measurement ([`Measurement`]): The samples to show and their measurements.
        train (`torch.Tensor`): All training images, uint8 `(60000, 1, 28, 28)`.
    """
    figure = Figure(figsize=(12.5, 14), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(results["source"], fontsize=15, fontweight="bold")
    grid = figure.add_gridspec(4, 3, height_ratios=(9, 3.2, 2.7, 2.7))
    plot_samples(figure.add_subplot(grid[0, :2]), measurement)
    plot_metrics(figure.add_subplot(grid[0, 2]), results)
    plot_class_balance(figure.add_subplot(grid[1, :2]), measurement.predicted_classes)
    plot_distances(figure.add_subplot(grid[1, 2]), measurement.memorization["pixels"])
    for row, (space, memorization) in enumerate(measurement.memorization.items(), start=2):
        axis = figure.add_subplot(grid[row, :])
        plot_nearest_pairs(axis, measurement.samples.images, train, memorization)
        axis.set_title(f"Nearest pairs in {SPACE_TITLES[space]}: sample above, training image below")
    figure.savefig(path, dpi=120)


def plot_samples(axis: Axes, measurement: Measurement) -> None:
    labels = measurement.samples.labels
    classes, kind = (measurement.predicted_classes, "predicted class") if labels is None else (labels, "class label")
    image = class_grid(measurement.samples.images[:, 0], classes)
    axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=255)
    centers = [RESOLUTION * (i + 0.5) - 0.5 for i in range(NUM_CLASSES)]
    axis.set_xticks(centers, FASHION_MNIST_LABELS, rotation=35, ha="right")
    axis.set(yticks=[], title=f"First samples by {kind}")


def class_grid(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """
    Arranges the first images of each class in a column.

    Args:
        images (`torch.Tensor`): uint8 `(num_images, 28, 28)`.
        classes (`torch.Tensor`): int64 `(num_images,)`.

    Returns:
        `torch.Tensor`: uint8 `(8 * 28, 10 * 28)`, which is black where a class has fewer than 8 images.
    """
    columns = torch.zeros(NUM_CLASSES, IMAGES_PER_CLASS, RESOLUTION, RESOLUTION, dtype=torch.uint8)
    for i in range(NUM_CLASSES):
        class_images = images[classes == i][:IMAGES_PER_CLASS]
        columns[i, : len(class_images)] = class_images
    return columns.permute(1, 2, 0, 3).reshape(IMAGES_PER_CLASS * RESOLUTION, NUM_CLASSES * RESOLUTION)


def plot_metrics(axis: Axes, results: dict[str, Any]) -> None:
    axis.axis("off")
    axis.set_title("Metrics")
    for i, (title, value, real) in enumerate(metric_rows(results)):
        y = 0.97 - i * 0.055
        font = {"transform": axis.transAxes, "fontsize": 9, "fontweight": "bold" if i == 0 else "normal"}
        axis.text(0.0, y, title, **font)
        axis.text(0.82, y, value, ha="right", **font)
        axis.text(1.0, y, real, ha="right", color=TEXT_COLOR, **font)


def metric_rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields the title of each metric, its value for the samples and its value for the real test images."""
    metrics, real = results["metrics"], results["real"]
    test = real.get("inception", {}).get("test", {})
    test_values = {
        "fid_train": test.get("frechet_distance"),
        "kid_train": test.get("kernel_distance"),
        "classifier_frechet_distance_train": real["classifier"]["test"]["frechet_distance"],
        "class_agreement": real["classifier_accuracy"]["test"],
        **{name: test.get(name) for name in ("precision", "recall", "density", "coverage")},
    }
    yield "", "samples", "test"
    yield "Images", f"{results['num_samples']:,}", "10,000"
    for name, title in METRIC_TITLES.items():
        if name in metrics:
            scale = 1000 if name == "kid_train" else 1
            value, test_value = get_mean(metrics[name]), test_values.get(name)
            yield title, f"{value * scale:.3f}", "" if test_value is None else f"{test_value * scale:.3f}"
    for space, title in SPACE_TITLES.items():
        share = get_mean(metrics[f"nearest_{space}"]["nearer_than_99_percent_of_test"])
        yield f"Nearer than 99 % of test ({title})", f"{share * 100:.1f} %", "1.0 %"


def get_mean(value: Any) -> float:
    """Returns the mean of a metric over the seeds. With only one seed, `value` is a plain number."""
    return value["mean"] if isinstance(value, dict) else value


def plot_class_balance(axis: Axes, predicted_classes: torch.Tensor) -> None:
    shares = [100 * share for share in class_shares(predicted_classes)]
    axis.bar(range(NUM_CLASSES), shares, color=SAMPLE_COLOR)
    axis.axhline(100 / NUM_CLASSES, color=REAL_COLOR, linestyle="--", label="Fashion-MNIST")
    axis.set_xticks(range(NUM_CLASSES), FASHION_MNIST_LABELS, rotation=35, ha="right")
    axis.set(ylabel="% of samples", ylim=(0, 1.25 * max(shares)), title="Classes predicted by the classifier")
    axis.legend(frameon=False, loc="upper right")


def plot_distances(axis: Axes, memorization: Memorization) -> None:
    samples, test = memorization.distances, memorization.test_distances
    end = float(torch.cat([samples, test]).quantile(0.995))
    for distances, color, title in ((test, REAL_COLOR, "test images"), (samples, SAMPLE_COLOR, "samples")):
        axis.hist(distances.numpy(), bins=50, range=(0, end), density=True, color=color, alpha=0.65, label=title)
    axis.set(title="Distance to the nearest training image", xlabel="Euclidean, pixels in [0, 1]", yticks=[])
    axis.legend(frameon=False)


def plot_nearest_pairs(axis: Axes, images: torch.Tensor, train: torch.Tensor, memorization: Memorization) -> None:
    order = memorization.distances.argsort()[:NUM_PAIRS]
    pairs = torch.cat([images[order, 0], train[memorization.indices[order], 0]], dim=1)  # (pairs, 56, 28)
    pairs = torch.nn.functional.pad(pairs, (0, PAIR_MARGIN), value=255)
    axis.imshow(torch.cat(list(pairs), dim=1).numpy(), cmap="gray", vmin=0, vmax=255)
    centers = [(RESOLUTION + PAIR_MARGIN) * i + (RESOLUTION - 1) / 2 for i in range(len(order))]
    axis.set_xticks(centers, [f"{distance:.2f}" for distance in memorization.distances[order].tolist()])
    axis.set_yticks([])
