"""Power-law timesteps, and custom timesteps and sigmas."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.sampling import make_pipeline
from fmnist_diffusion.schedulers import SCHEDULERS, make_scheduler
from tiny_pipelines import get_pipeline, make_unet, sample


DECREASING = "must be one or more finite, decreasing numbers"
LAST_SIGMA = "For EulerDiscreteScheduler, `sigmas` must have two or more values and end with 0, got"
POWER_2 = [999, 562, 249, 62]


def make_power_pipeline(power: float | None = 2.0, **options) -> FashionMNISTPipeline:
    scheduler = DPMSolverMultistepScheduler(**{"algorithm_type": "sde-dpmsolver++", **options})
    pipe = FashionMNISTPipeline(make_unet(), scheduler, num_inference_steps=4, timestep_power=power)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compute_timesteps(pipe: FashionMNISTPipeline, num_inference_steps: int = 4, **kwargs) -> list[float]:
    return pipe.set_timesteps(num_inference_steps, **kwargs).tolist()


class TestPowerLaw:
    @pytest.mark.parametrize("power", [1.0, 1.2, 1.5, 3.0])
    @pytest.mark.parametrize("num_inference_steps", [1, 2, 20, 100, 999, 1000])
    def test_timesteps_decrease_from_the_highest_noise_level(self, num_inference_steps, power):
        timesteps = compute_timesteps(make_power_pipeline(power), num_inference_steps)
        assert len(timesteps) == num_inference_steps
        assert timesteps[0] == 999 and timesteps[-1] >= 0
        gaps = -torch.tensor(timesteps).diff()
        assert (gaps > 0).all()
        assert (gaps.diff() <= 1).all(), "except for rounding, the gaps must not grow"

    @pytest.mark.parametrize(
        ("power", "timesteps"), [(1, [999, 749, 499, 249]), (2, POWER_2), (1.5, [999, 649, 353, 124])]
    )
    def test_timesteps_follow_the_power_law(self, power, timesteps):
        assert compute_timesteps(make_power_pipeline(power)) == timesteps

    @pytest.mark.parametrize("power", [0.5, -1.0, float("nan"), 101, "1"])
    def test_power_out_of_range_is_an_error(self, power):
        with pytest.raises(ValueError, match="`timestep_power` must be a number from 1 to 100, got"):
            make_power_pipeline(power)

    def test_sampling_uses_the_power_law_timesteps(self):
        pipe = make_power_pipeline()
        timesteps = []
        sample(pipe, callback_on_step_end=lambda pipe, step, timestep, tensors: timesteps.append(int(timestep)))
        assert timesteps == POWER_2

    def test_timesteps_scale_with_num_train_timesteps(self):
        assert compute_timesteps(make_power_pipeline(num_train_timesteps=100)) == [99, 55, 24, 5]

    @pytest.mark.parametrize(
        "option", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]
    )
    def test_spacing_options_of_the_scheduler_take_precedence(self, option):
        timesteps = compute_timesteps(make_power_pipeline(**{option: True}))
        assert timesteps == compute_timesteps(make_power_pipeline(None, **{option: True})) != POWER_2

    @pytest.mark.parametrize(
        "scheduler_class",
        [DDIMScheduler, DPMSolverSinglestepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler],
    )
    def test_other_scheduler_classes_use_their_own_timesteps(self, scheduler_class):
        scheduler = scheduler_class()
        pipe = FashionMNISTPipeline(make_unet(), scheduler, timestep_power=2.0)
        expected = scheduler_class()
        expected.set_timesteps(4)
        assert compute_timesteps(pipe) == expected.timesteps.tolist()

    @pytest.mark.parametrize(("original", "timesteps"), [(1000, POWER_2), (50, [999, 759, 499, 259])])
    def test_lcm_needs_all_timesteps(self, original, timesteps, diffusers_log):
        scheduler = LCMScheduler(original_inference_steps=original)
        pipe = FashionMNISTPipeline(make_unet(), scheduler, timestep_power=2.0)
        assert compute_timesteps(pipe) == timesteps
        assert [record.message for record in diffusers_log.records] == []

    def test_spacing_options_of_other_schedulers_have_no_effect(self):
        config = DPMSolverMultistepScheduler(use_karras_sigmas=True).config
        scheduler = LCMScheduler.from_config(config, original_inference_steps=1000)
        assert scheduler.config["use_karras_sigmas"]
        pipe = FashionMNISTPipeline(make_unet(), scheduler, timestep_power=2.0)
        assert compute_timesteps(pipe) == POWER_2

    def test_custom_timesteps_take_precedence(self):
        assert compute_timesteps(make_power_pipeline(), timesteps=[900, 400, 20]) == [900, 400, 20]

    @pytest.mark.parametrize(
        "scheduler",
        [
            DPMSolverMultistepScheduler(),
            DPMSolverMultistepScheduler(trained_betas=np.linspace(0.001, 0.02, 1000)),
            FlowMatchEulerDiscreteScheduler(),
            LCMScheduler(original_inference_steps=1000),
        ],
        ids=["DPM", "betas", "flow", "LCM"],
    )
    def test_equal_scheduler_keeps_the_timesteps(self, scheduler):
        pipe = FashionMNISTPipeline(make_unet(), scheduler, num_inference_steps=4, timestep_power=2.0)
        pipe.set_progress_bar_config(disable=True)
        images, timesteps = sample(pipe), compute_timesteps(pipe)
        assert timesteps == pytest.approx(POWER_2, abs=1)
        for equal in (
            copy.deepcopy(scheduler),
            type(scheduler).from_config(scheduler.config),
            # Options of other schedulers do not matter.
            type(scheduler).from_config({**scheduler.config, "unused": 1}),
        ):
            pipe.scheduler = equal
            assert pipe.config.timestep_power == 2.0
            assert compute_timesteps(pipe) == timesteps
            assert torch.equal(sample(pipe), images)

    def test_scheduler_with_the_class_and_options_of_the_original_keeps_the_timesteps(self):
        pipe = make_power_pipeline(trained_betas=np.linspace(0.001, 0.02, 1000))
        config = pipe.scheduler.config
        pipe.scheduler = DDIMScheduler.from_config(config)
        assert pipe.config.timestep_power is None
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(config)
        assert pipe.config.timestep_power == 2.0
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, trained_betas=np.linspace(0.002, 0.02, 1000))
        assert pipe.config.timestep_power is None

    def test_scheduler_with_other_options_uses_its_own_timesteps(self, tmp_path):
        pipe = make_power_pipeline()
        original = pipe.scheduler
        images = sample(pipe)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(original.config, solver_type="heun")
        assert pipe.config.timestep_power is None
        assert compute_timesteps(pipe) == [999, 749, 500, 250]
        assert (sample(pipe) - images).abs().max() > 1e-3
        pipe.save_pretrained(tmp_path)
        assert FashionMNISTPipeline.from_pretrained(tmp_path).config.timestep_power is None
        pipe.scheduler = original
        assert pipe.config.timestep_power == 2.0
        assert compute_timesteps(pipe) == POWER_2
        assert torch.equal(sample(pipe), images)

    def test_options_are_stored(self, tmp_path):
        make_power_pipeline().save_pretrained(tmp_path)
        loaded = FashionMNISTPipeline.from_pretrained(tmp_path)
        assert (loaded.config.num_inference_steps, loaded.config.timestep_power) == (4, 2.0)
        assert compute_timesteps(loaded) == POWER_2
        options = {"num_inference_steps": np.int64(3), "timestep_power": None}
        FashionMNISTPipeline.from_pretrained(tmp_path, **options).save_pretrained(tmp_path / "changed")
        changed = FashionMNISTPipeline.from_pretrained(tmp_path / "changed")
        assert (changed.config.num_inference_steps, changed.config.timestep_power) == (3, None)
        assert compute_timesteps(changed) == [999, 749, 500, 250]

    def test_last_noise_level_is_similar_on_all_schedules(self):
        noise_levels = []
        for beta_schedule in ("linear", "squaredcos_cap_v2"):
            pipe = make_pipeline(make_unet(), DDPMScheduler(beta_schedule=beta_schedule))
            last = pipe.set_timesteps(20)[-1]
            noise_levels.append(float(1 - pipe.scheduler.alphas_cumprod[last]) ** 0.5)
        assert 0.04 < min(noise_levels) < max(noise_levels) < 0.06


class TestCustomSpacing:
    @pytest.mark.parametrize(
        "scheduler_class", [DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler]
    )
    def test_custom_timesteps_are_used(self, scheduler_class):
        pipe = get_pipeline(scheduler_class())
        steps = []
        images = sample(
            pipe,
            timesteps=[900, 500, 100],
            num_inference_steps=50,
            callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append(int(timestep)),
        )
        assert list(dict.fromkeys(steps)) == [900, 500, 100]
        assert torch.equal(sample(pipe, timesteps=torch.tensor([900, 500, 100])), images)

    def test_custom_sigmas_are_used(self):
        pipe = get_pipeline(EulerDiscreteScheduler())
        sigmas = [14.6, 3.0, 0.5, 0.0]
        images = sample(pipe, sigmas=sigmas)
        assert pipe.num_timesteps == 3
        assert torch.equal(pipe.scheduler.sigmas, torch.tensor(sigmas))
        assert torch.isfinite(images).all()

    @pytest.mark.parametrize(
        ("scheduler", "kwargs", "message"),
        [
            (DDIMScheduler(), {"timesteps": [5, 1]}, "DDIMScheduler does not support custom `timesteps`"),
            (DDPMScheduler(), {"sigmas": [5.0, 1.0]}, "DDPMScheduler does not support custom `sigmas`"),
            (
                UniPCMultistepScheduler(),
                {"sigmas": [5.0, 1.0]},
                "UniPCMultistepScheduler does not support custom `",
            ),
            (DDPMScheduler(), {"timesteps": [5, 1], "sigmas": [5.0]}, "Cannot use both `timesteps` and `sigmas`"),
            (DDPMScheduler(), {"timesteps": []}, rf"`timesteps` {DECREASING}, got \[\]"),
            (DDPMScheduler(), {"timesteps": [1, 5]}, f"`timesteps` {DECREASING}"),
            (DDPMScheduler(), {"timesteps": [5, 5]}, f"`timesteps` {DECREASING}"),
            (DDPMScheduler(), {"timesteps": [1000, 5]}, "`timesteps` must be between 0 and 999"),
            (DDPMScheduler(), {"timesteps": [5, -1]}, "`timesteps` must be between 0 and 999"),
            (DDPMScheduler(), {"timesteps": 500}, f"`timesteps` {DECREASING}, got 500"),
            (DDPMScheduler(), {"timesteps": torch.tensor([[9, 5]])}, f"`timesteps` {DECREASING}"),
            (DDPMScheduler(), {"timesteps": "x"}, f"`timesteps` {DECREASING}, got 'x'"),
            (EulerDiscreteScheduler(), {"sigmas": [0.0, 1.0]}, f"`sigmas` {DECREASING}"),
            (EulerDiscreteScheduler(), {"sigmas": [math.nan]}, f"`sigmas` {DECREASING}"),
            (EulerDiscreteScheduler(), {"sigmas": [math.inf, 1.0]}, f"`sigmas` {DECREASING}"),
            (EulerDiscreteScheduler(), {"sigmas": [10.0]}, LAST_SIGMA),
            (EulerDiscreteScheduler(), {"sigmas": [5.0, 1.0]}, LAST_SIGMA),
        ],
    )
    def test_invalid_spacing_is_an_error(self, scheduler, kwargs, message):
        with pytest.raises(ValueError, match=message):
            get_pipeline(scheduler)(**kwargs)


def test_too_few_steps_for_pndm_are_an_error():
    pipe = get_pipeline(PNDMScheduler())
    with pytest.raises(ValueError, match="must be at least 4 with PNDMScheduler, got 3"):
        sample(pipe, num_inference_steps=3)
    assert torch.isfinite(sample(pipe, num_inference_steps=4)).all()


def test_too_many_steps_for_lcm_are_an_error():
    pipe = get_pipeline(LCMScheduler(original_inference_steps=5))
    with pytest.raises(ValueError, match="between 1 and 5, the `original_inference_steps` of LCMScheduler, got 6"):
        sample(pipe, num_inference_steps=6)
    assert torch.isfinite(sample(pipe, num_inference_steps=5)).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_a_power_law_pipeline_keep_the_noise_schedule(name):
    trained = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    stored = make_pipeline(make_unet(), trained).scheduler
    config, expected = (make_scheduler(name, scheduler.config).config for scheduler in (stored, trained))
    # The variance type of a solver only says whether the model predicts the variance.
    options = inspect.signature(make_scheduler(name, trained.config).__init__).parameters.keys() - {"variance_type"}
    # These options of the scheduler for sampling do not depend on the model.
    options -= {"clip_sample", "clip_sample_range", "thresholding"}
    assert {key: config[key] for key in options} == {key: expected[key] for key in options}
