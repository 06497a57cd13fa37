"""Ctrl-C, SIGTERM and SIGHUP: before the training, during a step and during the outputs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_files import assert_equal_weights, load_weights, read_losses

from checkpoint import list_checkpoints
from interrupts import Interrupts, Terminated
from outputs import RunOutputs
from train import main
from trainer import Trainer


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TRAINING = Path(__file__).parents[2] / "training"


# Sends SIGINT to itself when the module in the first argument is imported.
INTERRUPTED_START = """
import signal, sys
from startup import start

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
start(sys.argv[2:], "train.py")
"""


def list_names(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run / "checkpoints")]


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGINT, KeyboardInterrupt, 130),
        (signal.SIGTERM, Terminated, 143),
        # The terminal was closed.
        (signal.SIGHUP, Terminated, 143),
    ],
)
def test_signal_during_a_step_writes_a_checkpoint(
    tmp_path: Path,
    launch: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    number: signal.Signals,
    error: type[BaseException],
    code: int,
):
    # nohup makes a process ignore SIGHUP, and child processes inherit this.
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, previous))
    handlers = [signal.getsignal(name) for name in SIGNALS]
    train_batch = Trainer._train_batch

    def interrupt(trainer: Trainer, *args):
        train_batch(trainer, *args)
        if trainer.progress.global_step == 3:
            # If a terminal is closed, both the shell and the kernel send SIGHUP.
            for _ in range(2 if number == signal.SIGHUP else 1):
                signal.raise_signal(number)

    monkeypatch.setattr(Trainer, "_train_batch", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        launch()
    assert exit_info.value.code == code
    assert isinstance(exit_info.value.__context__, error)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "train.py: Interrupted at step 3. Resume from the last checkpoint with"
        f" --config={tmp_path / 'run' / 'config.yaml'} --resume=latest."
    )
    assert [signal.getsignal(name) for name in SIGNALS] == handlers
    assert list_names(tmp_path / "run") == ["checkpoint-3"]
    monkeypatch.undo()
    launch("--resume=latest")
    assert len(read_losses(tmp_path / "run")) == 12


def test_closed_terminal_does_not_stop_a_run_with_nohup(request: pytest.FixtureRequest):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, previous))
    interrupts = Interrupts(SimpleNamespace(num_processes=1))  # pyright: ignore[reportArgumentType]
    with interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert not interrupts.exchange()


def test_second_signal_stops_immediately(tmp_path: Path, make_trainer: Callable):
    trainer = make_trainer()

    def interrupt_twice(*args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer._train_batch = interrupt_twice
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert list_names(tmp_path / "run") == []


def test_signal_during_an_exchange_stops_all_processes_at_the_next_step(monkeypatch: pytest.MonkeyPatch):
    interrupts = Interrupts(SimpleNamespace(num_processes=1))
    interrupts.group = "two processes"
    signals = iter([signal.SIGTERM])
    # The tensor has already been exchanged when the signal arrives.
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *args: [signal.raise_signal(n) for n in signals])
    with interrupts:
        assert not interrupts.exchange()
        assert interrupts.exchange()
    with pytest.raises(Terminated):
        interrupts.stop()


@pytest.mark.parametrize(
    "options",
    [
        ["--num_epochs=2"],
        ["--num_epochs=3", "--max_train_steps=15"],
        ["--num_epochs=3", "--gradient_accumulation_steps=4"],
    ],
)
def test_signal_during_the_outputs_writes_a_checkpoint_and_resume_repeats_them(
    tmp_path: Path, make_trainer: Callable, launch: Callable[..., None], options: list[str]
):
    options = [
        *options,
        "--save_images_epochs=1",
        "--save_model_epochs=1",
        "--model.dropout=0.1",
        "--ema.enabled=true",
    ]
    launch(*options, f"--output_dir={tmp_path / 'expected'}")
    for epoch in (1, int(options[0][-1])):
        resume = ["--resume=latest"] if list_names(tmp_path / "run") else []
        trainer = make_trainer(*options, *resume)
        write = RunOutputs.write

        def interrupt(unet, progress, current_epoch, due, trainer=trainer, write=write, epoch=epoch):
            if current_epoch == epoch:
                signal.raise_signal(signal.SIGTERM)
                time.sleep(10)
            write(trainer.outputs, unet, progress, current_epoch, due)

        trainer.outputs.write = interrupt
        with pytest.raises(Terminated):
            trainer.train()
    assert not (tmp_path / "run" / "samples" / f"epoch-000{epoch}.png").exists()
    launch(*options, "--resume=latest")
    assert_equal_weights(load_weights(tmp_path / "run"), load_weights(tmp_path / "expected"))
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "expected")
    for name in ("samples", "pipeline"):
        names = [[path.name for path in sorted((tmp_path / run / name).iterdir())] for run in ("run", "expected")]
        assert names[0] == names[1]
    assert list_names(tmp_path / "run")[-1] == list_names(tmp_path / "expected")[-1]
    for path in (tmp_path / "expected" / "pipeline").rglob("*.json"):
        relative = path.relative_to(tmp_path / "expected")
        assert (tmp_path / "run" / relative).read_text() == path.read_text()


@pytest.mark.parametrize(("rank", "message"), [(0, "train.py: Interrupted before the training started.\n"), (1, "")])
def test_only_the_first_process_reports_an_interrupt_before_the_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, message: str
):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("run.run", interrupt)
    monkeypatch.setenv("RANK", str(rank))
    with pytest.raises(SystemExit, match="130"):
        main([])
    assert capsys.readouterr().err == message


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "diffusers", "trainer"])
def test_ctrl_c_during_the_start_exits_without_a_traceback(tiny_args: list[str], module: str):
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_START, module, *tiny_args],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TRAINING.parent}:{TRAINING}"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 130 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == "train.py: Interrupted before the training started."
