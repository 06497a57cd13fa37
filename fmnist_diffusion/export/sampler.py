"""Describes a sampler by the coefficients of its steps, so that sampling needs no scheduler."""

from typing import Any

import numpy as np
import torch

from fmnist_diffusion.pipelines import FashionMNISTPipeline, predict_x0
from fmnist_diffusion.pipelines.pipeline_fmnist import get_scheduler_options
from fmnist_diffusion.sampling import copy_pipeline


PROBE_SHAPE = (1, 1, 64, 64)
# Schedulers compute in float32, so a linear step differs from its fit by rounding errors. The errors are largest for
# EulerDiscreteScheduler at high noise levels.
MAX_RELATIVE_ERROR = 1e-4


def describe_sampler(pipe: FashionMNISTPipeline, num_inference_steps: int) -> dict[str, Any]:
    """
    Computes the timesteps and the coefficients of all sampling steps from the scheduler of a pipeline.

    The coefficients are fitted to the output of `scheduler.step` for random inputs. This works for every scheduler
    whose next sample is a linear combination of the current sample, the predicted x0 of this step and of the previous
    step, the prediction of the model and fresh noise, such as DDPM, DDIM, LCM, Euler and second-order DPM-Solver++.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline; it is not changed.
        num_inference_steps (`int`): Number of denoising steps.

    Returns:
        `dict`: The entry for this number of steps in `samplers`, which `README.md` in this folder describes.

    Raises:
        `ValueError`: If the scheduler does not support the number of steps, or if a linear combination does not
            reproduce its steps to within a relative error of 1e-4.
    """
    pipe = copy_pipeline(pipe)
    scheduler = pipe.scheduler
    timesteps = pipe.set_timesteps(num_inference_steps)
    pipe._set_begin_index(0)
    clip = get_clip(scheduler)
    generator = torch.Generator().manual_seed(0)
    step_kwargs = pipe.prepare_extra_step_kwargs(generator)
    previous_x0 = torch.zeros(PROBE_SHAPE)
    steps = []
    for t in timesteps:
        input_scale = float(pipe.scale_model_input(torch.ones(PROBE_SHAPE), t).mean())
        model_input, prediction = torch.randn(2, *PROBE_SHAPE, generator=generator)
        from_input, from_prediction = get_x0_coefficients(pipe, t)
        x0 = from_input * model_input + from_prediction * prediction
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
        sample = model_input / input_scale
        # A copy of the generator samples the same noise as the scheduler.
        noise = torch.randn(PROBE_SHAPE, generator=generator.clone_state())
        next_sample = scheduler.step(prediction, t, sample, **step_kwargs).prev_sample
        inputs = {
            "sample": sample,
            "x0": x0,
            "previous_x0": previous_x0,
            "noise": noise,
            "prediction": prediction,
        }
        # The prediction is only needed if x0 is clipped, because it is otherwise a combination of the sample and x0.
        coefficients = fit(inputs | {"prediction": torch.zeros(PROBE_SHAPE)}, next_sample) or fit(inputs, next_sample)
        if coefficients is None:
            raise ValueError(
                f"{type(scheduler).__name__} with `num_inference_steps` {num_inference_steps} cannot be exported,"
                " because a linear combination of the sample, the predicted x0 of this step and of the previous step,"
                " the prediction and noise does not reproduce its steps. Use a different scheduler, such as"
                " DDIMScheduler."
            )
        steps.append(
            {
                "timestep": float(t),
                "input_scale": input_scale,
                "x0": {"input": from_input, "prediction": from_prediction},
                "next_sample": coefficients,
            }
        )
        previous_x0 = x0
    return {"init_noise_sigma": float(pipe.init_noise_sigma), "clip": clip, "steps": steps}


def get_clip(scheduler: Any) -> float | None:
    """
    Returns the maximum absolute value of the predicted x0, or `None` if the scheduler does not clip it.

    Raises:
        `ValueError`: If the maximum depends on the sample.
    """
    options = get_scheduler_options(scheduler)
    if options.get("thresholding", False):
        # Dynamic thresholding uses a quantile between 1 and `sample_max_value`.
        if options["sample_max_value"] > 1:
            raise ValueError(
                "Dynamic thresholding cannot be exported. Use a scheduler with `thresholding=False` or"
                " `sample_max_value=1.0`."
            )
        return 1.0
    if options.get("clip_sample", False):
        return float(options["clip_sample_range"])
    return None


def get_x0_coefficients(pipe: FashionMNISTPipeline, timestep: torch.Tensor) -> tuple[float, float]:
    """Returns `a` and `b` of the predicted x0 at a timestep, `a * model_input + b * prediction`."""
    noise_level = pipe._get_input_noise_level(timestep)
    one, zero = torch.ones(()), torch.zeros(())
    from_input = predict_x0(zero, one, *noise_level, pipe.prediction_type)
    from_prediction = predict_x0(one, zero, *noise_level, pipe.prediction_type)
    return float(from_input), float(from_prediction)


def fit(inputs: dict[str, torch.Tensor], output: torch.Tensor) -> dict[str, float] | None:
    """Returns the coefficients of `output` as a linear combination of `inputs`, or `None` if it is not linear."""
    target = output.double().flatten().numpy()
    columns = np.stack([tensor.double().flatten().numpy() for tensor in inputs.values()], axis=1)
    if not np.isfinite(columns).all() or not np.isfinite(target).all():
        return None
    norms = np.linalg.norm(columns, axis=0)
    norms[norms == 0] = 1
    weights = np.linalg.lstsq(columns / norms, target, rcond=1e-6)[0]
    # Coefficients smaller than the rounding errors of float32 are set to zero.
    weights[np.abs(weights) < 1e-6 * np.linalg.norm(target)] = 0
    error = np.linalg.norm(columns @ (weights / norms) - target)
    if error > MAX_RELATIVE_ERROR * np.linalg.norm(target):
        return None
    return dict(zip(inputs, (weights / norms).tolist(), strict=True))
