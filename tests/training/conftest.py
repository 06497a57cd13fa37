from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from matplotlib.figure import Figure
from torch.optim.optimizer import register_optimizer_step_pre_hook

from parsing import parse_config
from resolve import resolve_config
from train import main
from trainer import Trainer


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


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    """Uses one thread, because tiny models then train several times faster on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def tiny_args(tmp_path: Path, fashion_mnist_folder: Path) -> list[str]:
    """Arguments of a run of 12 steps with a tiny model in `tmp_path / "run"`."""
    return [*TINY, f"--data.train_data_dir={fashion_mnist_folder}", f"--output_dir={tmp_path / 'run'}"]


@pytest.fixture
def reset_accelerate() -> Callable[[], None]:
    """Resets the global state of Accelerate, as in a new process."""

    def reset() -> None:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        PartialState._reset_state()

    return reset


@pytest.fixture
def gradient_norms() -> Iterator[list[float]]:
    """The list of the gradient norms, recorded before each optimizer step."""
    norms: list[float] = []

    def record(optimizer: torch.optim.Optimizer, *args: Any) -> None:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    handle = register_optimizer_step_pre_hook(record)
    yield norms
    handle.remove()


@pytest.fixture
def empty_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes empty files instead of plots, which take about half of the time of a run with a tiny model."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **kwargs: path.touch())


@pytest.fixture
def launch(tiny_args: list[str], reset_accelerate: Callable[[], None], empty_plots: None) -> Callable[..., None]:
    """Runs the trainer in this process."""

    def run(*args: str) -> None:
        reset_accelerate()
        main([*tiny_args, *args])

    return run


@pytest.fixture
def fail_to_launch(launch: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the trainer, which must exit with code 2, and returns the last line of its error message."""

    def run(*args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as error:
            launch(*args)
        assert error.value.code == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("train.py: error: ")
        return line

    return run


@pytest.fixture
def make_trainer(
    tiny_args: list[str], reset_accelerate: Callable[[], None], empty_plots: None
) -> Callable[..., Trainer]:
    def make(*args: str) -> Trainer:
        reset_accelerate()
        return Trainer(resolve_config(parse_config([*tiny_args, *args])))

    return make
