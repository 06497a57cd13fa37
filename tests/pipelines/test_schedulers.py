"""Every scheduler with every prediction type that it has, against a model that knows the answer."""

import inspect
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, SDEDPMSolverScheduler


# Inside diffusers, where NumPy turns a tensor into an array.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

SCHEDULERS = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "pndm": (PNDMScheduler, {}),
    "dpmsolver++ multistep": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpmsolver++ singlestep": (DPMSolverSinglestepScheduler, {"algorithm_type": "dpmsolver++"}),
    "sde-dpmsolver++": (SDEDPMSolverScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "deis": (DEISMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "lms": (LMSDiscreteScheduler, {}),
}

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# What diffusers itself does not have, and the error that says so.
UNSUPPORTED = {
    ("pndm", "sample"): ValueError,
    ("euler ancestral", "sample"): NotImplementedError,
}

COMBINATIONS = [(name, kind) for name in SCHEDULERS for kind in PREDICTION_TYPES if (name, kind) not in UNSUPPORTED]


class OracleUNet(FashionMNISTUNet2DModel):
    """Knows the clean image of each label, and predicts exactly what leads from the noisy image to it.

    `noise_error` is how far the noise in what it was given was from the noise that belongs to the timestep.
    """

    def tell(self, clean: torch.Tensor, prediction_type: str) -> "OracleUNet":
        self.clean = clean  # (num_class_embeds + 1, channels, height, width)
        self.prediction_type = prediction_type
        self.alphas_cumprod = DDPMScheduler().alphas_cumprod.double().numpy()
        self.noise_error = 0.0
        return self

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        if class_labels is None:
            class_labels = torch.full((len(sample),), len(self.clean) - 1)
        clean = self.clean[class_labels]
        sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
        sigma = float(np.interp(float(timestep), np.arange(len(sigmas)), sigmas))
        alpha = 1 / (1 + sigma**2) ** 0.5
        sigma = sigma * alpha  # sample = alpha * clean + sigma * epsilon
        epsilon = (sample - alpha * clean) / sigma
        self.noise_error = max(self.noise_error, sigma * abs(epsilon.std().item() - 1))
        predictions = {"epsilon": epsilon, "v_prediction": alpha * epsilon - sigma * clean, "sample": clean}
        return UNet2DOutput(sample=predictions[self.prediction_type])


def get_pipeline(unet: FashionMNISTUNet2DModel, name: str, prediction_type: str) -> FashionMNISTPipeline:
    scheduler_class, kwargs = SCHEDULERS[name]
    # Saved and loaded, as in a pipeline that is loaded: `from_config` does not pass on what was left at its default,
    # and the defaults of schedulers differ.
    with TemporaryDirectory() as folder:
        DDPMScheduler(prediction_type=prediction_type).save_pretrained(folder)
        base = DDPMScheduler.from_pretrained(folder)
    pipe = FashionMNISTPipeline(unet, scheduler_class.from_config(base.config, **kwargs))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def get_oracle(prediction_type: str) -> OracleUNet:
    unet = OracleUNet(
        sample_size=(16, 12), block_out_channels=(8,), attention_levels=(), time_embedding_dim=4, num_class_embeds=4
    )
    clean = torch.rand(5, 1, 16, 12, generator=torch.manual_seed(1)) - 0.5
    return unet.tell(clean, prediction_type)


def distance(images: torch.Tensor, clean: torch.Tensor) -> float:
    return (images - clean).abs().mean().item()


@pytest.mark.parametrize("name, prediction_type", COMBINATIONS)
def test_arrives_at_the_clean_image(name, prediction_type):
    unet = get_oracle(prediction_type)
    labels = [2, 0, 3, 1]
    kwargs = {"class_labels": labels, "num_inference_steps": 15, "output_type": "latent"}
    images = get_pipeline(unet, name, prediction_type)(generator=torch.manual_seed(0), **kwargs).images
    assert distance(images, unet.clean[labels]) < 0.01
    assert unet.noise_error < 0.05

    # A scheduler of another prediction type misreads the same model.
    unet.noise_error = 0.0
    other = [kind for kind in PREDICTION_TYPES if (name, kind) in COMBINATIONS and kind != prediction_type][-1]
    get_pipeline(unet, name, other)(generator=torch.manual_seed(0), **kwargs)
    assert unet.noise_error > 0.1


@pytest.mark.parametrize("num_inference_steps", [5, 20, 61, 100])
@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - {"heun"}))
def test_arrives_from_endless_noise_with_trailing_timesteps(name, num_inference_steps):
    """With the noise schedule of the bundled `base`; of 61 steps, diffusers would make one more, at -1."""
    trained = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    unet = get_oracle("v_prediction")
    unet.alphas_cumprod = trained.alphas_cumprod.clamp(min=2**-24).double().numpy()
    scheduler_class, kwargs = SCHEDULERS[name]
    pipe = FashionMNISTPipeline(unet, scheduler_class.from_config(trained.config, **kwargs))
    settings = {"num_inference_steps": num_inference_steps, "output_type": "latent"}
    if num_inference_steps == 61 and name not in ("sde-dpmsolver++", "dpmsolver++ singlestep"):
        with pytest.raises(ValueError, match="cannot draw in 61 steps here: take fewer"):
            pipe([2, 0], **settings)
        return
    images = pipe([2, 0], generator=torch.manual_seed(0), **settings).images
    assert distance(images, unet.clean[[2, 0]]) < 0.01
    assert unet.noise_error < 0.12


@pytest.mark.parametrize("name, prediction_type", COMBINATIONS)
def test_every_step_knows_the_picture_that_it_leads_to(name, prediction_type):
    unet = get_oracle(prediction_type)
    pipe = get_pipeline(unet, name, prediction_type)
    expected = []

    def callback(pipe, step, timestep, tensors):
        assert set(tensors) == {"pred_original_sample"}
        expected.append(tensors["pred_original_sample"])
        return {}

    pipe(
        [2, 0],
        num_inference_steps=6,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["pred_original_sample"],
        generator=torch.manual_seed(0),
    )
    assert len(expected) == pipe.num_timesteps
    for sample in expected:
        assert_close(sample, unet.clean[[2, 0]], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", sorted(SCHEDULERS.keys() - {"lms", "pndm"}))
@pytest.mark.parametrize("strength", [0.34, 1.0])
def test_image_to_image(name, strength):
    """The image gets the noise of the timestep that it enters at, and only the steps behind it are made."""
    unet = get_oracle("v_prediction")
    pipe = get_pipeline(unet, name, "v_prediction")
    calls = []
    unet.register_forward_pre_hook(lambda *args: calls.append(1))
    kwargs = {"num_inference_steps": 12, "output_type": "latent", "generator": torch.manual_seed(0)}
    images = pipe([2, 0], image=unet.clean[[1, 3]] / 2 + 0.5, strength=strength, **kwargs).images
    assert distance(images, unet.clean[[2, 0]]) < 0.03
    assert unet.noise_error < 0.1
    assert len(calls) == pipe.num_timesteps
    evaluations = 2 if name == "heun" else 1
    assert abs(pipe.num_timesteps - int(12 * strength) * evaluations) <= 1


@pytest.mark.parametrize("name, prediction_type", UNSUPPORTED)
def test_unsupported(name, prediction_type):
    pipe = get_pipeline(get_oracle(prediction_type), name, prediction_type)
    with pytest.raises(UNSUPPORTED[name, prediction_type], match="prediction_type"):
        pipe(num_inference_steps=4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_guidance(name):
    unet = get_oracle("v_prediction")
    pipe = get_pipeline(unet, name, "v_prediction")
    kwargs = {"class_labels": [2, 0], "num_inference_steps": 15, "guidance_scale": 1.5, "output_type": "latent"}
    images = pipe(generator=torch.manual_seed(0), **kwargs).images
    null, label = unet.clean[4], unet.clean[[2, 0]]
    assert distance(images, null + 1.5 * (label - null)) < 0.01
    images = pipe(generator=torch.manual_seed(0), guidance_interval=(0.0, 0.2), **kwargs).images
    assert distance(images, label) < 0.03


@pytest.mark.parametrize("name", SCHEDULERS)
def test_image_depends_on_its_own_generator_alone(name):
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(
        sample_size=8, block_out_channels=(8, 16), attention_head_dim=8, time_embedding_dim=16, num_class_embeds=4
    )
    pipe = get_pipeline(unet, name, "epsilon")
    kwargs = {"num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "pt"}
    batch = pipe([3, 0, 1], generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 7)], **kwargs).images
    single = pipe(0, generator=torch.Generator().manual_seed(6), **kwargs).images
    assert_close(batch[1:2], single, atol=1e-4, rtol=0)
    other = pipe(0, generator=torch.Generator().manual_seed(5), **kwargs).images
    assert distance(other, single) > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_half_precision(name, dtype):
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(
        sample_size=8, block_out_channels=(8, 16), attention_head_dim=8, time_embedding_dim=16
    )
    pipe = get_pipeline(unet, name, "v_prediction")
    expected = pipe(num_inference_steps=5, generator=torch.manual_seed(0), output_type="pt").images
    pipe.to(dtype)
    images = pipe(num_inference_steps=5, generator=torch.manual_seed(0), output_type="pt").images
    assert images.dtype == torch.float32
    assert distance(images, expected) < 0.02
    assert images.std() > 0.05


class TestSDEDPMSolverScheduler:
    @pytest.mark.parametrize("num_inference_steps", [1, 2, 20, 100, 999, 1000])
    def test_timesteps_fall_from_the_last_to_the_first(self, num_inference_steps):
        scheduler = SDEDPMSolverScheduler()
        scheduler.set_timesteps(num_inference_steps)
        timesteps = scheduler.timesteps.tolist()
        assert len(timesteps) == num_inference_steps == len(set(timesteps))
        assert timesteps == sorted(timesteps, reverse=True)
        assert timesteps[0] == 999 and timesteps[-1] >= 0
        gaps = -scheduler.timesteps.diff()
        assert (gaps.diff() <= 1).all()  # but for rounding they shrink

    def test_the_last_step_begins_at_about_the_same_noise_on_any_schedule(self):
        noise = []
        for schedule in ("linear", "squaredcos_cap_v2"):
            scheduler = SDEDPMSolverScheduler(beta_schedule=schedule)
            scheduler.set_timesteps(20)
            noise.append(float(1 - scheduler.alphas_cumprod[scheduler.timesteps[-1]]) ** 0.5)
        assert 0.04 < min(noise) < max(noise) < 0.06

    def test_timestep_power(self, tmp_path, caplog):
        even = SDEDPMSolverScheduler(timestep_power=1)
        even.set_timesteps(4)
        assert even.timesteps.tolist() == [999, 749, 499, 249]
        even.save_pretrained(tmp_path)
        for copy in (SDEDPMSolverScheduler.from_config(even.config), SDEDPMSolverScheduler.from_pretrained(tmp_path)):
            assert copy.config["timestep_power"] == 1
            with caplog.at_level("WARNING"):
                DDPMScheduler.from_config(copy.config)
            assert not caplog.records
        finer = SDEDPMSolverScheduler.from_config(even.config, timestep_power=2)
        finer.set_timesteps(4)
        assert finer.timesteps.tolist() == [999, 562, 249, 62]

    def test_timesteps_of_ones_own(self):
        scheduler = SDEDPMSolverScheduler()
        scheduler.set_timesteps(timesteps=[900, 400, 20])
        assert scheduler.timesteps.tolist() == [900, 400, 20]

    def test_is_the_solver_of_diffusers(self, tmp_path):
        """Of a stored scheduler, everything is kept that says what the model was trained for."""
        trained = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
        DDPMScheduler(**trained, rescale_betas_zero_snr=True).save_pretrained(tmp_path)
        scheduler = SDEDPMSolverScheduler.from_config(DDPMScheduler.from_pretrained(tmp_path).config)
        assert scheduler.config["algorithm_type"] == "sde-dpmsolver++"
        expected = DPMSolverMultistepScheduler(
            **trained, rescale_betas_zero_snr=True, algorithm_type="sde-dpmsolver++"
        )
        expected.set_timesteps(timesteps=[999, 500, 250, 60])
        scheduler.set_timesteps(timesteps=[999, 500, 250, 60])
        sample = torch.randn(2, 1, 8, 8, generator=torch.manual_seed(0))
        ours = theirs = sample
        for t in expected.timesteps:
            theirs = expected.step(sample, t, theirs, generator=torch.manual_seed(1)).prev_sample
            ours = scheduler.step(sample, t, ours, generator=torch.manual_seed(1)).prev_sample
        assert_close(ours, theirs)
        scheduler.save_pretrained(tmp_path / "ours")
        again = SDEDPMSolverScheduler.from_pretrained(tmp_path / "ours")
        assert torch.equal(again.alphas_cumprod, expected.alphas_cumprod)

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_another_scheduler_of_its_config_is_that_of_the_model(self, name, tmp_path):
        DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ).save_pretrained(tmp_path)
        trained = DDPMScheduler.from_pretrained(tmp_path)
        scheduler_class, kwargs = SCHEDULERS[name]
        expected = scheduler_class.from_config(trained.config, **kwargs).config
        config = scheduler_class.from_config(SDEDPMSolverScheduler.from_config(trained.config).config, **kwargs).config
        # A solver reads of the variance type only whether the model learned it.
        own = inspect.signature(scheduler_class.__init__).parameters.keys() - {"self", "variance_type"}
        assert {key: config[key] for key in own} == {key: expected[key] for key in own}

    def test_of_another_solver_takes_what_the_model_was_trained_for_only(self):
        stored = DPMSolverMultistepScheduler(
            prediction_type="sample", algorithm_type="dpmsolver++", solver_order=3, use_karras_sigmas=True
        )
        scheduler = SDEDPMSolverScheduler.from_config(stored.config)
        scheduler.set_timesteps(4)
        config = scheduler.config
        assert (config["algorithm_type"], config["solver_order"]) == ("sde-dpmsolver++", 2)
        assert config["prediction_type"] == "sample"

    def test_predicting_the_noise_where_there_is_next_to_nothing_else(self):
        """A noise that is wrong by a hundredth still leads into the range of pictures."""
        scheduler = SDEDPMSolverScheduler.from_config(DDPMScheduler(beta_schedule="squaredcos_cap_v2").config)
        scheduler.set_timesteps(2)
        noise = torch.randn(4, 1, 28, 28, generator=torch.manual_seed(0))
        last = scheduler.step(0.99 * noise, scheduler.timesteps[0], noise, generator=torch.manual_seed(1)).prev_sample
        assert last.std() < 1.1
