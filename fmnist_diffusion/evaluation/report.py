"""One picture of a measurement: samples by class, the closest training images, the balance of classes, the numbers."""

from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmnist_diffusion.data import FASHION_MNIST_LABELS

from .metrics import class_shares
from .sample_metrics import Memorisation
from .samples import Samples


ROWS, PAIRS = 8, 10
SAMPLE, REAL = "#1f6fb4", "#9aa0a6"
NUMBERS = {
    "fid_train": "FID, to the training images",
    "fid_test": "FID, to the test images",
    "kid_train": "KID x 1000",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "classifier_frechet_distance_train": "classifier's Fréchet distance",
    "class_agreement": "of the class asked for",
    "class_distance_from_uniform": "classes' distance from uniform",
    "evaluations_per_image": "network evaluations an image",
    "images_per_second": "images a second",
}


def draw_report(
    path: Path,
    facts: dict[str, Any],
    samples: Samples,
    classes: torch.Tensor,
    memorisation: dict[str, Memorisation],
    train: torch.Tensor,
) -> None:
    """Writes a PNG of about 1500x1700 pixels.

    Args:
        path (`Path`): The file.
        facts (`dict`): What `metrics.json` says.
        samples ([`Samples`]): The samples.
        classes (`torch.Tensor`): The class that each is taken for.
        memorisation (`dict[str, Memorisation]`): The nearest training images, by space.
        train (`torch.Tensor`): The training images.
    """
    figure = Figure(figsize=(12.5, 14), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(facts["source"], fontsize=15, fontweight="bold")
    grid = figure.add_gridspec(4, 3, height_ratios=(9, 3.2, 2.7, 2.7))

    shown = classes if samples.labels is None else samples.labels
    asked = "taken for the class" if samples.labels is None else "asked to be of the class"
    axis = figure.add_subplot(grid[0, :2])
    axis.imshow(class_columns(samples.images[:, 0], shown).numpy(), cmap="gray", vmin=0, vmax=255)
    axis.set_xticks([28 * (i + 0.5) - 0.5 for i in range(10)], FASHION_MNIST_LABELS, rotation=35, ha="right")
    axis.set(yticks=[], title=f"the first samples {asked}")

    axis = figure.add_subplot(grid[0, 2])
    axis.axis("off")
    axis.set_title("measured")
    lines = list(number_lines(facts))
    for i, (name, value, real) in enumerate(lines):
        y = 0.97 - i * 0.055
        weight = "bold" if i == 0 else "normal"
        axis.text(0.0, y, name, transform=axis.transAxes, fontsize=9, fontweight=weight)
        axis.text(0.82, y, value, transform=axis.transAxes, fontsize=9, ha="right", fontweight=weight)
        axis.text(1.0, y, real, transform=axis.transAxes, fontsize=9, ha="right", color="#5f6368", fontweight=weight)

    axis = figure.add_subplot(grid[1, :2])
    positions = torch.arange(10)
    shares = [100 * share for share in class_shares(classes)]
    axis.bar(positions.tolist(), shares, color=SAMPLE)
    axis.axhline(10, color=REAL, linestyle="--", label="the data")
    axis.set_xticks(positions.tolist(), FASHION_MNIST_LABELS, rotation=35, ha="right")
    axis.set(ylabel="% of samples", ylim=(0, 1.25 * max(shares)), title="what the classifier takes them for")
    axis.legend(frameon=False, loc="upper right")

    axis = figure.add_subplot(grid[1, 2])
    near = memorisation["pixels"]
    top = float(torch.cat([near.distances, near.test_distances]).quantile(0.995))
    for distances, colour, name in ((near.test_distances, REAL, "test images"), (near.distances, SAMPLE, "samples")):
        axis.hist(distances.numpy(), bins=50, range=(0, top), density=True, color=colour, alpha=0.65, label=name)
    axis.set(title="distance to the nearest training image", xlabel="Euclidean, pixels in [0, 1]", yticks=[])
    axis.legend(frameon=False)

    for row, (space, found) in enumerate(memorisation.items()):
        axis = figure.add_subplot(grid[2 + row, :])
        order = found.distances.argsort()[:PAIRS]
        pairs = torch.cat([samples.images[order, 0], train[found.indices[order], 0]], dim=1)  # (pairs, 56, 28)
        axis.imshow(torch.cat(list(spaced(pairs)), dim=1).numpy(), cmap="gray", vmin=0, vmax=255)
        words = {"pixels": "in pixels", "classifier": "in the classifier's features"}[space]
        axis.set_title(f"the closest pairs {words}: sample above, training image below")
        axis.set_xticks(
            [32 * i + 13.5 for i in range(len(order))], [f"{found.distances[i]:.2f}" for i in order.tolist()]
        )
        axis.set_yticks([])
    figure.savefig(path, dpi=120)


def class_columns(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The first images of each class as a column, `(ROWS * 28, 10 * 28)`; black where a class has fewer."""
    columns = torch.zeros(10, ROWS, 28, 28, dtype=torch.uint8)
    for number in range(10):
        found = images[classes == number][:ROWS]
        columns[number, : len(found)] = found
    return columns.permute(1, 2, 0, 3).reshape(ROWS * 28, 10 * 28)


def spaced(pairs: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(pairs, (0, 4), value=255)


def number_lines(facts: dict[str, Any]):
    """Rows of a name, the value of samples and that of test images."""
    yield "", "samples", "test"
    real = facts["real"]
    test = real.get("inception", {}).get("test", {})
    beside = {
        "fid_train": test.get("frechet_distance"),
        "kid_train": test.get("kernel_distance"),
        "classifier_frechet_distance_train": real["classifier"]["test"]["frechet_distance"],
        "class_agreement": real["classifier_accuracy"]["test"],
        **{name: test.get(name) for name in ("precision", "recall", "density", "coverage")},
    }
    yield "images", f"{facts['num_samples']:,}", "10,000"
    for name, words in NUMBERS.items():
        if name in facts["metrics"]:
            value = facts["metrics"][name]
            value = value["mean"] if isinstance(value, dict) else value
            scale = 1000 if name.startswith("kid") else 1
            other = beside.get(name)
            yield words, f"{value * scale:.3f}", "" if other is None else f"{other * scale:.3f}"
    for space, words in (("pixels", "pixels"), ("classifier", "features")):
        found = facts["metrics"][f"nearest_{space}"]
        share = found["nearer_than_99_percent_of_test"]
        share = share["mean"] if isinstance(share, dict) else share
        yield f"nearer than 1 % of test, {words}", f"{share * 100:.1f} %", "1.0 %"
