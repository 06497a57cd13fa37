"""Several processes: signals, failed writes and sharded training."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from run_files import assert_equal_weights, load_weights, read_losses
from safetensors.torch import load_file

from checkpoint import list_checkpoints
from processes import check_strategy


TRAINING = Path(__file__).parents[2] / "training"
LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--quiet",
    "--config_file",
    str(TRAINING / "accelerate_configs" / "multi_cpu.yaml"),
]
TRAIN = str(TRAINING / "train.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run(*command: str) -> str:
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("strategy", "is_fsdp2", "supported"),
    [("DEEPSPEED", False, False), ("FSDP", False, False), ("FSDP", True, True), ("MULTI_GPU", False, True)],
)
def test_strategies_with_pickled_checkpoints_are_rejected(strategy: str, is_fsdp2: bool, supported: bool):
    accelerator = SimpleNamespace(distributed_type=DistributedType(strategy), is_fsdp2=is_fsdp2)
    with nullcontext() if supported else pytest.raises(ValueError, match="DeepSpeed and FSDP1 are not supported"):
        check_strategy(accelerator)


@pytest.mark.slow
def test_sigterm_stops_all_processes_at_the_same_step(tmp_path: Path, tiny_args: list[str]):
    log = tmp_path / "log.txt"
    options = [*tiny_args, "--num_epochs=10000", "--logging_steps=1", "--model.dropout=0.1"]
    with log.open("w") as file:
        process = subprocess.Popen([*LAUNCH, TRAIN, *options], env=ENVIRONMENT, stdout=file, stderr=file)
    losses = tmp_path / "run" / "loss.csv"
    deadline = time.monotonic() + 120
    while not losses.exists() or len(losses.read_text().splitlines()) < 5:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    [checkpoint] = list_checkpoints(tmp_path / "run" / "checkpoints")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"train.py: Interrupted at step {step}. Continue from the last checkpoint" in log.read_text()

    # The resumed run equals an uninterrupted one.
    steps = f"--max_train_steps={step + 3}"
    run(*LAUNCH, TRAIN, *options, steps, "--resume=latest")
    run(*LAUNCH, TRAIN, *options, steps, f"--output_dir={tmp_path / 'expected'}")
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "expected")
    assert_equal_weights(load_weights(tmp_path / "run"), load_weights(tmp_path / "expected"))


@pytest.mark.slow
def test_failed_write_stops_all_processes_with_one_line(tmp_path: Path, tiny_args: list[str]):
    (tmp_path / "file").touch()
    result = subprocess.run(
        [*LAUNCH, TRAIN, *tiny_args, f"--output_dir={tmp_path / 'file' / 'run'}"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if line.startswith("train.py: error: Could not write")]
    assert len(lines) == 1


@pytest.mark.slow
def test_resumed_sharded_run_equals_a_data_parallel_run(tmp_path: Path, tiny_args: list[str]):
    options = [
        *tiny_args,
        *("--model.norm_type=group", "--model.norm_num_groups=4", "--ema.enabled=true", "--logging_steps=1"),
    ]
    fsdp = [*LAUNCH[:-1], str(TRAINING / "accelerate_configs" / "fsdp2.yaml")]
    run(*LAUNCH, TRAIN, *options, f"--output_dir={tmp_path / 'expected'}", "--max_train_steps=4")
    run(*fsdp, TRAIN, *options, "--max_train_steps=2")
    run(*fsdp, TRAIN, *options, "--max_train_steps=4", "--resume=latest")
    checkpoints = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("run", "expected")]
    for name in ("model", "ema", "optimizer"):
        actual, expected = (load_file(checkpoint / f"{name}.safetensors") for checkpoint in checkpoints)
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=2e-5)
    losses = [[float(row["loss"]) for row in read_losses(tmp_path / name)] for name in ("run", "expected")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
