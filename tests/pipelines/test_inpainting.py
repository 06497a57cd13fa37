"""The `mask_image` and `num_resampling_steps` arguments of `FashionMNISTPipeline.__call__`."""

import io

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.models.unets.unet_2d import UNet2DOutput
from oracle_unet import OracleUNet, distance, make_oracle_pipeline
from PIL import Image
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, bundled_pipelines, load_pipeline, schedulers
from fmnist_diffusion.schedulers import make_scheduler
from tiny_pipelines import get_pipeline, make_unet, sample


# diffusers passes torch tensors to NumPy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

SCHEDULERS = [
    *schedulers.SCHEDULERS,
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

PIXELS = torch.randint(1, 255, (1, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
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


GRAY_MASK = (255 * MASK[0, 0]).to(torch.uint8).numpy()


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(GRAY_MASK),
        Image.fromarray(GRAY_MASK).convert("1"),
        Image.fromarray(GRAY_MASK).convert("RGB"),
        # Transparent pixels are composited over white, like those of an image.
        Image.merge("LA", [Image.new("L", (8, 8)), Image.fromarray(255 - GRAY_MASK)]),
        GRAY_MASK,
        GRAY_MASK > 0,
        GRAY_MASK[..., None] / 255,
        MASK,
        MASK[0].float(),
        [MASK[0]],
        # The threshold is 0.5.
        torch.where(MASK, 0.5, 0.49),
    ],
    ids=["L", "1", "RGB", "transparent", "uint8", "bool", "float", "tensor", "3d", "list", "gray"],
)
def test_all_types_of_masks_are_equivalent(mask):
    pipe = make_pipeline("ddim")
    expected = sample(pipe, image=PIXELS, mask_image=MASK)
    assert torch.equal(sample(pipe, image=PIXELS, mask_image=mask), expected)


def test_image_and_mask_are_resized_and_cropped_alike():
    image = PIXELS.repeat_interleave(3, 2).repeat_interleave(3, 3)
    mask = torch.zeros(24, 48)
    # After a crop to the center, this is the left half.
    mask[:, :24] = 1
    wide = torch.cat([image, image], dim=3)
    images = sample(make_pipeline("ddim"), image=wide, mask_image=mask, output_type="latent")
    expected = make_pipeline("ddim")._preprocess_image(wide, 8, 8)
    changed = (images != expected)[0, 0]
    assert changed[:, :4].all() and not changed[:, 4:].any()


def test_mask_of_a_rotated_image_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("L", (16, 8)).save(file, "PNG", exif=exif)
    sample(make_pipeline("ddim"), image=Image.open(file), mask_image=Image.new("L", (8, 16)))
    with pytest.raises(ValueError, match="`image` and `mask_image` must have the same size, got 8x16 and 16x8 pixels"):
        sample(make_pipeline("ddim"), image=Image.open(file), mask_image=Image.new("L", (16, 8)))


@pytest.mark.parametrize("name", ["sde-dpmsolver++", "heun", "LCMScheduler"])
@pytest.mark.parametrize("num_resampling_steps", [1, 2])
def test_image_only_depends_on_its_own_inputs(name, num_resampling_steps):
    pipe = make_pipeline(name)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    masks = torch.stack([MASK[0], ~MASK[0], MASK[0].mT])
    settings = {"guidance_scale": 2.0, "num_resampling_steps": num_resampling_steps, "output_type": "pt"}

    def generate(labels, seeds, images, masks):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(labels, image=images, mask_image=masks, generator=generators, **settings).images

    batch = generate([3, 0, 1], [5, 6, 7], images, masks)
    assert_close(batch[1:2], generate([0], [6], images[1:2], masks[1:2]), atol=1e-4, rtol=0)
    assert distance(generate([0], [5], images[1:2], masks[1:2]), batch[1:2]) > 0.01
    assert_close(batch[~masks], images[~masks], atol=1e-6, rtol=0)


def test_color_images_and_unconditional_models():
    pipe = get_pipeline(in_channels=3, out_channels=3, num_class_embeds=None)
    image = torch.rand(1, 3, 8, 8)
    images = sample(pipe, image=image, mask_image=MASK, num_images_per_prompt=2)
    known = ~MASK.expand_as(images)
    assert_close(images[known], image.expand_as(images)[known], atol=1e-6, rtol=0)
    assert (images - image)[~known].abs().min() > 0


def test_lower_strength_keeps_more_of_the_masked_region():
    pipe = make_pipeline("ddim")
    settings = {"image": PIXELS, "mask_image": MASK, "num_inference_steps": 50}
    similar = sample(pipe, strength=0.02, **settings)
    assert pipe.num_timesteps == 1
    different = sample(pipe, **settings)
    assert pipe.num_timesteps == 50
    assert distance(similar, PIXELS / 255) < 0.5 * distance(different, PIXELS / 255)


def test_callback_gets_the_known_pixels_and_can_change_the_others():
    pipe, steps = make_pipeline("ddim"), []

    def callback(pipe, i, timestep, tensors):
        steps.append(i)
        if i < 4:
            return {"latents": torch.zeros_like(tensors["latents"])}
        assert_close(tensors["latents"][~MASK], PIXELS[~MASK] / 127.5 - 1)
        return {}

    images = sample(pipe, image=PIXELS, mask_image=MASK, callback_on_step_end=callback)
    assert steps == [0, 1, 2, 3, 4]
    assert torch.equal(to_uint8(images)[~MASK], PIXELS[~MASK])


def test_trajectory_shows_every_repetition_and_ends_at_the_images():
    pipe, settings = make_pipeline("ddim"), {"image": PIXELS, "mask_image": MASK, "num_resampling_steps": 3}
    frames = pipe.trajectory([4], generator=torch.Generator().manual_seed(0), **settings)
    assert len(frames) == 3 * 4 + 1 + 1
    (image,) = sample(pipe, [4], output_type="pil", **settings)
    assert frames[-1][0].tobytes() == image.tobytes()


def test_saved_pipeline_inpaints(tmp_path, dynamic_modules):
    pipe = make_pipeline("sde-dpmsolver++")
    pipe.unet.eval()
    pipe.save_pretrained(tmp_path)
    settings = {"image": PIXELS, "mask_image": MASK, "num_resampling_steps": 2}
    expected = sample(pipe, [4], **settings)
    for loaded in (
        FashionMNISTPipeline.from_pretrained(tmp_path),
        DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        loaded.set_progress_bar_config(disable=True)
        assert_close(sample(loaded, [4], **settings), expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image": None}, "`mask_image` requires an `image`"),
        ({"latents": torch.zeros(1, 1, 8, 8)}, "both `latents` and `image`"),
        (
            {"mask_image": torch.zeros(9, 8)},
            "`image` and `mask_image` must have the same size, got 8x8 and 9x8 pixels",
        ),
        (
            {"mask_image": torch.zeros(2, 1, 8, 8)},
            r"`mask_image` must be one image, or one for each generated image \(1\), got 2",
        ),
        ({"mask_image": torch.zeros(8, 8, dtype=torch.int64)}, "`mask_image` must be uint8, bool or floating point"),
        ({"mask_image": torch.full((8, 8), 255.0)}, "`mask_image` must contain finite values in .0, 1., got .* 255"),
        ({"mask_image": torch.full((8, 8), torch.nan)}, "`mask_image` must contain finite values"),
        ({"mask_image": torch.zeros(2, 8, 8)}, "`mask_image` must have 1 channels, got 2"),
        ({"mask_image": Image.new("I;16", (8, 8))}, "`mask_image` must have 8 bits per channel"),
        ({"mask_image": []}, "`mask_image` must contain at least one image"),
        ({"mask_image": "mask.png"}, "`mask_image` must be a PIL image"),
        ({"strength": 0.0}, "`strength` must be in"),
        ({"num_resampling_steps": 0}, "`num_resampling_steps` must be a positive integer, got 0"),
        ({"num_resampling_steps": 1.5}, "`num_resampling_steps` must be a positive integer, got 1.5"),
        ({"num_resampling_steps": 2, "mask_image": None}, "`num_resampling_steps` must be 1 without a `mask_image`"),
    ],
)
def test_invalid_arguments_are_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sample(make_pipeline("ddim"), **{"image": PIXELS, "mask_image": MASK, **kwargs})


@pytest.mark.parametrize("name", FIXED_START)
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"strength": 0.5}, "cannot start from an `image`"), ({"num_resampling_steps": 2}, "cannot repeat a step")],
)
def test_schedulers_that_must_start_from_noise_are_limited(name, kwargs, message):
    with pytest.raises(ValueError, match=f"Scheduler {message}"):
        sample(make_pipeline(name), image=PIXELS, mask_image=MASK, **kwargs)


def make_oracle_inputs(pipe: FashionMNISTPipeline) -> dict:
    """Returns the clean images of the labels 2 and 0, and a mask of their upper half."""
    clean = pipe.unet.clean[[2, 0]]
    mask = torch.zeros(1, 1, *clean.shape[2:])
    mask[..., :8, :] = 1
    return {"class_labels": [2, 0], "image": clean / 2 + 0.5, "mask_image": mask}


@pytest.mark.parametrize(
    ("name", "num_resampling_steps"), [(name, 1) for name in SCHEDULERS] + [(name, 3) for name in REPEATABLE]
)
def test_all_pixels_have_the_noise_level_of_their_timestep(name, num_resampling_steps):
    pipe = make_oracle_pipeline(name, V_PREDICTION)
    inputs = make_oracle_inputs(pipe)
    known = inputs["mask_image"].expand(2, 1, -1, -1) == 0
    generator, noises = torch.Generator().manual_seed(0), []

    def callback(pipe, i, timestep, tensors):
        # The noise level is not that of the timestep between the two stages of a second-order step.
        if i % pipe.scheduler.order == 0:
            sigma = float(np.interp(float(timestep), np.arange(1000), pipe.unet.sigmas))
            alpha = 1 / (1 + sigma**2) ** 0.5
            sigma = sigma * alpha
            scaled_noise = tensors["model_input"] - alpha * pipe.unet.clean[[2, 0]]
            noises.append((sigma, scaled_noise[known]))

    images = pipe(
        **inputs,
        num_inference_steps=12,
        num_resampling_steps=num_resampling_steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["model_input"],
    ).images
    evaluations = len(pipe.scheduler.timesteps)
    repeated = (num_resampling_steps - 1) * (evaluations - 1)
    assert pipe.num_timesteps == pipe.num_function_evaluations == evaluations + repeated
    # The known pixels have new noise from the generator before every step.
    for sigma, scaled_noise in noises:
        noise = torch.randn(2, 1, 16, 12, generator=generator)[known]
        assert_close(scaled_noise, sigma * noise, atol=0.02, rtol=0)
    assert pipe.unet.noise_error < 0.12
    assert distance(images, pipe.unet.clean[[2, 0]]) < 0.02


VARIANCE, CORRELATION = 0.1, 0.8


class GaussianUNet(OracleUNet):
    """
    Predicts the velocity exactly for images whose pixels are normally distributed.

    The pixels have the mean 0 and the variance `VARIANCE`. Any two pixels have the correlation `CORRELATION`.
    """

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        sigma = float(np.interp(float(timestep), np.arange(len(self.sigmas)), self.sigmas))
        alpha = 1 / (1 + sigma**2) ** 0.5
        sigma = sigma * alpha
        # The covariance matrix has one eigenvalue for the mean of the pixels, and one for the deviations from it.
        mean = sample.mean(dim=(1, 2, 3), keepdim=True)
        common = VARIANCE * (1 + (sample[0].numel() - 1) * CORRELATION)
        single = VARIANCE * (1 - CORRELATION)
        clean = alpha * common / (alpha**2 * common + sigma**2) * mean
        clean = clean + alpha * single / (alpha**2 * single + sigma**2) * (sample - mean)
        epsilon = (sample - alpha * clean) / sigma
        return UNet2DOutput(sample=alpha * epsilon - sigma * clean)


def get_conditional_errors(name: str, num_resampling_steps: int, num_inference_steps: int = 40) -> tuple[float, float]:
    """
    Inpaints one half of the pixels and compares them with the exact distribution given the other half.

    Returns the error of the mean and the relative error of the standard deviation.
    """
    unet = GaussianUNet(
        sample_size=8, block_out_channels=(8,), attention_levels=(), time_embedding_dim=4, num_class_embeds=None
    )
    unet.set_target(torch.zeros(1, 1, 8, 8), V_PREDICTION)
    pipe = FashionMNISTPipeline(unet, make_scheduler(name, V_PREDICTION.config), num_inference_steps)
    pipe.scheduler.register_to_config(clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(8, 8)
    mask[:, 4:] = 1
    value, num_known = 0.5, 32
    images = pipe(
        image=torch.full((8, 8), value / 2 + 0.5),
        mask_image=mask,
        num_images_per_prompt=1000,
        num_resampling_steps=num_resampling_steps,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images[..., 4:]
    # The conditional mean is linear in the known pixels.
    weight = CORRELATION / (1 + (num_known - 1) * CORRELATION)
    mean, variance = num_known * weight * value, VARIANCE * (1 - num_known * CORRELATION * weight)
    return images.mean().item() - mean, images.std().item() / variance**0.5 - 1


@pytest.mark.parametrize(
    "name", ["ddpm", "ddim", "sde-dpmsolver++", "dpmsolver++", "unipc", "euler", "euler_a", "heun"]
)
def test_repeated_steps_converge_to_the_conditional_distribution(name):
    """Without repetitions, the images are biased towards the unconditional mean (arXiv 2201.09865, section 4.2)."""
    mean_error, _ = get_conditional_errors(name, num_resampling_steps=1)
    assert -0.2 < mean_error < -0.04
    mean_error, _ = get_conditional_errors(name, num_resampling_steps=8)
    assert abs(mean_error) < 0.02


def test_more_steps_reduce_the_error_of_the_standard_deviation():
    errors = [get_conditional_errors("ddim", 8, num_inference_steps)[1] for num_inference_steps in (40, 160)]
    assert abs(errors[1]) < 0.5 * abs(errors[0])
