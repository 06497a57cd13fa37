"""Crashes of training runs."""

from typing import Any

import pytest

from trainer import Trainer


def train_until_crash(trainer: Trainer, num_batches: int) -> None:
    """Trains, and crashes after `num_batches` batches."""
    train_batch, batches = trainer._train_batch, iter(range(1, num_batches + 1))

    def crash(*args: Any) -> None:
        train_batch(*args)
        if next(batches) == num_batches:
            raise RuntimeError("power cut")

    trainer._train_batch = crash
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.train()
