"""Coordination of the processes of a run."""

from collections.abc import Callable

from accelerate import Accelerator, DistributedType
from accelerate.utils import broadcast_object_list


def check_strategy(accelerator: Accelerator) -> None:
    """Raises `ValueError` if the optimizer state of the processes cannot be gathered for a checkpoint.

    DeepSpeed and FSDP1 keep it in flat buffers, which they only save with pickle.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED or (
        accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2
    ):
        raise ValueError(
            "DeepSpeed and FSDP1 are not supported, because loading their checkpoints can execute code. Use"
            " training/accelerate_configs/fsdp2.yaml."
        )


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
