"""Prevents two runs from writing to the same folder."""

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


def check_new_folder(folder: Path, resume: str | None = None) -> None:
    """Raises `ValueError` if `folder` is a file or contains files other than a lock.

    Args:
        resume: The value of `--resume` that resumes the run in `folder`; `None` if the script cannot resume a run.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`--output_dir` must be a folder, but {folder} is a file. Pass a different --output_dir.")
    if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        advice = "" if resume is None else f", or --resume={resume} to resume the run in this folder"
        raise ValueError(
            f"`--output_dir` must be new or empty, but {folder} contains files. Pass a different --output_dir{advice}."
        )
