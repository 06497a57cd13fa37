"""The `image` and `strength` arguments of `FashionMNISTPipeline.__call__`."""

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, LMSDiscreteScheduler, PNDMScheduler
from PIL import Image
from torch.testing import assert_close

from text_pipelines import CAPTIONS, get_text_pipeline
from tiny_pipelines import get_pipeline, sample


# With this strength, the result is almost the image itself.
LOW_STRENGTH = {"num_inference_steps": 50, "strength": 0.02}


def reconstruct(image, num_images: int = 1, **config) -> torch.Tensor:
    return sample(get_pipeline(**config), image=image, num_images_per_prompt=num_images, **LOW_STRENGTH)


def test_higher_strength_changes_the_image_more():
    pipe = get_pipeline()
    image = torch.rand(1, 1, 8, 8)
    settings = {"image": image, "num_inference_steps": 50, "class_labels": [1]}
    similar = sample(pipe, strength=0.02, **settings)
    different = sample(pipe, strength=1.0, **settings)
    assert (similar - image).abs().mean() < 0.05 < (different - image).abs().mean()


@pytest.mark.parametrize(("strength", "steps"), [(1 / 49, 1), (29 / 49, 29), (0.5, 24), (1, 49)])
def test_strength_is_a_fraction_of_the_steps(strength, steps):
    pipe = get_pipeline()
    sample(pipe, image=torch.zeros(1, 1, 8, 8), num_inference_steps=49, strength=strength)
    assert pipe.num_timesteps == steps


@pytest.mark.parametrize(
    ("scheduler", "spacing", "strength", "num_timesteps"),
    [
        (EulerDiscreteScheduler(), {"timesteps": [900, 500, 200, 50]}, 0.5, 2),
        (HeunDiscreteScheduler(), {"timesteps": [900, 500, 200, 50]}, 0.5, 3),
        (HeunDiscreteScheduler(), {"timesteps": [900, 500, 200, 50]}, 1.0, 7),
        (EulerDiscreteScheduler(), {"sigmas": [20.0, 5.0, 1.0, 0.2, 0.0]}, 0.5, 2),
    ],
)
def test_strength_is_a_fraction_of_custom_timesteps(scheduler, spacing, strength, num_timesteps):
    pipe = get_pipeline(scheduler)
    sample(pipe, image=torch.zeros(1, 1, 8, 8), strength=strength, **spacing)
    assert pipe.num_timesteps == num_timesteps


def test_result_depends_on_the_generator():
    pipe, image = get_pipeline(), torch.zeros(1, 1, 8, 8)
    assert_close(sample(pipe, image=image), sample(pipe, image=image))
    assert (sample(pipe, image=image) - sample(pipe, seed=1, image=image)).abs().max() > 1e-3


GRAY = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
BINARY = GRAY > 127
FLOATS = (GRAY / 255).astype(np.float32)
RGB = np.stack([GRAY, GRAY.T, 255 - GRAY], axis=-1)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GRAY), GRAY),
        (Image.fromarray(GRAY).convert("RGB"), GRAY),
        (Image.fromarray(BINARY), 255 * BINARY),
        (np.asarray(Image.fromarray(GRAY)), GRAY),
        (GRAY[..., None], GRAY),
        (GRAY[None, ..., None], GRAY),
        (GRAY[:, ::-1], GRAY[:, ::-1]),
        (FLOATS, GRAY),
        (FLOATS.astype(np.float64), GRAY),
        (BINARY, 255 * BINARY),
        (torch.from_numpy(GRAY), GRAY),
        (torch.from_numpy(GRAY)[None], GRAY),
        (torch.from_numpy(FLOATS)[None, None], GRAY),
        (torch.from_numpy(FLOATS).half(), GRAY),
        (torch.from_numpy(BINARY), 255 * BINARY),
        ([GRAY], GRAY),
        ([torch.from_numpy(FLOATS)[None]], GRAY),
    ],
)
def test_all_types_of_grayscale_images_are_equivalent(image, expected):
    reference = torch.from_numpy(expected / 255).float()[None, None]
    assert_close(reconstruct(image), reconstruct(reference), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(RGB), RGB, RGB[None], torch.from_numpy(RGB).permute(2, 0, 1), [RGB], (RGB / 255)],
    ids=["pil", "array", "batch", "tensor", "list", "float"],
)
def test_all_types_of_color_images_are_equivalent(image):
    config = {"in_channels": 3, "out_channels": 3}
    reference = torch.from_numpy(RGB / 255).float().permute(2, 0, 1)[None]
    assert_close(reconstruct(image, **config), reconstruct(reference, **config), atol=1e-5, rtol=0)


def test_images_may_have_four_channels():
    config = {"in_channels": 4, "out_channels": 4}
    image = torch.full((1, 4, 16, 16), 0.75)
    assert (reconstruct(image, **config) - 0.75).abs().mean() < 0.05


def test_images_are_resized():
    assert reconstruct(Image.new("L", (40, 20), 255)).mean() > 0.9
    assert reconstruct(torch.ones(1, 1, 20, 40)).mean() > 0.9
    mixed = [np.full((16, 16), 255, np.uint8), torch.ones(1, 8, 8), Image.new("L", (20, 20), 255)]
    assert reconstruct(mixed, num_images=3).mean() > 0.9


def test_each_label_can_have_its_own_image():
    images = torch.stack([torch.full((1, 8, 8), value) for value in (0.05, 0.95)])
    for image in (images, list(images), images.movedim(1, -1).numpy()):
        dark, light = sample(get_pipeline(), [1, 2], image=image, **LOW_STRENGTH)
        assert dark.mean() < 0.1 and light.mean() > 0.9


def test_one_image_is_used_for_all_results():
    assert reconstruct(Image.new("L", (8, 8), 255), num_images=2).flatten(1).mean(1).min() > 0.9


VALUES = "contain finite values in .0, 1., got values from"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (255 * FLOATS, f"{VALUES} 0 to 255. Scale them to this range."),
        (FLOATS - 0.5, f"{VALUES} -0.5 to 0.5. Scale them to this range."),
        (np.where(BINARY, np.nan, FLOATS), f"{VALUES} nan to nan"),
        (np.full((8, 8), None), "be uint8, bool or floating point, got object."),
        (GRAY.astype(np.int64), "be uint8, bool or floating point, got torch.int64."),
        (torch.from_numpy(GRAY).int(), "be uint8, bool or floating point, got torch.int32."),
        (Image.fromarray(GRAY.astype(np.uint16)), "8 bits per channel, got mode 'I;16'"),
        (Image.fromarray(GRAY.astype(np.int32)), "8 bits per channel, got mode 'I'"),
        ([Image.fromarray(FLOATS)], "8 bits per channel, got mode 'F'"),
        ([], "at least one image, got an empty list"),
        (np.zeros((0, 8, 8, 1)), r"a non-empty array .*, got ndarray of shape \(0, 8, 8, 1\)"),
        (torch.zeros(8), r"with 2 to 4 dimensions, .*, got Tensor of shape \(8,\)"),
        ("image.png", r"be a PIL image, .*, got str\."),
        ([GRAY.tolist()], "be a PIL image, .*, got list"),
        (np.zeros((8, 8, 2)), "have 1 channels, got 2"),
        (np.zeros((1, 8, 8)), "have 1 channels, got 8"),
        (Image.new("LAB", (8, 8)), "one of the modes 1, L, P, .*, got 'LAB'"),
        (
            torch.zeros(3, 1, 8, 8),
            r"be one image, or one for each generated image \(1\), got 3\. Pass `num_images_per_prompt=3` to use",
        ),
    ],
)
def test_invalid_images_are_errors(image, message):
    with pytest.raises(ValueError, match=f"`image` must .*{message}"):
        sample(get_pipeline(), image=image)


@pytest.mark.parametrize("num_masks", [1, 2, 4])
@pytest.mark.parametrize(
    ("pipe", "conditions"),
    [(get_pipeline(), {"class_labels": [1, 2]}), (get_text_pipeline(), {"prompt": CAPTIONS[:2]})],
    ids=["labels", "prompts"],
)
def test_images_are_repeated_for_each_label(pipe, conditions, num_masks):
    images, masks = torch.rand(2, 1, 8, 8), (torch.rand(num_masks, 1, 8, 8) < 0.5).float()
    settings = {"num_images_per_prompt": 2, **conditions}
    result = sample(pipe, image=images, mask_image=masks, **settings)
    images, masks = images[[0, 0, 1, 1]], masks.repeat_interleave(4 // num_masks, dim=0)
    assert_close(result, sample(pipe, image=images, mask_image=masks, **settings))
    known = masks == 0
    assert_close(result[known], images[known], atol=1e-6, rtol=0)


def test_wrong_number_of_images_lists_the_valid_numbers():
    with pytest.raises(
        ValueError,
        match=r"`image` must be one image, one for each label or prompt \(2\), or one for each generated image \(4\),"
        " got 3",
    ):
        sample(get_pipeline(), [1, 2], image=torch.rand(3, 1, 8, 8), num_images_per_prompt=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strength": 0.0}, r"`strength` must be in \(0, 1\], got 0\.0"),
        ({"strength": 1.1}, r"`strength` must be in \(0, 1\], got 1\.1"),
        ({"strength": float("nan")}, r"`strength` must be in \(0, 1\], got nan"),
        ({"strength": 0.4}, r"`strength` must be at least 1/2, because sampling has 2 steps, got 0\.4"),
        (
            {"strength": 0.2, "timesteps": [900, 500, 20]},
            r"`strength` must be at least 1/3, because sampling has 3 steps, got ",
        ),
        ({"strength": 0.5, "image": None}, r"`strength` requires an `image`, got 0\.5"),
        ({"latents": torch.zeros(1, 1, 8, 8)}, "both `latents` and `image`"),
    ],
)
def test_invalid_arguments_are_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        scheduler = EulerDiscreteScheduler() if "timesteps" in kwargs else None
        sample(get_pipeline(scheduler), **{"image": torch.zeros(1, 1, 8, 8), **kwargs})


@pytest.mark.parametrize("scheduler", [LMSDiscreteScheduler(), PNDMScheduler()], ids=lambda s: type(s).__name__)
def test_schedulers_that_must_start_from_noise_are_an_error(scheduler):
    with pytest.raises(ValueError, match=r"Scheduler cannot start from an `image`"):
        sample(get_pipeline(scheduler), image=torch.zeros(1, 1, 8, 8), num_inference_steps=4)
