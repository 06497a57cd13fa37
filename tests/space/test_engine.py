import itertools
import pickle
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

import engine
import layout
import uploads
from engine import Engine, GenerationRequest, RequestError
from fmnist_diffusion import load_pipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.sampling import make_generators
from latent_pipelines import get_latent_pipeline
from saved_pipelines import METRICS, save_pipeline
from text_pipelines import CAPTIONS


def request(**kwargs) -> GenerationRequest:
    return GenerationRequest(**{"num_images": 2, "num_inference_steps": 3, **kwargs})


def last(steps):
    *_, step = steps
    return step


def arrays(images) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def difference(images, others) -> int:
    return abs(arrays(images) - arrays(others)).max()


def test_prompt_is_passed_to_a_text_conditional_model(text_folder):
    pipe, text_engine = load_pipeline(text_folder), engine.get_engine(text_folder)
    config = request(prompt=CAPTIONS[0], guidance_scale=2.0, seed=5)
    expected = pipe(
        prompt=CAPTIONS[0],
        num_images_per_prompt=2,
        guidance_scale=2.0,
        num_inference_steps=3,
        generator=make_generators(5, 2),
    ).images
    assert difference(last(text_engine.generate(config)).images, expected) <= 1
    assert difference(last(text_engine.generate(replace(config, prompt=""))).images, expected) > 1


def test_latents_of_every_step_are_decoded(tmp_path):
    pipe = get_latent_pipeline()
    pipe.save_pretrained(tmp_path)
    latent_engine = Engine(str(tmp_path))
    assert (latent_engine.channels, latent_engine.height, latent_engine.width) == (3, 16, 16)
    steps = list(latent_engine.generate(request(labels=("Bag",), seed=5)))
    for step in steps:
        assert {image.size for image in [*step.images, *step.predicted]} == {(16, 16)}
    expected = pipe(["Bag", "Bag"], num_inference_steps=3, generator=make_generators(5, 2)).images
    assert difference(steps[-1].images, expected) <= 1


class TestTextConditionalModel:
    @pytest.fixture(scope="class")
    def text_engine(self, text_folder) -> Engine:
        return engine.get_engine(text_folder)

    def test_interpolation_equals_that_of_the_pipeline(self, text_engine, text_folder):
        config = request(prompt=CAPTIONS[0], num_images=4, seed=3)
        images = last(text_engine.interpolate(config, (3, 9), CAPTIONS[1])).images
        pipe = load_pipeline(text_folder)
        kwargs = {"seeds": (3, 9), "num_images": 4, "num_inference_steps": 3}
        assert difference(images, pipe.interpolate(prompt=list(CAPTIONS[:2]), **kwargs).images) <= 1
        for image, prompt, seed in ((images[0], CAPTIONS[0], 3), (images[-1], CAPTIONS[1], 9)):
            alone = last(text_engine.generate(replace(config, prompt=prompt, num_images=1, seed=seed))).images
            assert difference([image], alone) <= 1
        assert difference(images, last(text_engine.interpolate(config, (3, 9), CAPTIONS[0])).images) > 1

    def test_image_to_image_depends_on_the_prompt(self, text_engine, text_folder):
        image = last(text_engine.generate(request(num_images=1))).images[0]
        config = request(prompt=CAPTIONS[0], num_images=1, guidance_scale=2.0, seed=5)
        images = last(text_engine.generate(config, image, 0.7)).images
        pipe = load_pipeline(text_folder)
        kwargs = {"strength": 0.7, "guidance_scale": 2.0, "num_inference_steps": 3, "generator": make_generators(5, 1)}
        assert difference(images, pipe(prompt=CAPTIONS[0], image=image, **kwargs).images) <= 1
        others = last(text_engine.generate(replace(config, prompt=CAPTIONS[1]), image, 0.7)).images
        assert difference(images, others) > 1

    def test_classes_are_rejected(self, text_engine):
        with pytest.raises(RequestError, match=r"This model is not class-conditional\. Leave the classes empty"):
            last(text_engine.interpolate(request(labels=("Bag",)), (1, 2)))


class TestFlowMatchingModel:
    @pytest.fixture(scope="class")
    def flow_engine(self, flow_folder) -> Engine:
        return engine.get_engine(flow_folder)

    @pytest.mark.parametrize("scheduler", [None, "dpmsolver++", "unipc"])
    def test_images_equal_those_of_the_pipeline(self, flow_engine, flow_folder, scheduler):
        config = request(labels=("Bag", "Dress"), guidance_scale=2.0, scheduler=scheduler, seed=5)
        steps = list(flow_engine.generate(config))
        pipe = load_pipeline(flow_folder, scheduler=scheduler)
        kwargs = {"num_inference_steps": 3, "guidance_scale": 2.0, "generator": make_generators(5, 2)}
        assert difference(steps[-1].images, pipe(["Bag", "Dress"], **kwargs).images) <= 1
        assert [step.number for step in steps] == [0, 1, 2, 3]

    def test_interpolation_ends_as_generated(self, flow_engine):
        config = request(labels=("Bag", "Dress"), num_images=3, seed=3)
        images = last(flow_engine.interpolate(config, (3, 9))).images
        for image, label, seed in ((images[0], "Bag", 3), (images[-1], "Dress", 9)):
            alone = last(flow_engine.generate(replace(config, labels=(label,), num_images=1, seed=seed))).images
            assert difference([image], alone) <= 1

    def test_only_solvers_of_flow_matching_are_supported(self, flow_engine, base):
        names = layout.SCHEDULER_CHOICES[1:]
        assert [name for name in names if flow_engine.supports(name)] == ["dpmsolver++", "unipc"]
        assert all(base.supports(name) for name in names)
        with pytest.raises(RequestError, match="DDIMScheduler does not support this flow-matching model"):
            last(flow_engine.generate(request(scheduler="ddim")))


def test_long_prompt_is_rejected():
    with pytest.raises(RequestError, match="at most 200 characters"):
        request(prompt="x" * 201)


class TestGenerationRequest:
    @pytest.mark.parametrize(
        "name, value",
        [
            ("num_images", 0),
            ("num_images", 41),
            ("num_images", 2.5),
            ("num_inference_steps", 101),
            ("num_inference_steps", "20"),
            ("num_inference_steps", None),
            ("guidance_scale", 0.5),
            ("guidance_scale", float("nan")),
            ("guidance_scale", None),
            ("seed", -1),
            ("seed", 2**32),
            ("seed", 3.7),
            ("seed", float("nan")),
            ("seed", True),
        ],
    )
    def test_values_outside_the_limits_are_rejected(self, name, value):
        with pytest.raises(RequestError, match=r"^The .* must be .*from .* to .*, got .*\.$"):
            request(**{name: value})

    def test_whole_numbers_may_be_floats(self):
        config = request(num_images=3.0, seed=7.0)
        assert config == request(num_images=3, seed=7)
        assert isinstance(config.seed, int)


class TestGetLabels:
    def test_labels_are_assigned_in_turn(self, tiny):
        assert tiny.get_labels(request(labels=("Bag", "Dress"), num_images=3)) == ["Bag", "Dress", "Bag"]

    def test_captions_contain_valid_seeds(self, spec):
        captions = spec.get_captions(request(num_images=3, seed=2**32 - 2))
        assert captions == ["seed 4294967294", "seed 4294967295", "seed 0"]

    def test_without_labels_all_classes_are_used(self, tiny):
        expected = [*FASHION_MNIST_LABELS, *FASHION_MNIST_LABELS[:2]]
        assert tiny.get_labels(request(num_images=12)) == expected

    def test_unknown_label_is_rejected(self, tiny):
        with pytest.raises(RequestError, match=r"^The classes must be among T-shirt/top, .*, Ankle boot\.$"):
            tiny.get_labels(request(labels=("Hat",)))

    def test_unconditional_model_has_no_labels(self, spec):
        assert spec.get_labels(request()) == []
        with pytest.raises(RequestError, match="This model is not class-conditional"):
            spec.get_labels(request(labels=("Bag",)))


class TestGenerate:
    def test_images_equal_those_of_the_pipeline(self, tiny, model_folder):
        steps = list(tiny.generate(request(labels=("Bag", "Dress"), num_images=3, guidance_scale=2.0, seed=5)))
        pipe = load_pipeline(model_folder)
        pipe.set_progress_bar_config(disable=True)
        kwargs = {"num_inference_steps": 3, "guidance_scale": 2.0, "generator": make_generators(5, 3)}
        assert difference(steps[-1].images, pipe(["Bag", "Dress", "Bag"], **kwargs).images) <= 1

    def test_steps_go_from_noise_to_image(self, tiny):
        steps = list(tiny.generate(request(guidance_scale=2.0)))
        assert [step.number for step in steps] == [0, 1, 2, 3]
        assert {step.total for step in steps} == {3}
        # Guidance doubles the number of function evaluations.
        assert [step.num_function_evaluations for step in steps] == [2, 4, 6, 6]
        assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)
        noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        pixels = ((noise[0, 0] / 2 + 0.5).clamp(0, 1) * 255).round().numpy()
        assert abs(arrays(steps[0].images)[0] - pixels).max() <= 1

    @pytest.mark.parametrize("scheduler", layout.SCHEDULER_CHOICES[1:])
    def test_schedulers_of_the_page_work(self, base, scheduler):
        step = last(base.generate(request(labels=("Coat",), num_images=1, scheduler=scheduler)))
        assert step.num_function_evaluations == 3
        assert arrays(step.images).std() > 5

    def test_predicted_images_converge(self, spec):
        steps = list(spec.generate(request(num_inference_steps=10, seed=3)))
        changes = [abs(arrays(a.predicted) - arrays(b.predicted)).mean() for a, b in itertools.pairwise(steps)]
        assert changes[0] > 5 * changes[-2]

    def test_unsupported_scheduler_is_explained(self, base):
        with pytest.raises(RequestError, match="HeunDiscreteScheduler does not support this model, whose"):
            last(base.generate(request(scheduler="heun")))
        with pytest.raises(RequestError, match="Could not find the scheduler 'magic'"):
            last(base.generate(request(scheduler="magic")))

    def test_unsupported_model_is_explained(self, tmp_path):
        engine = Engine(str(save_pipeline(tmp_path, DDPMScheduler(prediction_type="sample"))))
        with pytest.raises(RequestError, match="EulerAncestralDiscreteScheduler does not support this model"):
            last(engine.generate(request(scheduler="euler_a")))

    def test_concurrent_requests_are_independent(self, tiny):
        requests = [
            request(labels=("Bag",), num_inference_steps=12, scheduler="ddpm", seed=1),
            request(labels=("Dress",), num_images=3, scheduler="dpmsolver++", guidance_scale=3.0, seed=2),
            request(labels=("Coat",), num_inference_steps=15, seed=3),
            request(num_images=4, num_inference_steps=7, scheduler="unipc", guidance_scale=2.0, seed=4),
        ]
        expected = [last(tiny.generate(request)).images for request in requests]
        results: dict[int, list] = {}

        def run(i: int) -> None:
            results[i] = last(tiny.generate(requests[i])).images

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(difference(images, results[i]) <= 1 for i, images in enumerate(expected))

    def test_closing_the_generator_ends_the_thread(self, tiny, slow_evaluations):
        steps = tiny.generate(request(num_inference_steps=100))
        next(steps)
        steps.close()
        slow_evaluations[0].join(timeout=60)
        assert len(slow_evaluations) < 100

    def test_slow_request_is_an_error(self, tiny):
        with pytest.raises(RequestError, match=r"took more than 0 seconds\. Use fewer images or steps"):
            list(tiny.generate(request(num_images=40, num_inference_steps=100), max_seconds=0.05))

    def test_model_is_not_changed(self, tiny):
        before = {name: value.clone() for name, value in tiny.pipe.unet.state_dict().items()}
        scheduler, config = tiny.pipe.scheduler, dict(tiny.pipe.scheduler.config)
        list(tiny.generate(request(scheduler="unipc")))
        assert tiny.pipe.scheduler is scheduler
        assert dict(scheduler.config) == config
        assert not tiny.pipe.unet.training
        assert all(torch.equal(value, before[name]) for name, value in tiny.pipe.unet.state_dict().items())


class TestInterpolate:
    @pytest.mark.parametrize("scheduler", [None, "ddim"])
    @pytest.mark.parametrize("labels", [("Bag", "Dress"), ("Bag", "Bag")])
    def test_ends_equal_generated_images(self, tiny, scheduler, labels):
        config = request(labels=labels, num_images=5, num_inference_steps=6, scheduler=scheduler, seed=3)
        images = last(tiny.interpolate(config, (3, 9))).images
        assert len(images) == 5
        for image, label, seed in ((images[0], labels[0], 3), (images[-1], labels[-1], 9)):
            alone = last(tiny.generate(replace(config, labels=(label,), num_images=1, seed=seed))).images
            assert difference([image], alone) <= 1

    def test_unconditional_model_can_interpolate(self, spec):
        step = last(spec.interpolate(request(num_images=3), (1, 2)))
        assert len(step.images) == 3
        assert step.num_function_evaluations == 3

    @pytest.mark.parametrize("scheduler", [*layout.INTERPOLATION_SCHEDULERS[1:], "ddpm"])
    def test_page_offers_the_schedulers_that_work(self, base, scheduler):
        steps = base.interpolate(request(labels=("Bag", "Coat"), scheduler=scheduler), (1, 2))
        if scheduler in layout.INTERPOLATION_SCHEDULERS:
            assert last(steps).num_function_evaluations == 6
        else:
            with pytest.raises(RequestError, match="noise that cannot be interpolated"):
                last(steps)


class TestImageToImage:
    def test_strength_determines_the_change(self, spec):
        image = Image.open(uploads.EXAMPLES["Sneaker"])
        changes = []
        for strength in (0.1, 0.5, 1.0):
            step = last(spec.generate(request(num_inference_steps=20), image, strength))
            assert step.total == round(20 * strength)
            changes.append(abs(arrays(step.images) - arrays([image])).mean())
        assert changes[0] < 15 < changes[2]
        assert changes == sorted(changes)

    @pytest.mark.parametrize("strength", [0, -1, 1.5, None, "half", float("nan")])
    def test_invalid_strength_is_rejected(self, tiny, strength):
        with pytest.raises(RequestError, match="The strength must be greater than 0"):
            list(tiny.generate(request(), Image.new("L", (8, 8)), strength))

    def test_unsupported_scheduler_is_explained(self, tiny):
        with pytest.raises(RequestError, match="PNDMScheduler cannot start from an `image`"):
            list(tiny.generate(request(num_inference_steps=20, scheduler="pndm"), Image.new("L", (8, 8)), 0.5))


class TestZeroGPU:
    """ZeroGPU runs a forked process and pickles the arguments and the results."""

    def test_pickle_contains_no_weights(self, tiny):
        pickled = pickle.dumps((tiny, request(), {"generator": make_generators(3, 1)}))
        assert len(pickled) < 50_000
        received, _, kwargs = pickle.loads(pickled)
        assert received is tiny
        assert kwargs["generator"][0].get_state().equal(make_generators(3, 1)[0].get_state())

    def test_errors_can_be_pickled(self, tiny, monkeypatch):
        monkeypatch.setattr(engine.FashionMNISTPipeline, "__call__", lambda *args, **kwargs: time.sleep(5))
        (item,) = tiny._run("__call__", request(num_images=1), {}, max_seconds=0.0)
        assert str(pickle.loads(pickle.dumps(item))) == str(item)


class TestMetrics:
    @pytest.mark.parametrize("content", ["{", "{}", "[]", '{"metrics": {"fid_train": 2}}', '{"accuracy": 0.9}'])
    def test_files_of_other_programs_are_ignored(self, model_folder, tmp_path, content):
        folder = shutil.copytree(model_folder, tmp_path / "model")
        (folder / "metrics.json").write_text(content)
        assert Engine(str(folder)).metrics is None

    def test_metrics_of_a_bundled_checkpoint_are_read(self, spec):
        assert spec.metrics["metrics"].keys() >= METRICS["metrics"].keys() - {"class_accuracy"}

    def test_checkpoint_without_metrics_returns_none(self, tiny):
        assert tiny.metrics is None
