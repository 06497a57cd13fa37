"""Launches with several processes and nodes: kills, signals, resuming and failed writes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from run_files import load_weights, read_losses
from safetensors.torch import load_file

from checkpoint import get_step, list_checkpoints
from distill import main as distill
from manifest import find_damage
from subprocesses import find_free_port


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
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": f"{TRAINING.parent}:{TRAINING}",
    "GLOO_SOCKET_IFNAME": "lo",
}
# Delays each batch, so that a signal arrives in the middle of the run.
SLOW_TRAIN = """
import sys, time
from train import main
from trainer import Trainer

train_batch = Trainer._train_batch
def train_batch_slowly(*args):
    time.sleep(0.1)
    train_batch(*args)

Trainer._train_batch = train_batch_slowly
main(sys.argv[1:])
"""
# Each process prints how many models exist when the process groups are destroyed. With END=failure, writing a
# checkpoint always fails.
COUNT_MODELS = """
import errno, gc, os, sys
import torch
from torch.nn.parallel import DistributedDataParallel
import checkpoint, records
from fmnist_diffusion.files import describe_write_errors
from train import main

destroy = torch.distributed.destroy_process_group
def count_models():
    count = sum(type(value) is DistributedDataParallel for value in gc.get_objects())
    # Both processes write to the same pipe, so each line is written with a single call.
    os.write(1, f"{count} models\\n".encode())
    # The launcher stops the other process when one of them ends.
    torch.distributed.barrier()
    destroy()

def fail(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def append(record, rows):
    with describe_write_errors(record.path):
        fail()

torch.distributed.destroy_process_group = count_models
match os.environ.get("FULL_DISK"):
    case "checkpoints/checkpoint-1":
        checkpoint.write_tensors = fail
    case "loss.csv":
        records.LossRecord.append = append
# With a long switch interval, gloo's threads only get the GIL when the main thread releases it.
sys.setswitchinterval(60)
main(sys.argv[1:])
"""
# Every write of a checkpoint fails.
FULL_DISK = """
import errno, os, sys
import checkpoint, train_autoencoder

def fail(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

checkpoint.write_tensors = fail
train_autoencoder.main(sys.argv[1:])
"""
# GroupNorm, unlike BatchNorm, does not depend on the other images of a process. The derivative of ReLU jumps at zero,
# where rounding errors would change the gradients.
OPTIONS = [
    "--model.act_fn=silu",
    "--model.norm_type=group",
    "--model.norm_num_groups=4",
    "--model.num_class_embeds=10",
    "--data.augmentation=shift",
    "--gradient_accumulation_steps=2",
    "--ema.enabled=true",
    "--num_epochs=12",
    "--checkpointing_steps=3",
    "--logging_steps=1",
]


def kill(nodes: list[subprocess.Popen]) -> None:
    """Kills launchers and the processes that they have started."""
    for node in nodes:
        if node.poll() is None:
            children = psutil.Process(node.pid).children(recursive=True)
            node.kill()
            for process in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


class Launches:
    """Launches one run again and again, either on one node with two processes or on two nodes with one process each.

    The nodes are simulated on this machine, with the second loopback address as the address of the first node.

    Args:
        folder: Folder for the run and for the logs.
        num_nodes: 1 or 2.
        args: Arguments of the trainer.
        script: Path of the training script.
    """

    def __init__(self, folder: Path, num_nodes: int, args: list[str], script: str = TRAIN):
        self.run, self.args, self.num_nodes, self.script = folder / "run", args, num_nodes, script
        self.logs = [folder / f"node-{rank}.txt" for rank in range(num_nodes)]
        self.slow_train = folder / "slow_train.py"
        self.slow_train.write_text(SLOW_TRAIN)

    def start(self, script: str, *args: str) -> list[subprocess.Popen]:
        address = "127.0.0.1" if self.num_nodes == 1 else "127.0.0.2"
        port = find_free_port(address)
        nodes = []
        for rank, log in enumerate(self.logs):
            options = [f"--num_machines={self.num_nodes}", f"--machine_rank={rank}", f"--main_process_port={port}"]
            if self.num_nodes > 1:
                options.append(f"--main_process_ip={address}")
            with log.open("w") as file:
                command = [*LAUNCH, *options, script, *self.args, *args]
                nodes.append(subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file))
        return nodes

    def finish(self, *args: str) -> None:
        """Runs the trainer to the end of the run."""
        nodes = self.start(self.script, *args)
        try:
            codes = [node.wait(timeout=240) for node in nodes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"The launch did not end.\n{self.read_logs()}")
        finally:
            kill(nodes)
        assert codes == [0] * self.num_nodes, self.read_logs()

    def stop(self, number: signal.Signals, target: str, *args: str) -> None:
        """Starts the trainer and sends a signal after some steps.

        Args:
            number: The signal.
            target: `"launcher"` of the last node, `"process"` of the last rank, or `"all"`.
        """
        step = self.get_last_step()
        nodes = self.start(str(self.slow_train), *args)
        losses = self.run / "loss.csv"
        deadline = time.monotonic() + 240
        try:
            while not losses.exists() or len(losses.read_text().splitlines()) < 1 + step + 4:
                running = all(node.poll() is None for node in nodes)
                assert running and time.monotonic() < deadline, self.read_logs()
                time.sleep(0.02)
            launchers = [psutil.Process(node.pid) for node in nodes]
            children = [process for launcher in launchers for process in launcher.children()]
            ranks = [process for process in children if "RANK" in process.environ()]
            ranks.sort(key=lambda process: process.environ()["RANK"])
            assert len(ranks) == 2
            for process in {"launcher": launchers[-1:], "process": ranks[-1:], "all": [*launchers, *ranks]}[target]:
                # A killed process stops the others.
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            self.codes = [node.wait(timeout=120) for node in nodes]
        finally:
            kill(nodes)

    def get_last_step(self) -> int:
        return max(map(get_step, list_checkpoints(self.run / "checkpoints")), default=0)

    def read_logs(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_nodes", "signals"),
    [
        (1, [(signal.SIGTERM, "process"), (signal.SIGINT, "launcher")]),
        (2, [(signal.SIGINT, "process"), (signal.SIGTERM, "launcher")]),
    ],
    ids=["two processes", "two nodes"],
)
def test_interrupted_launches_equal_an_uninterrupted_process(
    tmp_path: Path,
    tiny_args: list[str],
    launch: Callable[..., None],
    num_nodes: int,
    signals: list[tuple[signal.Signals, str]],
):
    launches = Launches(tmp_path, num_nodes, [*tiny_args, *OPTIONS])
    launches.stop(signal.SIGKILL, "all")
    assert launches.get_last_step() > 0
    for number, target in signals:
        launches.stop(number, target, "--resume=latest")
        # The processes exit with codes 130 and 143, but Accelerate's launchers exit with code 1.
        assert launches.codes == [1] * num_nodes, launches.read_logs()
        step, log = launches.get_last_step(), launches.read_logs()
        assert log.count(f"train.py: Interrupted at step {step}. Resume from the last checkpoint with") == 1, log
        assert len(read_losses(launches.run)) == step
        # Only Accelerate's launchers print tracebacks.
        assert f'File "{TRAINING}' not in log and f'File "{launches.slow_train}' not in log, log
        if target == "process":
            assert f"exitcode  : {128 + number}" in log, log
    assert find_damage(list_checkpoints(launches.run / "checkpoints")[-1]) is None

    # A single process continues, and then the launcher again.
    steps = f"--max_train_steps={launches.get_last_step() + 2}"
    single = [sys.executable, TRAIN, *launches.args, "--resume=latest", steps]
    subprocess.run(single, env=ENVIRONMENT, check=True, timeout=240)
    launches.finish("--resume=latest", "--max_train_steps=null")
    launch(*OPTIONS, f"--output_dir={tmp_path / 'expected'}")
    runs = (launches.run, tmp_path / "expected")
    for name in ("model", "ema", "optimizer"):
        assert_close(*(load_file(run / "checkpoints" / "checkpoint-36" / f"{name}.safetensors") for run in runs))
    assert_close(*(load_weights(run) for run in runs))
    assert_close_losses(*runs)


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        # Rounding errors lead to differences of about 1e-6 after 36 steps. Other random numbers would lead to
        # differences of about 1e-3, because each step changes the weights by about the learning rate of 1e-4.
        torch.testing.assert_close(actual[name], value, rtol=0, atol=tolerance)


def remove_key_biases(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Removes the biases of the key projections, whose names end with `name`.

    They have no effect on attention, so their gradients only consist of rounding errors, which Adam amplifies.
    """
    kept = {key: value for key, value in weights.items() if not key.endswith(name)}
    assert len(kept) < len(weights)
    return kept


def assert_close_losses(first: Path, second: Path) -> None:
    losses = [[float(row["loss"]) for row in read_losses(run)] for run in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_a_text_encoder_like_one_process(
    tmp_path: Path, tiny_args: list[str], launch: Callable[..., None]
):
    options = [
        *OPTIONS[:3],
        "--text_encoder.num_hidden_layers=1",
        "--text_encoder.num_attention_heads=2",
        "--text_encoder.intermediate_size=16",
        "--objective.label_dropout=0.5",
        "--objective.timestep_sampling=importance",
        "--scheduler.num_train_timesteps=3",
        "--checkpointing_steps=6",
        "--logging_steps=1",
    ]
    script = tmp_path / "count_models.py"
    script.write_text(COUNT_MODELS)
    launches = Launches(tmp_path, 1, [*tiny_args, *options], str(script))
    launches.finish()
    # The process groups must be destroyed after the models.
    assert launches.read_logs().count("0 models") == 2, launches.read_logs()
    launch(*options, f"--output_dir={tmp_path / 'expected'}")
    checkpoints = [run / "checkpoints" / "checkpoint-12" for run in (launches.run, tmp_path / "expected")]
    two, one = (load_file(checkpoint / "model.safetensors") for checkpoint in checkpoints)
    assert any(name.startswith("text_encoder.") for name in one)
    assert_close(*(remove_key_biases(weights, "k_proj.bias") for weights in (two, one)))
    assert_close(*(load_file(checkpoint / "timestep_sampler.safetensors") for checkpoint in checkpoints))
    assert_close_losses(launches.run, tmp_path / "expected")


@pytest.mark.slow
def test_two_processes_distill_like_one_process(
    tmp_path: Path, tiny_args: list[str], launch: Callable[..., None], reset_accelerate: Callable[[], None]
):
    teacher = ["--scheduler.beta_schedule=squaredcos_cap_v2", "--scheduler.prediction_type=v_prediction"]
    launch(*OPTIONS[:4], *teacher, f"--output_dir={tmp_path / 'teacher'}", "--max_train_steps=1")
    options = [
        f"--init_from={tmp_path / 'teacher' / 'pipeline'}",
        "--samples.num_inference_steps=null",
        "--ema.enabled=true",
        "--distillation.num_segments=8",
        "--distillation.adversarial_weight=5",
        "--distillation.discriminator_learning_rate=1e-4",
        "--checkpointing_steps=6",
        "--logging_steps=1",
    ]
    launches = Launches(tmp_path, 1, [*tiny_args, *options], str(TRAINING / "distill.py"))
    launches.finish()
    reset_accelerate()
    distill([*launches.args, f"--output_dir={tmp_path / 'expected'}"])
    checkpoints = [run / "checkpoints" / "checkpoint-12" for run in (launches.run, tmp_path / "expected")]
    for name in ("model", "ema"):
        states = [load_file(checkpoint / f"{name}.safetensors") for checkpoint in checkpoints]
        assert_close(*(remove_key_biases(state, "to_k.bias") for state in states))
    # The derivative of LeakyReLU jumps at zero, so rounding errors change the gradients of the discriminator.
    assert_close(*(load_file(checkpoint / "discriminator.safetensors") for checkpoint in checkpoints), tolerance=1e-4)
    assert_close_losses(launches.run, tmp_path / "expected")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["checkpoints/checkpoint-1", "loss.csv"])
def test_full_disk_stops_all_processes_with_one_line(tmp_path: Path, tiny_args: list[str], path: str):
    script = tmp_path / "count_models.py"
    script.write_text(COUNT_MODELS)
    result = subprocess.run(
        [
            *LAUNCH,
            f"--main_process_port={find_free_port('127.0.0.1')}",
            str(script),
            *tiny_args,
            "--checkpointing_steps=1",
        ],
        env={**ENVIRONMENT, "FULL_DISK": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode != 0
    assert "exitcode  : 1 " in result.stderr, result.stderr
    assert result.stderr.count("train.py: error: ") == 1, result.stderr
    assert f"train.py: error: Could not write {tmp_path / 'run' / path}: No space left on device." in result.stderr
    assert f'File "{TRAINING}' not in result.stderr and f'File "{script}' not in result.stderr, result.stderr
    # The process groups must be destroyed after the models.
    assert result.stdout.splitlines().count("0 models") == 2, result.stdout


@pytest.mark.slow
def test_full_disk_stops_all_processes_of_an_autoencoder_with_one_line(tmp_path: Path, fashion_mnist_folder: Path):
    script = tmp_path / "full_disk.py"
    script.write_text(FULL_DISK)
    options = {
        "--data.train_data_dir": fashion_mnist_folder,
        "--data.max_train_samples": 96,
        "--num_validation_images": 32,
        "--num_epochs": 2,
        "--train_batch_size": 16,
        "--block_out_channels": [8, 8],
        # The processes save a checkpoint after every step.
        "--save_minutes": 1e-9,
        "--output_dir": tmp_path / "run",
    }
    args = [f"{name}={value}" for name, value in options.items()]
    result = subprocess.run(
        [*LAUNCH, f"--main_process_port={find_free_port('127.0.0.1')}", str(script), *args],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode != 0
    assert result.stderr.count("train_autoencoder.py: error: ") == 1, result.stderr
    assert f"Could not write {tmp_path / 'run' / 'checkpoint'}: No space left on device." in result.stderr
    assert f'File "{TRAINING}' not in result.stderr and f'File "{script}' not in result.stderr, result.stderr
