"""Sampling with flow-matching models whose predictions are exact."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.unets.unet_2d import UNet2DOutput
from oracle_unet import distance, make_oracle_pipeline
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.export import describe_sampler
from fmnist_diffusion.sampling import copy_pipeline, make_pipeline
from fmnist_diffusion.schedulers import make_scheduler
from tiny_pipelines import get_pipeline, make_unet, sample


FLOW_MATCH = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
SCHEDULERS = [*FLOW_MATCH, "dpmsolver++", "sde-dpmsolver++", "unipc"]
SHIFTED = FlowMatchEulerDiscreteScheduler(shift=3.0)
MEAN, STD = 0.3, 0.4


class GaussianUNet(FashionMNISTUNet2DModel):
    """Predicts the expected flow for images with independent pixels, normally distributed with `MEAN` and `STD`."""

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        sigma = float(timestep) / 1000
        alpha = 1 - sigma
        variance = alpha**2 * STD**2 + sigma**2
        return UNet2DOutput(sample=(sigma - alpha * STD**2) / variance * (sample - alpha * MEAN) - MEAN)


def make_gaussian_pipeline(shift: float = 1.0) -> FashionMNISTPipeline:
    unet = GaussianUNet(sample_size=8, block_out_channels=(8,), attention_levels=(), time_embedding_dim=4)
    pipe = make_pipeline(unet, FlowMatchEulerDiscreteScheduler(shift=shift))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def get_flow_pipeline(shift: float = 1.0, **config) -> FashionMNISTPipeline:
    pipe = make_pipeline(make_unet(**config), FlowMatchEulerDiscreteScheduler(shift=shift), num_inference_steps=3)
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def get_options(scheduler) -> dict:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", [None, "FlowMatchHeunDiscreteScheduler", "dpmsolver++"])
def test_exact_flow_maps_noise_to_the_distribution_of_the_images(name, shift):
    """The flow of Gaussian images ends at the mean plus the noise times the standard deviation."""
    pipe = copy_pipeline(make_gaussian_pipeline(shift), name)
    noise = torch.randn(4, 1, 8, 8, generator=torch.manual_seed(0))
    settings = {"num_images_per_prompt": 4, "latents": noise, "output_type": "latent"}
    errors = [
        distance(pipe(num_inference_steps=steps, **settings).images, MEAN + STD * noise) for steps in (25, 100, 400)
    ]
    assert errors[2] < 0.005
    if name is None:
        # The error of Euler's method is proportional to the step size.
        assert errors[2] < errors[1] / 3 < errors[0] / 9


@pytest.mark.parametrize("noise_scheduler", [FlowMatchEulerDiscreteScheduler(), SHIFTED], ids=["1", "3"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_sampling_ends_at_the_clean_image(name, noise_scheduler):
    pipe = make_oracle_pipeline(name, noise_scheduler)
    predicted = []

    def callback(pipe, step, timestep, tensors):
        predicted.append(tensors["pred_original_sample"])

    images = pipe(
        [2, 0],
        num_inference_steps=15,
        generator=torch.manual_seed(0),
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
    ).images
    assert distance(images, pipe.unet.clean[[2, 0]]) < 0.02
    assert pipe.unet.noise_error < 0.12
    assert len(predicted) == pipe.num_timesteps
    for images in predicted:
        assert distance(images, pipe.unet.clean[[2, 0]]) < 0.01


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.34, 1.0])
def test_image_gets_the_noise_of_the_first_remaining_timestep(name, strength):
    pipe = make_oracle_pipeline(name, SHIFTED)
    image = pipe.unet.clean[[2, 0]] / 2 + 0.5
    # The generator samples the same noise for the input and, in some schedulers, for the steps.
    images = pipe(
        [2, 0],
        image=image,
        strength=strength,
        num_inference_steps=12,
        generator=torch.manual_seed(0),
        output_type="latent",
    ).images
    assert distance(images, pipe.unet.clean[[2, 0]]) < 0.02
    assert pipe.unet.noise_error < 0.1
    evaluations = pipe.scheduler.order
    assert abs(pipe.num_timesteps - int(12 * strength) * evaluations) <= 1


def test_default_sigmas_are_equally_spaced_and_shifted():
    pipe = get_flow_pipeline()
    assert (pipe.prediction_type, pipe.config.timestep_power) == ("flow_prediction", 1.0)
    assert pipe.set_timesteps(4).tolist() == [1000, 750, 500, 250]
    assert_close(get_flow_pipeline(3.0).set_timesteps(2), torch.tensor([1000.0, 750.0]))
    # The last step of diffusers' own spacing starts almost without noise.
    own_spacing = FashionMNISTPipeline(pipe.unet, FlowMatchEulerDiscreteScheduler())
    assert own_spacing.set_timesteps(4).tolist() == pytest.approx([1000, 667, 334, 1])
    # With this shift, the first sigma is rounded to slightly more than 1.
    assert 1000 < get_flow_pipeline(0.011).set_timesteps(4)[0] < 1000.01
    power = FashionMNISTPipeline(pipe.unet, FlowMatchEulerDiscreteScheduler(), timestep_power=2.0)
    assert power.set_timesteps(4).tolist() == [1000, 562.5, 250, 62.5]
    assert pipe.set_timesteps(4, sigmas=[0.9, 0.2]).tolist() == pytest.approx([900, 200])


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "unipc"])
@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_custom_sigmas_are_shifted(name, convert):
    pipe = get_flow_pipeline(3.0)
    pipe.scheduler = make_scheduler(name, pipe.scheduler.config)
    timesteps = pipe.set_timesteps(4, sigmas=convert([0.9, 0.2])).unique().tolist()
    # The shift maps sigma to 3 sigma / (1 + 2 sigma).
    assert timesteps == pytest.approx([428.57, 964.29], abs=1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"timesteps": [900, 5]}, "FlowMatchEulerDiscreteScheduler does not support custom `timesteps`"),
        ({"sigmas": [1.5, 0.5]}, "`sigmas` must be greater than 0 and at most 1 with FlowMatchEulerDiscreteScheduler"),
        ({"sigmas": [0.5, 0.0]}, "`sigmas` must be greater than 0"),
    ],
)
def test_invalid_spacing_is_an_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sample(get_flow_pipeline(), **kwargs)


class TestSwitchingSchedulers:
    @pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "euler", "euler_a", "heun", "deis", "LCMScheduler"])
    def test_diffusion_scheduler_of_a_flow_model_is_an_error(self, name):
        pipe = get_flow_pipeline()
        with pytest.raises(ValueError, match="Scheduler does not support this flow-matching model"):
            copy_pipeline(pipe, name)
        pipe.scheduler = make_scheduler(name, DDPMScheduler().config)
        with pytest.raises(ValueError, match="Scheduler does not support this flow-matching model"):
            sample(pipe)

    def test_copy_of_a_pipeline_checks_its_scheduler(self):
        pipe = get_flow_pipeline()
        pipe.scheduler = DDIMScheduler()
        with pytest.raises(ValueError, match="DDIMScheduler does not support this flow-matching model"):
            sample(copy_pipeline(pipe))

    def test_solver_requires_the_options_of_flow_matching(self):
        pipe = get_flow_pipeline()
        config = pipe.scheduler.config
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
        with pytest.raises(
            ValueError, match='Create it with `prediction_type="flow_prediction"` and `use_flow_sigmas'
        ):
            sample(pipe)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            config, prediction_type="flow_prediction", use_flow_sigmas=True
        )
        assert torch.equal(sample(pipe), sample(copy_pipeline(get_flow_pipeline(), "DPMSolverMultistepScheduler")))

    @pytest.mark.parametrize("name", FLOW_MATCH)
    def test_flow_scheduler_of_a_diffusion_model_is_an_error(self, name):
        pipe = get_pipeline(DDIMScheduler())
        with pytest.raises(ValueError, match=f"{name} does not support this model"):
            copy_pipeline(pipe, name)
        pipe.scheduler = make_scheduler(name, SHIFTED.config)
        with pytest.raises(ValueError, match=f"{name} does not support this model"):
            sample(pipe)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_shift_is_kept(self, name):
        scheduler = make_scheduler(name, SHIFTED.config)
        assert scheduler.config.get("flow_shift", scheduler.config.get("shift")) == 3.0
        back = make_scheduler("FlowMatchEulerDiscreteScheduler", scheduler.config)
        assert get_options(back) == get_options(SHIFTED)


class TestPipeline:
    @pytest.mark.parametrize("name", [None, *SCHEDULERS])
    def test_ends_of_an_interpolation_are_samples(self, name):
        pipe = copy_pipeline(get_flow_pipeline(), name)
        images = pipe.interpolate([1, 2], seeds=(3, 4), num_images=3, output_type="pt").images
        assert_close(images[:1], sample(pipe, [1], seed=3), atol=1e-4, rtol=0)
        assert_close(images[2:], sample(pipe, [2], seed=4), atol=1e-4, rtol=0)

    @pytest.mark.parametrize("tensor_name", ["model_input", "pred_original_sample"])
    def test_trajectory_has_one_frame_per_step(self, tensor_name):
        frames = get_flow_pipeline().trajectory([1, 2], tensor_name=tensor_name)
        assert [len(images) for images in frames] == [2] * 4

    @pytest.mark.usefixtures("dynamic_modules")
    def test_saved_pipeline_is_loaded_without_warnings(self, tmp_path, diffusers_log):
        pipe = get_flow_pipeline(shift=2.0)
        expected = sample(pipe, "Bag")
        pipe.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
        assert (config["_class_name"], config["shift"]) == ("FlowMatchEulerDiscreteScheduler", 2.0)
        for loaded in (
            DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
            FashionMNISTPipeline.from_pretrained(tmp_path),
        ):
            loaded.set_progress_bar_config(disable=True)
            assert loaded.config.timestep_power == 1.0
            # Rounding errors depend on the alignment of the loaded weights in memory.
            assert_close(sample(loaded, "Bag"), expected, rtol=0, atol=1e-5)
        assert [record.message for record in diffusers_log.records] == []

    @torch.no_grad()
    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_exported_coefficients_reproduce_the_pipeline(self, shift):
        pipe = get_flow_pipeline(shift)
        sampler = describe_sampler(pipe, 5)
        state = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * sampler["init_noise_sigma"]
        for step in sampler["steps"]:
            prediction = pipe.unet(state, step["timestep"], torch.tensor([1])).sample
            x0 = step["x0"]["input"] * state + step["x0"]["prediction"] * prediction
            coefficients = step["next_sample"]
            assert coefficients["noise"] == coefficients["previous_x0"] == 0
            state = coefficients["sample"] * state + coefficients["x0"] * x0 + coefficients["prediction"] * prediction
        expected = sample(pipe, [1], seed=3, num_inference_steps=5, output_type="latent")
        assert_close(state, expected, atol=1e-4, rtol=0)
