"""The coefficients reproduce the steps of diffusers schedulers."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from fmnist_diffusion.export import describe_sampler
from fmnist_diffusion.schedulers import make_scheduler
from tiny_pipelines import get_pipeline


V_PREDICTION = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
ZERO_SNR = {**V_PREDICTION, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SCHEDULERS = {
    "ddim": DDIMScheduler(clip_sample=False),
    "ddim-clipped": DDIMScheduler(),
    "ddim-zero-snr": DDIMScheduler(**ZERO_SNR),
    "ddpm": DDPMScheduler(),
    "ddpm-sample": DDPMScheduler(prediction_type="sample"),
    "dpmsolver++": DPMSolverMultistepScheduler(**V_PREDICTION),
    "sde-dpmsolver++": DPMSolverMultistepScheduler(**ZERO_SNR, algorithm_type="sde-dpmsolver++"),
    "thresholding": DPMSolverMultistepScheduler(thresholding=True, sample_max_value=1.0),
    "euler": EulerDiscreteScheduler(prediction_type="v_prediction"),
    "euler_a": EulerAncestralDiscreteScheduler(),
    "lcm": LCMScheduler(**ZERO_SNR),
}


def make_noise(seeds: list[int], count: int) -> list[torch.Tensor]:
    """Returns the noise that a pipeline for 8x8 images samples with one generator per seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [torch.cat([torch.randn(1, 1, 8, 8, generator=g) for g in generators]) for _ in range(count)]


@torch.no_grad()
@pytest.mark.parametrize("num_inference_steps", [1, 2, 7])
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_coefficients_reproduce_the_pipeline(scheduler, num_inference_steps):
    pipe = get_pipeline(scheduler)
    sampler = describe_sampler(pipe, num_inference_steps)
    assert len(sampler["steps"]) == num_inference_steps
    seeds, labels = [3, 4], torch.tensor([1, 2])
    noise = make_noise(seeds, num_inference_steps + 1)
    sample, previous_x0 = noise[0] * sampler["init_noise_sigma"], torch.zeros(2, 1, 8, 8)
    for step, step_noise in zip(sampler["steps"], noise[1:], strict=True):
        model_input = sample * step["input_scale"]
        prediction = pipe.unet(model_input, step["timestep"], labels).sample
        x0 = step["x0"]["input"] * model_input + step["x0"]["prediction"] * prediction
        if sampler["clip"] is not None:
            x0 = x0.clamp(-sampler["clip"], sampler["clip"])
        terms = {
            "sample": sample,
            "x0": x0,
            "previous_x0": previous_x0,
            "noise": step_noise,
            "prediction": prediction,
        }
        sample = sum(step["next_sample"][name] * term for name, term in terms.items())
        previous_x0 = x0
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    expected = pipe(labels, num_inference_steps=num_inference_steps, generator=generators, output_type="latent").images
    scale = expected.abs().max().clamp(min=1)
    torch.testing.assert_close(sample / scale, expected / scale, atol=1e-4, rtol=0)


def test_unused_terms_are_zero():
    steps = describe_sampler(get_pipeline(SCHEDULERS["sde-dpmsolver++"]), 4)["steps"]
    coefficients = [step["next_sample"] for step in steps]
    assert [row["prediction"] for row in coefficients] == [0] * 4
    assert coefficients[0]["previous_x0"] == coefficients[-1]["noise"] == 0
    assert all(row["noise"] > 0 for row in coefficients[:-1])


@pytest.mark.parametrize(
    "scheduler",
    [
        PNDMScheduler(),
        UniPCMultistepScheduler(),
        DPMSolverMultistepScheduler(solver_order=3),
    ],
    ids=["PNDM", "UniPC", "third order"],
)
@pytest.mark.parametrize("num_inference_steps", [5, 1000])
def test_nonlinear_schedulers_are_rejected(scheduler, num_inference_steps):
    with pytest.raises(
        ValueError, match=f"^{type(scheduler).__name__} with `num_inference_steps` .* cannot be exported"
    ):
        describe_sampler(get_pipeline(scheduler), num_inference_steps)


def test_dynamic_thresholding_is_rejected():
    scheduler = DPMSolverMultistepScheduler(thresholding=True, sample_max_value=2.0)
    with pytest.raises(ValueError, match="Dynamic thresholding cannot be exported"):
        describe_sampler(get_pipeline(scheduler), 5)


@pytest.mark.parametrize(
    ("name", "previous"),
    [
        ("dpmsolver++", DDIMScheduler(clip_sample=True, timestep_spacing="linspace")),
        ("euler", DPMSolverMultistepScheduler(thresholding=True, sample_max_value=2.0)),
    ],
)
def test_clipping_of_a_different_scheduler_is_ignored(name, previous):
    scheduler = make_scheduler(name, previous.config)
    sampler, expected = (describe_sampler(get_pipeline(item), 5) for item in (scheduler, type(scheduler)()))
    assert sampler["clip"] is None
    assert sampler == expected


def test_pipeline_is_unchanged():
    pipe = get_pipeline()
    pipe.scheduler.set_timesteps(3)
    describe_sampler(pipe, 5)
    assert pipe.scheduler.num_inference_steps == 3
