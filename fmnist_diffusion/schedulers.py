"""Creates diffusers schedulers for a trained model.

Functions import diffusers locally, so that the command line can read the scheduler names without this slow import.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import torch
    from diffusers import DDPMScheduler, SchedulerMixin

    from .pipelines import FashionMNISTPipeline


# This table maps short names to diffusers classes and to options that override those of the checkpoint's scheduler.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"clip_sample": True}),
}

# These options define the noise schedule and the prediction type that a model was trained with.
NOISE_SCHEDULE_OPTIONS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
)


def compute_angles(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    r"""
    Expresses noise levels as angles.

    A noisy image is $x_\theta = \cos(\theta)\,x_0 + \sin(\theta)\,\epsilon$, where $\cos^2(\theta)$ is
    `alphas_cumprod` (arXiv 2202.00512, appendix D).

    Args:
        alphas_cumprod (`torch.Tensor` of shape `(num_train_timesteps,)`): See [`DDPMScheduler`].

    Returns:
        `torch.Tensor` of shape `(num_train_timesteps,)`: The increasing angles between 0 (clean image) and pi/2 (pure
        noise), in float64.
    """
    alphas_cumprod = alphas_cumprod.double()
    return (1 - alphas_cumprod).sqrt().atan2(alphas_cumprod.sqrt())


def has_unstable_epsilon(noise_scheduler: DDPMScheduler) -> bool:
    """
    Returns whether the prediction type is epsilon and the noise schedule ends with almost pure noise.

    At the last timestep, a small error in the predicted noise then becomes a huge error in x0.
    """
    from .pipelines.pipeline_fmnist import NEAR_ZERO_SNR

    near_zero_snr = float(noise_scheduler.alphas_cumprod[-1]) < NEAR_ZERO_SNR
    return near_zero_snr and noise_scheduler.config["prediction_type"] == "epsilon"


def get_noise_scheduler(pipe: FashionMNISTPipeline) -> Any:
    """
    Returns a [`DDPMScheduler`] with the noise schedule and the prediction type of the pipeline's model, or a
    [`FlowMatchEulerDiscreteScheduler`] for flow matching.
    """
    return make_scheduler(
        "FlowMatchEulerDiscreteScheduler" if pipe.prediction_type == "flow_prediction" else "DDPMScheduler",
        pipe.scheduler.config,
    )


def get_scheduler_class(scheduler: str | type[SchedulerMixin]) -> tuple[type[Any], dict[str, Any]]:
    """
    Finds the class of a scheduler and the config options that its short name implies.

    Args:
        scheduler (`str` or a subclass of [`SchedulerMixin`]):
            A short name from `SCHEDULERS` (case-insensitive), the name of a diffusers scheduler class, or the class
            itself.

    Returns:
        `tuple[type, dict]`: The class and the options.

    Raises:
        `ValueError`: If the scheduler does not exist.
    """
    import diffusers

    if isinstance(scheduler, type):
        scheduler_class, options = scheduler, {}
    elif isinstance(scheduler, str):
        name, options = SCHEDULERS.get(scheduler.lower(), (scheduler, {}))
        scheduler_class = getattr(diffusers, name, None)
    else:
        raise ValueError(f"`scheduler` must be a name or a class, got an instance of {type(scheduler).__name__}.")
    bases = (diffusers.SchedulerMixin, diffusers.ConfigMixin)
    if not (isinstance(scheduler_class, type) and all(issubclass(scheduler_class, base) for base in bases)):
        raise ValueError(
            f"Could not find the scheduler {scheduler!r}: pass one of {', '.join(SCHEDULERS)}, or a diffusers"
            " scheduler class."
        )
    return scheduler_class, dict(options)


def make_scheduler(scheduler: str | type[SchedulerMixin], config: Mapping[str, Any]) -> Any:
    """
    Creates a scheduler for a model that was trained with the noise schedule in `config`.

    Args:
        scheduler (`str` or a subclass of [`SchedulerMixin`]): See [`get_scheduler_class`].
        config (`Mapping`): Config of a different scheduler of the same model, such as `pipe.scheduler.config`.

    Returns:
        [`SchedulerMixin`]: The new scheduler.

    Raises:
        `ValueError`: If the scheduler does not exist, if it does not support the noise schedule, if its class has
            required arguments, or if either the scheduler or the model, but not both, uses flow matching.
    """
    from diffusers import DPMSolverMultistepScheduler

    scheduler_class, options = get_scheduler_class(scheduler)
    parameters = inspect.signature(scheduler_class).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if required:
        raise ValueError(
            f"{scheduler_class.__name__} does not support this model, because it requires `{required[0]}`. Use a"
            " different scheduler, such as DDIMScheduler."
        )
    if config.get("clip_sample") is False:
        # The predicted x0 must not be clipped, for example because latents are not limited to [-1, 1].
        options.pop("clip_sample", None)
    options |= get_flow_options(scheduler_class, config)
    # With this entry, `from_config` drops all options that equal the defaults of the previous scheduler class.
    ignored = {"_use_default_values"}
    if not issubclass(scheduler_class, DPMSolverMultistepScheduler):
        # `algorithm_type` has different values in different solvers.
        ignored.add("algorithm_type")
    if is_flow_matching_config(config):
        # Flow matching has no betas, and its schedulers have different names for the same options.
        ignored |= config.keys() - inspect.signature(scheduler_class).parameters.keys()
    config = {name: value for name, value in config.items() if name not in ignored}
    try:
        return scheduler_class.from_config(config, **options)
    # diffusers raises NotImplementedError if a scheduler does not support a noise schedule.
    except NotImplementedError as error:
        raise ValueError(
            f"{scheduler_class.__name__} does not support an option of this model ({error}). Use a different"
            " scheduler, such as DDPMScheduler."
        ) from error


def is_flow_matching_config(config: Mapping[str, Any]) -> bool:
    """Returns whether the config of a scheduler belongs to a flow-matching model."""
    # The flow-matching schedulers of diffusers have a `shift`, but no `prediction_type`.
    return "shift" in config or config.get("prediction_type") == "flow_prediction"


def get_flow_options(scheduler_class: type[Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Returns the options of a scheduler that keep the prediction type and the shift of a flow-matching model.

    Args:
        scheduler_class (`type`): Class of the scheduler.
        config (`Mapping`): Config of a different scheduler of the same model.

    Returns:
        `dict`: The options; empty if neither the scheduler nor the model uses flow matching.

    Raises:
        `ValueError`: If the scheduler does not support the model.
    """
    from .pipelines.pipeline_fmnist import FLOW_MATCH_SCHEDULERS, FLOW_SOLVERS

    only_flow_matching = issubclass(scheduler_class, FLOW_MATCH_SCHEDULERS)
    if not is_flow_matching_config(config):
        if not only_flow_matching:
            return {}
        raise ValueError(
            f"{scheduler_class.__name__} does not support this model, which was not trained with flow matching. Use a"
            " different scheduler, such as DPMSolverMultistepScheduler."
        )
    if not issubclass(scheduler_class, FLOW_MATCH_SCHEDULERS + FLOW_SOLVERS):
        raise ValueError(
            f"{scheduler_class.__name__} does not support this flow-matching model. Use a different scheduler, such as"
            " FlowMatchEulerDiscreteScheduler or DPMSolverMultistepScheduler."
        )
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if only_flow_matching:
        return {"shift": shift}
    return {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
