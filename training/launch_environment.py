"""Rank and number of processes, as the launcher sets them, and messages of processes.

They are also available before Accelerate is initialized.
"""

import os
import sys
from typing import Literal, NoReturn


def is_main_process() -> bool:
    """Returns whether this is the main process."""
    return os.environ.get("RANK", "0") == "0"


def get_num_processes() -> int:
    """Returns the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def get_num_local_processes() -> int:
    """Returns the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def print_and_exit(
    program: str, message: str, code: int, where: Literal["main", "machine", "process"] = "main"
) -> NoReturn:
    """Prints a message in the main process, in one process of each machine, or in this process, and exits."""
    variable = {"main": "RANK", "machine": "LOCAL_RANK"}.get(where)
    if variable is None or os.environ.get(variable, "0") == "0":
        print(f"{program}: {message}", file=sys.stderr)
    raise SystemExit(code)
