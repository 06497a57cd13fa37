"""The schedulers of diffusers, with a model whose predictions are exact."""

import contextlib
import inspect
import itertools
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin
from oracle_unet import distance, make_oracle_pipeline
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, schedulers
from fmnist_diffusion.schedulers import make_scheduler
from tiny_pipelines import make_unet


# diffusers passes torch tensors to NumPy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SCHEDULERS = [
    *schedulers.SCHEDULERS,
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
]
SECOND_ORDER = ("heun", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# diffusers does not support these combinations, and raises this error.
UNSUPPORTED = [
    ("pndm", "sample"),
    ("euler_a", "sample"),
    ("KDPM2AncestralDiscreteScheduler", "sample"),
    ("KDPM2DiscreteScheduler", "sample"),
]
COMBINATIONS = [(name, kind) for name in SCHEDULERS for kind in PREDICTION_TYPES if (name, kind) not in UNSUPPORTED]

# The noise schedule of the bundled checkpoint `base`.
COSINE = DDPMScheduler(
    beta_schedule="squaredcos_cap_v2",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
)


# The pipeline supports these schedulers for models with a linear noise schedule.
SUPPORTED = {
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
}


# With few timesteps, rescaling changes a linear schedule considerably.
SHORT = DDPMScheduler(num_train_timesteps=100, prediction_type="v_prediction", rescale_betas_zero_snr=True)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_of_another_noise_schedule_is_reported(name, diffusers_log):
    pipe = make_oracle_pipeline("ddim", SHORT)
    pipe.scheduler = make_scheduler(name, SHORT.config)
    is_supported = "rescale_betas_zero_snr" in inspect.signature(type(pipe.scheduler)).parameters
    message = f"{type(pipe.scheduler).__name__} does not have the noise schedule of this model"
    assert [record.message.partition(",")[0] for record in diffusers_log.records] == [message] * (not is_supported)


@pytest.mark.parametrize("options", [{}, {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100}])
def test_options_of_another_noise_schedule_are_reported(options, diffusers_log):
    pipe = make_oracle_pipeline("ddim", COSINE)
    pipe.scheduler = DDIMScheduler.from_config(COSINE.config)
    assert diffusers_log.records == []
    pipe.scheduler = DDIMScheduler(prediction_type="v_prediction", **options)
    [record] = diffusers_log.records
    assert record.message.startswith("DDIMScheduler does not have the noise schedule of this model")


@pytest.mark.parametrize(("name", "prediction_type"), COMBINATIONS)
def test_sampling_ends_at_the_clean_image(name, prediction_type):
    pipe = make_oracle_pipeline(name, DDPMScheduler(prediction_type=prediction_type))
    unet, labels = pipe.unet, [2, 0, 3, 1]
    kwargs = {"class_labels": labels, "num_inference_steps": 15, "output_type": "latent"}
    images = pipe(generator=torch.manual_seed(0), **kwargs).images
    assert distance(images, unet.clean[labels]) < 0.015
    assert unet.noise_error < 0.05

    # With a different prediction type, the scheduler misinterprets the output of the model.
    unet.noise_error = 0.0
    other = [kind for kind in PREDICTION_TYPES if (name, kind) in COMBINATIONS and kind != prediction_type][-1]
    pipe.scheduler = make_scheduler(name, DDPMScheduler(prediction_type=other).config)
    pipe(generator=torch.manual_seed(0), **kwargs)
    assert unet.noise_error > 0.1


@pytest.mark.parametrize("num_inference_steps", [5, 20, 61, 100])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in SECOND_ORDER])
def test_sampling_from_near_zero_snr_ends_at_the_clean_image(name, num_inference_steps):
    pipe = make_oracle_pipeline(name, COSINE)
    settings = {"num_inference_steps": num_inference_steps, "output_type": "latent"}
    if num_inference_steps == 61 and name != "DPMSolverSinglestepScheduler":
        # diffusers computes 62 timesteps; the last one is -1.
        with pytest.raises(ValueError, match=r"uses timesteps from -1 to .*Use a different number of steps"):
            pipe([2, 0], **settings)
        return
    images = pipe([2, 0], generator=torch.manual_seed(0), **settings).images
    assert distance(images, pipe.unet.clean[[2, 0]]) < 0.015
    assert pipe.unet.noise_error < 0.12


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_can_add_noise_after_a_call(name):
    pipe, noise = make_oracle_pipeline(name, DDPMScheduler()), torch.ones(1, 1, 8, 8)
    expected = make_oracle_pipeline(name, DDPMScheduler()).scheduler
    expected.set_timesteps(20)

    def interrupt(pipe: Any, i: int, t: torch.Tensor, tensors: dict) -> dict:
        raise KeyboardInterrupt

    for callback in (None, interrupt):
        with contextlib.suppress(KeyboardInterrupt):
            pipe(num_inference_steps=20, callback_on_step_end=callback)
        pipe.set_timesteps(20)
        for timestep in expected.timesteps[:-1].view(-1, 1):
            noisy = pipe.scheduler.add_noise(torch.zeros_like(noise), noise, timestep)
            assert noisy.min() > 0
            assert_close(noisy, expected.add_noise(torch.zeros_like(noise), noise, timestep))


def available_schedulers() -> list[str]:
    names = [name for name in dir(diffusers) if name.endswith("Scheduler") and name != "SchedulerMixin"]
    # Schedulers that need a package that is not installed are placeholders.
    return [name for name in names if issubclass(getattr(diffusers, name), SchedulerMixin)]


@pytest.mark.parametrize(
    ("noise_scheduler", "supported"),
    [(DDPMScheduler(), SUPPORTED), (COSINE, SUPPORTED - {"HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"})],
    ids=["linear", "cosine"],
)
@pytest.mark.parametrize("name", sorted(SUPPORTED.union(available_schedulers())))
def test_every_scheduler_generates_images_or_raises_a_value_error(name, noise_scheduler, supported):
    """Every supported scheduler ends at the clean image. The others raise a ValueError that names them."""

    def measure_distance() -> float:
        pipe = make_oracle_pipeline(name, noise_scheduler)
        images = pipe([2, 0], num_inference_steps=20, generator=torch.manual_seed(0), output_type="latent").images
        return distance(images, pipe.unet.clean[[2, 0]])

    if name in supported:
        assert measure_distance() < 0.05
    else:
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            measure_distance()


@pytest.mark.parametrize(
    "name",
    ["FlowMatchEulerDiscreteScheduler", "RePaintScheduler", "DDIMInverseScheduler", "EDMEulerScheduler",
     "DPMSolverMultistepInverseScheduler", "DDPMWuerstchenScheduler", "CogVideoXDDIMScheduler", "KarrasVeScheduler",
     "VQDiffusionScheduler"],
)  # fmt: skip
def test_incompatible_scheduler_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} does not support this model"):
        make_oracle_pipeline(name, DDPMScheduler())()


def test_scheduler_class_is_an_error():
    pipe = make_oracle_pipeline("ddim", DDPMScheduler())
    pipe.scheduler = DDIMScheduler
    with pytest.raises(ValueError, match=r"`scheduler` must be a scheduler object, got .*DDIMScheduler"):
        pipe()


def test_unsupported_noise_schedule_is_an_error():
    with pytest.raises(ValueError, match=r"DDIMScheduler does not support an option of this model \(sigmoid"):
        make_scheduler("ddim", DDPMScheduler(beta_schedule="sigmoid").config)


@pytest.mark.parametrize("name", ["dpmsolver++", "unipc"])
def test_flow_sigmas_are_an_error(name):
    pipe = make_oracle_pipeline(name, DDPMScheduler())
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **options)
    with pytest.raises(ValueError, match=r"`use_flow_sigmas` must be False for this model, got True\. Create "):
        pipe()


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *itertools.product(
            ("dpmsolver++", "sde-dpmsolver++", "unipc", "deis", "euler", "SASolverScheduler"),
            ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        ),
        ("dpmsolver++", "use_lu_lambdas"),
        ("sde-dpmsolver++", "use_lu_lambdas"),
    ],
)
@pytest.mark.parametrize("noise_scheduler", [DDPMScheduler(), COSINE], ids=["linear", "cosine"])
def test_every_noise_level_spacing_ends_at_the_clean_image(name, option, noise_scheduler):
    pipe, default = (make_oracle_pipeline(name, noise_scheduler, **options) for options in ({option: True}, {}))
    kwargs = {"class_labels": [2, 0], "num_inference_steps": 20, "output_type": "latent"}
    images = pipe(generator=torch.manual_seed(0), **kwargs).images
    assert distance(images, pipe.unet.clean[[2, 0]]) < 0.015
    default(**kwargs)
    assert not torch.equal(pipe.scheduler.sigmas, default.scheduler.sigmas)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "pndm", "unipc", "dpmsolver++", "euler"])
def test_offset_beyond_the_last_timestep_is_an_error(name):
    pipe = make_oracle_pipeline(name, DDPMScheduler(timestep_spacing="leading"), steps_offset=1)
    with pytest.raises(ValueError, match=r"Scheduler .*1000"):
        pipe(num_inference_steps=1000)


@pytest.mark.parametrize(("name", "prediction_type"), COMBINATIONS)
def test_predicted_clean_image_is_exact(name, prediction_type):
    pipe = make_oracle_pipeline(name, DDPMScheduler(prediction_type=prediction_type))
    predicted = []

    def callback(pipe, step, timestep, tensors):
        assert set(tensors) == {"pred_original_sample"}
        predicted.append(tensors["pred_original_sample"])

    pipe(
        [2, 0],
        num_inference_steps=6,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
        generator=torch.manual_seed(0),
    )
    assert len(predicted) == pipe.num_timesteps
    for sample in predicted:
        assert_close(sample, pipe.unet.clean[[2, 0]], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ("pndm", "LMSDiscreteScheduler")])
@pytest.mark.parametrize("strength", [0.34, 1.0])
def test_image_gets_the_noise_of_the_first_remaining_timestep(name, strength):
    pipe = make_oracle_pipeline(name, DDPMScheduler(prediction_type="v_prediction"))
    kwargs = {"num_inference_steps": 12, "output_type": "latent", "generator": torch.manual_seed(0)}
    images = pipe([2, 0], image=pipe.unet.clean[[1, 3]] / 2 + 0.5, strength=strength, **kwargs).images
    assert distance(images, pipe.unet.clean[[2, 0]]) < 0.03
    assert pipe.unet.noise_error < 0.1
    assert pipe.num_function_evaluations == pipe.num_timesteps
    evaluations = 2 if name in SECOND_ORDER else 1
    assert abs(pipe.num_timesteps - int(12 * strength) * evaluations) <= 1


@pytest.mark.parametrize(("name", "prediction_type"), UNSUPPORTED)
def test_unsupported_prediction_type_is_an_error(name, prediction_type):
    pipe = make_oracle_pipeline(name, DDPMScheduler(prediction_type=prediction_type))
    with pytest.raises(ValueError, match="prediction_type"):
        pipe(num_inference_steps=4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_guidance_extrapolates_from_the_null_label(name):
    pipe = make_oracle_pipeline(name, DDPMScheduler(prediction_type="v_prediction"))
    kwargs = {"class_labels": [2, 0], "num_inference_steps": 15, "guidance_scale": 1.5, "output_type": "latent"}
    images = pipe(generator=torch.manual_seed(0), **kwargs).images
    null, label = pipe.unet.clean[4], pipe.unet.clean[[2, 0]]
    assert distance(images, null + 1.5 * (label - null)) < 0.015
    images = pipe(generator=torch.manual_seed(0), guidance_interval=(0.0, 0.2), **kwargs).images
    assert distance(images, label) < 0.03


def test_eta_is_passed_to_the_scheduler():
    scheduler, unet = DDIMScheduler(), make_unet()
    pipe = FashionMNISTPipeline(unet, scheduler, num_inference_steps=5)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(generator=torch.manual_seed(0), output_type="latent", eta=1.0).images
    generator = torch.manual_seed(0)
    expected = torch.randn(1, 1, 8, 8, generator=generator)
    scheduler.set_timesteps(5)
    for t in scheduler.timesteps:
        with torch.no_grad():
            prediction = unet.eval()(expected, t).sample
        expected = scheduler.step(prediction, t, expected, eta=1.0, generator=generator).prev_sample
    assert_close(images, expected)


@pytest.mark.parametrize(
    ("scheduler", "eta", "message"),
    [
        (DDIMScheduler(), 1.5, "`eta` must be between 0 and 1, got 1.5."),
        (DDIMScheduler(), "1", "`eta` must be between 0 and 1, got '1'."),
        (DDPMScheduler(), 0.0, "`eta` is not supported by DDPMScheduler. Omit it, or use DDIMScheduler."),
    ],
)
def test_invalid_eta_is_an_error(scheduler, eta, message):
    with pytest.raises(ValueError, match=message):
        FashionMNISTPipeline(make_unet(), scheduler)(eta=eta)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_image_only_depends_on_its_own_generator(name):
    pipe = FashionMNISTPipeline(make_unet(), make_scheduler(name, DDPMScheduler().config))
    pipe.set_progress_bar_config(disable=True)
    kwargs = {"num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "pt"}
    batch = pipe([3, 0, 1], generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 7)], **kwargs).images
    single = pipe(0, generator=torch.Generator().manual_seed(6), **kwargs).images
    assert_close(batch[1:2], single, atol=1e-4, rtol=0)
    other = pipe(0, generator=torch.Generator().manual_seed(5), **kwargs).images
    assert distance(other, single) > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_half_precision_gives_similar_images(name, dtype):
    scheduler = make_scheduler(name, DDPMScheduler(prediction_type="v_prediction").config)
    pipe = FashionMNISTPipeline(make_unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(num_inference_steps=5, generator=torch.manual_seed(0), output_type="pt").images
    pipe.to(dtype)
    images = pipe(num_inference_steps=5, generator=torch.manual_seed(0), output_type="pt").images
    assert images.dtype == torch.float32
    assert distance(images, expected) < 0.02
    assert images.std() > 0.05
