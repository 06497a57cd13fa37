import inspect
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
)

from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import to_uint8
from fmnist_diffusion.sampling import (
    MAX_SEED,
    Samples,
    SamplingConfig,
    copy_pipeline,
    generate,
    make_consistency_pipeline,
    make_generators,
    make_pipeline,
    select_dtype,
)
from fmnist_diffusion.schedulers import SCHEDULERS, get_scheduler_class, make_scheduler
from text_pipelines import get_text_pipeline
from tiny_pipelines import get_pipeline, make_unet, sample


COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}


def make_default_pipeline(**noise_schedule) -> FashionMNISTPipeline:
    pipe = make_pipeline(make_unet(), DDPMScheduler(**noise_schedule), num_inference_steps=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("num_train_timesteps", "timesteps"),
    [
        (1000, {1: [999], 2: [999, 249], 4: [999, 562, 249, 62], None: [999, 562, 249, 62]}),
        (3, {1: [2], 2: [2, 0], 3: [2, 1, 0], None: [2, 1, 0]}),
    ],
)
def test_consistency_pipeline_samples_in_few_steps(num_train_timesteps: int, timesteps: dict[int | None, list[int]]):
    noise_scheduler = DDPMScheduler(
        num_train_timesteps, prediction_type="v_prediction", rescale_betas_zero_snr=True, **COSINE
    )
    pipe = make_consistency_pipeline(make_unet(), noise_scheduler)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, LCMScheduler)
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod, noise_scheduler.alphas_cumprod)
    for num_inference_steps, expected in timesteps.items():
        images = sample(pipe, [3], num_inference_steps=num_inference_steps)
        assert pipe.scheduler.timesteps.tolist() == expected
        assert images.isfinite().all()


def test_consistency_pipeline_returns_the_predicted_image_after_one_step():
    noise_scheduler = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, **COSINE)
    pipe = make_consistency_pipeline(make_unet(), noise_scheduler)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 1, 8, 8)
    velocity = pipe.unet.eval()(noise, 999, torch.tensor([3])).sample
    images = pipe([3], num_inference_steps=1, latents=noise, output_type="pt").images
    # At the last timestep, the image is the negative velocity.
    torch.testing.assert_close(images, (-velocity.clamp(-1, 1) + 1) / 2, atol=1e-3, rtol=0)


class TestSamplingConfig:
    def test_defaults_are_those_of_the_pipeline(self):
        parameters = inspect.signature(FashionMNISTPipeline.__call__).parameters
        for name in ("num_inference_steps", "guidance_scale", "guidance_interval"):
            assert getattr(SamplingConfig(), name) == parameters[name].default

    @pytest.mark.parametrize("values", [{"seed": MAX_SEED}, {"num_inference_steps": 1}, {"guidance_interval": [0, 1]}])
    def test_valid_values_are_stored(self, values):
        config = SamplingConfig(**values)
        assert all(getattr(config, name) == value for name, value in values.items())

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("num_inference_steps", 0, "a positive integer, got 0"),
            ("num_inference_steps", 2.0, r"a positive integer, got 2\.0"),
            ("num_inference_steps", True, "a positive integer, got True"),
            ("guidance_scale", float("inf"), "a finite number, got inf"),
            ("guidance_scale", float("nan"), "a finite number, got nan"),
            ("guidance_interval", (0.5, 0.2), r"\(start, stop\) with .*, got \(0\.5, 0\.2\)"),
            ("guidance_interval", (0, 2), r"\(start, stop\) with .*, got \(0, 2\)"),
            ("guidance_interval", (0,), r"\(start, stop\) with .*, got \(0,\)"),
            ("seed", -1, r"an integer from 0 to 2\*\*32 - 1, got -1"),
            ("seed", 2**32, r"an integer from 0 to 2\*\*32 - 1, got 4294967296"),
            ("seed", 1.5, r"an integer from 0 to 2\*\*32 - 1, got 1\.5"),
        ],
    )
    def test_invalid_values_are_errors(self, name, value, expected):
        with pytest.raises(ValueError, match=f"`{name}` must be {expected}"):
            SamplingConfig(**{name: value})

    def test_subclass_checks_the_inherited_fields(self):
        @dataclass(frozen=True)
        class EvaluationConfig(SamplingConfig):
            num_samples: int = 10

        assert EvaluationConfig(seed=3).num_samples == 10
        with pytest.raises(ValueError, match="`seed`"):
            EvaluationConfig(seed=-3)


class TestScheduler:
    @pytest.mark.parametrize(
        ("scheduler", "name", "options"),
        [
            ("ddim", "DDIMScheduler", {}),
            ("sde-dpmsolver++", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
            ("DDIMScheduler", "DDIMScheduler", {}),
            (DDIMScheduler, "DDIMScheduler", {}),
            ("SASolverScheduler", "SASolverScheduler", {}),
        ],
    )
    def test_schedulers_are_found_by_name_and_class(self, scheduler, name, options):
        assert get_scheduler_class(scheduler) == (getattr(diffusers, name), options)

    @pytest.mark.parametrize("scheduler", ["DDIN", "nothing", "UNet2DModel", "torch", "", int])
    def test_unknown_scheduler_is_an_error(self, scheduler):
        with pytest.raises(ValueError, match=r"Could not find the scheduler .*: pass one of ddpm, ddim, .*heun, or a"):
            get_scheduler_class(scheduler)

    def test_scheduler_instance_is_an_error(self):
        with pytest.raises(ValueError, match=r"must be a name or a class, got an instance of DDIMScheduler\."):
            get_scheduler_class(DDIMScheduler())

    @pytest.mark.parametrize("noise_schedule", [{}, COSINE], ids=["linear", "cosine"])
    @pytest.mark.parametrize(
        "scheduler", [*SCHEDULERS, "SASolverScheduler", DDIMScheduler, DPMSolverSinglestepScheduler], ids=str
    )
    def test_new_scheduler_keeps_the_noise_schedule(self, scheduler, noise_schedule):
        options = {"prediction_type": "v_prediction", "timestep_spacing": "leading", **noise_schedule}
        trained = DDPMScheduler(**options)
        # The config of a new scheduler lists the options that have their default values.
        for source in (trained, make_scheduler("sde-dpmsolver++", trained.config), EulerDiscreteScheduler(**options)):
            made = make_scheduler(scheduler, source.config)
            assert torch.equal(made.alphas_cumprod, trained.alphas_cumprod)
            assert made.config.prediction_type == "v_prediction"
            assert made.config.timestep_spacing == trained.config.timestep_spacing

    def test_algorithm_type_is_only_kept_if_the_scheduler_supports_it(self):
        config = make_default_pipeline().scheduler.config
        assert make_scheduler("deis", config).config["algorithm_type"] == "deis"
        assert make_scheduler("SASolverScheduler", config).config["algorithm_type"] == "data_prediction"
        assert make_scheduler("DPMSolverMultistepScheduler", config).config["algorithm_type"] == "sde-dpmsolver++"

    @pytest.mark.parametrize("name", ["AmusedScheduler", "VQDiffusionScheduler"])
    def test_scheduler_that_needs_more_than_a_noise_schedule_is_an_error(self, name):
        with pytest.raises(ValueError, match=f"{name} does not support this model"):
            make_scheduler(name, DDPMScheduler().config)


class TestMakePipeline:
    @pytest.mark.parametrize(("noise_schedule", "power"), [({}, 1.5), (COSINE, 1.2)])
    def test_default_sampler_uses_power_law_timesteps(self, noise_schedule, power):
        noise_scheduler = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, **noise_schedule)
        pipe = make_pipeline(make_unet(), noise_scheduler, num_inference_steps=7)
        assert type(pipe.scheduler) is DPMSolverMultistepScheduler
        assert pipe.scheduler.config["algorithm_type"] == "sde-dpmsolver++"
        assert (pipe.config.num_inference_steps, pipe.config.timestep_power) == (7, power)
        for name in ("beta_schedule", "prediction_type", "rescale_betas_zero_snr", "timestep_spacing"):
            assert pipe.scheduler.config[name] == noise_scheduler.config[name]
        restored = DDPMScheduler.from_config(pipe.scheduler.config)
        assert torch.equal(restored.alphas_cumprod[:-1], noise_scheduler.alphas_cumprod[:-1])

    @pytest.mark.parametrize(
        ("prediction_type", "noise_schedule", "thresholding"),
        [
            ("epsilon", COSINE, True),
            ("epsilon", {"rescale_betas_zero_snr": True}, True),
            ("epsilon", {}, False),
            ("v_prediction", COSINE, False),
            ("sample", COSINE, False),
        ],
    )
    def test_thresholding_is_only_used_for_epsilon_near_zero_snr(self, prediction_type, noise_schedule, thresholding):
        pipe = make_default_pipeline(prediction_type=prediction_type, **noise_schedule)
        assert pipe.scheduler.config["thresholding"] == thresholding

    def test_small_epsilon_errors_near_zero_snr_keep_pixels_in_range(self):
        """An error of 1% in the predicted noise must not push the sample out of the range of pixels."""
        pipe = make_default_pipeline(**COSINE)
        pipe.set_timesteps(2)
        noise = torch.randn(4, 1, 28, 28, generator=torch.manual_seed(0))
        step = pipe.scheduler.step(0.99 * noise, pipe.scheduler.timesteps[0], noise, generator=torch.manual_seed(1))
        assert step.prev_sample.std() < 1.1


class TestCopyPipeline:
    @pytest.mark.parametrize(
        "scheduler",
        [
            None,
            DDIMScheduler(),
            HeunDiscreteScheduler(),
            DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min"),
        ],
        ids=lambda scheduler: type(scheduler).__name__,
    )
    def test_copy_generates_the_same_images(self, scheduler):
        pipe = make_default_pipeline() if scheduler is None else get_pipeline(scheduler)
        copy = copy_pipeline(pipe)
        assert copy.unet is pipe.unet
        assert copy.scheduler is not pipe.scheduler
        assert copy.config == pipe.config
        assert torch.equal(sample(copy, 1), sample(pipe, 1))

    def test_copy_uses_an_assigned_scheduler(self):
        pipe = make_default_pipeline()
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=1)
        copy = copy_pipeline(pipe)
        assert copy.scheduler.config.solver_order == 1
        assert copy.config.timestep_power is None
        assert torch.equal(sample(copy, 1), sample(pipe, 1))

    def test_copy_has_its_own_scheduler_state(self):
        pipe = make_default_pipeline()
        copy = copy_pipeline(pipe)
        expected = sample(pipe, 1)

        def sample_copy(pipe, step, timestep, tensors):
            sample(copy, 2, num_inference_steps=2)

        assert torch.equal(sample(pipe, 1, callback_on_step_end=sample_copy), expected)

    @pytest.mark.parametrize("scheduler", ["ddim", DDIMScheduler, "DDIMScheduler"])
    def test_scheduler_argument_replaces_the_scheduler(self, scheduler):
        pipe = make_default_pipeline()
        copy = copy_pipeline(pipe, scheduler)
        assert type(copy.scheduler) is DDIMScheduler
        assert copy.config.timestep_power is None
        assert copy.config.num_inference_steps == 3
        with pytest.raises(ValueError, match="Could not find the scheduler 'nothing'"):
            copy_pipeline(pipe, "nothing")

    def test_copy_keeps_the_progress_bar_setting(self, capfd):
        sample(copy_pipeline(make_default_pipeline()))
        assert not capfd.readouterr().err


def test_each_image_has_its_own_seed():
    generators = make_generators(5, 3, start=2)
    assert [generator.initial_seed() for generator in generators] == [7, 8, 9]
    assert {generator.device.type for generator in generators} == {"cpu"}
    assert [generator.initial_seed() for generator in make_generators(MAX_SEED, 3)] == [MAX_SEED, 0, 1]
    assert [generator.initial_seed() for generator in make_generators(10, 1, start=2**32)] == [10]


class TestGenerate:
    def test_batches_are_limited_by_memory(self, monkeypatch: pytest.MonkeyPatch):
        pipe = make_default_pipeline()
        # The first level has 8 channels of 8x8 pixels, and each feature needs 80 bytes.
        monkeypatch.setattr("fmnist_diffusion.sampling.MAX_BATCH_BYTES", 3 * 8 * 8 * 8 * 80)
        batches = generate(pipe, SamplingConfig(num_inference_steps=1), 8, batch_size=64)
        assert [len(samples) for samples in batches] == [3, 3, 2]

    def test_images_do_not_depend_on_the_batch_size(self):
        pipe = make_default_pipeline()
        config = SamplingConfig(seed=4)
        whole, *rest = generate(pipe, config, 7, class_labels=[3, 1, 4], batch_size=64)
        assert not rest
        batches = list(generate(pipe, config, 7, class_labels=[3, 1, 4], batch_size=3))
        assert [len(batch) for batch in batches] == [3, 3, 1]
        (tail,) = generate(pipe, config, 3, class_labels=[3, 1, 4], start=4)
        for images in (Samples.concatenate(batches).images, torch.cat([whole.images[:4], tail.images])):
            # In other batch sizes, the last bits of the float images differ.
            assert (images.int() - whole.images.int()).abs().max() <= 1
        single = pipe(4, generator=torch.Generator().manual_seed(4 + 5), output_type="latent").images
        assert (to_uint8(single).int() - whole.images[5:6].int()).abs().max() <= 1

    def test_labels_are_cycled_by_index(self):
        pipe = make_default_pipeline()
        kwargs = {"class_labels": [3, 1, 4], "batch_size": 2}
        samples = Samples.concatenate(list(generate(pipe, SamplingConfig(), 5, **kwargs)))
        assert samples.labels is not None and samples.labels.tolist() == [3, 1, 4, 3, 1]
        later = Samples.concatenate(list(generate(pipe, SamplingConfig(), 3, start=4, **kwargs)))
        assert later.labels is not None and later.labels.tolist() == [1, 4, 3]

    @pytest.mark.parametrize(
        ("config", "labels", "evaluations"),
        [
            (SamplingConfig(), [1], 3),
            (SamplingConfig(num_inference_steps=2), [1], 2),
            (SamplingConfig(guidance_scale=2.0), [1], 6),
            (SamplingConfig(guidance_scale=0.0), [1], 3),
            (SamplingConfig(num_inference_steps=4, guidance_scale=2.0, guidance_interval=(0.5, 1.0)), [1], 6),
            (SamplingConfig(guidance_scale=2.0), None, 3),
            (SamplingConfig(scheduler="heun"), [1], 5),
        ],
    )
    def test_function_evaluations_are_counted(self, config, labels, evaluations):
        samples = Samples.concatenate(
            list(generate(make_default_pipeline(), config, 3, class_labels=labels, batch_size=2))
        )
        assert samples.images.shape == (3, 1, 8, 8) and samples.images.dtype == torch.uint8
        assert (samples.labels is None) == (labels is None)
        assert samples.num_function_evaluations == 3 * evaluations
        assert samples.seconds > 0

    def test_pipeline_is_not_changed(self):
        pipe = make_default_pipeline()
        scheduler, expected = pipe.scheduler, sample(pipe)
        list(generate(pipe, SamplingConfig(scheduler="ddim"), 2))
        assert pipe.scheduler is scheduler
        assert torch.equal(sample(pipe), expected)

    @pytest.mark.parametrize(
        ("config", "labels", "message"),
        [
            (SamplingConfig(scheduler="nothing"), None, "Could not find the scheduler 'nothing'"),
            (SamplingConfig(), [10], "`class_labels` must be an index from 0 to 9"),
            (SamplingConfig(), [], "`class_labels` must contain at least one label"),
            (SamplingConfig(num_inference_steps=1001), None, "`num_inference_steps` must be between 1 and 1000"),
        ],
    )
    def test_invalid_settings_are_errors(self, config, labels, message):
        with pytest.raises(ValueError, match=message):
            list(generate(make_default_pipeline(), config, 1, class_labels=labels))


def test_samples_with_and_without_labels_cannot_be_concatenated():
    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="with labels and samples without labels"):
        Samples.concatenate([Samples(images), Samples(images, torch.tensor([1]))])


@pytest.mark.parametrize(
    ("milliseconds", "expected"),
    [
        ({torch.float32: 20, torch.bfloat16: 18}, torch.bfloat16),
        ({torch.float32: 18, torch.bfloat16: 20}, torch.float32),
        # A small gain does not justify images that depend on the machine.
        ({torch.float32: 20, torch.bfloat16: 18.5}, torch.float32),
    ],
)
def test_select_dtype_measures_the_model(
    milliseconds: dict[torch.dtype, float], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    pipe = get_pipeline()
    forward = type(pipe.unet).forward
    seconds = 0.0

    def slow_forward(unet, sample, *args, **kwargs):
        nonlocal seconds
        seconds += milliseconds[sample.dtype] / 1000
        return forward(unet, sample, *args, **kwargs)

    monkeypatch.setattr(type(pipe.unet), "forward", slow_forward)
    monkeypatch.setattr("fmnist_diffusion.sampling.time", SimpleNamespace(perf_counter=lambda: seconds))
    assert select_dtype(pipe, batch_size=1) == expected
    assert pipe.unet.dtype == torch.float32


def test_fastest_dtype_is_used_without_warnings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, diffusers_log: pytest.LogCaptureFixture
):
    get_text_pipeline().save_pretrained(tmp_path)
    monkeypatch.setattr("fmnist_diffusion.sampling.select_dtype", lambda pipe: torch.bfloat16)
    pipe = load_pipeline(tmp_path, dtype="auto", device_map={"unet": "cpu", "text_encoder": "cpu"})
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.bfloat16
    assert not diffusers_log.records
