"""Reports to the experiment tracker (TensorBoard, Trackio or Weights & Biases)."""

import importlib.util
from dataclasses import asdict
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from config import TrainingConfig
from fmnist_diffusion.metadata import flatten


def get_log_with(report_to: str) -> str | None:
    """Returns the argument `log_with` of Accelerate; raises `ValueError` if the tracker is not installed."""
    if report_to == "none":
        return None
    if importlib.util.find_spec(report_to) is None:
        raise ValueError(f"{report_to} is not installed. Run `pip install {report_to}`, or pass --report_to=none.")
    return report_to


def start_tracker(accelerator: Accelerator, config: TrainingConfig, global_step: int) -> None:
    """Starts the tracker. TensorBoard discards values after `global_step`, because a resumed run logs them again."""
    if config.report_to == "none":
        return
    # Trackers only accept these types.
    hparams = {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in flatten(asdict(config))
    }
    options = {"wandb": {"dir": config.output_dir}, "tensorboard": {"purge_step": global_step + 1}}
    accelerator.init_trackers("fmnist-diffusion", hparams, options)


def log_samples(accelerator: Accelerator, report_to: str, image: Image.Image, step: int) -> None:
    image = image.convert("RGB")
    if report_to == "trackio":
        import trackio  # pyright: ignore[reportMissingImports]

        accelerator.log({"samples": trackio.Image(image)}, step=step)
    elif report_to != "none":
        layout = {"dataformats": "NHWC"} if report_to == "tensorboard" else {}
        tracker: Any = accelerator.get_tracker(report_to)
        tracker.log_images({"samples": np.asarray(image)[None]}, step=step, **layout)
