"""Configs for datasets on the Hub, with random images in the format of these datasets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from fmnist_diffusion import load_pipeline
from latent_pipelines import make_vae
from parsing import parse_config
from resolve import resolve_config
from train import main


CONFIGS = Path(__file__).parents[2] / "training" / "configs"
CIFAR10_LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# These options make the model smaller and the run shorter. All other settings come from the config.
REDUCED = [
    "--model.block_out_channels=[8, 16]",
    "--model.attention_levels=[1]",
    "--model.attention_head_dim=8",
    "--model.norm_num_groups=4",
    "--train_batch_size=8",
    "--max_train_steps=2",
    "--samples.num_images=10",
    "--samples.num_inference_steps=2",
    "--report_to=none",
]


def generate_images(count: int, height: int, width: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def make_cifar10() -> dict[str, datasets.Dataset]:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CIFAR10_LABELS)})
    columns = {"img": generate_images(20, 32, 32), "label": [i % 10 for i in range(20)]}
    split = datasets.Dataset.from_dict(columns, features=features)
    return {"train": split, "test": split.select(range(10))}


def make_celeba() -> dict[str, datasets.Dataset]:
    features = datasets.Features({"image": datasets.Image()})
    return {"train": datasets.Dataset.from_dict({"image": generate_images(20, 218, 178)}, features=features)}


@pytest.mark.usefixtures("empty_plots")
@pytest.mark.parametrize(
    ("source", "preset", "dataset_name", "splits", "size", "label_names"),
    [
        ("hub", "cifar10", "uoft-cs/cifar10", make_cifar10, 32, CIFAR10_LABELS),
        ("parquet", "celeba", "nielsr/CelebA-faces", make_celeba, 64, None),
    ],
    ids=["cifar10", "celeba"],
)
def test_preset_trains_on_images_with_the_same_features(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reset_accelerate: Callable[[], None],
    source: str,
    preset: str,
    dataset_name: str,
    splits: Callable[[], dict[str, datasets.Dataset]],
    size: int,
    label_names: list[str] | None,
):
    settings = [f"--config={CONFIGS / preset}.yaml", f"--output_dir={tmp_path / 'run'}", *REDUCED]
    assert parse_config(settings).data.dataset_name == dataset_name
    if source == "parquet":
        (tmp_path / "data").mkdir()
        for name, split in splits().items():
            split.to_parquet(tmp_path / "data" / f"{name}-00000-of-00001.parquet")
        settings.append(f"--data.train_data_dir={tmp_path / 'data'}")
    else:
        monkeypatch.setattr("fmnist_diffusion.data.sources.load_hub_dataset", lambda name, *args: splits())
    reset_accelerate()
    main(settings)
    pipe = load_pipeline(tmp_path / "run" / "pipeline")
    assert pipe.label_names == (None if label_names is None else tuple(label_names))
    labels = None if label_names is None else ["cat"]
    images: Any = pipe(labels, num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, size, size)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("preset", ["cifar10", "celeba"])
def test_preset_flips_rgb_images(preset: str):
    config = parse_config([f"--config={CONFIGS / preset}.yaml"])
    assert config.data.augmentation == "flip"
    assert config.model.get("num_class_embeds") == (10 if preset == "cifar10" else None)


def test_flow_preset_trains_and_can_be_fine_tuned(
    tmp_path: Path,
    reset_accelerate: Callable[[], None],
    fashion_mnist_folder: Path,
    capsys: pytest.CaptureFixture[str],
):
    own = ["--compile=false", "--mixed_precision=no", "--eval.every_n_epochs=null", "--data.max_train_samples=32"]
    own.append(f"--data.train_data_dir={fashion_mnist_folder}")
    reset_accelerate()
    main([f"--config={CONFIGS / 'flow.yaml'}", f"--output_dir={tmp_path / 'run'}", *own, *REDUCED])
    pipeline = tmp_path / "run" / "pipeline"
    pipe = load_pipeline(pipeline)
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    images: Any = pipe(["Bag"], num_inference_steps=2, output_type="pt").images
    assert torch.isfinite(images).all()

    tuned = [f"--config={CONFIGS / 'finetune.yaml'}", f"--init_from={pipeline}", f"--output_dir={tmp_path / 'tuned'}"]
    config = parse_config(tuned)
    base = parse_config([f"--config={CONFIGS / 'flow.yaml'}"])
    assert (config.scheduler, config.objective) == (base.scheduler, base.objective)
    reset_accelerate()
    sizes = [option for option in REDUCED if not option.startswith("--model")]
    main([*tuned, *own, *sizes, "--scheduler.shift=2"])
    tuned_pipe = load_pipeline(tmp_path / "tuned" / "pipeline")
    assert tuned_pipe.scheduler.config["shift"] == 2

    for option, message in (
        ("--scheduler.num_train_timesteps=10", "`--scheduler.num_train_timesteps` must be 1000 to fine-tune"),
        ("--scheduler.timestep_spacing=trailing", "`--scheduler.timestep_spacing` must be 'leading' to fine-tune"),
        (
            "--scheduler.prediction_type=epsilon",
            "`--scheduler.prediction_type` must be 'flow_prediction' to fine-tune",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_config(parse_config([*tuned, *own, "--output_dir=" + str(tmp_path / "other"), option]))

    with pytest.raises(SystemExit):
        parse_config([f"--config={CONFIGS / 'distill.yaml'}", f"--init_from={pipeline}"], program="distill.py")
    assert "distill.py does not support flow matching" in capsys.readouterr().err


def test_latent_preset_trains_on_class_folders(tmp_path: Path, reset_accelerate: Callable[[], None]):
    make_vae().save_pretrained(tmp_path / "vae")
    for i, image in enumerate(generate_images(20, 64, 64)):
        folder = tmp_path / "emoji" / f"class {i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")
    own = ["--compile=false", "--mixed_precision=no", "--model.block_out_channels=[8, 16, 16]"]
    own += [f"--vae={tmp_path / 'vae'}", f"--data.train_data_dir={tmp_path / 'emoji'}"]
    reset_accelerate()
    main([f"--config={CONFIGS / 'latent.yaml'}", f"--output_dir={tmp_path / 'run'}", *REDUCED, *own])
    pipe = load_pipeline(tmp_path / "run" / "pipeline")
    assert (pipe.latent_shape, pipe.image_shape) == ((2, 32, 32), (3, 64, 64))
    images: Any = pipe(["class 3"], num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 64, 64) and images.isfinite().all()
