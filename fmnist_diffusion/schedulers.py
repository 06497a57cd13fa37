"""The sampler that draws best in 20 steps, and the look-up of a sampler by its name."""

import inspect
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config


# Of alphas_cumprod, which end at 4e-5 with a linear schedule and at 2e-9 with a cosine schedule, of 1000 timesteps.
LEAST_SIGNAL = 1e-6


class SDEDPMSolverScheduler(DPMSolverMultistepScheduler):
    r"""
    diffusers' [`DPMSolverMultistepScheduler`] as SDE-DPM-Solver++ of the second order (arXiv 2211.01095, section 5),
    with timesteps that lie closer together the less noise there is.

    Of `n` steps, the timesteps are `T * (k / n) ** timestep_power - 1` for `k` from `n` to 1. The noise that each step
    adds corrects the errors of the steps before it, and short steps at the end keep fine detail. Pictures that are
    expected are clipped to [-1, 1] where a model predicts the noise on a schedule that ends in noise alone, such as
    cosine.
    Not to be taken for diffusers' [`DPMSolverSDEScheduler`], which evaluates the network twice a step.

    Args:
        num_train_timesteps (`int`, defaults to 1000): Number of noise levels, `T`.
        beta_start (`float`, defaults to 0.0001): Variance of the first noising step.
        beta_end (`float`, defaults to 0.02): Variance of the last noising step.
        beta_schedule (`str`, defaults to `"linear"`): `linear`, `scaled_linear` or `squaredcos_cap_v2`.
        trained_betas (`np.ndarray`, *optional*): All variances, in place of the three above.
        prediction_type (`str`, defaults to `"epsilon"`): `epsilon`, `v_prediction` or `sample`.
        rescale_betas_zero_snr (`bool`, defaults to `False`): Rescale to a zero terminal signal-to-noise ratio.
        timestep_spacing (`str`, defaults to `"leading"`):
            `leading`, `linspace` or `trailing`. Not used here, but kept for schedulers made from this one's config.
        timestep_power (`float`, *optional*, defaults to 1.2 on a cosine schedule, to 1.5 on any other):
            1 for steps of equal length; the larger, the closer together are the timesteps with little noise. Of 20
            steps, the last one begins at about the same noise with either default.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        timestep_spacing: str = "leading",
        timestep_power: float | None = None,
    ):
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            prediction_type=prediction_type,  # pyright: ignore[reportArgumentType]
            rescale_betas_zero_snr=rescale_betas_zero_snr,
            timestep_spacing=timestep_spacing,  # pyright: ignore[reportArgumentType]
            algorithm_type="sde-dpmsolver++",
        )
        # Another scheduler made from this config keeps its own algorithm, and is not told of what it does not have.
        defaults = [*self.config["_use_default_values"], "algorithm_type", "timestep_power"]
        if timestep_power is None:
            timestep_power = 1.2 if beta_schedule == "squaredcos_cap_v2" else 1.5
        self.register_to_config(timestep_power=timestep_power, _use_default_values=defaults)
        # A hundredth of an error in the noise would be a hundred times the range of the picture there.
        self.clips = prediction_type == "epsilon" and float(self.alphas_cumprod[-1]) < LEAST_SIGNAL

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        # What a stored solver says of its algorithm would take the place of this one's; what it left to its defaults
        # holds here too.
        own = inspect.signature(cls.__init__).parameters
        foreign = inspect.signature(DPMSolverMultistepScheduler.__init__).parameters.keys() - own.keys()
        config = {name: value for name, value in config.items() if name not in {*foreign, "_use_default_values"}}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def convert_model_output(self, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The picture that the model expects, of the shape of `model_output`."""
        expected = super().convert_model_output(model_output, *args, **kwargs)
        return expected.clamp(-1, 1) if self.clips else expected

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """Sets the timesteps of `num_inference_steps` denoising steps, or exactly `timesteps`, in falling order."""
        if timesteps is None and num_inference_steps is not None:
            left = np.arange(num_inference_steps, 0, -1)
            spaced = self.config["num_train_timesteps"] * (left / num_inference_steps) ** self.config["timestep_power"]
            # No two of many steps are at the same timestep.
            timesteps = np.maximum(np.floor(spaced - 0.5).astype(int), left - 1).tolist()
            num_inference_steps = None
        super().set_timesteps(num_inference_steps, device, mu, timesteps)  # pyright: ignore[reportArgumentType]


def scheduler_class(name: str) -> type[Any]:
    """The scheduler of that class name, of this package or of diffusers.

    Raises:
        `ValueError`: there is none of that name.
    """
    if name == SDEDPMSolverScheduler.__name__:
        return SDEDPMSolverScheduler
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ValueError(f"diffusers has no scheduler {name!r}: give a class name, such as DDIMScheduler.")
    return found
