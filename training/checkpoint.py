"""Checkpoints for exact resuming: weights, optimizer, EMA, random states and position in the data."""

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel

from config import TrainingConfig


@dataclass
class Progress:
    """Position of a run.

    Attributes:
        global_step: Number of finished optimizer steps.
        epoch: Current epoch, from 0.
        batch: Number of finished batches of this epoch.
    """

    global_step: int = 0
    epoch: int = 0
    batch: int = 0

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.__dict__.update(state_dict)


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in `folder`, from the oldest to the newest."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=get_step)


def get_step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def find_resumed_checkpoint(config: TrainingConfig) -> Path | None:
    """Returns the checkpoint that a run resumes from, or `None` for a new run.

    Raises:
        `ValueError`: If there is no such checkpoint, if it belongs to a run with different settings, or if
            `output_dir` contains files of a different run.
    """
    output_dir = Path(config.output_dir)
    folder = output_dir / "checkpoints"
    checkpoint = None
    if config.resume is not None:
        checkpoint = find_checkpoint(config.resume, folder)
        config.check_resumable(checkpoint.parents[1] / "config.yaml")
    in_output_dir = checkpoint is not None and checkpoint.parent.resolve() == folder.resolve()
    if not in_output_dir and output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(
            f"`output_dir` must be new or empty, but {output_dir} contains files. Pass a different --output_dir, or"
            " --resume=latest to continue its run."
        )
    return checkpoint


def find_checkpoint(resume: str, folder: Path) -> Path:
    """Returns the newest checkpoint in `folder` if `resume` is `"latest"`, otherwise the one at the path `resume`."""
    if resume == "latest":
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            raise ValueError(
                f"Could not find a checkpoint in {folder}. Omit --resume and pass a new --output_dir to start a new"
                " run."
            )
        return checkpoints[-1]
    path, folder = Path(resume).resolve(), folder.resolve()
    if path not in list_checkpoints(path.parent):
        raise ValueError(f"`resume` must be latest or the folder of a checkpoint, got {resume}.")
    later = [other.name for other in list_checkpoints(folder) if get_step(other) > get_step(path)]
    if later:
        raise ValueError(
            f"{folder} already contains {later[-1]}. Pass a different --output_dir to continue from {path.name}."
        )
    return path


def save_checkpoint(
    accelerator: Accelerator, ema: EMAModel | None, folder: Path, global_step: int, total_limit: int
) -> None:
    """Writes `checkpoint-{global_step}` and removes the oldest checkpoints beyond `total_limit`.

    The folder is renamed to its final name once it is complete. All processes must call this function: each one has
    its own random states and, with FSDP, its own shard of the weights and of the EMA.
    """
    target = folder / f"checkpoint-{global_step}"
    unfinished = target.with_suffix(".unfinished")
    if accelerator.is_main_process:
        for interrupted in folder.glob("*.unfinished"):
            shutil.rmtree(interrupted)
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


def load_checkpoint(
    accelerator: Accelerator, optimizer: AcceleratedOptimizer, ema: EMAModel | None, checkpoint: Path
) -> None:
    """Restores everything that `save_checkpoint` wrote, except the settings of `optimizer` and `ema`.

    The learning rate is reset to its peak value, `initial_lr`, from which the scheduler computes later values.

    Raises:
        `ValueError`: If the EMA was sharded over a different number of processes.
    """
    if ema is not None and is_sharded(accelerator):
        shards = len(list(checkpoint.glob("ema_*.pt")))
        if shards != accelerator.num_processes:
            raise ValueError(
                f"{checkpoint} was written with FSDP by {shards} processes and must be resumed with {shards}"
                f" processes, got {accelerator.num_processes}. Pass --num_processes={shards} to accelerate launch."
            )
    settings = [dict(group) for group in optimizer.param_groups]
    accelerator.load_state(str(checkpoint))
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values, initial_lr=values["lr"])
    if ema is not None:
        path = checkpoint / f"ema_{accelerator.process_index if is_sharded(accelerator) else 0}.pt"
        state = torch.load(path, map_location=accelerator.device.type)
        ema.load_state_dict(state | {name: getattr(ema, name) for name in ("decay", "inv_gamma", "power")})


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP
