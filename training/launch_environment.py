"""Rank and number of processes that the launcher sets. They are also known before Accelerate is initialized."""

import os


def is_first_process() -> bool:
    """Returns whether this is the main process."""
    return os.environ.get("RANK", "0") == "0"


def get_num_processes() -> int:
    """Returns the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))
