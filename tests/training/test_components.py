"""Errors in the configuration and the data, and options that change how the model is computed."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from accelerate import DistributedType
from PIL import Image
from safetensors.torch import load_file

from components import OPTIMIZERS, make_accelerator, make_lr_scheduler
from config import OptimizerConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.train_data_dir=/nowhere"], "/nowhere"),
        (["--model.norm_type=layer"], "'batch', 'group'"),
        (["--init_from=/nowhere"], "/nowhere"),
        (["--train_batch_size=1000"], "`--train_batch_size` must be at most the number of images (96), got 1000."),
        (["--gradient_accumulation_steps=7"], "must be at most the number of batches in an epoch (6), got 7."),
        (["--data.image_column=photo"], "photo"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_invalid_input_exits_with_one_line(fail_to_launch: Callable[..., str], options: list[str], message: str):
    assert message in fail_to_launch(*options)


def test_compile_without_a_compiler_is_an_error(fail_to_launch: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "Run `apt-get install g++ python3-dev`, or pass --compile=false." in fail_to_launch("--compile=true")


def test_missing_tracker_is_an_error(fail_to_launch: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "wandb is not installed. Run `pip install wandb`" in fail_to_launch("--report_to=wandb")


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_training_is_an_error(
    fail_to_launch: Callable[..., str], monkeypatch: pytest.MonkeyPatch, kind: DistributedType
):
    monkeypatch.setattr("components.Accelerator", lambda **kwargs: SimpleNamespace(distributed_type=kind))
    assert fail_to_launch() == (
        "train.py: error: FSDP and DeepSpeed are not supported. Use a config in training/accelerate_configs."
    )


@pytest.mark.parametrize(
    ("num_threads", "launched", "is_main_process", "num_local_processes", "expected"),
    [
        (1, True, True, 1, 4),
        # Two machines with two processes each have WORLD_SIZE=4.
        (1, True, True, 2, 2),
        (1, True, True, 4, None),
        (1, True, False, 1, None),
        (1, False, True, 1, None),
        (2, True, True, 1, None),
    ],
)
def test_limited_cpu_threads_are_reported(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    num_threads: int,
    launched: bool,
    is_main_process: bool,
    num_local_processes: int,
    expected: int | None,
):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: num_threads)
    monkeypatch.setattr(
        "components.Accelerator",
        lambda **kwargs: SimpleNamespace(
            distributed_type=DistributedType.NO, device=torch.device("cpu"), is_main_process=is_main_process
        ),
    )
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_local_processes))
    monkeypatch.setenv("WORLD_SIZE", str(2 * num_local_processes))
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    else:
        monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    make_accelerator("no")
    assert len(caplog.messages) == (expected is not None)
    if expected is not None:
        assert caplog.messages[0].endswith(f"set the environment variable OMP_NUM_THREADS={expected}.")


def test_compilation_of_accelerate_is_not_used(
    monkeypatch: pytest.MonkeyPatch, launch: Callable[..., None], tmp_path: Path
):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    launch("--max_train_steps=1")
    launch("--max_train_steps=2", "--resume=latest")
    state = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert not any("_orig_mod" in name for name in state)


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_class_names_come_from_the_whole_dataset(tmp_path: Path, make_trainer: Callable, streaming: str):
    files = []
    for value in range(48):
        file = io.BytesIO()
        Image.new("L", (28, 28), value).save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    data = datasets.Dataset.from_dict(
        {"image": files, "label": [0] * 40 + [1] * 8},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}),
    )
    data.to_parquet(tmp_path / "data.parquet")
    trainer = make_trainer(
        f"--data.train_data_dir={tmp_path / 'data.parquet'}",
        f"--data.streaming={streaming}",
        "--data.max_train_samples=32",
        "--model.num_class_embeds=2",
    )
    assert list(trainer.components.unet.config.label_names) == ["cat", "dog"]


@pytest.mark.parametrize("names", ["abcdefghij", "0123456789"])
def test_evaluation_requires_the_classes_of_fashion_mnist(tmp_path: Path, make_trainer: Callable, names: str):
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "images" / name / "0.png")
    data = [f"--data.train_data_dir={tmp_path / 'images'}", "--model.num_class_embeds=10", "--train_batch_size=5"]
    make_trainer(*data, "--max_train_steps=1").train()
    evaluation = ["--resume=latest", "--max_train_steps=2", "--eval.every_n_epochs=1"]
    if names == "0123456789":
        make_trainer(*data, *evaluation)
        return
    message = "requires the classes of Fashion-MNIST in their original order, got a, b, c, d, e and 5 more"
    with pytest.raises(ValueError, match=message):
        make_trainer(*data, *evaluation)


@pytest.mark.parametrize("lr_scheduler", ["constant_with_warmup", "linear", "cosine", "polynomial"])
def test_learning_rate_continues_at_any_step(lr_scheduler: str):
    config = OptimizerConfig(lr_scheduler=lr_scheduler, lr_warmup_steps=3, learning_rate=0.1)  # pyright: ignore

    def make_optimizer() -> torch.optim.Optimizer:
        return OPTIMIZERS["adam"]([torch.nn.Parameter(torch.ones(1))], lr=config.learning_rate)

    optimizer = make_optimizer()
    schedule = make_lr_scheduler(config, optimizer, 10, 0)  # pyright: ignore
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    decay = {
        "constant_with_warmup": lambda progress: 1.0,
        "linear": lambda progress: 1 - progress,
        "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
        "polynomial": lambda progress: 1 - progress,
    }[lr_scheduler]
    expected = [0.1 * min(step / 3, 1) * decay(max(step - 3, 0) / 7) for step in range(10)]
    assert rates == pytest.approx(expected, abs=1e-6)
    for step, rate in enumerate(rates):
        optimizer = make_optimizer()
        assert make_lr_scheduler(config, optimizer, 10, step).get_last_lr() == [rate]  # pyright: ignore
        assert optimizer.param_groups[0]["lr"] == rate
