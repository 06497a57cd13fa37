"""Rank and number of processes, as the launcher sets them, and messages of the main process.

They are also available before Accelerate is initialized.
"""

import os
import sys
from typing import NoReturn


def is_main_process() -> bool:
    """Returns whether this is the main process."""
    return os.environ.get("RANK", "0") == "0"


def get_num_processes() -> int:
    """Returns the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def get_num_local_processes() -> int:
    """Returns the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def print_and_exit(program: str, message: str, code: int) -> NoReturn:
    """Prints a message in the main process, and exits."""
    if is_main_process():
        print(f"{program}: {message}", file=sys.stderr)
    raise SystemExit(code)
