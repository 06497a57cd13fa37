"""Prevents two runs in the same folder."""

import fcntl
import logging
import os
from pathlib import Path

from fmnist_diffusion.files import describe_write_errors


LOCK = ".lock"

logger = logging.getLogger("training")


def lock_folder(folder: Path) -> None:
    """Locks `folder` until this process ends. The lock file remains, but a new run can lock it.

    Raises:
        `ValueError`: If another process has locked the folder.
        `WriteError`: If the folder is not writable.
    """
    with describe_write_errors(folder):
        descriptor = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(
            f"Another run is writing to {folder}. Wait until it has ended, or pass a different --output_dir."
        ) from error
    except OSError as error:
        # Some network file systems do not support locks.
        logger.warning("Could not lock %s (%s). Do not start a second run there.", folder, error.strerror)
