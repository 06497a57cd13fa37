from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from training.config import parse_config
from training.train import Trainer, main


TINY = [
    "--model.block_out_channels=[8, 16]",
    "--model.attention_head_dim=8",
    "--data.max_train_samples=96",
    "--num_epochs=2",
    "--train_batch_size=16",
    "--samples.num_images=10",
    "--samples.num_inference_steps=2",
    "--report_to=none",
]


@pytest.fixture
def tiny_args(tmp_path: Path, fashion_mnist_folder: Path) -> list[str]:
    """Arguments of a run of 12 steps with a tiny model in `tmp_path / "run"`."""
    return [*TINY, f"--data.train_data_dir={fashion_mnist_folder}", f"--output_dir={tmp_path / 'run'}"]


@pytest.fixture
def fresh_accelerate() -> Callable[[], None]:
    """Makes this process, to Accelerate, a new one."""

    def reset() -> None:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        PartialState._reset_state()

    return reset


@pytest.fixture
def launch(tiny_args: list[str], fresh_accelerate: Callable[[], None]) -> Callable[..., None]:
    """Runs the trainer in this process, as a new process would find it."""

    def run(*args: str) -> None:
        fresh_accelerate()
        main([*tiny_args, *args])

    return run


@pytest.fixture
def make_trainer(tiny_args: list[str], fresh_accelerate: Callable[[], None]) -> Callable[..., Trainer]:
    def make(*args: str) -> Trainer:
        fresh_accelerate()
        return Trainer(parse_config([*tiny_args, *args]))

    return make
