"""Records of a run: losses (`loss.csv`, `loss.png`), evaluation results (`eval.csv`) and sample grids (`samples/`,
`progress.png`)."""

import csv
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from config import EvalConfig
from fmnist_diffusion.files import describe_write_errors, sync, write_atomically
from fmnist_diffusion.images import image_grid, upscale
from processes import call_on_main_process


matplotlib.use("Agg")
from matplotlib import pyplot as plt


COLUMNS: tuple[str, ...] = ("step", "epoch", "loss", "learning_rate")
GRID_UPSCALE = 2

logger = logging.getLogger("training")


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Returns the rows of a CSV file that have a number in each of `columns` and an integer in `step`.

    Crashes leave incomplete lines and NUL bytes, which are skipped.
    """
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    complete = (line for line in lines if line.endswith("\n") and len(line) < csv.field_size_limit())
    rows = []
    for row in csv.DictReader(complete):
        try:
            int(row["step"])
            for name in columns:
                float(row[name])
        except (KeyError, TypeError, ValueError):
            continue
        # `None` marks a missing or an additional field.
        if None not in row and None not in row.values():
            rows.append(row)
    return rows


class LossRecord:
    """`loss.csv` with one row per optimizer step.

    Args:
        path: File to write.
        resumed: `loss.csv` of the run to resume. Its rows up to `global_step` are copied.
        global_step: Number of finished optimizer steps.
        term_names: Names of the terms of the loss, which are additional columns of `loss.csv`.
    """

    def __init__(self, path: Path, resumed: Path | None, global_step: int, term_names: tuple[str, ...] = ()):
        self.path, self.term_names, self.columns = path, term_names, COLUMNS + term_names
        # `epochs` maps each epoch to the sum of its losses and its number of steps.
        self.epochs: defaultdict[float, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        rows = []
        if resumed is not None and resumed.exists():
            rows = [row for row in read_rows(resumed, self.columns) if int(row["step"]) <= global_step]
        if len(rows) < global_step:
            num_lost = global_step - len(rows)
            logger.warning("%s does not contain the losses of %d of the first %d steps.", path, num_lost, global_step)
        with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        for row in rows:
            self._add_loss(float(row["epoch"]), float(row["loss"]))

    def _add_loss(self, epoch: float, loss: float) -> None:
        total, count = self.epochs[epoch]
        self.epochs[epoch] = total + loss, count + 1

    def append(self, rows: Sequence[tuple[float, ...]]) -> None:
        """Adds rows of step, epoch (from 1), loss, learning rate and the terms of the loss."""
        with describe_write_errors(self.path), self.path.open("a", newline="") as file:
            csv.writer(file).writerows(rows)
        for _, epoch, loss, *_ in rows:
            self._add_loss(epoch, loss)

    def sync(self) -> None:
        """Waits until all rows are written to disk."""
        with describe_write_errors(self.path):
            sync(self.path)

    def read(self) -> dict[str, np.ndarray]:
        """Returns the values of each column."""
        rows = read_rows(self.path, self.columns)
        return {name: np.array([float(row[name]) for row in rows]) for name in self.columns}

    def get_epoch_mean(self, epoch: int) -> float:
        total, count = self.epochs[epoch]
        # A resumed run has no losses of this epoch if its loss.csv was lost.
        return total / count if count else math.nan

    def plot(self, path: Path, images_per_step: int) -> None:
        """Plots the loss, or each of its terms if it has several, against the number of images.

        The plot shows the value of each step, its running mean and the mean of each epoch.
        """
        values = self.read()
        if not len(values["step"]):
            return
        images = values["step"] * images_per_step
        epochs = [values["epoch"] == epoch for epoch in np.unique(values["epoch"])]
        window = max(1, min(200, len(images) // 10))
        names = self.term_names or ("loss",)
        figure, all_axes = plt.subplots(
            len(names), 1, figsize=(8, 1.5 + 3 * len(names)), sharex=True, layout="constrained", squeeze=False
        )
        for name, axes in zip(names, all_axes[:, 0], strict=True):
            losses = values[name]
            axes.plot(images, losses, color="tab:blue", alpha=0.2, linewidth=0.5, label="step")
            means = np.convolve(losses, np.ones(window) / window, mode="valid")
            axes.plot(images[window - 1 :], means, color="tab:blue", label=f"mean of {window} steps")
            ends = [images[epoch][-1] for epoch in epochs]
            means = [losses[epoch].mean() for epoch in epochs]
            axes.plot(ends, means, "o", color="tab:orange", markersize=4, label="mean of an epoch")
            axes.set(ylabel=name.replace("_", " "), yscale="log" if losses.max() > 0 else "linear")
            axes.grid(alpha=0.3, which="both")
        all_axes[0, 0].legend(loc="upper right")
        all_axes[-1, 0].set_xlabel("images seen")
        all_axes[-1, 0].xaxis.set_major_formatter("{x:,.0f}")
        with write_atomically(path) as temporary:
            figure.savefig(temporary, dpi=120)
        plt.close(figure)


class LossLogger:
    """Reports losses to `record`, the progress bar and the trackers.

    Losses stay on the device until `report`, so that a training step does not wait for the device.

    Args:
        accelerator: Averages the losses over the processes.
        record: The file on the main process; `None` on other processes.
        images_per_step: Number of images per optimizer step.
        term_names: Names of the terms of the loss, which are additional columns of `loss.csv`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        record: LossRecord | None,
        images_per_step: int,
        term_names: tuple[str, ...] = (),
    ):
        self.accelerator, self.record, self.images_per_step = accelerator, record, images_per_step
        self.names = ("loss", *term_names)
        self.batch_losses: list[torch.Tensor] = []
        self.steps: list[tuple[int, int, torch.Tensor, float]] = []
        self.bar = tqdm(disable=True)
        self.restart_clock()

    @contextmanager
    def show_progress(self, global_step: int, total_steps: int) -> Iterator[None]:
        """Shows the number of images from `global_step` to `total_steps` on the main process."""
        self.bar = tqdm(
            total=total_steps * self.images_per_step,
            initial=global_step * self.images_per_step,
            unit=" images",
            unit_scale=True,
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
        )
        with self.bar:
            self.restart_clock()
            yield

    def restart_clock(self) -> None:
        """Excludes the time since the last report from the training speed."""
        self.start_time = time.perf_counter()

    def add_batch(self, loss: torch.Tensor, *terms: torch.Tensor) -> None:
        self.batch_losses.append(torch.stack([loss, *terms]).detach())

    def add_step(self, step: int, epoch: int, learning_rate: float) -> None:
        """Ends an optimizer step, whose loss is the mean over the batches since the last step."""
        self.steps.append((step, epoch, torch.stack(self.batch_losses).mean(0), learning_rate))
        self.batch_losses = []
        self.bar.update(self.images_per_step)

    def describe_progress(self) -> str:
        """Returns the number of images so far and the remaining time, including the time for writing outputs."""
        seen, total = self.bar.n, self.bar.total
        values = self.bar.format_dict
        seconds = values["elapsed"] * (total - seen) / max(seen - values["initial"], 1)
        return f"{seen:,} of {total:,} images, {tqdm.format_interval(seconds)} left"

    def report(self) -> None:
        """Reports the steps since the last call. All processes must call this method at the same step.

        Raises:
            `FloatingPointError`: If a loss is NaN or infinite.
            `WriteError`: If `record` cannot be written.
        """
        if not self.steps:
            return
        local_losses = torch.stack([losses for _, _, losses, _ in self.steps])  # (steps, 1 + terms)
        mean_losses: Any = self.accelerator.reduce(local_losses, reduction="mean")
        rows = [
            (step, epoch, loss, rate, *terms)
            for (step, epoch, _, rate), (loss, *terms) in zip(self.steps, mean_losses.tolist(), strict=True)
        ]
        self.steps = []
        images_per_second = len(rows) * self.images_per_step / (time.perf_counter() - self.start_time)
        self.restart_clock()
        call_on_main_process(self.accelerator, lambda: self._append(rows))
        step, epoch, _, learning_rate, *_ = rows[-1]
        losses = dict(zip(self.names, mean_losses.mean(0).tolist(), strict=True))
        self.bar.set_postfix(epoch=epoch, loss=f"{losses['loss']:.4f}")
        values = {
            **losses,
            "learning_rate": learning_rate,
            "images_seen": step * self.images_per_step,
            "images_per_second": images_per_second,
        }
        self.accelerator.log(values, step=step)
        for step, _, loss, *_ in rows:
            if not math.isfinite(loss):
                raise FloatingPointError(f"The loss is {loss} at step {step}.")

    def _append(self, rows: Sequence[tuple[float, ...]]) -> None:
        if self.record is not None:
            self.record.append(rows)


class EvalRecord:
    """`eval.csv` with one row per evaluation.

    Args:
        path: File to write.
        config: Number of samples and sampling settings, which are saved as columns.
        global_step: Number of finished optimizer steps; rows of later steps are removed.
    """

    def __init__(self, path: Path, config: EvalConfig, global_step: int):
        self.path = path
        settings = asdict(config)
        del settings["every_n_epochs"]
        self.settings = {name: str(value) for name, value in settings.items()}
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            self.rows = [row for row in read_rows(path, ("step", "epoch")) if int(row["step"]) <= global_step]

    def add(self, step: int, epoch: int, metrics: dict[str, float]) -> bool:
        """Adds a row, or replaces the one of the same step.

        Returns:
            `bool`: Whether this row is the best one with the same settings. The best row has the lowest FID or, if FID
            is not available, the lowest FD-classifier.
        """
        name = "fid_train" if "fid_train" in metrics else "classifier_frechet_distance_train"
        self.rows = [row for row in self.rows if int(row["step"]) != step]
        comparable = [row for row in self.rows if self.settings.items() <= row.items()]
        best = all(metrics[name] < float(row.get(name) or "inf") for row in comparable)
        self.rows.append({"step": step, "epoch": epoch, **self.settings, **metrics})
        with write_atomically(self.path) as temporary, temporary.open("w", newline="") as file:
            # Rows can have different metrics, because the Inception network may be added when a run is resumed.
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)))
            writer.writeheader()
            writer.writerows(self.rows)
        return best


class SampleGrids:
    """Sample grids in `samples/`, one per epoch, and `progress.png`, which shows the first row of each.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def get_path(self, epoch: int) -> Path:
        return self.folder / "samples" / f"epoch-{epoch:04d}.png"

    def save(self, images: list[Image.Image], columns: int, epoch: int) -> Image.Image:
        """Saves the grid of an epoch, updates `progress.png`, and returns the grid."""
        grid = upscale(image_grid(images, columns), GRID_UPSCALE)
        path = self.get_path(epoch)
        with describe_write_errors(path):
            path.parent.mkdir(exist_ok=True)
        with write_atomically(path) as temporary:
            grid.save(temporary)
        self.plot(images[0].height * GRID_UPSCALE)
        return grid

    def plot(self, row_height: int) -> None:
        rows = {}
        for path in (self.folder / "samples").glob("epoch-*.png"):
            try:
                with Image.open(path) as grid:
                    row = np.asarray(grid.crop((0, 0, grid.width, row_height)))
            except (OSError, SyntaxError, ValueError) as error:
                logger.warning("progress.png does not show %s, which is damaged (%s).", path, error)
                continue
            rows[int(path.stem.removeprefix("epoch-"))] = row
        figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.85 * len(rows)), layout="constrained", squeeze=False)
        for axis, (epoch, row) in zip(axes[:, 0], sorted(rows.items()), strict=True):
            axis.imshow(row, cmap="gray", vmin=0, vmax=255)
            axis.set_ylabel(f"epoch {epoch}", rotation=0, ha="right", va="center")
            axis.set(xticks=[], yticks=[])
        with write_atomically(self.folder / "progress.png") as temporary:
            figure.savefig(temporary, dpi=120)
        plt.close(figure)
