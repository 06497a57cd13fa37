"""Coordination of the processes of a run."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


Result = TypeVar("Result")


def call_on_main_process(accelerator: Accelerator, function: Callable[[], Result]) -> Result | None:
    """Calls `function` in the main process while the other processes wait.

    Returns:
        The result of `function` in the main process, `None` in the other processes.

    Raises:
        `OSError`, `ValueError`, `FloatingPointError`: If `function` raises it. All processes raise it, so that none of
            them waits for the main process.
    """
    result = error = None
    if accelerator.is_main_process:
        try:
            result = function()
        except (OSError, ValueError, FloatingPointError) as caught:
            error = caught
    [error] = broadcast_object_list([error])
    if error is not None:
        raise error
    return result


def destroy_process_groups_after(function: Callable[[], None]) -> None:
    """Calls `function`, frees its objects, and then destroys the process groups that it created.

    This order prevents a deadlock in gloo. If the reducer of `DistributedDataParallel` releases the last reference to
    a process group, it waits for gloo's threads while it holds the GIL. These threads need the GIL to release their
    tensors (https://github.com/pytorch/pytorch/issues/56297).

    Raises:
        `SystemExit`: If `function` raises it.
    """
    code = None
    try:
        function()
    except SystemExit as error:
        # NCCL would wait for the other processes, which may wait for this one.
        if not torch.distributed.is_initialized() or torch.distributed.get_backend() != "gloo":
            raise
        code = error.code
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
    if code is not None:
        raise SystemExit(code)
