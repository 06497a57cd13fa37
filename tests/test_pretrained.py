"""The bundled checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, LCMScheduler
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, bundled_pipelines, load_pipeline
from fmnist_diffusion.captions.measures import measure_brightness
from fmnist_diffusion.data import to_uint8
from fmnist_diffusion.evaluation import Classifier
from fmnist_diffusion.loading import PRETRAINED_DIR
from fmnist_diffusion.metadata import weights_hash
from fmnist_diffusion.models import unet_fmnist
from fmnist_diffusion.pipelines import pipeline_fmnist
from fmnist_diffusion.schedulers import make_scheduler


TIMESTEP_POWERS = {"base": 1.2, "fast": 2.0, "spec": 1.5, "text": 1.2}
NUM_STEPS = {"base": 20, "fast": 4, "spec": 20, "text": 20}
TEXT_COMPONENTS = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
# Prompt i requests class i.
PROMPTS = [
    "a T-shirt with sleeves",
    "wide trousers",
    "a dark pullover",
    "a sleeveless dress",
    "a bright coat",
    "a flat sandal",
    "a shirt with long sleeves",
    "a low-top sneaker",
    "a bag with a handle",
    "an ankle boot with a high heel",
]
NAMES = pytest.mark.parametrize("name", bundled_pipelines())


def load(name: str) -> FashionMNISTPipeline:
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, conditions: dict[str, Any], seeds=range(10), **kwargs) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pipe.set_progress_bar_config(disable=True)
    num_images = 1 if conditions else len(generators)
    kwargs |= {"num_images_per_prompt": num_images, "generator": generators, "output_type": "latent"}
    return pipe(**conditions, **kwargs).images


def get_conditions(name: str, count: int = 10) -> dict[str, Any]:
    """Returns the pipeline arguments for one image of each of the first `count` classes."""
    if name == "spec":
        return {}
    return {"prompt": PROMPTS[:count]} if name == "text" else {"class_labels": list(range(count))}


def test_four_checkpoints_are_bundled():
    assert bundled_pipelines() == tuple(TIMESTEP_POWERS)


def read_config(path: Path) -> dict[str, Any]:
    """Reads a config without the version of the library that saved it."""
    config = json.loads(path.read_text())
    return {key: value for key, value in config.items() if key not in ("_diffusers_version", "transformers_version")}


class TestImages:
    @NAMES
    def test_images_equal_the_reference_images(self, name):
        """The images of a checkpoint must not change between versions."""
        expected = load_file(Path(__file__).parent / "fixtures" / "reference_images.safetensors")[name]
        images = sample(load(name), get_conditions(name))
        # The last bits of floating-point results differ between CPUs.
        assert_close(images, expected, atol=1e-4, rtol=0)
        assert (to_uint8(images).int() - to_uint8(expected).int()).abs().max() <= 1

    @pytest.mark.parametrize("name", ["base", "spec"])
    def test_plain_denoising_loop_generates_the_same_images(self, name):
        unet = FashionMNISTUNet2DModel.from_pretrained(PRETRAINED_DIR / name, subfolder="unet").eval()
        config = json.loads((PRETRAINED_DIR / name / "scheduler" / "scheduler_config.json").read_text())
        scheduler = DPMSolverMultistepScheduler(
            beta_schedule=config["beta_schedule"],
            prediction_type=config["prediction_type"],
            rescale_betas_zero_snr=config["rescale_betas_zero_snr"],
            algorithm_type="sde-dpmsolver++",
        )
        timesteps = [math.floor(1000 * (k / 20) ** TIMESTEP_POWERS[name] - 0.5) for k in range(20, 0, -1)]
        scheduler.set_timesteps(timesteps=timesteps)
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        images = torch.cat([torch.randn(1, 1, 28, 28, generator=generator) for generator in generators])
        conditions = get_conditions(name, 4)
        inputs = {argument: torch.tensor(labels) for argument, labels in conditions.items()}
        with torch.no_grad():
            for t in scheduler.timesteps:
                prediction = unet(images, t, **inputs).sample
                images = scheduler.step(prediction, t, images, generator=generators).prev_sample
        assert torch.equal(sample(load(name), conditions, seeds=range(4)), images)

    @pytest.mark.parametrize(("num_steps", "timesteps"), [(1, [999]), (2, [999, 249]), (4, [999, 562, 249, 62])])
    def test_fast_predicts_images_and_adds_noise(self, num_steps, timesteps):
        """Multistep consistency sampling (arXiv 2303.01469, algorithm 1) with the stored noise schedule."""
        pipe = load("fast")
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        scheduler = LCMScheduler.from_pretrained(PRETRAINED_DIR / "fast", subfolder="scheduler")
        predicted = torch.zeros(4, 1, 28, 28)
        for t in timesteps:
            noise = torch.cat([torch.randn(1, 1, 28, 28, generator=generator) for generator in generators])
            alpha, sigma = scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()
            noisy = alpha * predicted + sigma * noise
            with torch.no_grad():
                velocity = pipe.unet(noisy, t, torch.arange(4)).sample
            predicted = (alpha * noisy - sigma * velocity).clamp(-1, 1)
        images = sample(pipe, get_conditions("fast", 4), seeds=range(4), num_inference_steps=num_steps)
        # LCMScheduler also adds a small multiple of the noisy images (`get_scalings_for_boundary_condition_discrete`).
        assert_close(images, predicted, atol=1e-2, rtol=0)

    @NAMES
    @pytest.mark.usefixtures("dynamic_modules")
    def test_all_ways_of_loading_give_the_same_images(self, name, diffusers_log):
        folder, conditions = PRETRAINED_DIR / name, get_conditions(name, 2)
        expected = sample(load_pipeline(name), conditions, seeds=range(2))
        for pipe in (
            FashionMNISTPipeline.from_pretrained(folder),
            load_pipeline(folder),
            DiffusionPipeline.from_pretrained(folder, trust_remote_code=True),
            DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True),
        ):
            assert torch.equal(sample(pipe, conditions, seeds=range(2)), expected)
        assert [record.message for record in diffusers_log.records] == []

    @pytest.mark.parametrize(("name", "num_steps"), [("base", 20), ("fast", 4), ("fast", 2), ("text", 20)])
    def test_images_belong_to_the_requested_classes(self, name, num_steps):
        conditions = {argument: values * 3 for argument, values in get_conditions(name).items()}
        images = to_uint8(sample(load(name), conditions, seeds=range(30), num_inference_steps=num_steps))
        classifier = Classifier()
        assert (classifier.classify(classifier(images)) == torch.arange(10).repeat(3)).float().mean() > 0.7

    def test_text_follows_the_requested_brightness(self):
        pipe = load("text")
        prompts = [f"a {word} pullover" for word in ("dark", "bright") for _ in range(16)]
        images = sample(pipe, {"prompt": prompts}, seeds=[*range(16)] * 2, num_inference_steps=10)
        dark, bright = measure_brightness(to_uint8(images)[:, 0]).chunk(2)
        assert (bright > dark).float().mean() > 0.8

    @pytest.mark.parametrize("scheduler", [None, "ddim"])
    def test_spec_generates_centered_garments(self, scheduler):
        pipe = load("spec")
        if scheduler is not None:
            pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
        num_steps = None if scheduler is None else 50
        images = (sample(pipe, {}, seeds=range(8), num_inference_steps=num_steps) / 2 + 0.5).clamp(0, 1)
        # Garments are bright and centered on black: real images have a mean of 0.57 in the center and below 0.001 in
        # the corners.
        corners = torch.stack([images[..., y, x] for y in (0, -1) for x in (0, -1)])
        assert corners.mean() < 0.1
        assert images[..., 10:18, 10:18].mean() > 0.25
        assert images.flatten(1).std(0).mean() > 0.1, "the images must differ"

    @pytest.mark.parametrize("name", [name for name in bundled_pipelines() if name != "text"])
    def test_stock_pipeline_generates_the_same_images(self, name):
        folder = PRETRAINED_DIR / name
        scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        unet = FashionMNISTUNet2DModel.from_pretrained(folder, subfolder="unet")
        stock = DDPMPipeline(unet=unet, scheduler=scheduler)
        stock.set_progress_bar_config(disable=True)
        images = stock(num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
        ours = FashionMNISTPipeline(unet, scheduler)
        ours.set_progress_bar_config(disable=True)
        expected = ours(num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
        assert np.abs(images - expected).max() < 1e-4


class TestFiles:
    @NAMES
    def test_model_index_names_the_classes_and_sampling_defaults(self, name):
        assert read_config(PRETRAINED_DIR / name / "model_index.json") == {
            "_class_name": ["pipeline_fmnist", "FashionMNISTPipeline"],
            "unet": ["unet_fmnist", "FashionMNISTUNet2DModel"],
            "scheduler": ["diffusers", "LCMScheduler" if name == "fast" else "DPMSolverMultistepScheduler"],
            "num_inference_steps": NUM_STEPS[name],
            "timestep_power": TIMESTEP_POWERS[name],
            **(
                TEXT_COMPONENTS
                if name == "text"
                else {"auto_map": {"AutoModel": "unet_fmnist.FashionMNISTUNet2DModel"}}
            ),
        }

    @NAMES
    def test_bundled_code_equals_the_package(self, name):
        for path, module in (("pipeline_fmnist.py", pipeline_fmnist), ("unet/unet_fmnist.py", unet_fmnist)):
            assert (PRETRAINED_DIR / name / path).read_bytes() == Path(str(module.__file__)).read_bytes()

    @NAMES
    def test_saving_reproduces_the_configs(self, name, tmp_path):
        load_pipeline(name).save_pretrained(tmp_path)
        for path in tmp_path.rglob("*.json"):
            bundled = PRETRAINED_DIR / name / path.relative_to(tmp_path)
            assert read_config(path) == read_config(bundled)

    @NAMES
    def test_checkpoint_has_float16_weights_settings_and_samples(self, name):
        folder = PRETRAINED_DIR / name
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        assert weights.stat().st_size <= 30e6
        with safe_open(weights, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert json.loads((folder / "train_config.json").read_text())["progress"]["global_step"] > 0
        assert (folder / "images" / "samples.png").is_file()

    @NAMES
    def test_metrics_belong_to_the_weights(self, name):
        paths = sorted((PRETRAINED_DIR / name).glob("metrics*.json"))
        evaluations = [json.loads(path.read_text()) for path in paths]
        num_steps = [evaluation["num_inference_steps"] for evaluation in evaluations]
        assert num_steps == ([1, 2, 4] if name == "fast" else [20])
        for metrics in evaluations:
            assert metrics["num_samples"] >= 10_000
            assert metrics["metrics"]["fid_train"] > 0
            pipe = load_pipeline(name, dtype=getattr(torch, metrics["dtype"]))
            assert metrics["weights_sha256"] == weights_hash(pipe)

    def test_architecture_of_spec_is_the_default(self):
        defaults = json.loads(FashionMNISTUNet2DModel().to_json_string())
        del defaults["_diffusers_version"]
        assert read_config(PRETRAINED_DIR / "spec" / "unet" / "config.json") == defaults
