"""`FashionMNISTPipeline.__call__` and its arguments."""

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
    KDPM2AncestralDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, data
from fmnist_diffusion.pipelines import pipeline_fmnist
from tiny_pipelines import get_pipeline, make_unet, sample


class TestClassLabels:
    @pytest.mark.parametrize(
        ("labels", "label_ids"),
        [
            ("ankle BOOT", [9]),
            (3, [3]),
            ("7", [7]),
            (["T-shirt/top", 8, " bag "], [0, 8, 8]),
            (range(10), list(range(10))),
            (np.array([1, 2]), [1, 2]),
            (np.int64(3), [3]),
            (torch.tensor([7, 8]), [7, 8]),
            (torch.tensor(7), [7]),
            ([torch.tensor(7), np.int64(8), "Bag"], [7, 8, 8]),
            (torch.tensor([1, 2], dtype=torch.uint8), [1, 2]),
        ],
        ids=str,
    )
    def test_labels_are_converted_to_indices(self, labels, label_ids):
        found = get_pipeline().get_label_ids(labels)
        assert found == label_ids
        assert {type(label_id) for label_id in found} == {int}

    @pytest.mark.parametrize(
        "label",
        [10, -1, True, 1.0, None, "", "10", [0, 10], [None], [[1]], torch.tensor(1.0), torch.tensor([[1]]),
         torch.tensor([True]), np.array([10])],
        ids=str,
    )  # fmt: skip
    def test_invalid_label_is_an_error(self, label):
        with pytest.raises(ValueError, match="`class_labels` must be an index from 0 to 9 or one of T-shirt/top, Tr"):
            get_pipeline().get_label_ids(label)

    @pytest.mark.parametrize(
        ("label", "suggestion"),
        [
            ("t-shirt", "T-shirt/top"),
            ("sneakers", "Sneaker"),
            ("Boot", "Ankle boot"),
            ("pulover", "Pullover"),
        ],
    )
    def test_similar_name_is_suggested(self, label, suggestion):
        with pytest.raises(ValueError, match=f"got {label!r}. Did you mean {suggestion!r}"):
            get_pipeline().get_label_ids(label)

    def test_no_name_is_suggested_if_none_is_similar(self):
        with pytest.raises(ValueError, match=r"got 'umbrella'\.$"):
            get_pipeline().get_label_ids("umbrella")

    def test_names_indices_and_tensors_give_the_same_images(self):
        pipe = get_pipeline()
        expected = sample(pipe, ["Sneaker", "Bag"])
        for labels in ([7, 8], torch.tensor([7, 8]), np.array([7, 8]), ("sneaker", "8")):
            assert torch.equal(sample(pipe, labels), expected)
        assert (sample(pipe, 1) - sample(pipe, 2)).abs().max() > 1e-3

    def test_names_of_the_model_are_used(self):
        pipe = get_pipeline(num_class_embeds=2, label_names=("Cat", "dog"))
        assert pipe.label_names == ("Cat", "dog")
        assert pipe.get_label_ids(["cat", "DOG", 1]) == [0, 1, 1]
        assert get_pipeline(num_class_embeds=2, label_names=("A", "a")).get_label_ids(["A", "a"]) == [0, 1]
        spaced = get_pipeline(num_class_embeds=3, label_names=("a ", " a", "Shoe "))
        assert spaced.get_label_ids(["a ", " a", "Shoe ", "a", "shoe"]) == [0, 1, 2, 0, 2]
        accented = get_pipeline(num_class_embeds=2, label_names=("Be\u0301b\u00e9", "cat"))
        assert accented.get_label_ids(["b\u00e9be\u0301"]) == [0]
        with pytest.raises(ValueError, match="must be an index from 0 to 1 or one of Cat, dog, got 'Bag'"):
            sample(pipe, "Bag")

    def test_names_take_precedence_over_indices(self):
        pipe = get_pipeline(num_class_embeds=3, label_names=("0", "1", "10"))
        assert pipe.get_label_ids(["10", 1, "2", 2]) == [2, 1, 2, 2]

    def test_model_without_names_only_has_indices(self):
        pipe = get_pipeline(num_class_embeds=3)
        assert pipe.label_names is None
        with pytest.raises(ValueError, match=r"must be an index from 0 to 2, got 'Bag'\.$"):
            sample(pipe, "Bag")

    def test_none_is_the_null_label(self):
        pipe = get_pipeline()
        noise = torch.randn(1, 1, 8, 8)
        pipe.unet.eval()
        null = pipe.unet(noise, 5, class_labels=torch.tensor([10])).sample
        assert_close(pipe.unet(noise, 5).sample, null)
        assert sample(pipe).shape == (1, 1, 8, 8)

    def test_empty_list_is_an_error(self):
        with pytest.raises(ValueError, match="at least one label"):
            sample(get_pipeline(), [])

    def test_unconditional_model_rejects_labels(self):
        pipe = get_pipeline(num_class_embeds=None)
        assert sample(pipe, num_images_per_prompt=2).shape == (2, 1, 8, 8)
        with pytest.raises(ValueError, match="`class_labels` is not supported by an unconditional model"):
            sample(pipe, 1)

    def test_images_of_a_label_are_consecutive(self):
        noise = torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1)
        images = sample(get_pipeline(), [3, 5], num_images_per_prompt=2, latents=noise)
        assert_close(images[0], images[1])
        assert_close(images[2], images[3])
        assert (images[1] - images[2]).abs().max() > 1e-3


def test_class_names_agree_with_the_package():
    """The file must not import the package, so it has a copy of the class names."""
    assert pipeline_fmnist.FASHION_MNIST_LABELS == data.FASHION_MNIST_LABELS


class TestGuidance:
    def count(self, **kwargs) -> tuple[list[int], int]:
        """Returns the batch size of each evaluation of the model, and `num_function_evaluations`."""
        pipe = get_pipeline(**{name: kwargs.pop(name) for name in ("scheduler",) if name in kwargs})
        batches = []
        pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
        sample(pipe, **{"class_labels": [1, 2, 3], "num_inference_steps": 4, **kwargs})
        return batches, pipe.num_function_evaluations

    @pytest.mark.parametrize(
        ("kwargs", "batches", "evaluations"),
        [
            ({}, [3, 3, 3, 3], 4),
            ({"class_labels": None}, [1, 1, 1, 1], 4),
            ({"guidance_scale": 2.0}, [6, 6, 6, 6], 8),
            ({"guidance_scale": 2.0, "guidance_interval": (0.25, 0.75)}, [3, 6, 6, 3], 6),
            ({"guidance_scale": 2.0, "guidance_interval": (0.5, 1.0)}, [3, 3, 6, 6], 6),
            ({"guidance_scale": 2.0, "guidance_interval": (0.5, 0.5)}, [3, 3, 3, 3], 4),
            ({"scheduler": HeunDiscreteScheduler()}, [3] * 7, 7),
            ({"scheduler": HeunDiscreteScheduler(), "guidance_scale": 2.0}, [6] * 7, 14),
            ({"image": torch.zeros(1, 1, 8, 8), "strength": 0.5, "guidance_scale": 2.0}, [6, 6], 4),
            (
                {
                    "image": torch.zeros(1, 1, 8, 8),
                    "strength": 0.5,
                    "guidance_scale": 2.0,
                    "guidance_interval": (0.5, 1.0),
                },
                [3, 6],
                3,
            ),
            (
                {
                    "image": torch.zeros(1, 1, 8, 8),
                    "mask_image": torch.ones(1, 1, 8, 8),
                    "num_resampling_steps": 2,
                    "guidance_scale": 2.0,
                    "guidance_interval": (0.5, 1.0),
                },
                [3, 3, 3, 3, 6, 6, 6],
                10,
            ),
        ],
    )
    def test_guided_steps_evaluate_two_predictions(self, kwargs, batches, evaluations):
        assert self.count(**kwargs) == (batches, evaluations)

    def test_interval_is_not_affected_by_rounding(self):
        batches, _ = self.count(guidance_scale=2.0, guidance_interval=(0.28, 0.56), num_inference_steps=50)
        assert [i for i, batch in enumerate(batches) if batch == 6] == list(range(14, 28))

    def test_scale_zero_is_unconditional(self):
        pipe = get_pipeline()
        assert_close(sample(pipe, 1, guidance_scale=0.0), sample(pipe), atol=1e-5, rtol=0)
        assert (sample(pipe, 1) - sample(pipe)).abs().max() > 1e-3


class TestOutput:
    def test_output_types_contain_the_same_images(self):
        pipe = get_pipeline(sample_size=(8, 12))
        images = sample(pipe, num_images_per_prompt=2)
        assert images.shape == (2, 1, 8, 12)
        assert images.min() >= 0 and images.max() <= 1 and images.std() > 0.05
        array = sample(pipe, num_images_per_prompt=2, output_type="np")
        assert array.dtype == np.float32
        assert_close(torch.from_numpy(array).permute(0, 3, 1, 2), images)
        latents = sample(pipe, num_images_per_prompt=2, output_type="latent")
        assert_close((latents / 2 + 0.5).clamp(0, 1), images)
        pil = sample(pipe, num_images_per_prompt=2, output_type="pil")
        assert [(image.mode, image.size) for image in pil] == [("L", (12, 8))] * 2
        assert np.array_equal(np.asarray(pil[1]), (array[1, :, :, 0] * 255).round())

    def test_three_channels_give_rgb_images(self):
        pipe = get_pipeline(in_channels=3, out_channels=3)
        assert sample(pipe, output_type="pil")[0].mode == "RGB"

    def test_other_numbers_of_channels_have_no_pil_images(self):
        pipe = get_pipeline(in_channels=2, out_channels=2)
        assert sample(pipe).shape == (1, 2, 8, 8)
        with pytest.raises(ValueError, match="for images with 2 channels, got 'pil'"):
            sample(pipe, output_type="pil")

    def test_return_dict_selects_the_type_of_the_output(self):
        pipe = get_pipeline()
        output = pipe(generator=torch.manual_seed(0))
        assert isinstance(output, ImagePipelineOutput)
        (images,) = pipe(generator=torch.manual_seed(0), return_dict=False)
        assert np.array_equal(np.asarray(images[0]), np.asarray(output.images[0]))


class TestRandomness:
    def test_images_depend_on_the_generator(self):
        pipe = get_pipeline(DDPMScheduler())
        assert_close(sample(pipe, seed=1), sample(pipe, seed=1))
        assert (sample(pipe, seed=1) - sample(pipe, seed=2)).abs().max() > 1e-2

    def test_wrong_number_of_generators_is_an_error(self):
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        with pytest.raises(ValueError, match=r"one generator for each image \(4\), got 3"):
            get_pipeline()([1, 2], num_images_per_prompt=2, generator=generators)

    @pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler])
    def test_latents_are_the_noise_of_the_generator(self, scheduler_class):
        pipe = get_pipeline(scheduler_class())
        noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        assert_close(sample(pipe, num_images_per_prompt=2, latents=noise), sample(pipe, num_images_per_prompt=2))

    def test_sampling_does_not_change_a_model_in_training_mode(self):
        pipe = get_pipeline(norm_type="batch")
        before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
        pipe.unet.train()
        images = sample(pipe, num_images_per_prompt=2)
        assert pipe.unet.training
        for name, value in pipe.unet.state_dict().items():
            assert torch.equal(value, before[name])
        pipe.unet.eval()
        assert_close(sample(pipe, num_images_per_prompt=2), images)
        assert not pipe.unet.training

    def test_sampling_keeps_the_mode_of_each_module(self):
        pipe = get_pipeline(norm_type="batch")
        pipe.unet.train().down_blocks[0].eval()
        sample(pipe)
        assert pipe.unet.training and pipe.unet.up_blocks[0].training
        assert not any(module.training for module in pipe.unet.down_blocks[0].modules())

    def test_callback_tensor_inputs_can_be_none(self):
        received = []

        def callback(pipe, i, t, tensors):
            received.append(tensors)

        sample(get_pipeline(), callback_on_step_end=callback, callback_on_step_end_tensor_inputs=None)
        assert received and not any(received)

    def test_pipeline_does_not_change_the_training_of_a_model(self):
        """If the memory format of the weights changed, fused optimizers would mix up their state."""

        def train(with_samples: bool) -> list[torch.Tensor]:
            unet = make_unet()
            optimizer = torch.optim.AdamW(unet.parameters(), lr=0.01, fused=True)
            for step in range(4):
                unet(torch.ones(1, 1, 8, 8), 100 * step, torch.tensor([step])).sample.square().mean().backward()
                optimizer.step()
                if with_samples:
                    pipe = FashionMNISTPipeline(unet, DDIMScheduler(), num_inference_steps=2)
                    pipe.set_progress_bar_config(disable=True)
                    sample(pipe)
            return list(unet.parameters())

        assert_close(train(with_samples=True), train(with_samples=False), atol=0, rtol=0)


class TestCallback:
    def test_callback_receives_step_timestep_and_tensors(self):
        pipe = get_pipeline()
        calls = []

        def callback(pipe, step, timestep, tensors):
            calls.append((step, int(timestep), {name: value.shape for name, value in tensors.items()}))
            return tensors

        sample(pipe, num_inference_steps=4, callback_on_step_end=callback)
        assert calls == [(i, t, {"latents": (1, 1, 8, 8)}) for i, t in enumerate((750, 500, 250, 0))]
        assert pipe.num_timesteps == 4
        calls.clear()
        sample(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[])
        assert [tensors for _, _, tensors in calls] == [{}, {}]

    def test_callback_may_return_none(self):
        pipe = get_pipeline()
        assert torch.equal(sample(pipe, callback_on_step_end=lambda *args: None), sample(pipe))

    def test_pipeline_callback_receives_its_tensors(self):
        calls = []

        class Callback(PipelineCallback):
            @property
            def tensor_inputs(self) -> list[str]:
                return ["latents", "pred_original_sample"]

            def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
                calls.append((step_index, list(callback_kwargs)))
                return callback_kwargs

        pipe = get_pipeline()
        for callback in (Callback(), MultiPipelineCallbacks([Callback()])):
            assert torch.equal(sample(pipe, callback_on_step_end=callback), sample(pipe))
            pipe.interpolate(1, callback_on_step_end=callback)
        assert calls == 4 * [(step, ["latents", "pred_original_sample"]) for step in range(2)]

    @pytest.mark.parametrize("scheduler_class", [DDIMScheduler, EulerDiscreteScheduler])
    def test_model_input_is_what_the_model_receives(self, scheduler_class):
        pipe = get_pipeline(scheduler_class())
        inputs, tensors = [], []
        pipe.unet.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        sample(
            pipe,
            callback_on_step_end=lambda pipe, step, timestep, values: tensors.append(values["model_input"]),
            callback_on_step_end_tensor_inputs=["model_input"],
        )
        assert torch.equal(torch.stack(tensors), torch.stack(inputs))

    def test_callback_can_change_the_latents(self):
        def callback(pipe, step, timestep, tensors):
            if step == pipe.num_timesteps - 1:
                tensors["latents"] = torch.zeros_like(tensors["latents"])
            return tensors

        assert not sample(get_pipeline(), callback_on_step_end=callback, output_type="latent").any()

    def test_callback_can_change_the_guidance_scale(self):
        def callback(pipe, step, timestep, tensors):
            pipe._guidance_scale += 1.0

        pipe = get_pipeline()
        images = sample(pipe, 1, guidance_scale=2.0, callback_on_step_end=callback)
        assert pipe.guidance_scale == 4.0
        assert (images - sample(pipe, 1, guidance_scale=2.0)).abs().max() > 1e-4

    def test_callback_can_enable_guidance(self):
        def callback(pipe, step, timestep, tensors):
            pipe._guidance_scale = 3.0

        pipe = get_pipeline()
        images = sample(pipe, 1, callback_on_step_end=callback)
        assert pipe.num_function_evaluations == 3
        assert_close(images, sample(pipe, 1, guidance_scale=3.0, guidance_interval=(0.5, 1.0)))

    def test_callback_can_interrupt_the_sampling(self):
        calls = []

        def callback(pipe, step, timestep, tensors):
            calls.append(step)
            pipe._interrupt = step == 1

        pipe = get_pipeline()
        sample(pipe, num_inference_steps=5, callback_on_step_end=callback)
        assert calls == [0, 1]
        assert pipe.num_function_evaluations == 2
        sample(pipe, num_inference_steps=1, callback_on_step_end=callback)
        assert calls == [0, 1, 0]


class TestSteps:
    def test_default_number_of_steps_is_in_the_config(self):
        pipe = get_pipeline()
        sample(pipe)
        assert pipe.num_timesteps == pipe.config.num_inference_steps == 2
        other = FashionMNISTPipeline(pipe.unet, pipe.scheduler, num_inference_steps=3)
        other.set_progress_bar_config(disable=True)
        sample(other)
        assert other.num_timesteps == 3

    @pytest.mark.parametrize("scheduler_class", [DEISMultistepScheduler, PNDMScheduler])
    def test_unsupported_near_zero_snr_is_an_error(self, scheduler_class):
        betas = DDPMScheduler(rescale_betas_zero_snr=True).betas.tolist()
        options = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
        pipe = get_pipeline(scheduler_class(trained_betas=betas, **options))
        with pytest.raises(ValueError, match="NaN or infinite pixels"):
            sample(pipe, num_inference_steps=4)

    # diffusers passes torch tensors to NumPy functions.
    @pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
    @pytest.mark.parametrize("scheduler_class", [HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler])
    def test_second_order_scheduler_near_zero_snr_is_an_error(self, scheduler_class):
        pipe = get_pipeline(scheduler_class(beta_schedule="squaredcos_cap_v2"))
        with pytest.raises(ValueError, match=f"{scheduler_class.__name__} .*, whose noise schedule ends with almost"):
            sample(pipe)

    @pytest.mark.parametrize("steps", [340, 501, 1000])
    def test_steps_that_skip_the_high_noise_levels_are_an_error(self, steps):
        pipe = get_pipeline(UniPCMultistepScheduler(timestep_spacing="leading"))
        with pytest.raises(ValueError, match=f"`num_inference_steps`={steps}, which skips the high noise levels"):
            sample(pipe, num_inference_steps=steps)

    def test_infinite_pixels_are_an_error(self):
        pipe = get_pipeline()
        torch.nn.init.constant_(pipe.unet.conv_out.bias, float("inf"))
        with pytest.raises(ValueError, match="NaN or infinite pixels"):
            sample(pipe)

    def test_progress_bar_can_be_disabled(self, capfd):
        pipe = get_pipeline()
        pipe.set_progress_bar_config(disable=False)
        sample(pipe, num_inference_steps=3)
        assert "3/3" in capfd.readouterr().err
        pipe.set_progress_bar_config(disable=True)
        sample(pipe, num_inference_steps=3)
        assert not capfd.readouterr().err


POSITIVE = "must be a positive integer"
INTERVAL = "`guidance_interval` must be .start, stop. with 0 <= start <= stop <= 1"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_images_per_prompt": 0}, f"`num_images_per_prompt` {POSITIVE}, got 0"),
        ({"num_images_per_prompt": 2.0}, f"`num_images_per_prompt` {POSITIVE}, got 2.0"),
        ({"num_images_per_prompt": True}, f"`num_images_per_prompt` {POSITIVE}, got True"),
        ({"num_inference_steps": 3.5}, f"`num_inference_steps` {POSITIVE}, got 3.5"),
        ({"num_inference_steps": 0}, f"`num_inference_steps` {POSITIVE}, got 0"),
        ({"num_inference_steps": -1}, f"`num_inference_steps` {POSITIVE}, got -1"),
        ({"num_inference_steps": "2"}, f"`num_inference_steps` {POSITIVE}, got '2'"),
        ({"num_inference_steps": 1001}, "`num_inference_steps` must be between 1 and 1000, .*, got 1001"),
        ({"generator": 3}, "`generator` must be a `torch.Generator` or a list of them, got 3"),
        ({"generator": [3]}, "`generator` must be a `torch.Generator` or a list of them, got 3"),
        ({"generator": [None]}, "`generator` must be a `torch.Generator` or a list of them, got None"),
        ({"output_type": "jpeg"}, "`output_type` must be one of pil, np, pt, latent, got 'jpeg'"),
        ({"guidance_interval": (0.5, 0.2)}, INTERVAL),
        ({"guidance_interval": (-0.1, 1)}, INTERVAL),
        ({"guidance_interval": (0, 1.5)}, INTERVAL),
        ({"guidance_interval": (0.5,)}, INTERVAL),
        ({"guidance_interval": 0.5}, INTERVAL),
        ({"guidance_interval": None}, INTERVAL),
        ({"guidance_interval": "01"}, INTERVAL),
        ({"image": torch.zeros(1, 1, 8, 8), "strength": "0.5"}, r"`strength` must be in \(0, 1\], got '0.5'"),
        ({"guidance_scale": 2.0}, "`guidance_scale` must be 1.0 for unconditional sampling, got 2.0"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number, got nan"),
        ({"guidance_scale": "3"}, "`guidance_scale` must be a finite number, got '3'"),
        ({"guidance_scale": None}, "`guidance_scale` must be a finite number, got None"),
        ({"guidance_scale": 10**400}, "`guidance_scale` must be a finite number, got 1000"),
        ({"guidance_scale": torch.ones(2)}, "`guidance_scale` must be a finite number, got tensor"),
        ({"latents": np.zeros((1, 1, 8, 8))}, r"`latents` must be a tensor of shape \(1, 1, 8, 8\), got ndarray"),
        ({"latents": torch.zeros(1, 1, 8, 9)}, r"`latents` must have shape \(1, 1, 8, 8\), got \(1, 1, 8, 9\)"),
        (
            {"callback_on_step_end_tensor_inputs": ["noise"]},
            "must only contain names from latents, model_input, .*, got noise",
        ),
        ({"callback_on_step_end_tensor_inputs": "latents"}, "must be a list of names, got 'latents'"),
    ],
    ids=str,
)
def test_invalid_argument_is_an_error(kwargs, message):
    with pytest.raises(ValueError, match=message):
        get_pipeline()(**kwargs)


class TestStockPipelines:
    @pytest.mark.parametrize("num_class_embeds", [None, 10])
    @pytest.mark.parametrize("pipeline_class", [DDPMPipeline, DDIMPipeline])
    def test_stock_pipelines_generate_the_same_images(self, pipeline_class, num_class_embeds):
        scheduler_class = DDIMScheduler if pipeline_class is DDIMPipeline else DDPMScheduler
        ours = get_pipeline(scheduler_class(), num_class_embeds=num_class_embeds)
        ours.unet.eval()
        stock = pipeline_class(ours.unet, ours.scheduler)
        stock.set_progress_bar_config(disable=True)
        images = sample(stock, batch_size=2, num_inference_steps=3, output_type="np")
        expected = sample(ours, num_images_per_prompt=2, num_inference_steps=3, output_type="np")
        assert np.abs(images - expected).max() < 1e-5

    def test_from_pipe_accepts_a_stock_pipeline(self):
        stock = DDPMPipeline(make_unet(), DDPMScheduler())
        pipe = FashionMNISTPipeline.from_pipe(stock, num_inference_steps=3)
        assert type(pipe) is FashionMNISTPipeline
        assert pipe.unet is stock.unet
        assert pipe.config.num_inference_steps == 3


def test_components_are_the_arguments_of_the_class():
    pipe = get_pipeline()
    assert set(pipe.components) == {"unet", "scheduler", "text_encoder", "tokenizer", "classifier", "vae"}
    assert type(FashionMNISTPipeline(**pipe.components)) is FashionMNISTPipeline


def test_pickled_pipeline_generates_the_same_images():
    pipe = get_pipeline()
    assert_close(sample(pickle.loads(pickle.dumps(pipe))), sample(pipe))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=repr)
def test_layerwise_casting_generates_images(dtype):
    pipe = get_pipeline().to(dtype)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    images = sample(pipe, 1, guidance_scale=2.0)
    assert torch.isfinite(images).all() and images.std() > 0.05


@pytest.mark.parametrize("method", ["__call__", "interpolate", "trajectory"])
def test_wrapped_model_is_an_error(method):
    pipe = get_pipeline()
    pipe.unet = torch.nn.DataParallel(pipe.unet)
    with pytest.raises(ValueError, match=r"`unet` must be a diffusers model, got DataParallel\. Assign the unwrapped"):
        getattr(pipe, method)()


def make_stock_pipeline(**config) -> FashionMNISTPipeline:
    """A pipeline with a model of diffusers."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        **config,
    )
    pipe = FashionMNISTPipeline(unet, DDPMScheduler())  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("compiled", [False, True])
def test_model_without_null_label_has_no_guidance(compiled):
    pipe = make_stock_pipeline(num_class_embeds=10)
    if compiled:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert sample(pipe, [3, 9]).shape == (2, 1, 8, 8)
    with pytest.raises(
        ValueError, match=r"`guidance_scale` must be 1\.0 for a UNet2DModel, which has no null label, got 2"
    ):
        pipe(3, guidance_scale=2.0)
    with pytest.raises(ValueError, match="`class_labels` is required for a UNet2DModel, which has no null label"):
        pipe()

    def set_guidance(pipe, step, timestep, tensors):
        pipe._guidance_scale = 2.0
        return {}

    assert_close(sample(pipe, [3, 9], callback_on_step_end=set_guidance), sample(pipe, [3, 9]))


def test_model_without_sample_size_is_an_error():
    pipe = make_stock_pipeline()
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(ValueError, match=r"`unet\.config\.sample_size` must be set, got None"):
        pipe()


def test_model_of_diffusers_accepts_embeddings():
    pipe = make_stock_pipeline(class_embed_type="identity")
    embeds = torch.randn(2, pipe.prompt_embeds_dim, generator=torch.manual_seed(0))
    assert sample(pipe, prompt_embeds=embeds).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("method", ["__call__", "interpolate"])
@pytest.mark.parametrize("combine", [lambda callback: callback, lambda callback: MultiPipelineCallbacks([callback])])
def test_callback_that_requires_other_tensors_is_an_error(method, combine):
    callback = combine(SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    message = rf"can only use the tensors latents, .*, but {type(callback).__name__} requires prompt_embeds\. Remove"
    with pytest.raises(ValueError, match=message):
        getattr(get_pipeline(), method)(callback_on_step_end=callback)


def test_docstring_has_the_example():
    assert ">>> pipe = load_pipeline(" in str(inspect.getdoc(FashionMNISTPipeline.__call__))
