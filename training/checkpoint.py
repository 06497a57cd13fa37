"""Checkpoints that a run resumes from exactly: weights, optimizer, EMA, random states and place in the data."""

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from diffusers.training_utils import EMAModel


@dataclass
class Progress:
    """Where a run is.

    Args:
        global_step: Optimizer steps done.
        epoch: The epoch that is going on, from 0.
        batch: Batches of that epoch done.
    """

    global_step: int = 0
    epoch: int = 0
    batch: int = 0

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.__dict__.update(state_dict)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, the oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def save_checkpoint(
    accelerator: Accelerator, ema: EMAModel | None, folder: Path, global_step: int, total_limit: int
) -> None:
    """Writes `checkpoint-{global_step}`, which appears once it is complete, and removes the oldest over the limit.

    Every process calls it: each has random states of its own, and with FSDP a shard of the weights and their average.
    """
    target = folder / f"checkpoint-{global_step}"
    unfinished = target.with_suffix(".unfinished")
    if accelerator.is_main_process:
        for stopped in folder.glob("*.unfinished"):
            shutil.rmtree(stopped)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    if ema is not None and (accelerator.is_main_process or is_sharded(accelerator)):
        torch.save(ema.state_dict(), unfinished / f"ema_{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
        for old in list_checkpoints(folder)[:-total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, ema: EMAModel | None, checkpoint: Path) -> None:
    """Restores all that `save_checkpoint` wrote.

    Raises:
        `ValueError`: the average is in shards of another number of processes.
    """
    if ema is not None and is_sharded(accelerator):
        shards = len(list(checkpoint.glob("ema_*.pt")))
        if shards != accelerator.num_processes:
            raise ValueError(f"{checkpoint} is of {shards} processes, with FSDP; resume with as many.")
    accelerator.load_state(str(checkpoint))
    if ema is not None:
        path = checkpoint / f"ema_{accelerator.process_index if is_sharded(accelerator) else 0}.pt"
        ema.load_state_dict(torch.load(path, map_location=accelerator.device.type))


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def find_checkpoint(resume: str, folder: Path) -> Path:
    """The folder that `resume` means, `"latest"` in `folder` or a path."""
    if resume == "latest":
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            raise ValueError(
                f"there is no checkpoint in {folder} to resume from; leave out --resume and give a new --output_dir to"
                " start anew."
            )
        return checkpoints[-1]
    path, folder = Path(resume).resolve(), folder.resolve()
    if path not in list_checkpoints(path.parent):
        raise ValueError(f"{resume} is no checkpoint; give the folder of one, or --resume=latest.")
    later = [other.name for other in list_checkpoints(folder) if step_of(other) > step_of(path)]
    if later:
        raise ValueError(f"{folder} has {later[-1]} already; give another --output_dir to go on from {path.name}.")
    return path
