import inspect
import pickle

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DEISMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ImagePipelineOutput,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, data, schedulers
from fmnist_diffusion.pipelines import pipeline_fmnist


# Inside diffusers, where NumPy turns a tensor into an array.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def get_pipeline(scheduler=None, **kwargs) -> FashionMNISTPipeline:
    config = {"sample_size": 8, "block_out_channels": (8, 16), "attention_head_dim": 8, "time_embedding_dim": 16}
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(**{**config, "num_class_embeds": 10, **kwargs})
    pipe = FashionMNISTPipeline(unet, scheduler or DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, seed: int = 0, **kwargs):
    kwargs = {"num_inference_steps": 2, "output_type": "pt", **kwargs}
    return pipe(generator=torch.Generator().manual_seed(seed), **kwargs).images


class TestClassLabels:
    def test_names_numbers_and_lists(self):
        pipe = get_pipeline()
        assert pipe.get_label_ids("ankle BOOT") == [9]
        assert pipe.get_label_ids(3) == [3]
        assert pipe.get_label_ids(["T-shirt/top", 8, " bag "]) == [0, 8, 8]
        assert pipe.get_label_ids(range(10)) == list(range(10))
        assert pipe.get_label_ids(np.array([1, 2])) == [1, 2]
        assert type(pipe.get_label_ids(np.int64(3))[0]) is int
        assert_close(draw(pipe, class_labels="Ankle boot"), draw(pipe, class_labels=[9]))
        assert (draw(pipe, class_labels=1) - draw(pipe, class_labels=2)).abs().max() > 1e-3

    def test_names_of_the_model(self):
        pipe = get_pipeline(num_class_embeds=2, label_names=("Cat", "dog"))
        assert pipe.label_names == ("Cat", "dog")
        assert pipe.get_label_ids(["cat", "DOG", 1]) == [0, 1, 1]
        assert get_pipeline(num_class_embeds=2, label_names=("A", "a")).get_label_ids(["A", "a"]) == [0, 1]
        with pytest.raises(ValueError, match="'Bag' but a label must be 0 to 1 or one of Cat, dog"):
            draw(pipe, class_labels="Bag")

    def test_names_that_are_numbers(self):
        pipe = get_pipeline(num_class_embeds=3, label_names=("0", "1", "10"))
        assert pipe.get_label_ids(["10", 1, "2", 2]) == [2, 1, 2, 2]

    def test_no_names(self):
        pipe = get_pipeline(num_class_embeds=3)
        assert pipe.label_names is None
        with pytest.raises(ValueError, match=r"'Bag' but a label must be 0 to 2\."):
            draw(pipe, class_labels="Bag")

    def test_none_is_the_null_label(self):
        pipe = get_pipeline()
        null = torch.tensor([10])
        sample = torch.randn(1, 1, 8, 8)
        pipe.unet.eval()
        assert_close(pipe.unet(sample, 5).sample, pipe.unet(sample, 5, class_labels=null).sample)
        assert draw(pipe).shape == (1, 1, 8, 8)

    @pytest.mark.parametrize("label", ["boot", 10, -1, True, 1.0, None, [0, 10], [None], [[1]]])
    def test_refused(self, label):
        pipe = get_pipeline()
        with pytest.raises(ValueError, match="must be 0 to 9 or one of T-shirt/top, Trouser"):
            pipe.get_label_ids(label)

    def test_empty_list(self):
        with pytest.raises(ValueError, match="at least one label"):
            draw(get_pipeline(), class_labels=[])

    def test_model_without_classes(self):
        pipe = get_pipeline(num_class_embeds=None)
        assert draw(pipe, num_images_per_prompt=2).shape == (2, 1, 8, 8)
        with pytest.raises(ValueError, match="trained without classes"):
            draw(pipe, class_labels=1)

    def test_images_of_a_label_are_consecutive(self):
        pipe = get_pipeline()
        noise = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1)
        images = draw(pipe, class_labels=[3, 5], num_images_per_prompt=2, latents=noise)
        assert_close(images[0], images[1])
        assert_close(images[2], images[3])
        assert (images[1] - images[2]).abs().max() > 1e-3


def test_copies_are_of_what_is_elsewhere():
    """The file stands alone, so it has copies."""
    assert pipeline_fmnist.FASHION_MNIST_LABELS == data.FASHION_MNIST_LABELS
    assert pipeline_fmnist.LEAST_SIGNAL == schedulers.LEAST_SIGNAL


class TestImage:
    def test_little_strength_keeps_the_image(self):
        pipe = get_pipeline()
        image = torch.rand(1, 1, 8, 8)
        settings = {"image": image, "num_inference_steps": 50, "class_labels": [1]}
        near = draw(pipe, strength=0.02, **settings)
        far = draw(pipe, strength=1.0, **settings)
        assert (near - image).abs().mean() < 0.05 < (far - image).abs().mean()

    def test_of_pil_is_made_grey_and_resized(self):
        image = Image.new("RGB", (40, 20), (255, 255, 255))
        assert draw(get_pipeline(), image=image, num_inference_steps=50, strength=0.02).mean() > 0.9
        three = draw(get_pipeline(in_channels=3, out_channels=3), image=image, num_images_per_prompt=2)
        assert three.shape == (2, 3, 8, 8)

    def test_one_for_each(self):
        pipe = get_pipeline()
        images = torch.stack([torch.full((1, 8, 8), value) for value in (0.05, 0.95)])
        dark, light = draw(pipe, image=images, class_labels=[1, 2], num_inference_steps=50, strength=0.02)
        assert dark.mean() < 0.1 and light.mean() > 0.9

    @pytest.mark.parametrize("strength, steps", [(1 / 49, 1), (29 / 49, 29), (0.5, 24)])
    def test_strength_is_a_number_of_steps(self, strength, steps):
        pipe = get_pipeline()
        draw(pipe, image=torch.zeros(1, 1, 8, 8), num_inference_steps=49, strength=strength)
        assert pipe.num_timesteps == steps

    def test_depends_on_the_generator(self):
        pipe, image = get_pipeline(), torch.zeros(1, 1, 8, 8)
        assert_close(draw(pipe, image=image), draw(pipe, image=image))
        assert (draw(pipe, image=image) - draw(pipe, seed=1, image=image)).abs().max() > 1e-3

    @pytest.mark.parametrize(
        "kwargs, words",
        [
            ({"strength": 0.0}, r"`strength` is 0\.0 but must be a part"),
            ({"strength": 1.1}, r"`strength` is 1\.1"),
            ({"strength": 0.4}, r"leaves one or more of `num_inference_steps`=2"),
            ({"latents": torch.zeros(1, 1, 8, 8)}, "leave one out"),
            ({"image": torch.zeros(3, 1, 8, 8)}, "one image, or one for each of the 1 that are drawn"),
        ],
    )
    def test_refused(self, kwargs, words):
        with pytest.raises(ValueError, match=words):
            draw(get_pipeline(), **{"image": torch.zeros(1, 1, 8, 8), **kwargs})

    @pytest.mark.parametrize("scheduler", [LMSDiscreteScheduler(), PNDMScheduler()])
    def test_not_with_every_scheduler(self, scheduler):
        with pytest.raises(ValueError, match=r"Scheduler cannot start from an `image`: take another"):
            draw(get_pipeline(scheduler), image=torch.zeros(1, 1, 8, 8), num_inference_steps=4)


class TestGuidance:
    def calls(self, **kwargs) -> list[int]:
        pipe = get_pipeline()
        batches = []
        hook = pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
        draw(pipe, class_labels=[1, 2, 3], **{"num_inference_steps": 4, **kwargs})
        hook.remove()
        return batches

    def test_one_doubled_batch_inside_the_interval(self):
        assert self.calls() == [3, 3, 3, 3]
        assert self.calls(guidance_scale=2.0) == [6, 6, 6, 6]
        assert self.calls(guidance_scale=2.0, guidance_interval=(0.25, 0.75)) == [3, 6, 6, 3]
        assert self.calls(guidance_scale=2.0, guidance_interval=(0.5, 1.0)) == [3, 3, 6, 6]
        assert self.calls(guidance_scale=2.0, guidance_interval=(0.5, 0.5)) == [3, 3, 3, 3]
        many = self.calls(guidance_scale=2.0, guidance_interval=(0.28, 0.56), num_inference_steps=50)
        assert [i for i, batch in enumerate(many) if batch == 6] == list(range(14, 28))

    def test_scale_zero_is_unconditional(self):
        pipe = get_pipeline()
        assert_close(draw(pipe, class_labels=1, guidance_scale=0.0), draw(pipe), atol=1e-5, rtol=0)
        assert (draw(pipe, class_labels=1) - draw(pipe)).abs().max() > 1e-3

    def test_needs_labels(self):
        with pytest.raises(ValueError, match="`guidance_scale` needs `class_labels`"):
            draw(get_pipeline(), guidance_scale=2.0)


class TestOutput:
    def test_types(self):
        pipe = get_pipeline(sample_size=(8, 12))
        images = draw(pipe, num_images_per_prompt=2)
        assert images.shape == (2, 1, 8, 12)
        assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.05
        array = draw(pipe, num_images_per_prompt=2, output_type="np")
        assert array.dtype == np.float32
        assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), images)
        latents = draw(pipe, num_images_per_prompt=2, output_type="latent")
        assert_close((latents / 2 + 0.5).clamp(0, 1), images)
        pil = draw(pipe, num_images_per_prompt=2, output_type="pil")
        assert [(image.mode, image.size) for image in pil] == [("L", (12, 8))] * 2
        assert np.array_equal(np.asarray(pil[1]), (array[1, :, :, 0] * 255).round())

    def test_rgb(self):
        pipe = get_pipeline(in_channels=3, out_channels=3)
        assert draw(pipe, output_type="pil")[0].mode == "RGB"

    def test_other_channels(self):
        pipe = get_pipeline(in_channels=2, out_channels=2)
        assert draw(pipe).shape == (1, 2, 8, 8)
        with pytest.raises(ValueError, match="2 channels has no PIL mode"):
            draw(pipe, output_type="pil")

    def test_return_dict(self):
        pipe = get_pipeline()
        output = pipe(num_inference_steps=1, generator=torch.manual_seed(0))
        assert isinstance(output, ImagePipelineOutput)
        (images,) = pipe(num_inference_steps=1, generator=torch.manual_seed(0), return_dict=False)
        assert np.array_equal(np.asarray(images[0]), np.asarray(output.images[0]))


class TestRandomness:
    def test_generator(self):
        pipe = get_pipeline(DDPMScheduler())
        assert_close(draw(pipe, seed=1), draw(pipe, seed=1))
        assert (draw(pipe, seed=1) - draw(pipe, seed=2)).abs().max() > 1e-2

    def test_wrong_number_of_generators(self):
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        with pytest.raises(ValueError, match="list of 3 but must have one for each of 4 images"):
            get_pipeline()([1, 2], num_images_per_prompt=2, num_inference_steps=1, generator=generators)

    @pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler])
    def test_latents_are_the_noise_of_the_generator(self, scheduler_class):
        pipe = get_pipeline(scheduler_class())
        noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert_close(draw(pipe, num_images_per_prompt=2, latents=noise), draw(pipe, num_images_per_prompt=2))

    def test_wrong_latents(self):
        with pytest.raises(ValueError, match=r"\(1, 1, 8, 9\) but must have \(1, 1, 8, 8\)"):
            draw(get_pipeline(), latents=torch.randn(1, 1, 8, 9))

    def test_sampling_leaves_a_training_model_as_it_was(self):
        pipe = get_pipeline()
        before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
        images = draw(pipe.to("cpu"), num_images_per_prompt=2)
        assert pipe.unet.training
        for name, value in pipe.unet.state_dict().items():
            assert torch.equal(value, before[name])
        pipe.unet.eval()
        assert_close(draw(pipe, num_images_per_prompt=2), images)
        assert not pipe.unet.training


class TestCallback:
    def test_arguments(self):
        pipe = get_pipeline()
        seen = []

        def callback(pipe, step, timestep, tensors):
            seen.append((step, int(timestep), {name: value.shape for name, value in tensors.items()}))
            return tensors

        draw(pipe, num_inference_steps=4, callback_on_step_end=callback)
        assert seen == [(i, t, {"latents": (1, 1, 8, 8)}) for i, t in enumerate((750, 500, 250, 0))]
        assert pipe.num_timesteps == 4
        seen.clear()
        draw(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[])
        assert [tensors for _, _, tensors in seen] == [{}, {}]

    def test_changes_latents(self):
        def callback(pipe, step, timestep, tensors):
            if step == pipe.num_timesteps - 1:
                tensors["latents"] = torch.zeros_like(tensors["latents"])
            return tensors

        assert not draw(get_pipeline(), callback_on_step_end=callback, output_type="latent").any()

    def test_changes_guidance(self):
        def callback(pipe, step, timestep, tensors):
            pipe._guidance_scale += 1.0
            return tensors

        pipe = get_pipeline()
        images = draw(pipe, class_labels=1, guidance_scale=2.0, callback_on_step_end=callback)
        assert pipe.guidance_scale == 4.0
        assert (images - draw(pipe, class_labels=1, guidance_scale=2.0)).abs().max() > 1e-4

    def test_interrupts(self):
        calls = []

        def callback(pipe, step, timestep, tensors):
            calls.append(step)
            pipe._interrupt = step == 1
            return tensors

        pipe = get_pipeline()
        draw(pipe, num_inference_steps=5, callback_on_step_end=callback)
        assert calls == [0, 1]
        draw(pipe, num_inference_steps=1, callback_on_step_end=callback)
        assert calls == [0, 1, 0]

    def test_unknown_tensor(self):
        with pytest.raises(ValueError, match="has noise but may hold latents, pred_original_sample only"):
            draw(get_pipeline(), callback_on_step_end_tensor_inputs=["noise"])


class TestSteps:
    @pytest.mark.parametrize("steps", [0, -1, 1001])
    def test_out_of_range(self, steps):
        with pytest.raises(ValueError, match=f"`num_inference_steps` is {steps} but must be 1 to 1000"):
            draw(get_pipeline(), num_inference_steps=steps)

    def test_too_few_steps_for_pndm(self):
        pipe = get_pipeline()
        pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(ValueError, match="PNDM needs at least 4"):
            draw(pipe, num_inference_steps=3)
        assert torch.isfinite(draw(pipe, num_inference_steps=4)).all()

    def test_second_order(self):
        pipe = get_pipeline(HeunDiscreteScheduler())
        assert torch.isfinite(draw(pipe, num_inference_steps=3)).all()
        assert pipe.num_timesteps == 5

    def test_second_order_does_not_start_from_endless_noise(self):
        pipe = get_pipeline(HeunDiscreteScheduler(beta_schedule="squaredcos_cap_v2"))
        with pytest.raises(ValueError, match="HeunDiscreteScheduler cannot start from the endless noise"):
            draw(pipe, num_inference_steps=3)

    @pytest.mark.parametrize("scheduler", [PNDMScheduler, DEISMultistepScheduler])
    def test_endless_noise_that_the_scheduler_does_not_expect(self, scheduler):
        betas = DDPMScheduler(rescale_betas_zero_snr=True).betas.tolist()
        pipe = get_pipeline(
            scheduler(trained_betas=betas, prediction_type="v_prediction", timestep_spacing="trailing")
        )
        with pytest.raises(ValueError, match="not finite: take another dtype, scheduler or model"):
            draw(pipe, num_inference_steps=4)

    @pytest.mark.parametrize("steps", [340, 501, 1000])
    def test_steps_that_would_begin_half_way(self, steps):
        pipe = get_pipeline(UniPCMultistepScheduler(timestep_spacing="leading"))
        with pytest.raises(ValueError, match=f"cannot draw in {steps} steps here: take fewer"):
            draw(pipe, num_inference_steps=steps)

    def test_pixels_that_are_not_finite(self):
        pipe = get_pipeline()
        torch.nn.init.constant_(pipe.unet.conv_out.bias, float("inf"))
        with pytest.raises(ValueError, match="pixels that are not finite: take another dtype"):
            draw(pipe, num_inference_steps=2)

    def test_progress_bar(self, capfd):
        pipe = get_pipeline()
        pipe.set_progress_bar_config(disable=False)
        draw(pipe, num_inference_steps=3)
        assert "3/3" in capfd.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        draw(pipe, num_inference_steps=3)
        assert not capfd.readouterr().err


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0 but must be at least 1"),
        ({"output_type": "jpeg"}, "`output_type` is 'jpeg' but must be one of pil, np, pt, latent"),
        ({"guidance_interval": (0.5, 0.2)}, "0 <= start <= stop <= 1"),
        ({"guidance_interval": (-0.1, 1)}, "0 <= start <= stop <= 1"),
        ({"guidance_interval": (0, 1.5)}, "0 <= start <= stop <= 1"),
        ({"guidance_interval": (0.5,)}, "0 <= start <= stop <= 1"),
    ],
)
def test_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        draw(get_pipeline(), **kwargs)


class TestStockPipelines:
    @pytest.mark.parametrize("num_class_embeds", [None, 10])
    @pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
    def test_draws_what_ours_draws(self, pipeline_class, num_class_embeds):
        scheduler_class = DDIMScheduler if pipeline_class is DDIMPipeline else DDPMScheduler
        ours = get_pipeline(scheduler_class(), num_class_embeds=num_class_embeds)
        ours.unet.eval()
        stock = pipeline_class(ours.unet, ours.scheduler)
        stock.set_progress_bar_config(disable=True)
        images = stock(
            batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np"
        ).images
        expected = draw(ours, num_images_per_prompt=2, num_inference_steps=3, output_type="np")
        assert np.abs(images - expected).max() < 1e-5

    def test_from_pipe(self):
        ours = get_pipeline()
        stock = DDPMPipeline(ours.unet, ours.scheduler)
        pipe = FashionMNISTPipeline.from_pipe(stock, unet=stock.unet)
        assert type(pipe) is FashionMNISTPipeline
        assert pipe.unet is ours.unet


class TestDiffusionPipeline:
    def test_save_load(self, tmp_path):
        pipe = get_pipeline()
        pipe.save_pretrained(tmp_path)
        loaded = FashionMNISTPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded.unet) is FashionMNISTUNet2DModel
        assert_close(draw(loaded, class_labels=1), draw(pipe, class_labels=1))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_save_load_half(self, tmp_path, dtype):
        pipe = get_pipeline().to(dtype)
        pipe.save_pretrained(tmp_path)
        loaded = FashionMNISTPipeline.from_pretrained(tmp_path, dtype=dtype)
        loaded.set_progress_bar_config(disable=True)
        assert loaded.unet.dtype == dtype
        assert_close(draw(loaded), draw(pipe), atol=1e-2, rtol=0)

    def test_components(self):
        pipe = get_pipeline()
        assert set(pipe.components) == {"unet", "scheduler"}
        assert type(FashionMNISTPipeline(**pipe.components)) is FashionMNISTPipeline

    def test_pickle(self):
        pipe = get_pipeline()
        copy = pickle.loads(pickle.dumps(pipe))
        assert_close(draw(copy), draw(pipe))

    def test_layerwise_casting(self):
        pipe = get_pipeline().to(torch.bfloat16)
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        images = draw(pipe, class_labels=1, guidance_scale=2.0)
        assert torch.isfinite(images).all() and images.std() > 0.05

    def test_docstring_has_the_example(self):
        assert ">>> pipe = load_pipeline(" in inspect.getdoc(FashionMNISTPipeline.__call__)
