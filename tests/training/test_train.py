"""The training script: exit codes, messages and launches with Accelerate."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image
from run_files import read_losses

from fmnist_diffusion import FashionMNISTUNet2DModel, load_pipeline
from parsing import parse_config
from train import main
from trainer import Trainer


TRAINING = Path(__file__).parents[2] / "training"


def test_saved_config_resumes_the_run(
    tmp_path: Path, launch: Callable[..., None], reset_accelerate: Callable[[], None]
):
    launch("--max_train_steps=2")
    config = f"--config={tmp_path / 'run' / 'config.yaml'}"
    reset_accelerate()
    main([config, "--resume=latest", "--max_train_steps=null"])
    assert len(read_losses(tmp_path / "run")) == 12
    assert parse_config([config]).resume is None


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            FloatingPointError("The loss is nan at step 1."),
            1,
            "train.py: error: The loss is nan at step 1. There is no checkpoint yet. Start again with a different"
            " --output_dir. Reduce --optimizer.learning_rate, or pass --optimizer.max_grad_norm=1.",
        ),
        (
            torch.OutOfMemoryError(),
            1,
            "train.py: error: The GPU ran out of memory. There is no checkpoint yet. Start again with a different"
            " --output_dir. Add --gradient_checkpointing=true. If this is not enough, start a new run with a smaller"
            " --train_batch_size.",
        ),
        (
            KeyboardInterrupt(),
            130,
            "train.py: Interrupted at step 0. There is no checkpoint yet. Start again with a different --output_dir.",
        ),
    ],
)
def test_stopped_run_exits_with_one_line(
    launch: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
):
    def fail(trainer: object):
        raise error

    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.raises(SystemExit) as exit_info:
        launch()
    assert exit_info.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_ctrl_c_before_the_training_exits_with_one_line(
    launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*args: object, **kwargs: object):
        raise KeyboardInterrupt

    monkeypatch.setattr("training_images.load_images", interrupt)
    with pytest.raises(SystemExit) as error:
        launch()
    assert error.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "train.py: Interrupted before the training started."


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_image_of_a_streamed_dataset_exits_with_one_line(
    tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable[..., str], num_workers: int
):
    images = tmp_path / "images"
    images.mkdir()
    # The header of the truncated image is valid, so the error occurs during training.
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (16, 28, 28), dtype=np.uint8)):
        Image.fromarray(pixels).save(images / f"{i}.png")
    os.truncate(images / "3.png", 200)
    options = (f"--data.train_data_dir={images}", "--data.streaming=true", "--train_batch_size=2")
    error = fail_to_launch(*options, f"--data.dataloader_num_workers={num_workers}")
    assert str(images / "3.png") in error
    config = tmp_path / "run" / "config.yaml"
    assert f"Resume from the last checkpoint with --config={config} --resume=latest." in error
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name.removeprefix("checkpoint-")) < 8
    # Once the image has been replaced, the run can continue.
    shutil.copy(images / "4.png", images / "3.png")
    launch(*options, "--resume=latest")
    assert [int(row["step"]) for row in read_losses(tmp_path / "run")] == list(range(1, 17))


def run_script(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_script_runs_from_any_folder(tmp_path: Path):
    result = run_script(str(TRAINING / "combine.py"), "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: combine.py ")


@pytest.mark.slow
def test_accelerate_launch_trains_spec_yaml(tmp_path: Path, fashion_mnist_folder: Path):
    # This test trains one step of spec.yaml without any change to its settings.
    result = run_script(
        "-m", "accelerate.commands.launch", "--num_processes=1", "--cpu", str(TRAINING / "train.py"),
        f"--config={TRAINING / 'configs' / 'spec.yaml'}", f"--data.train_data_dir={fashion_mnist_folder}",
        f"--output_dir={tmp_path / 'run'}", "--max_train_steps=1", "--samples.num_images=2",
        "--samples.num_inference_steps=1",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    pipeline = load_pipeline(tmp_path / "run" / "pipeline")
    assert pipeline.unet.num_parameters() == 13_246_913
    defaults = json.loads(FashionMNISTUNet2DModel().to_json_string())
    config = json.loads((tmp_path / "run" / "pipeline" / "unet" / "config.json").read_text())
    assert {name: config[name] for name in defaults} == defaults


@pytest.mark.parametrize("path", sorted((TRAINING / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_files(path: Path):
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.stem in ("cpu", "single_gpu") else 2)
