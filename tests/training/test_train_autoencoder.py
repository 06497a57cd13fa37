"""Training of an autoencoder."""

import errno
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from diffusers import AutoencoderKL
from PIL import Image
from run_files import assert_equal_weights
from safetensors.torch import load_file

from autoencoder import compute_psnr, reconstruct
from autoencoder_config import AutoencoderConfig
from autoencoder_trainer import AutoencoderTrainer, split_images
from config import DataConfig
from fmnist_diffusion.data import ImageTensors, load_images
from fmnist_diffusion.files import PREVIOUS, WriteError
from manifest import write_manifest
from output_folder import LOCK
from records import read_rows
from train_autoencoder import main


@pytest.fixture
def args(tmp_path: Path, fashion_mnist_folder: Path) -> list[str]:
    """Arguments of a run of 8 steps with a tiny autoencoder in `tmp_path / "run"`."""
    return [
        f"--data.train_data_dir={fashion_mnist_folder}",
        "--data.max_train_samples=96",
        "--num_validation_images=32",
        "--num_epochs=2",
        "--train_batch_size=16",
        "--block_out_channels=[8, 8]",
        f"--output_dir={tmp_path / 'run'}",
    ]


@pytest.fixture
def launch(args: list[str], reset_accelerate: Callable[[], None]) -> Callable[..., None]:
    def run(*options: str) -> None:
        reset_accelerate()
        main([*args, *options])

    return run


def load_vae(run: Path) -> Any:
    return AutoencoderKL.from_pretrained(run / "vae").eval()


def test_run_writes_an_autoencoder_with_scaled_latents(
    tmp_path: Path, launch: Callable[..., None], fashion_mnist_folder: Path
):
    launch()
    run = tmp_path / "run"
    vae, metrics = load_vae(run), json.loads((run / "vae" / "metrics.json").read_text())
    images = load_images(train_data_dir=str(fashion_mnist_folder), max_samples=96)
    _, validation = split_images(images, 32, seed=0)
    latents, reconstructions = reconstruct(vae, validation.images)
    assert metrics["images_seen"] == 128 and metrics["num_validation_images"] == 32
    assert metrics["psnr"] == pytest.approx(float(compute_psnr(reconstructions, validation.images).mean()), abs=0.01)
    assert set(metrics["psnr_by_class"]) <= set(images.label_names or ())
    scaled = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    assert scaled.mean() == pytest.approx(0, abs=0.01) and scaled.std() == pytest.approx(1, abs=0.01)
    with Image.open(run / "reconstructions.png") as grid:
        assert grid.mode == "L"
    losses = read_rows(run / "loss.csv", ("loss", "reconstruction_loss", "kl_loss"))
    assert [row["step"] for row in losses] == [str(step) for step in range(1, 9)]
    for row in losses:
        assert float(row["loss"]) == pytest.approx(float(row["reconstruction_loss"]) + float(row["kl_loss"]))
    assert (run / "loss.png").is_file()


def test_training_reduces_the_error(tmp_path: Path, launch: Callable[..., None]):
    launch("--num_epochs=5", "--optimizer.learning_rate=1e-2", "--optimizer.lr_warmup_steps=0")
    # The initial weights have a PSNR of 6.9 dB. Predicting the mean training image has a PSNR of 10.9 dB.
    assert json.loads((tmp_path / "run" / "vae" / "metrics.json").read_text())["psnr"] > 12


def test_gradients_are_clipped(launch: Callable[..., None], gradient_norms: list[float]):
    launch("--num_epochs=1", "--optimizer.max_grad_norm=0.01")
    assert gradient_norms == pytest.approx([0.01] * 4, rel=1e-3)


def test_gradient_scaler_is_restored(tmp_path: Path, fashion_mnist_folder: Path, reset_accelerate: Callable[[], None]):
    reset_accelerate()
    data = DataConfig(train_data_dir=str(fashion_mnist_folder), max_train_samples=96)
    trainer = AutoencoderTrainer(
        AutoencoderConfig(str(tmp_path / "run"), data=data, num_validation_images=32, block_out_channels=(8, 8))
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8)
    trainer._save()
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer._load_checkpoint()
    assert trainer.accelerator.scaler.get_scale() == 8


def test_resumed_run_has_identical_weights(
    tmp_path: Path,
    launch: Callable[..., None],
    reset_accelerate: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    launch(f"--output_dir={tmp_path / 'complete'}")
    train_batch, steps = AutoencoderTrainer._train_batch, []

    def interrupt_after_three_steps(self: AutoencoderTrainer, *batch: Any) -> None:
        train_batch(self, *batch)
        steps.append(self.progress.global_step)
        if len(steps) == 3:
            self.interrupts.received = 2

    monkeypatch.setattr(AutoencoderTrainer, "_train_batch", interrupt_after_three_steps)
    with pytest.raises(SystemExit) as error:
        launch()
    assert error.value.code == 130
    path = tmp_path / "run" / "config.yaml"
    assert (
        f"Interrupted. Resume from the last checkpoint with --config={path} --resume=true." in capsys.readouterr().err
    )
    # A run of an earlier version does not have all settings.
    path = tmp_path / "run" / "checkpoint" / "trainer.json"
    state = json.loads(path.read_text())
    del state["config"]["kl_weight"], state["config"]["data"]["caption_column"]
    path.write_text(json.dumps(state))
    (path.parent / "manifest.json").unlink()
    write_manifest(path.parent)
    # A process that is killed while it replaces the checkpoint leaves the previous one under a different name.
    checkpoint = tmp_path / "run" / "checkpoint"
    checkpoint.rename(checkpoint.with_name(f"{PREVIOUS}checkpoint"))
    reset_accelerate()
    main([f"--config={tmp_path / 'run' / 'config.yaml'}", "--resume=true"])
    assert steps == list(range(1, 9))
    losses = [(tmp_path / name / "loss.csv").read_text() for name in ("complete", "run")]
    assert losses[0] == losses[1] and len(losses[0].splitlines()) == 9
    first, second = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("complete", "run"))
    assert_equal_weights(first, second)
    assert_equal_weights(first, load_vae(tmp_path / "run").state_dict())

    for options, message in (
        ([], "contains files. Pass a different --output_dir, or --resume=true to resume the run in this folder."),
        # This also changes the number of batches per epoch.
        (["--resume=true", "--train_batch_size=32"], "`--train_batch_size` must be the same as in the run to resume"),
        (["--resume=true", "--optimizer.learning_rate=0.5"], "`--optimizer.learning_rate` must be the same"),
        (["--resume=true", "--seed=3"], "`--seed` must be the same as in the run to resume (0), got 3."),
        (["--resume=true", f"--output_dir={tmp_path / 'new'}"], "Could not find a checkpoint in"),
    ):
        with pytest.raises(SystemExit) as error:
            launch(*options)
        assert error.value.code == 2 and message in capsys.readouterr().err


def test_folder_without_a_run_is_not_changed(
    tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    # Another process is writing this folder.
    (tmp_path / ".incomplete-1-guided").mkdir()
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SystemExit, match="2"):
            launch("--resume=true", f"--output_dir={folder}")
        assert f"Could not find a checkpoint in {folder}. Omit --resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".incomplete-1-guided"]


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_training_is_an_error(
    launch: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: DistributedType,
):
    monkeypatch.setattr("components.Accelerator", lambda **kwargs: SimpleNamespace(distributed_type=kind))
    with pytest.raises(SystemExit, match="2"):
        launch()
    assert "error: FSDP and DeepSpeed are not supported." in capsys.readouterr().err


def call_after_step(monkeypatch: pytest.MonkeyPatch, step: int, function: Callable[[AutoencoderTrainer], Any]) -> None:
    """Calls `function` with the trainer after the optimizer step with the number `step`."""
    train_batch = AutoencoderTrainer._train_batch

    def train_and_call(self: AutoencoderTrainer, *batch: Any) -> None:
        train_batch(self, *batch)
        if self.progress.global_step == step:
            function(self)

    monkeypatch.setattr(AutoencoderTrainer, "_train_batch", train_and_call)


def test_resumed_run_must_include_the_started_epoch(
    launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    call_after_step(monkeypatch, 6, lambda trainer: setattr(trainer.interrupts, "received", signal.SIGINT))
    with pytest.raises(SystemExit, match="130"):
        launch()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        launch("--resume=true", "--num_epochs=1")
    assert capsys.readouterr().err == (
        "train_autoencoder.py: error: `--num_epochs` must be at least 2, the number of started epochs, got 1.\n"
    )


def test_damaged_checkpoint_is_not_loaded(
    tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    launch()
    capsys.readouterr()
    path = tmp_path / "run" / "checkpoint" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SystemExit, match="2"):
        launch("--resume=true")
    assert capsys.readouterr().err == (
        f"train_autoencoder.py: error: {path} is damaged (its content does not match its SHA-256 hash). Start again"
        " with a different --output_dir.\n"
    )


def test_finished_run_can_be_resumed(tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    launch()
    losses = (tmp_path / "run" / "loss.csv").read_text()
    psnr = json.loads((tmp_path / "run" / "vae" / "metrics.json").read_text())["psnr"]
    capsys.readouterr()
    launch("--resume=true")
    assert capsys.readouterr().out.startswith(f"Step 8 of 8: held-out PSNR {psnr:.2f} dB\n")
    assert (tmp_path / "run" / "loss.csv").read_text() == losses


def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def make_gradient_infinite(trainer: AutoencoderTrainer) -> None:
        next(trainer.vae.parameters()).register_hook(lambda gradient: gradient * math.inf)

    # The loss of the last step is finite, because it is computed before the weights are updated.
    call_after_step(monkeypatch, 7, make_gradient_infinite)
    with pytest.raises(SystemExit, match="1"):
        launch()
    assert capsys.readouterr().err.splitlines()[-1] == (
        "train_autoencoder.py: error: The weights are NaN or infinite at step 8. Reduce"
        " --optimizer.learning_rate, and start again with a different --output_dir."
    )
    assert {path.name for path in (tmp_path / "run").iterdir()} == {LOCK, "config.yaml", "loss.csv"}


def test_ctrl_c_before_the_first_checkpoint_does_not_suggest_resuming(
    launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoencoder_trainer.load_training_images", interrupt)
    with pytest.raises(SystemExit, match="130"):
        launch()
    assert capsys.readouterr().err == (
        "train_autoencoder.py: Interrupted. There is no checkpoint yet. Start again with a different --output_dir.\n"
    )


def test_folder_of_another_program_is_not_changed(
    tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run" / ".incomplete-1-pipeline").mkdir(parents=True)
    with pytest.raises(SystemExit, match="2"):
        launch()
    assert "`--output_dir` must be new or empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".incomplete-1-pipeline"]


def test_full_disk_exits_with_one_line(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("checkpoint.write_tensors", fail)
    with pytest.raises(SystemExit) as error:
        launch()
    assert error.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"train_autoencoder.py: error: Could not write {tmp_path / 'run' / 'checkpoint'}: No space left on device."
        " There is no checkpoint yet. Start again with a different --output_dir."
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--num_validation_images=96",
            "`--num_validation_images` must be less than the number of images (96)",
        ),
        ("--train_batch_size=100", "`--train_batch_size` must be at most the number of images (64), got 100."),
        ("--train_batch_size=0", "`--train_batch_size` must be between 1 and 65,536, got 0."),
        ("--save_minutes=0", "`--save_minutes` must be greater than 0 and at most 1,000,000, got 0.0."),
        ("--kl_weight=-1", "`--kl_weight` must be between 0 and 1,000, got -1.0."),
        ("--data.image_column=pixels", "Set `--data.image_column` to"),
        ("--latent_channels=0", "`--latent_channels` must be between 1 and 4,096, got 0."),
        ("--optimizer.adam_beta2=1", "`--optimizer.adam_beta2` must be at least 0 and less than 1, got 1."),
        ("--block_out_channels=[8, 12]", "`--block_out_channels` must be one or more multiples of 8, got [8, 12]."),
        ("--block_out_channels=[8, 8, 8, 8]", "`--data.resolution` must be a multiple of 8 for 4 levels, got 28x28."),
        ("--block_out_channels=[8, 8, 8]", "`--block_out_channels` must have fewer levels for images of 28x28 pixels"),
        ("--data.streaming=true", "`--data.streaming` must be false, because all images are kept in memory."),
        ("--data.train_data_dir=nowhere", "nowhere"),
        ("--num-epochs=3", "Could not find the setting `--num-epochs`. Did you mean `--num_epochs`?"),
        ("--model.norm_type=group", "Could not find the setting `--model.norm_type`. Pass --help"),
        ("--resume=latest", "`--resume` must be true or false, got latest."),
        ("--block_out_channels=8", "`--block_out_channels` must be a list of integers, got 8."),
        ("--config=missing.yaml", "missing.yaml'). Pass the path of a YAML file."),
    ],
)
def test_invalid_settings_are_errors(
    launch: Callable[..., None], capsys: pytest.CaptureFixture[str], option: str, message: str
):
    with pytest.raises(SystemExit) as error:
        launch(option)
    line = capsys.readouterr().err.strip()
    assert error.value.code == 2
    assert line.startswith("train_autoencoder.py: error: ") and message in line and "\n" not in line


def test_invalid_settings_are_reported_together(launch: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        launch("--kl_weight=-1", "--seed=-1", "--optimizer.name=sgd")
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "train_autoencoder.py: error: Found 3 problems:"
    names = sorted(line.split("`")[1] for line in others)
    assert names == ["--kl_weight", "--optimizer.name", "--seed"]


def test_folder_of_a_run_without_checkpoint_cannot_be_resumed(
    tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "run" / "loss.csv").touch()
    for option, message in (
        ("--resume=false", "contains files. Pass a different --output_dir.\n"),
        ("--resume=true", "Omit --resume and pass a new --output_dir to start a new run.\n"),
    ):
        with pytest.raises(SystemExit, match="2"):
            launch(option)
        assert capsys.readouterr().err.endswith(message)


@pytest.mark.filterwarnings("error:Data has no positive values")
def test_kl_divergence_can_be_disabled(tmp_path: Path, launch: Callable[..., None]):
    launch("--kl_weight=0")
    assert (tmp_path / "run" / "loss.png").is_file()


def test_full_disk_before_training_exits_with_one_line(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(path: Path, *args: object) -> None:
        raise WriteError(f"Could not write {path}: No space left on device.")

    monkeypatch.setattr("autoencoder_trainer.write_yaml", fail)
    with pytest.raises(SystemExit, match="1"):
        launch()
    assert capsys.readouterr().err == (
        f"train_autoencoder.py: error: Could not write {tmp_path / 'run' / 'config.yaml'}: No space left on device."
        " There is no checkpoint yet. Start again with a different --output_dir.\n"
    )


def test_psnr_of_known_errors():
    images = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    other = images.clone()
    other[0] += 51
    # An error of a fifth of the range has a PSNR of 20 log10(5).
    assert compute_psnr(other, images)[0] == pytest.approx(13.979, abs=1e-3)
    assert compute_psnr(other, images)[1] > 60


def test_held_out_images_are_not_used_for_training():
    images = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1)
    train, validation = split_images(ImageTensors(images, images.flatten().long(), ("name",)), 12, seed=4)
    assert len(train) == 38 and len(validation) == 12
    assert sorted([*train.images.flatten().tolist(), *validation.images.flatten().tolist()]) == list(range(50))
    assert train.labels is not None and train.labels.tolist() == train.images.flatten().tolist()


def test_help_contains_commands_on_separate_lines(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "    accelerate launch training/train_autoencoder.py --data.train_data_dir=path/to/images" in lines
