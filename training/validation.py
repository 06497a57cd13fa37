"""Evaluation of samples during training: FD-classifier, and FID if the Inception network is available."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from config import EvalConfig
from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.evaluation import FastMetrics
from fmnist_diffusion.sampling import Samples, generate


BATCH_SIZE = 250


class Validator:
    """Evaluates samples of a run, which always start from the same noise.

    Args:
        config: Number of samples and sampling settings.
        device: Device of the feature networks.

    Raises:
        `ValueError`: If the file in `FMNIST_DIFFUSION_INCEPTION` cannot be used, or OpenVINO is missing.
    """

    def __init__(self, config: EvalConfig, device: torch.device | str):
        self.config = config
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
