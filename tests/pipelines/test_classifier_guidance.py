"""Classifier guidance."""

import json
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from gaussian_classes import make_mixture_pipeline, tilted_mean
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.metadata import weights_hash
from fmnist_diffusion.sampling import SamplingConfig, generate, make_generators
from fmnist_diffusion.schedulers import make_scheduler
from text_pipelines import get_text_pipeline
from tiny_pipelines import get_pipeline, make_classifier, make_unet, sample


LABELS = [0, 2, 1]
SCHEDULERS = ["ddim", "pndm", "dpmsolver++", "unipc", "deis", "euler", "heun", "LMSDiscreteScheduler"]
FLOW_SCHEDULERS = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "dpmsolver++", "unipc"]


@pytest.fixture
def pipe() -> FashionMNISTPipeline:
    """A class-conditional pipeline with a classifier."""
    return get_pipeline(classifier=make_classifier())


@pytest.fixture
def unconditional_pipe() -> FashionMNISTPipeline:
    return get_pipeline(classifier=make_classifier(), num_class_embeds=None)


def run(pipe: FashionMNISTPipeline, **kwargs: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Returns the images and, for each step, the timestep, the model input and the predicted x0."""
    steps = []

    def save(pipe, step, timestep, tensors):
        steps.append({"timestep": timestep, **{name: tensor.clone() for name, tensor in tensors.items()}})

    names = ["model_input", "pred_original_sample"]
    settings = {"output_type": "latent", "callback_on_step_end": save, "callback_on_step_end_tensor_inputs": names}
    images = pipe(**settings, **{"generator": torch.manual_seed(0), **kwargs}).images
    return images, steps


class TestExactClassifier:
    @pytest.mark.parametrize("scale", [1.0, 2.5, -0.5])
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "flow_prediction"])
    def test_score_is_that_of_the_tilted_distribution(self, prediction_type, scale):
        scheduler = "FlowMatchEulerDiscreteScheduler" if prediction_type == "flow_prediction" else "ddim"
        pipe = make_mixture_pipeline(scheduler, prediction_type)
        _, steps = run(pipe, class_labels=LABELS, classifier_guidance_scale=scale, num_inference_steps=8)
        # Flow matching starts from pure noise, which contains no information about the class.
        for step in steps[1:] if prediction_type == "flow_prediction" else steps:
            coefficients = pipe.unet.get_coefficients(float(step["timestep"]))
            expected = tilted_mean(step["model_input"], *coefficients, LABELS, scale)
            assert_close(step["pred_original_sample"], expected.clamp(-1, 1), atol=2e-4, rtol=0)

    @pytest.mark.parametrize(
        ("scheduler", "prediction_type"),
        [(name, "epsilon") for name in SCHEDULERS] + [(name, "flow_prediction") for name in FLOW_SCHEDULERS],
    )
    @pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
    def test_both_kinds_of_guidance_give_the_same_images(self, scheduler, prediction_type):
        settings = {"class_labels": LABELS, "num_inference_steps": 10, "output_type": "latent"}
        if prediction_type == "flow_prediction":
            # At pure noise, classifier guidance has no effect.
            settings["guidance_interval"] = (0.25, 1.0)
        images = [
            make_mixture_pipeline(scheduler, prediction_type, num_class_embeds)(
                generator=torch.manual_seed(0), **settings, **scales
            ).images
            for num_class_embeds, scales in (
                (3, {"guidance_scale": 2.0}),
                (3, {"guidance_scale": 0.0, "classifier_guidance_scale": 2.0}),
                (3, {"guidance_scale": 1.5, "classifier_guidance_scale": 0.5}),
                (None, {"classifier_guidance_scale": 2.0}),
            )
        ]
        if prediction_type == "flow_prediction":
            # Outside the interval, only a class-conditional model receives the labels.
            images[3] = images[0]
        for other in images[1:]:
            assert_close(other, images[0], atol=2e-3, rtol=0)

    def test_guided_samples_have_the_class(self):
        pipe = make_mixture_pipeline("ddim", "v_prediction")
        images, _ = run(pipe, class_labels=LABELS, classifier_guidance_scale=1.0, num_inference_steps=20)
        logits = pipe.classifier(images, torch.tensor(0))
        assert logits.argmax(1).tolist() == LABELS
        unguided, _ = run(pipe, num_images_per_prompt=3, num_inference_steps=20)
        assert pipe.classifier(unguided, torch.tensor(0)).argmax(1).tolist() != LABELS


def test_gradient_equals_finite_differences(pipe):
    """The classifier has random weights, and the model predicts no noise."""
    pipe.scheduler = DPMSolverMultistepScheduler()
    for parameter in pipe.unet.parameters():
        torch.nn.init.zeros_(parameter)
    timestep, scale, latents = 300, 0.05, 0.1 * torch.randn(2, 1, 8, 8)
    predicted = []
    for classifier_guidance_scale in (0.0, scale):
        _, (step,) = run(
            pipe, class_labels=[3, 7], timesteps=[timestep], latents=latents,
            classifier_guidance_scale=classifier_guidance_scale,
        )  # fmt: skip
        predicted.append(step["pred_original_sample"])
    alpha_cumprod = float(pipe.scheduler.alphas_cumprod[timestep])
    gradient = (predicted[1] - predicted[0]) / scale * alpha_cumprod**0.5 / (1 - alpha_cumprod)
    classifier, direction, h = pipe.classifier.double(), torch.randn(2, 1, 8, 8).double(), 1e-5

    @torch.no_grad()
    def log_prob(images):
        return classifier(images, timestep).log_softmax(1)[[0, 1], [3, 7]]

    noisy = step["model_input"].double()
    expected = (log_prob(noisy + h * direction) - log_prob(noisy - h * direction)) / (2 * h)
    assert expected.abs().min() > 1e-3
    assert_close((gradient.double() * direction).sum((1, 2, 3)), expected, atol=1e-4, rtol=1e-3)


class TestScale:
    def test_scale_0_gives_the_images_of_a_pipeline_without_classifier(self, pipe):
        for settings in ({"class_labels": [3, 4]}, {"class_labels": 3, "guidance_scale": 2.0}, {}):
            expected = sample(get_pipeline(), **settings)
            assert torch.equal(sample(pipe, **settings), expected)
            if settings:
                disabled = {"classifier_guidance_scale": 2.0, "guidance_interval": (1.0, 1.0), "guidance_scale": 1.0}
                unguided = settings | {"guidance_scale": 1.0}
                assert torch.equal(sample(pipe, **settings | disabled), sample(get_pipeline(), **unguided))

    def test_guidance_scale_0_uses_the_unconditional_prediction(self, pipe):
        expected = sample(pipe, num_images_per_prompt=2)
        assert torch.equal(sample(pipe, [3, 4], guidance_scale=0.0), expected)
        assert pipe.num_function_evaluations == 2
        assert (sample(pipe, [3, 4], guidance_scale=0.0, classifier_guidance_scale=2.0) - expected).abs().max() > 1e-3
        assert pipe.num_function_evaluations == 2

    def test_callback_changes_the_scale(self, pipe):
        def disable(pipe, step, timestep, tensors):
            pipe._classifier_guidance_scale = 0.0

        first_step = {"classifier_guidance_scale": 3.0, "guidance_interval": (0.0, 0.5)}
        images = sample(pipe, 3, classifier_guidance_scale=3.0, callback_on_step_end=disable)
        assert torch.equal(images, sample(pipe, 3, **first_step))
        assert not torch.equal(images, sample(pipe, 3, classifier_guidance_scale=3.0))

    def test_pure_noise_is_not_guided(self, pipe):
        pipe.scheduler = DDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
        for num_inference_steps, is_guided in ((1, False), (2, True)):
            images = [
                sample(pipe, 3, classifier_guidance_scale=scale, num_inference_steps=num_inference_steps)
                for scale in (0.0, 4.0)
            ]
            assert images[1].isfinite().all()
            assert torch.equal(*images) is not is_guided

    # DPM-Solver starts at a noise level slightly below pure noise.
    @pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "dpmsolver++", "unipc"])
    def test_pure_noise_of_flow_matching_is_not_guided(self, name):
        config = FlowMatchEulerDiscreteScheduler().config
        pipe = get_pipeline(make_scheduler(name, config), classifier=make_classifier())
        images = [sample(pipe, 3, classifier_guidance_scale=scale, num_inference_steps=1) for scale in (0.0, 4.0)]
        assert torch.equal(*images)


class TestLabels:
    @pytest.mark.parametrize("name", ["pipe", "unconditional_pipe"])
    def test_each_image_is_guided_to_its_label(self, name, request):
        pipe = request.getfixturevalue(name)
        settings = {"classifier_guidance_scale": 2.0, "output_type": "pt"}
        images = pipe(["Bag", 3], generator=make_generators(0, 2), **settings).images
        for i, label in enumerate([8, 3]):
            expected = pipe(label, generator=make_generators(i, 1), **settings).images
            assert_close(images[i : i + 1], expected, atol=1e-4, rtol=0)
        other = pipe([8, 4], generator=make_generators(0, 2), **settings).images
        assert_close(other[0], images[0], atol=1e-4, rtol=0)
        assert (other[1] - images[1]).abs().max() > 1e-3

    def test_unconditional_model_has_the_classes_of_the_classifier(self):
        classifier = make_classifier(num_classes=2, label_names=("cat", "dog"))
        pipe = get_pipeline(classifier=classifier, num_class_embeds=None)
        assert (pipe.num_classes, pipe.label_names, pipe.is_conditional) == (2, ("cat", "dog"), False)
        images = [sample(pipe, label, classifier_guidance_scale=2.0) for label in ("Dog", 1)]
        assert torch.equal(*images)
        with pytest.raises(ValueError, match="an index from 0 to 1 or one of cat, dog, got 2"):
            pipe(2, classifier_guidance_scale=1.0)

    def test_generate_guides_each_image(self, unconditional_pipe):
        settings: dict[str, Any] = {"class_labels": [4, 2], "classifier_guidance_scale": 2.0}
        (samples,) = generate(unconditional_pipe, SamplingConfig(seed=5), 3, **settings)
        (last,) = generate(unconditional_pipe, SamplingConfig(seed=5), 1, **settings, start=2)
        assert samples.labels.tolist() == [4, 2, 4]
        assert samples.num_function_evaluations == 3 * 2
        assert (samples.images[2].int() - last.images[0].int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 3, "classifier_guidance_scale": float("nan")}, "must be a finite number, got nan"),
        ({"classifier_guidance_scale": 1.0}, r"must be 0\.0 without `class_labels`, got 1\.0\. Pass `class_labels`"),
    ],
)
def test_invalid_arguments_are_errors(pipe, arguments, message):
    with pytest.raises(ValueError, match=f"`classifier_guidance_scale` {message}"):
        pipe(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"class_labels": 3},
            "only supports `class_labels` with classifier guidance. Pass `classifier_guidance_scale`, or",
        ),
        (
            {"class_labels": 3, "classifier_guidance_scale": 1.0, "guidance_scale": 2.0},
            r"`guidance_scale` must be 1\.0 for an unconditional model, got 2\.0",
        ),
    ],
)
def test_invalid_arguments_of_an_unconditional_model_are_errors(unconditional_pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        unconditional_pipe(**arguments)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_classes": 4}, r"as many classes as the model \(10\), got 4"),
        ({"in_channels": 3}, r"as many input channels as the model \(1\), got 3"),
        ({"label_names": list("abcdefghij")}, r"the classes of the model \(T-shirt/top, .*\), got a, b, c"),
    ],
)
def test_classifier_that_does_not_fit_the_model_is_an_error(config, message):
    pipe = get_pipeline(classifier=make_classifier(**config))
    with pytest.raises(ValueError, match=message):
        pipe(3, classifier_guidance_scale=1.0)


def test_guidance_requires_a_classifier():
    for pipe in (get_pipeline(), get_text_pipeline()):
        with pytest.raises(
            ValueError,
            match=r"for a pipeline without a classifier, got 1\.0\. Omit it, or load a pipeline with a classifier",
        ):
            pipe(3, classifier_guidance_scale=1.0)


def test_interpolation_ignores_the_classifier(pipe, unconditional_pipe):
    images = pipe.interpolate([3, 4], num_images=2, output_type="pt").images
    assert torch.equal(images, get_pipeline().interpolate([3, 4], num_images=2, output_type="pt").images)
    with pytest.raises(ValueError, match="`interpolate` does not support `class_labels` for an unconditional"):
        unconditional_pipe.interpolate([3, 4])


def test_inpainting_and_image_to_image_are_guided(pipe):
    image, mask = torch.rand(1, 8, 8), torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    for settings in ({"image": image, "strength": 1.0}, {"image": image, "mask_image": mask}):
        guided, unguided = (sample(pipe, 3, classifier_guidance_scale=scale, **settings) for scale in (4.0, 0.0))
        assert (guided - unguided)[..., :4, :].abs().max() > 1e-3
        if "mask_image" in settings:
            assert torch.equal(guided[..., 4:, :], unguided[..., 4:, :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inference_mode_and_half_precision_are_supported(pipe, dtype):
    pipe.to(dtype)
    expected = sample(pipe, 3, classifier_guidance_scale=2.0)
    with torch.inference_mode():
        assert torch.equal(sample(pipe, 3, classifier_guidance_scale=2.0), expected)
    assert expected.dtype == torch.float32
    assert all(parameter.grad is None for parameter in pipe.classifier.parameters())


@pytest.mark.usefixtures("dynamic_modules")
class TestSaving:
    def test_round_trips_keep_the_images_and_log_nothing(self, pipe, tmp_path, diffusers_log, caplog):
        expected = sample(pipe, 3, classifier_guidance_scale=2.0)
        pipe.save_pretrained(tmp_path / "0")
        index = json.loads((tmp_path / "0" / "model_index.json").read_text())
        assert index["classifier"] == ["unet_fmnist", "FashionMNISTGuidanceClassifier"]
        loaders = [load_pipeline, lambda folder: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)]
        for i, load in enumerate(loaders):
            again: Any = load(tmp_path / str(i))
            again.set_progress_bar_config(disable=True)
            assert not again.classifier.training
            # Rounding errors depend on the alignment of the loaded weights in memory.
            assert_close(sample(again, 3, classifier_guidance_scale=2.0), expected, rtol=0, atol=1e-5)
            again.save_pretrained(tmp_path / str(i + 1))
        folders = [tmp_path / str(i) for i in range(3)]
        files = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in folders]
        assert files[0] == files[1] == files[2]
        for path in folders[2].rglob("*.json"):
            assert "_name_or_path" not in path.read_text()
        assert not diffusers_log.records
        assert not caplog.records

    def test_variant_and_dtype_are_kept(self, pipe, tmp_path):
        pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
        again = load_pipeline(tmp_path, variant="fp16", dtype={"classifier": torch.float16})
        assert (again.classifier.dtype, again.unet.dtype) == (torch.float16, torch.float32)

    def test_from_pipe_and_components_keep_the_classifier(self, pipe):
        assert FashionMNISTPipeline.from_pipe(pipe).classifier is pipe.classifier
        assert FashionMNISTPipeline(**pipe.components).classifier is pipe.classifier

    def test_passed_classifier_replaces_the_stored_one(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        other = make_classifier(block_out_channels=(4, 8))
        for classifier in (other, None):
            assert FashionMNISTPipeline.from_pretrained(tmp_path, classifier=classifier).classifier is classifier

    def test_registered_classifier_is_saved(self, tmp_path):
        pipe = get_pipeline()
        pipe.register_modules(classifier=make_classifier())
        pipe.save_pretrained(tmp_path)
        assert load_pipeline(tmp_path).classifier is not None

    def test_pipeline_without_classifier_does_not_list_one(self, tmp_path):
        get_pipeline().save_pretrained(tmp_path)
        assert "classifier" not in json.loads((tmp_path / "model_index.json").read_text())

    def test_repository_contains_the_classifier(self, pipe, hub):
        pipe.push_to_hub("someone/guided")
        expected = sample(pipe, 3, classifier_guidance_scale=2.0)
        for options in ({}, {"local_files_only": True}):
            again = load_pipeline("someone/guided", **options)
            again.set_progress_bar_config(disable=True)
            assert_close(sample(again, 3, classifier_guidance_scale=2.0), expected, rtol=0, atol=1e-5)


def test_group_offloading_gives_the_same_images(pipe, tmp_path):
    expected = sample(pipe, 3, classifier_guidance_scale=2.0)
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    assert_close(sample(pipe, 3, classifier_guidance_scale=2.0), expected)


def test_classifier_supports_an_automatic_device_map(tmp_path):
    make_classifier().save_pretrained(tmp_path)
    model = FashionMNISTGuidanceClassifier.from_pretrained(tmp_path, device_map="auto")
    assert set(model.hf_device_map.values()) == {"cpu"}


def test_hash_of_the_weights_depends_on_the_classifier(pipe):
    assert (
        len({weights_hash(p) for p in (pipe, get_pipeline(), FashionMNISTPipeline(make_unet(), DDIMScheduler()))}) == 2
    )
