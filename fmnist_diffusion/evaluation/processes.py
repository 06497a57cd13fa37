"""Splits an evaluation across the processes of `accelerate launch`."""

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch


Item = TypeVar("Item")
# Processes wait for the main process, which measures the samples alone. This can take hours on a CPU.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """
    The processes that share an evaluation. They must see the same files.

    Attributes:
        process_index (`int`): Index of this process, from 0 to `num_processes - 1`.
        num_processes (`int`): Number of processes.
    """

    process_index: int = 0
    num_processes: int = 1

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        """Waits until all processes have called this method."""
        if self.num_processes > 1:
            torch.distributed.barrier()

    def select(self, items: Sequence[Item]) -> Sequence[Item]:
        """
        Waits for all processes, and returns the part of `items` that this process must process.

        All processes must pass the same `items`.
        """
        self.wait_for_everyone()
        return items[self.process_index :: self.num_processes]

    @staticmethod
    def check_results(paths: Sequence[Path], results: Sequence[Item | None]) -> list[Item]:
        """Returns the results that were read from `paths`; raises `ValueError` if one of them is missing."""
        for path, result in zip(paths, results, strict=True):
            if result is None:
                raise ValueError(
                    f"Could not read {path}. If the processes run on several machines, use a folder on a shared file"
                    " system."
                )
        return [result for result in results if result is not None]


def connect_processes() -> Processes:
    """Connects the processes that `accelerate launch` started; returns a single process if there are no others."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    from accelerate import PartialState

    # Without a GPU, Accelerate only recognizes the processes as one group if cpu=True.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=TIMEOUT)
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        # Without this, a gloo thread that releases a tensor during interpreter finalization can abort the process.
        # NCCL is different: after an error, it would wait for the other processes.
        atexit.register(disconnect_processes)
    return Processes(state.process_index, state.num_processes)


def disconnect_processes() -> None:
    """Ends the connection of [`connect_processes`]."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
