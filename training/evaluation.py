"""Measurement of the samples of a run while it trains: the fast metric, and FID where its network is at hand."""

import csv
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, SDEDPMSolverScheduler
from fmnist_diffusion.evaluation import FastMetrics, SamplingSettings, draw_all
from training.config import EvalConfig


BATCH = 250


class SampleEvaluator:
    """Measures samples of the weights of a run, always from the same noise.

    Args:
        config: How many samples, and how to draw them.
        device: Where the feature networks run.

    Raises:
        `ValueError`: the file that `FMNIST_DIFFUSION_INCEPTION` names is missing or another, or OpenVINO is missing.
    """

    def __init__(self, config: EvalConfig, device: torch.device):
        self.config = config
        self.rows: list[dict[str, Any]] = []
        self.metrics = FastMetrics(config.num_samples, device)

    def measure(
        self, unet: FashionMNISTUNet2DModel, sampler: SDEDPMSolverScheduler, autocast: AbstractContextManager
    ) -> dict[str, float]:
        """The metrics by name, of samples drawn within `autocast`; `images_per_second` is that of drawing."""
        config = self.config
        conditional = unet.config["num_class_embeds"] is not None
        pipeline = FashionMNISTPipeline(unet, sampler)
        pipeline.set_progress_bar_config(disable=True)
        settings = SamplingSettings(
            config.num_inference_steps, config.guidance_scale if conditional else 1.0, conditional=conditional
        )
        with autocast:
            samples = draw_all(pipeline, settings, config.num_samples, BATCH, config.seed)
        metrics = self.metrics(samples)
        del metrics["class_shares"]
        return metrics | {"images_per_second": len(samples) / samples.seconds}

    def keep(self, path: Path, global_step: int) -> None:
        """Keeps a table at `path`, a row for each measurement; a run that goes on there from `global_step` keeps the
        rows up to it."""
        self.path = path
        if path.exists():
            with path.open() as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= global_step]

    def record(self, step: int, epoch: int, metrics: dict[str, float]) -> bool:
        """Adds a row, in place of an earlier one of that step; returns whether it is the best of those measured in the
        same way, by FID where there is one."""
        name = "fid_train" if "fid_train" in metrics else "classifier_frechet_distance_train"
        way = {
            "scheduler": SDEDPMSolverScheduler.__name__,
            "num_samples": str(self.config.num_samples),
            "num_inference_steps": str(self.config.num_inference_steps),
            "guidance_scale": str(self.config.guidance_scale),
            "seed": str(self.config.seed),
        }
        self.rows = [row for row in self.rows if int(row["step"]) != step]
        alike = [row for row in self.rows if way.items() <= row.items()]
        best = all(metrics[name] < float(row.get(name) or "inf") for row in alike)
        self.rows.append({"step": step, "epoch": epoch, **way, **metrics})
        with self.path.open("w", newline="") as file:
            # A resumed run may measure more than the one before it.
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)))
            writer.writeheader()
            writer.writerows(self.rows)
        return best
