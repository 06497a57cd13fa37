"""What a run shows: sample grids, loss curves, and a strip of samples epoch by epoch."""

import csv
from pathlib import Path

import matplotlib
import numpy as np
from diffusers.utils import make_image_grid
from PIL import Image


matplotlib.use("Agg")
from matplotlib import pyplot as plt


def image_grid(images: list[Image.Image], columns: int = 10, upscale: int = 2) -> Image.Image:
    """A grid of equal images, `columns` in a row, enlarged without smoothing; the last row is filled with black."""
    width, height = images[0].size
    columns = min(columns, len(images))
    images = [image.resize((width * upscale, height * upscale), Image.Resampling.NEAREST) for image in images]
    images += [Image.new(images[0].mode, images[0].size)] * (-len(images) % columns)
    return make_image_grid(images, rows=len(images) // columns, cols=columns)


def plot_losses(loss_csv: Path, path: Path) -> None:
    """Draws the loss of each step, its running mean and the mean of each epoch."""
    with loss_csv.open() as file:
        rows = list(csv.DictReader(file))
    steps = np.array([int(row["step"]) for row in rows])
    epochs = np.array([int(row["epoch"]) for row in rows])
    losses = np.array([float(row["loss"]) for row in rows])

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="tab:blue", alpha=0.2, linewidth=0.5, label="step")
    window = max(1, min(200, len(losses) // 10))
    axes.plot(
        steps[window - 1 :],
        np.convolve(losses, np.ones(window) / window, mode="valid"),
        color="tab:blue",
        label=f"mean of {window} steps",
    )
    ends = [steps[epochs == epoch][-1] for epoch in np.unique(epochs)]
    means = [losses[epochs == epoch].mean() for epoch in np.unique(epochs)]
    axes.plot(ends, means, "o", color="tab:orange", markersize=4, label="mean of an epoch")
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_strip(grids: dict[int, Path], row_height: int, path: Path) -> None:
    """Puts the first row of each epoch's sample grid under one another; `grids` is epoch: PNG."""
    rows = []
    for grid_path in grids.values():
        with Image.open(grid_path) as grid:
            rows.append(np.asarray(grid.crop((0, 0, grid.width, row_height))))
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.85 * len(rows)), layout="constrained", squeeze=False)
    for axis, epoch, row in zip(axes[:, 0], grids, rows, strict=True):
        axis.imshow(row, cmap="gray")
        axis.set_ylabel(f"epoch {epoch}", rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120)
    plt.close(figure)
