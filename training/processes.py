"""Coordination of the processes of a run."""

from collections.abc import Callable

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


def call_on_main_process(accelerator: Accelerator, function: Callable[[], None]) -> None:
    """Calls `function` in the main process while the other processes wait.

    Raises:
        `OSError`, `ValueError`, `FloatingPointError`: If `function` raises it. All processes raise it, so that none of
            them waits for the main process.
    """
    error = None
    if accelerator.is_main_process:
        try:
            function()
        except (OSError, ValueError, FloatingPointError) as caught:
            error = caught
    [error] = broadcast_object_list([error])
    if error is not None:
        raise error
