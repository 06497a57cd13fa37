"""Noise schedules of runs."""

from dataclasses import asdict
from typing import Any

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from config import SchedulerConfig


NoiseScheduler = DDPMScheduler | FlowMatchEulerDiscreteScheduler


def make_noise_scheduler(config: SchedulerConfig) -> NoiseScheduler:
    if config.prediction_type == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps, shift=config.shift)
    settings: dict[str, Any] = asdict(config)
    del settings["shift"]
    scheduler = DDPMScheduler(**settings)
    if config.beta_schedule == "sigmoid":
        # Only DDPMScheduler supports this schedule by name. Other schedulers can use its betas.
        scheduler = DDPMScheduler(**settings, trained_betas=scheduler.betas.tolist())
    return scheduler


def get_betas(noise_scheduler: NoiseScheduler) -> list[float]:
    """Returns the variances of the noising steps. The list is empty for flow matching."""
    return noise_scheduler.betas.tolist() if isinstance(noise_scheduler, DDPMScheduler) else []
