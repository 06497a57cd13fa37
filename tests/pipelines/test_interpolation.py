"""`FashionMNISTPipeline.interpolate` and `FashionMNISTPipeline.trajectory`."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch.testing import assert_close

from fmnist_diffusion.pipelines.pipeline_fmnist import slerp
from fmnist_diffusion.sampling import make_pipeline
from fmnist_diffusion.schedulers import make_scheduler
from tiny_pipelines import get_pipeline, make_classifier, make_unet, sample


def get_default_pipeline(num_class_embeds: int | None = 10):
    """A pipeline with the default stochastic scheduler and power-law timesteps."""
    noise_scheduler = DDPMScheduler(prediction_type="v_prediction")
    pipe = make_pipeline(make_unet(num_class_embeds), noise_scheduler, num_inference_steps=4)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def interpolate(pipe, *args, **kwargs) -> torch.Tensor:
    return pipe.interpolate(*args, output_type="pt", **kwargs).images


# diffusers passes torch tensors to NumPy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")

PIPELINES = {
    "default": get_default_pipeline,
    "ddim": lambda: get_pipeline(DDIMScheduler()),
    "euler": lambda: get_pipeline(EulerDiscreteScheduler()),
    "heun": lambda: get_pipeline(HeunDiscreteScheduler()),
    "unipc": lambda: get_pipeline(UniPCMultistepScheduler()),
    "lcm": lambda: get_pipeline(LCMScheduler()),
}


class TestInterpolate:
    @pytest.mark.parametrize("labels", [None, "Bag", [7, 8]], ids=str)
    @pytest.mark.parametrize("name", PIPELINES)
    def test_first_and_last_image_are_those_of_the_seeds(self, name, labels):
        pipe = PIPELINES[name]()
        images = interpolate(pipe, labels, seeds=(3, np.int64(4)), num_images=5)
        assert images.shape == (5, 1, 8, 8)
        first, last = (labels[0], labels[1]) if isinstance(labels, list) else (labels, labels)
        assert_close(images[:1], sample(pipe, first, seed=3), atol=1e-4, rtol=0)
        assert_close(images[-1:], sample(pipe, last, seed=4), atol=1e-4, rtol=0)
        assert images.diff(dim=0).abs().flatten(1).amax(1).min() > 1e-3

    @pytest.mark.parametrize("name", ["default", "lcm"])
    def test_images_change_smoothly(self, name):
        images = interpolate(PIPELINES[name](), "Bag", num_images=33)
        steps = images.diff(dim=0).abs().flatten(1).mean(1)
        assert steps.max() < (images[0] - images[-1]).abs().mean()

    @pytest.mark.parametrize(
        ("labels", "evaluations"),
        [(None, 4), ("Bag", 4), (["Bag", 8], 4), (["Bag", "Coat"], 8), (torch.tensor([1, 2]), 8)],
    )
    def test_two_different_labels_double_the_function_evaluations(self, labels, evaluations):
        pipe = get_default_pipeline()
        interpolate(pipe, labels, num_images=2)
        assert pipe.num_function_evaluations == evaluations

    def test_labels_are_interpolated_with_the_same_seed(self):
        pipe = get_default_pipeline()
        images = interpolate(pipe, [1, 2], seeds=(5, 5), num_images=3)
        assert_close(images[-1:], sample(pipe, 2, seed=5), atol=1e-4, rtol=0)
        assert (images[0] - images[1]).abs().max() > 1e-4

    def test_images_do_not_depend_on_the_default_dtype(self):
        pipe = get_default_pipeline()
        expected = interpolate(pipe, [1, 2], num_images=3)
        torch.set_default_dtype(torch.float64)
        try:
            images = interpolate(pipe, [1, 2], num_images=3)
        finally:
            torch.set_default_dtype(torch.float32)
        assert_close(images, expected, atol=1e-5, rtol=0)

    def test_unconditional_model_can_interpolate(self):
        assert len(get_default_pipeline(num_class_embeds=None).interpolate(num_images=3).images) == 3

    def test_callback_is_called_after_every_step(self):
        pipe, steps = get_default_pipeline(), []
        interpolate(
            pipe,
            num_inference_steps=3,
            callback_on_step_end=lambda pipe, step, timestep, tensors: steps.append((step, set(tensors))),
            callback_on_step_end_tensor_inputs=["model_input", "pred_original_sample"],
        )
        assert steps == [(step, {"model_input", "pred_original_sample"}) for step in range(3)]

    def test_scales_of_an_earlier_call_are_reset(self):
        pipe, scales = get_pipeline(classifier=make_classifier()), []
        pipe(3, guidance_scale=2.0, classifier_guidance_scale=3.0)

        def save_scales(pipe, step, timestep, tensors):
            scales.append((pipe.guidance_scale, pipe.classifier_guidance_scale))

        pipe.interpolate(num_images=2, callback_on_step_end=save_scales)
        assert scales == [(1.0, 0.0)] * 2

    def test_return_dict_false_returns_a_tuple(self):
        (images,) = get_default_pipeline().interpolate(num_images=2, return_dict=False)
        assert [image.mode for image in images] == ["L", "L"]

    @pytest.mark.parametrize("name", ["ddpm", "euler_a", "KDPM2AncestralDiscreteScheduler", "SASolverScheduler"])
    def test_other_stochastic_schedulers_are_an_error(self, name):
        pipe = get_default_pipeline()
        pipe.scheduler = make_scheduler(name, pipe.scheduler.config)
        with pytest.raises(ValueError, match=f"{type(pipe.scheduler).__name__} adds noise that cannot be"):
            pipe.interpolate(num_inference_steps=4)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"num_images": 1}, "`num_images` must be an integer of at least 2, got 1"),
            ({"num_images": 2.5}, "`num_images` must be an integer of at least 2, got 2.5"),
            ({"seeds": (1,)}, "`seeds` must be a sequence of two integers, the seeds of the first and last image"),
            ({"seeds": (1, 2, 3)}, r"`seeds` must be a sequence of two integers, .*, got \(1, 2, 3\)\."),
            ({"seeds": 3}, r"`seeds` must be a sequence of two integers, .*, got 3\."),
            ({"seeds": (1.5, 2)}, r"`seeds` must be a sequence of two integers, .*, got \(1.5, 2\)\."),
            ({"class_labels": [1, 2, 3]}, "`class_labels` must contain one or two labels, got 3"),
            ({"class_labels": "cat"}, "`class_labels` must be an index from 0 to 9"),
            ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer"),
            ({"output_type": "jpeg"}, "`output_type` must be one of"),
        ],
    )
    def test_invalid_argument_is_an_error(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            get_default_pipeline().interpolate(**kwargs)


def test_slerp_keeps_the_norm():
    first, last = torch.randn(2, 1, 1, 28, 28, generator=torch.manual_seed(0))
    weights = torch.linspace(0, 1, 5).view(-1, 1, 1, 1)
    noise = slerp(first, last, weights)
    assert_close(noise[0], first[0])
    assert_close(noise[-1], last[0])
    assert (noise.flatten(1).norm(dim=1) / 28 - 1).abs().max() < 0.1
    assert_close(slerp(first, first, weights), first.expand(5, -1, -1, -1))


class TestTrajectory:
    @pytest.mark.parametrize("name", PIPELINES)
    def test_frames_go_from_noise_to_the_generated_images(self, name):
        pipe = PIPELINES[name]()
        frames = pipe.trajectory(["Bag", "Coat"], generator=torch.manual_seed(0), num_images_per_prompt=2)
        assert len(frames) == pipe.num_timesteps + 1
        assert {len(images) for images in frames} == {4}
        noise = torch.randn(4, 1, 8, 8, generator=torch.manual_seed(0))
        expected = ((noise / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
        first = np.stack([np.asarray(image) for image in frames[0]])[:, None]
        assert np.abs(first - expected).max() <= 1
        images = pipe(["Bag", "Coat"], generator=torch.manual_seed(0), num_images_per_prompt=2).images
        assert [np.asarray(image).tolist() for image in frames[-1]] == [np.asarray(image).tolist() for image in images]

    def test_predicted_clean_images_end_at_the_result(self):
        pipe = get_default_pipeline()
        frames = pipe.trajectory(3, tensor_name="pred_original_sample", generator=torch.manual_seed(0))
        assert len(frames) == 5
        assert np.abs(np.asarray(frames[-2][0]).astype(int) - np.asarray(frames[-1][0])).max() <= 1

    def test_unsupported_arguments_are_an_error(self):
        with pytest.raises(ValueError, match="`tensor_name` must be 'model_input' or 'pred_original_sample', got 'la"):
            get_default_pipeline().trajectory(tensor_name="latents")
        for name, value in {"output_type": "np", "return_dict": False, "callback_on_step_end": print}.items():
            with pytest.raises(ValueError, match=f"`{name}` cannot be used with `trajectory`"):
                get_default_pipeline().trajectory(**{name: value})

    def test_images_without_pil_mode_are_an_error(self):
        with pytest.raises(ValueError, match="only supports images with 1 or 3 channels, got 2"):
            get_pipeline(in_channels=2, out_channels=2).trajectory()
