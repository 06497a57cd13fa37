"""Runs the trainer and turns its exceptions into messages and exit codes."""

import logging
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from checkpoint import get_resume_advice, list_checkpoints
from config import TrainingConfig
from fmnist_diffusion.data import DataError
from fmnist_diffusion.files import WriteError
from interrupts import get_exit_code
from launch_environment import is_main_process, print_and_exit
from parsing import parse_config
from resolve import resolve_config
from trainer import Trainer


def run(args: list[str], program: Literal["train.py", "distill.py"]) -> None:
    """Trains or distills with the command-line arguments `args`.

    Raises:
        `SystemExit`: If the run fails or is interrupted.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO if is_main_process() else logging.ERROR)
    config = parse_config(args, program)
    # Files can be missing on only one of several machines.
    stop = partial(print_and_exit, program, where="machine")
    try:
        config = resolve_config(config)
        trainer = Trainer(config)
    except torch.OutOfMemoryError:
        stop(
            "error: The GPU ran out of memory while loading the images and the model. Reduce the number of images"
            " (--data.max_train_samples) or their size (--data.resolution), or train a smaller model.",
            1,
            where="process",
        )
    except WriteError as error:
        stop(f"error: {error} {get_advice(config)}", 1)
    except (ValueError, OSError) as error:
        stop(f"error: {error}", 2)
    stop = partial(print_and_exit, program)
    # Only the process in which one of these errors occurs reports it.
    stop_process = partial(print_and_exit, program, where="process")
    try:
        trainer.train()
    except DataError as error:
        # The order of the images depends on their number.
        stop_process(
            f"error: {error} To resume this run, replace the image instead of removing it. {get_advice(config)}", 2
        )
    except FloatingPointError as error:
        stop(
            f"error: {error} {get_advice(config)} Reduce --optimizer.learning_rate, or pass"
            " --optimizer.max_grad_norm=1.",
            1,
        )
    except torch.OutOfMemoryError:
        stop_process(
            f"error: The GPU ran out of memory. {get_advice(config)} Add --gradient_checkpointing=true. If this is not"
            " enough, start a new run with a smaller --train_batch_size.",
            1,
        )
    except WriteError as error:
        stop(f"error: {error} {get_advice(config)}", 1)
    except OSError as error:
        stop_process(f"error: The operating system reported an error ({error}). {get_advice(config)}", 1)
    except KeyboardInterrupt as interrupt:
        step = trainer.progress.global_step
        stop(f"Interrupted at step {step}. {get_advice(config)}", get_exit_code(interrupt))


def get_advice(config: TrainingConfig) -> str:
    """Returns a sentence about how to resume the stopped run."""
    folder = Path(config.output_dir)
    return get_resume_advice(folder, "latest" if list_checkpoints(folder / "checkpoints") else None)
