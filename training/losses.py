"""The record of a run's losses: `loss.csv`, a row for each optimizer step, and the curve drawn from it."""

import csv
from pathlib import Path

import matplotlib
import numpy as np


matplotlib.use("Agg")
from matplotlib import pyplot as plt


COLUMNS = ("step", "epoch", "loss", "learning_rate")


class LossRecord:
    """Keeps `path`; a run that goes on from `global_step` takes along its record `resumed` up to there."""

    def __init__(self, path: Path, resumed: Path | None, global_step: int):
        self.path = path
        rows = []
        if resumed is not None and resumed.exists():
            with resumed.open() as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= global_step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    def append(self, rows: list[tuple[int, int, float, float]]) -> None:
        """Adds rows of step, epoch (from 1), loss and learning rate."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(rows)

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the step, epoch and loss of every row."""
        with self.path.open() as file:
            rows = list(csv.DictReader(file))
        steps, epochs = (np.array([int(row[name]) for row in rows]) for name in ("step", "epoch"))
        return steps, epochs, np.array([float(row["loss"]) for row in rows])

    def epoch_mean(self, epoch: int) -> float:
        _, epochs, losses = self.read()
        return float(losses[epochs == epoch].mean())

    def plot(self, path: Path) -> None:
        """Draws the loss of each step, its running mean and the mean of each epoch."""
        steps, epochs, losses = self.read()
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        axes.plot(steps, losses, color="tab:blue", alpha=0.2, linewidth=0.5, label="step")
        window = max(1, min(200, len(losses) // 10))
        axes.plot(
            steps[window - 1 :],
            np.convolve(losses, np.ones(window) / window, mode="valid"),
            color="tab:blue",
            label=f"mean of {window} steps",
        )
        names = np.unique(epochs)
        ends = [steps[epochs == epoch][-1] for epoch in names]
        means = [losses[epochs == epoch].mean() for epoch in names]
        axes.plot(ends, means, "o", color="tab:orange", markersize=4, label="mean of an epoch")
        axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.savefig(path, dpi=120)
        plt.close(figure)
