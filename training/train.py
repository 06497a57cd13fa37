"""Trains a diffusion model: `accelerate launch training/train.py --config training/configs/spec.yaml`."""

import logging
import sys
from pathlib import Path
from typing import NoReturn

from checkpoint import list_checkpoints
from config import TrainingConfig, is_first_process, parse_config
from fmnist_diffusion.data import DataError
from trainer import Trainer


def main(args: list[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO if is_first_process() else logging.ERROR)
    config = parse_config(args)
    try:
        trainer = Trainer(config)
    except (ValueError, OSError) as error:
        stop(f"error: {error}", 2)
    except KeyboardInterrupt:
        stop("Interrupted before the training started.", 130)
    try:
        trainer.train()
    except DataError as error:
        stop(f"error: {error}", 2)
    except FloatingPointError as error:
        stop(
            f"error: {error} {get_advice(config)} Lower --optimizer.learning_rate, or pass"
            " --optimizer.max_grad_norm=1.",
            1,
        )
    except KeyboardInterrupt:
        stop(f"Interrupted at step {trainer.progress.global_step}. {get_advice(config)}", 130)


def stop(message: str, code: int) -> NoReturn:
    if is_first_process():
        print(f"train.py: {message}", file=sys.stderr)
    raise SystemExit(code)


def get_advice(config: TrainingConfig) -> str:
    """Returns a sentence about how to continue the stopped run."""
    folder = Path(config.output_dir)
    if list_checkpoints(folder / "checkpoints"):
        return f"Continue from the last checkpoint with --config={folder / 'config.yaml'} --resume=latest."
    return "There is no checkpoint yet. Start again with a different --output_dir."


if __name__ == "__main__":
    main()
