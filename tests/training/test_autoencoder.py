"""Training with the latents of an autoencoder."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from run_files import assert_equal_weights, load_weights
from safetensors.torch import load_file, save_file

from autoencoder import encode_dataset, load_vae
from fmnist_diffusion import load_pipeline
from fmnist_diffusion.data import load_images, to_model_input
from fmnist_diffusion.pipelines import encode_images
from latent_pipelines import make_vae
from parsing import parse_config
from trainer import Trainer


DISTILL = Path(__file__).parents[2] / "training" / "configs" / "distill.yaml"


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "autoencoder" / "vae"
    make_vae(channels=1).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_batches_contain_the_latents_of_the_images(
    make_trainer: Callable[..., Trainer],
    vae_folder: Path,
    fashion_mnist_folder: Path,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO", logger="training")
    trainer = make_trainer(f"--vae={vae_folder}")
    assert re.search(r"U-Net with 0\.\d\d M parameters, autoencoder with 0\.\d\d M, from scratch", caplog.text)
    vae = load_vae(str(vae_folder))
    images = load_images(train_data_dir=str(fashion_mnist_folder), max_samples=96)
    expected = encode_images(vae, to_model_input(images.images))
    assert expected.shape == (96, 2, 14, 14)
    torch.testing.assert_close(trainer.components.batches.images.images, expected)
    latents = torch.cat([latents for latents, _, _ in trainer.components.batches.epoch(0)])
    torch.testing.assert_close(latents.sort(0).values, expected.sort(0).values)


def test_encoded_dataset_keeps_the_labels(fashion_mnist_folder: Path):
    images = load_images(train_data_dir=str(fashion_mnist_folder), max_samples=70)
    assert images.labels is not None
    encoded = encode_dataset(make_vae(channels=1), images, torch.device("cpu"))
    assert encoded.label_names == images.label_names
    assert encoded.labels is not None and torch.equal(encoded.labels, images.labels)
    assert encoded.images.shape == (70, 2, 14, 14)


def test_run_exports_a_pipeline_and_can_be_resumed_and_fine_tuned(
    tmp_path: Path,
    launch: Callable[..., None],
    fail_to_launch: Callable[..., str],
    vae_folder: Path,
    capsys: pytest.CaptureFixture[str],
):
    latent = [f"--vae={vae_folder}", "--model.num_class_embeds=10", "--ema.enabled=true"]
    launch(*latent, "--max_train_steps=4", "--checkpointing_steps=2", "--checkpoints_total_limit=3")
    folder = tmp_path / "run" / "pipeline"
    pipe: Any = load_pipeline(folder)
    assert isinstance(pipe.vae, AutoencoderKL)
    assert_equal_weights(pipe.vae.state_dict(), make_vae(channels=1).state_dict())
    assert (pipe.latent_shape, pipe.image_shape) == ((2, 14, 14), (1, 28, 28))
    assert pipe(["Bag"], num_inference_steps=2, output_type="pt").images.isfinite().all()
    assert str(tmp_path) not in (folder / "train_config.json").read_text()

    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    config = tmp_path / "run" / "config.yaml"
    launch(f"--config={config}", f"--resume={checkpoint}", f"--output_dir={tmp_path / 'again'}")
    assert_equal_weights(load_weights(tmp_path / "run"), load_weights(tmp_path / "again"))
    resumed = [f"--resume={checkpoint}", f"--output_dir={tmp_path / 'third'}"]
    assert "`--vae` must be the same as in the run to resume" in fail_to_launch(*resumed, "--vae=null")

    vae = make_vae(channels=1)
    vae.register_to_config(scaling_factor=0.5)
    vae.save_pretrained(vae_folder)
    changed = [f"--config={config}", f"--resume={checkpoint}", f"--output_dir={tmp_path / 'fourth'}"]
    assert "the autoencoder has changed since this checkpoint was written" in fail_to_launch(*changed)

    tuned = [f"--init_from={folder}", f"--output_dir={tmp_path / 'tuned'}", "--max_train_steps=1"]
    assert f"to fine-tune {folder}, got " in fail_to_launch(*tuned, f"--vae={vae_folder}")
    with pytest.raises(SystemExit):
        parse_config([f"--config={DISTILL}", f"--init_from={folder}"], program="distill.py")
    assert "distill.py does not support latent diffusion" in capsys.readouterr().err
    launch(*tuned)
    assert_equal_weights(load_pipeline(tmp_path / "tuned" / "pipeline").vae.state_dict(), pipe.vae.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.streaming=true"], "`--data.streaming` must be false with an autoencoder"),
        (["--data.augmentation=flip"], "`--data.augmentation` must be 'none' with an autoencoder"),
        (
            ["--data.resolution=27"],
            "`--data.resolution` must be a multiple of 2, the downsampling factor of the autoencoder",
        ),
        (["--data.channels=3"], "`--data.channels` must be 1, the number of channels of the autoencoder, got 3"),
        (["--vae=base"], "`--vae` must be an autoencoder or a pipeline that contains one, got base"),
        (["--scheduler.beta_schedule=squaredcos_cap_v2"], "must be v_prediction or sample for latents"),
        (["--vae=nowhere"], "Could not find a pipeline at 'nowhere'"),
        (["--init_from=base", "--model={}"], "`--vae` must be null to fine-tune base, got"),
    ],
)
def test_invalid_settings_are_errors(
    fail_to_launch: Callable[..., str], vae_folder: Path, options: list[str], message: str
):
    assert message in fail_to_launch(f"--vae={vae_folder}", *options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b"{}"), "is not a valid safetensors file"),
        (Path.unlink, "Could not find"),
        (lambda path: change_bias(path, float("nan")), "contains NaN or infinite values"),
        (lambda path: change_bias(path, None), "does not contain quant_conv.bias"),
    ],
    ids=["damaged", "missing", "NaN", "missing tensor"],
)
def test_damaged_autoencoder_is_an_error(
    fail_to_launch: Callable[..., str], vae_folder: Path, damage: Callable[[Path], Any], message: str
):
    damage(vae_folder / "diffusion_pytorch_model.safetensors")
    line = fail_to_launch(f"--vae={vae_folder}")
    assert f"{vae_folder}/diffusion_pytorch_model.safetensors" in line and message in line


@pytest.mark.parametrize("scaling_factor", [0.0, None])
def test_autoencoder_whose_latents_cannot_be_scaled_is_an_error(
    fail_to_launch: Callable[..., str], vae_folder: Path, scaling_factor: float | None
):
    vae = make_vae(channels=1)
    vae.register_to_config(scaling_factor=scaling_factor)
    vae.save_config(vae_folder)
    message = f"`scaling_factor` in {vae_folder}/config.json must be a positive number, got '{scaling_factor}'"
    assert message in fail_to_launch(f"--vae={vae_folder}")


def change_bias(path: Path, value: float | None) -> None:
    tensors = load_file(path)
    bias = tensors.pop("quant_conv.bias")
    save_file(tensors if value is None else tensors | {"quant_conv.bias": bias.fill_(value)}, path)
