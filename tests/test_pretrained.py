"""The bundled checkpoints: small, whole, and what they say they are."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from safetensors import safe_open

from fmnist_diffusion import FashionMNISTUNet2DModel, bundled_pipelines, load_pipeline
from fmnist_diffusion.evaluation import Classifier
from fmnist_diffusion.evaluation.evaluate import pipeline_hash
from fmnist_diffusion.hub import PRETRAINED_DIR


@pytest.mark.parametrize("name", bundled_pipelines())
def test_each_is_float16_of_at_most_30_mb_and_says_how_it_was_trained(name: str):
    folder = PRETRAINED_DIR / name
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size <= 30e6
    with safe_open(weights, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert json.loads((folder / "train_config.json").read_text())["progress"]["global_step"] > 0
    assert (folder / "images" / "samples.png").is_file()


@pytest.mark.parametrize("name", bundled_pipelines())
def test_each_was_measured_with_the_weights_that_it_has(name: str):
    measured = json.loads((PRETRAINED_DIR / name / "metrics.json").read_text())
    assert measured["num_samples"] >= 10_000
    assert measured["metrics"]["fid_train"] > 0
    assert measured["unet_sha256"] == pipeline_hash(load_pipeline(name, dtype=getattr(torch, measured["dtype"])))


def test_spec_is_the_specification():
    defaults = json.loads(FashionMNISTUNet2DModel().to_json_string())
    assert json.loads((PRETRAINED_DIR / "spec" / "unet" / "config.json").read_text()) == defaults


def test_a_bundled_folder_loads_as_any_folder_without_remote_code():
    pipe = DiffusionPipeline.from_pretrained(PRETRAINED_DIR / "spec")
    assert type(pipe) is DDPMPipeline
    assert type(pipe.unet) is FashionMNISTUNet2DModel


def test_base_draws_the_class_that_it_is_told():
    pipe = load_pipeline("base")
    pipe.set_progress_bar_config(disable=True)
    labels = [*range(10)] * 8
    images = pipe(class_labels=labels, num_inference_steps=20, generator=torch.manual_seed(0), output_type="pt").images
    classifier = Classifier()
    features = classifier((255 * images).round().to(torch.uint8))
    assert (classifier.classify(features) == torch.tensor(labels)).float().mean() > 0.7


def test_spec_draws_pictures_like_those_of_the_data():
    pipe = load_pipeline("spec")
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        num_images_per_prompt=8, num_inference_steps=50, generator=torch.manual_seed(0), output_type="pt"
    ).images
    # Black around a centred, brighter thing: in the data the corners have a mean below 0.001, the middle 0.57.
    corners = torch.stack([images[..., y, x] for y in (0, -1) for x in (0, -1)])
    assert corners.mean() < 0.1
    assert images[..., 10:18, 10:18].mean() > 0.25
    assert images.flatten(1).std(0).mean() > 0.1, "all pictures are alike"
