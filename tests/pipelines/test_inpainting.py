"""The `mask_image` and `num_resampling_steps` arguments of `FashionMNISTPipeline.__call__`."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.models.unets.unet_2d import UNet2DOutput
from oracle_unet import OracleUNet, distance, make_oracle_pipeline
from PIL import Image
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, bundled_pipelines, load_pipeline, sampling
from fmnist_diffusion.sampling import make_scheduler
from tiny_pipelines import get_pipeline, make_unet, sample


# diffusers passes torch tensors to NumPy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SCHEDULERS = [
    *sampling.SCHEDULERS,
    "DPMSolverSinglestepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
]
# These schedulers can only start from pure noise.
FIXED_START = ("pndm", "LMSDiscreteScheduler")
REPEATABLE = [name for name in SCHEDULERS if name not in FIXED_START]
V_PREDICTION = DDPMScheduler(prediction_type="v_prediction")

PIXELS = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
MASK = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
MASK[..., 2:5, 3:] = True


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8)


def make_pipeline(name: str) -> FashionMNISTPipeline:
    pipe = FashionMNISTPipeline(make_unet(), make_scheduler(name, DDPMScheduler().config), num_inference_steps=5)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", SCHEDULERS)
def test_known_pixels_are_identical_and_all_others_are_generated(name):
    pipe = make_pipeline(name)
    images = sample(pipe, [1, 2], image=PIXELS, mask_image=MASK, guidance_scale=2.0, num_images_per_prompt=2)
    known = ~MASK.expand_as(images)
    assert torch.equal(to_uint8(images)[known], PIXELS.expand_as(images)[known])
    assert_close(images[known], (PIXELS / 255).expand_as(images)[known], atol=1e-6, rtol=0)
    assert (images - PIXELS / 255)[~known].abs().min() > 0
    assert distance(images[0], images[1]) > 0.01


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_known_pixels_are_identical_for_every_output_type(output_type):
    images = sample(make_pipeline("ddim"), image=PIXELS, mask_image=MASK, output_type=output_type)
    if output_type == "pil":
        pixels = torch.from_numpy(np.array(images[0]))[None, None]
    elif output_type == "np":
        pixels = to_uint8(torch.from_numpy(images).movedim(-1, 1))
    else:
        pixels = to_uint8(images / 2 + 0.5 if output_type == "latent" else images)
    assert torch.equal(pixels[~MASK], PIXELS[~MASK])


@pytest.mark.parametrize("name", bundled_pipelines())
def test_bundled_checkpoints_keep_the_known_pixels(name):
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    pixels = torch.randint(0, 256, (28, 28), dtype=torch.uint8)
    mask = torch.zeros(28, 28)
    mask[:, :14] = 1
    (image,) = pipe(image=pixels, mask_image=mask, num_inference_steps=3).images
    result = torch.from_numpy(np.array(image))
    assert torch.equal(result[:, 14:], pixels[:, 14:])
    assert (result[:, :14] != pixels[:, :14]).float().mean() > 0.5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_white_mask_equals_sampling_without_an_image(name):
    pipe, white = make_pipeline(name), torch.ones(1, 1, 8, 8)
    expected = sample(pipe, [1, 2], output_type="latent")
    assert torch.equal(sample(pipe, [1, 2], image=PIXELS, mask_image=white, output_type="latent"), expected)


def test_white_mask_with_a_lower_strength_equals_image_to_image():
    pipe, white = make_pipeline("dpmsolver++"), torch.ones(1, 1, 8, 8)
    expected = sample(pipe, image=PIXELS, strength=0.6)
    assert torch.equal(sample(pipe, image=PIXELS, mask_image=white, strength=0.6), expected)


@pytest.mark.parametrize("num_resampling_steps", [1, 2])
def test_black_mask_returns_the_image(num_resampling_steps):
    images = sample(
        make_pipeline("euler_a"),
        image=PIXELS,
        mask_image=torch.zeros(1, 1, 8, 8),
        num_resampling_steps=num_resampling_steps,
    )
    assert torch.equal(to_uint8(images), PIXELS)


def make_oracle_inputs(pipe: FashionMNISTPipeline) -> dict:
    """Returns the clean images of the labels 2 and 0, and a mask of their upper half."""
    clean = pipe.unet.clean[[2, 0]]
    mask = torch.zeros(1, 1, *clean.shape[2:])
    mask[..., :8, :] = 1
    return {"class_labels": [2, 0], "image": clean / 2 + 0.5, "mask_image": mask}


@pytest.mark.parametrize("num_resampling_steps", [1, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_known_pixels_have_the_noise_of_their_timestep(name, num_resampling_steps):
    if num_resampling_steps > 1 and name in FIXED_START:
        pytest.skip("cannot repeat a step")
    pipe = make_oracle_pipeline(name, V_PREDICTION)
    inputs = make_oracle_inputs(pipe)
    known = inputs["mask_image"].expand(2, 1, -1, -1) == 0
    noises = []

    def callback(pipe, i, timestep, tensors):
        sigma = float(np.interp(float(timestep), np.arange(1000), pipe.unet.sigmas))
        alpha = 1 / (1 + sigma**2) ** 0.5
        noise = (tensors["model_input"] - alpha * pipe.unet.clean[[2, 0]]) / (sigma * alpha)
        noises.append((sigma * alpha, noise[known]))

    images = pipe(
        **inputs,
        num_inference_steps=12,
        num_resampling_steps=num_resampling_steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["model_input"],
    ).images
    order = pipe.scheduler.order
    assert len(noises) == pipe.num_timesteps == pipe.num_function_evaluations
    assert pipe.num_timesteps == num_resampling_steps * order * (12 - 1) + (13 if name == "pndm" else 1) - (
        0 if name != "pndm" else 2
    ) or name in ("pndm",)
    first = noises[0][1]
    for i, (sigma, noise) in enumerate(noises):
        assert abs(noise.std() - 1) * sigma < 0.1
        # The noise only changes before a step is repeated. It is not defined between the stages of a step.
        if num_resampling_steps == 1 and i % order == 0:
            assert_close(sigma * noise, sigma * first, atol=0.03, rtol=0)
    # The noise level of the other pixels is also that of the timestep.
    assert pipe.unet.noise_error < 0.12
    assert distance(images, pipe.unet.clean[[2, 0]]) < 0.02


class GaussianUNet(OracleUNet):
    """
    Predicts the velocity exactly for images whose pixels are normally distributed.

    The pixels have variance `VARIANCE`, and each two of them have correlation `CORRELATION`.
    """

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        sigma = float(np.interp(float(timestep), np.arange(len(self.sigmas)), self.sigmas))
        alpha = 1 / (1 + sigma**2) ** 0.5
        sigma = sigma * alpha
        mean = sample.mean(dim=(1, 2, 3), keepdim=True)
        # The covariance matrix has one eigenvalue for the mean of the pixels and one for deviations from the mean.
        common = VARIANCE * (1 + (sample[0].numel() - 1) * CORRELATION)
        single = VARIANCE * (1 - CORRELATION)
        clean = alpha * (
            common / (alpha**2 * common + sigma**2) * mean + single / (alpha**2 * single + sigma**2) * (sample - mean)
        )
        epsilon = (sample - alpha * clean) / sigma
        return UNet2DOutput(sample=alpha * epsilon - sigma * clean)


VARIANCE, CORRELATION = 0.1, 0.8


def get_conditional_errors(name: str, **kwargs) -> tuple[float, float]:
    """Returns the errors of the mean and the standard deviation of the inpainted pixels, given 4 known pixels of 0.5."""
    unet = GaussianUNet(
        sample_size=(2, 4), block_out_channels=(8,), attention_levels=(), time_embedding_dim=4, num_class_embeds=None
    ).set_target(torch.zeros(1, 1, 2, 4), V_PREDICTION)
    config = {**V_PREDICTION.config, "clip_sample": False}
    pipe = FashionMNISTPipeline(unet, make_scheduler(name, config), num_inference_steps=50)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 2, 4)
    mask[..., 2:] = 1
    images = pipe(
        image=torch.full((1, 1, 2, 4), 0.75),
        mask_image=mask,
        num_images_per_prompt=8000,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **kwargs,
    ).images[..., 2:]
    weight = CORRELATION / (1 + 3 * CORRELATION)
    variance = VARIANCE * (1 - 4 * CORRELATION * weight)
    return abs(images.mean().item() - 4 * weight * 0.5), abs(images.std().item() - variance**0.5)


if __name__ == "__main__":
    for name in [
        "ddpm",
        "ddim",
        "sde-dpmsolver++",
        "dpmsolver++",
        "unipc",
        "euler",
        "euler_a",
        "heun",
        "deis",
        "pndm",
    ]:
        for u in (1, 2, 5, 10):
            if u > 1 and name == "pndm":
                continue
            print(
                name,
                u,
                "mean err %.3f std err %.3f" % get_conditional_errors(name, num_resampling_steps=u),
                flush=True,
            )
