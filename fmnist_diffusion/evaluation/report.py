"""Creates `report.png`: samples by class, metrics, class balance and the nearest training images."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.metadata import get_mean, measured_metrics

from .distances import class_shares
from .sample_metrics import Measurement, Memorization


NUM_CLASSES = len(FASHION_MNIST_LABELS)
MAX_COLUMNS, IMAGES_PER_CLASS, NUM_PAIRS = 10, 8, 10
SAMPLE_COLOR, REAL_COLOR, TEXT_COLOR = "#1f6fb4", "#9aa0a6", "#5f6368"
# These are the metrics that model cards do not contain.
OTHER_TITLES = {
    "fid_test": "FID (test images)",
    "kid_std": "Standard deviation of KID",
    "class_distance_from_uniform": "Distance from uniform class distribution",
    "num_function_evaluations": "NFE per image",
    "images_per_second": "Images per second",
}
SPACE_TITLES = {"pixels": "pixels", "classifier": "classifier", "inception": "Inception"}


def save_report(
    path: Path,
    results: dict[str, Any],
    measurement: Measurement,
    real_images: torch.Tensor,
    label_names: Sequence[str] | None = None,
) -> None:
    """
    Writes a PNG of about 1500x1700 pixels.

    Args:
        path (`Path`): Path of the PNG file.
        results (`dict`): Content of `metrics.json`.
        measurement ([`Measurement`]): The samples to show and their measurements.
        real_images (`torch.Tensor`): All real images, uint8 `(num_images, channels, height, width)`.
        label_names (`Sequence[str]`, *optional*): Class names of the samples.
    """
    figure = Figure(figsize=(12.5, 14), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(results["source"], fontsize=15, fontweight="bold", parse_math=False)
    grid = figure.add_gridspec(4, 3, height_ratios=(9, 3.2, 2.7, 2.7))
    real_title = "reference images" if "reference" in results else "test images"
    plot_samples(figure.add_subplot(grid[0, :2]), measurement, label_names)
    plot_metrics(figure.add_subplot(grid[0, 2]), results)
    spaces = measurement.memorization
    if measurement.predicted_classes is not None:
        plot_class_balance(figure.add_subplot(grid[1, :2]), measurement.predicted_classes)
    else:
        axis = figure.add_subplot(grid[1, :2])
        plot_distances(axis, spaces["inception"], real_title, "Euclidean, Inception features")
    plot_distances(figure.add_subplot(grid[1, 2]), spaces["pixels"], real_title, "Euclidean, pixels in [0, 1]")
    for row, (space, memorization) in enumerate(spaces.items(), start=2):
        axis = figure.add_subplot(grid[row, :])
        plot_nearest_pairs(axis, measurement.samples.images, real_images, memorization)
        features = "pixels" if space == "pixels" else f"{SPACE_TITLES[space]} features"
        axis.set_title(f"Nearest pairs in {features}: sample above, real image below")
    with warnings.catch_warnings():
        # The font does not have the characters of all languages.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(path, dpi=120)


def show_image(axis: Axes, image: torch.Tensor) -> None:
    """Shows a uint8 image `(1 or 3, height, width)`."""
    axis.imshow(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
    axis.set_yticks([])


def plot_samples(axis: Axes, measurement: Measurement, label_names: Sequence[str] | None) -> None:
    samples, classes, title = measurement.samples, None, "First samples"
    if samples.labels is not None and label_names is not None and len(label_names) <= MAX_COLUMNS:
        classes, title = samples.labels, "First samples by class label"
    elif measurement.predicted_classes is not None:
        classes, label_names = measurement.predicted_classes, FASHION_MNIST_LABELS
        title = "First samples by predicted class"
    axis.set_title(title)
    if classes is None or label_names is None:
        # Consecutive samples are in consecutive columns.
        show_image(axis, class_grid(samples.images, torch.arange(len(samples)) % MAX_COLUMNS, MAX_COLUMNS))
        axis.set_xticks([])
        return
    show_image(axis, class_grid(samples.images, classes, len(label_names)))
    width = samples.images.shape[3]
    centers = [width * (i + 0.5) - 0.5 for i in range(len(label_names))]
    axis.set_xticks(centers, [name[:20] for name in label_names], rotation=35, ha="right", parse_math=False)


def class_grid(images: torch.Tensor, classes: torch.Tensor, num_classes: int = NUM_CLASSES) -> torch.Tensor:
    """
    Arranges the first images of each class in a column.

    Args:
        images (`torch.Tensor`): uint8 `(num_images, channels, height, width)`.
        classes (`torch.Tensor`): int64 `(num_images,)`.
        num_classes (`int`, defaults to 10): Number of columns.

    Returns:
        `torch.Tensor`: uint8 `(channels, 8 * height, num_classes * width)`, which is black where a class has fewer
            than 8 images.
    """
    channels, height, width = images.shape[1:]
    columns = torch.zeros(num_classes, IMAGES_PER_CLASS, channels, height, width, dtype=torch.uint8)
    for i in range(num_classes):
        class_images = images[classes == i][:IMAGES_PER_CLASS]
        columns[i, : len(class_images)] = class_images
    grid = columns.permute(2, 1, 3, 0, 4)  # (channels, rows, height, columns, width)
    return grid.reshape(channels, IMAGES_PER_CLASS * height, num_classes * width)


def plot_metrics(axis: Axes, results: dict[str, Any]) -> None:
    axis.axis("off")
    axis.set_title("Metrics")
    for i, (title, value, real) in enumerate(metric_rows(results)):
        y = 0.97 - i * 0.055
        font = {"transform": axis.transAxes, "fontsize": 9, "fontweight": "bold" if i == 0 else "normal"}
        axis.text(0.0, y, title, **font)
        axis.text(0.86, y, value, ha="right", **font)
        axis.text(1.0, y, real, ha="right", color=TEXT_COLOR, **font)


def metric_rows(results: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """
    Yields the title of each metric, its value for the samples and its value for real images.

    The real images are the test images of Fashion-MNIST, or one half of a reference compared with its other half.
    """
    metrics = results["metrics"]
    real_metrics = results["real_metrics"]
    real_name, real_title = ("reference", "half") if "reference" in results else ("test", "test")
    yield "", "samples", real_title
    yield "Images", f"{results['num_samples']:,}", f"{real_metrics['num_images']:,}"
    rows = [(metric.title, metric.value, metric.real_value) for metric in measured_metrics(results)]
    rows += [
        (title, get_mean(metrics[name]), real_metrics.get(name))
        for name, title in OTHER_TITLES.items()
        if name in metrics
    ]
    for title, *values in rows:
        if "KID" in title:
            title, values = f"{title} x 1000", [value and value * 1000 for value in values]
        value, real_value = ("" if value is None else f"{value:.3f}" for value in values)
        yield title, value, real_value
    if "cas" in results:
        yield "Classification accuracy score", f"{results['cas']['samples']:.3f}", f"{results['cas']['real']:.3f}"
    for space, title in SPACE_TITLES.items():
        nearest = metrics.get(f"nearest_{space}")
        if nearest is not None:
            share = get_mean(nearest[f"nearer_than_99_percent_of_{real_name}"])
            yield (
                f"Nearer than 99% of {real_name} images ({title})",
                f"{share * 100:.1f}%",
                "1.0%",
            )


def plot_class_balance(axis: Axes, predicted_classes: torch.Tensor) -> None:
    shares = [100 * share for share in class_shares(predicted_classes)]
    axis.bar(range(NUM_CLASSES), shares, color=SAMPLE_COLOR)
    axis.axhline(100 / NUM_CLASSES, color=REAL_COLOR, linestyle="--", label="Fashion-MNIST")
    axis.set_xticks(range(NUM_CLASSES), FASHION_MNIST_LABELS, rotation=35, ha="right")
    axis.set(ylabel="% of samples", ylim=(0, 1.25 * max(shares)), title="Classes predicted by the classifier")
    axis.legend(frameon=False, loc="upper right")


def plot_distances(axis: Axes, memorization: Memorization, real_title: str, unit: str) -> None:
    samples, real = memorization.distances, memorization.real_distances
    end = float(torch.cat([samples, real]).quantile(0.995))
    for distances, color, title in ((real, REAL_COLOR, real_title), (samples, SAMPLE_COLOR, "samples")):
        axis.hist(distances.numpy(), bins=50, range=(0, end), density=True, color=color, alpha=0.65, label=title)
    axis.set(title="Distance to the nearest real image", xlabel=unit, yticks=[])
    axis.legend(frameon=False, loc="upper right")


def plot_nearest_pairs(
    axis: Axes, images: torch.Tensor, real_images: torch.Tensor, memorization: Memorization
) -> None:
    order = memorization.distances.argsort()[:NUM_PAIRS]
    channels = max(images.shape[1], real_images.shape[1])
    samples, nearest = images[order], real_images[memorization.indices[order]]
    pairs = torch.cat([part.expand(-1, channels, -1, -1) for part in (samples, nearest)], dim=2)
    width = images.shape[3]
    margin = max(1, width // 7)
    pairs = torch.nn.functional.pad(pairs, (0, margin), value=255)  # (pairs, channels, 2 * height, width + margin)
    show_image(axis, torch.cat(list(pairs), dim=2))
    centers = [(width + margin) * i + (width - 1) / 2 for i in range(len(order))]
    axis.set_xticks(centers, [f"{distance:.2f}" for distance in memorization.distances[order].tolist()])
