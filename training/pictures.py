"""What a run shows of its samples, epoch by epoch."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image


matplotlib.use("Agg")
from matplotlib import pyplot as plt


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
