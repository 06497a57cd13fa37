"""Evaluation of samples during training: FD-classifier, and FID if the Inception network is cached."""

import csv
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from config import EvalConfig
from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.evaluation import FastMetrics
from fmnist_diffusion.files import write_atomically
from fmnist_diffusion.sampling import Samples, generate
from records import read_rows


BATCH_SIZE = 250


class Validator:
    """Evaluates samples of a run, which always start from the same noise.

    Args:
        config: Number of samples and sampling settings.
        device: Device of the feature networks.
        record: Table of the results.

    Raises:
        `ValueError`: If the file in `FMNIST_DIFFUSION_INCEPTION` cannot be used, or OpenVINO is missing.
    """

    def __init__(self, config: EvalConfig, device: torch.device | str, record: "EvalRecord"):
        self.config, self.record = config, record
        self.metrics = FastMetrics(config.num_samples, device)

    def evaluate(
        self, pipe: FashionMNISTPipeline, conditions: dict[str, Any], autocast: AbstractContextManager
    ) -> dict[str, float]:
        """Returns the metrics of samples that are generated within `autocast`, and `images_per_second`.

        Args:
            pipe: The pipeline.
            conditions: Class labels or prompts as keyword arguments of [`generate`].
            autocast: Context manager for mixed precision.

        Raises:
            `ValueError`: If sampling fails, for example with infinite pixels.
        """
        with autocast:
            parts = generate(pipe, self.config, self.config.num_samples, **conditions, batch_size=BATCH_SIZE)
            samples = Samples.concatenate(list(parts))
        metrics = self.metrics(samples)
        del metrics["class_shares"]
        return metrics | {"images_per_second": len(samples) / samples.seconds}


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
