"""Checkpoints that resume a run exactly: weights, optimizer, EMA, discriminator and position in the data.

The random numbers of a batch only depend on the seed, the epoch and its position, so checkpoints contain no random
states. They consist of safetensors and JSON files, and a manifest with their hashes. Loading a checkpoint executes no
code.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from autoencoder import hash_vae
from batches import Batches
from components import Components
from config import TrainingConfig
from fmnist_diffusion.data.errors import get_reason
from fmnist_diffusion.files import remove_folder, replace_folder, write_tensors
from manifest import find_damage, write_manifest
from output_folder import check_new_folder
from processes import call_on_main_process
from states import Tensors, copy_tensors, get_optimizer_tensors, set_optimizer_tensors


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


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in `folder`, from the oldest to the newest.

    A checkpoint has a temporary name until it is complete, and again while it is deleted.
    """
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=get_step)


def get_step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def find_resumed_checkpoint(config: TrainingConfig) -> Path | None:
    """Returns the checkpoint that a run resumes from, or `None` for a new run.

    Raises:
        `ValueError`: If there is no such checkpoint, if it is damaged, if it belongs to a run with different settings,
            or if `output_dir` contains files of a different run.
    """
    output_dir = Path(config.output_dir)
    folder = output_dir / "checkpoints"
    checkpoint = None
    if config.resume is not None:
        checkpoint = find_checkpoint(config.resume, folder)
        config.check_resumable(checkpoint.parents[1] / "config.yaml")
    in_output_dir = checkpoint is not None and checkpoint.parent.resolve() == folder.resolve()
    if not in_output_dir:
        check_new_folder(output_dir, resume="latest" if list_checkpoints(folder) else None)
    return checkpoint


def find_checkpoint(resume: str, folder: Path) -> Path:
    """Returns the newest checkpoint in `folder` if `resume` is `"latest"`, otherwise the one at the path `resume`."""
    if resume == "latest":
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            raise ValueError(describe_missing_checkpoint(folder))
        check_undamaged(checkpoints[-1])
        return checkpoints[-1]
    path, folder = Path(resume).resolve(), folder.resolve()
    if path not in list_checkpoints(path.parent):
        raise ValueError(f"`--resume` must be latest or the folder of a checkpoint, got {resume}.")
    check_undamaged(path)
    later = [other.name for other in find_later_checkpoints(folder, get_step(path)) if find_damage(other) is None]
    if later:
        raise ValueError(
            f"{folder} already contains {later[-1]}. Pass a different --output_dir to resume from {path.name}."
        )
    return path


def describe_missing_checkpoint(folder: Path) -> str:
    return f"Could not find a checkpoint in {folder}. Omit --resume and pass a new --output_dir to start a new run."


def find_later_checkpoints(folder: Path, global_step: int) -> list[Path]:
    return [path for path in list_checkpoints(folder) if get_step(path) > global_step]


def get_resume_advice(folder: Path, resume: str | None) -> str:
    """Returns a sentence about how to resume the stopped run in `folder`.

    Args:
        resume: The value of `--resume` that resumes the run; `None` if there is no checkpoint.
    """
    if resume is None:
        return "There is no checkpoint yet. Start again with a different --output_dir."
    return f"Resume from the last checkpoint with --config={folder / 'config.yaml'} --resume={resume}."


def check_undamaged(checkpoint: Path) -> None:
    """Raises `ValueError` if a file of `checkpoint` does not match its manifest."""
    damage = find_damage(checkpoint)
    if damage is None:
        return
    earlier = [path for path in list_checkpoints(checkpoint.parent) if get_step(path) < get_step(checkpoint)]
    previous = next((path for path in reversed(earlier) if find_damage(path) is None), None)
    advice = (
        "There is no earlier checkpoint, so start again with a different --output_dir."
        if previous is None
        else f"Pass --resume={previous} to resume from the previous checkpoint."
    )
    raise ValueError(f"{damage}. {advice}")


def save_checkpoint(
    accelerator: Accelerator, components: Components, progress: Progress, folder: Path, total_limit: int
) -> None:
    """Writes `checkpoint-{global_step}` and removes the oldest checkpoints beyond `total_limit`.

    All processes must call this function. The main process writes its own state. The other processes only have
    different running statistics of BatchNorm.

    Raises:
        `WriteError`: If the checkpoint cannot be written.
    """

    def write() -> None:
        unet = accelerator.unwrap_model(components.unet)
        tensors = {
            "model": unet.state_dict(),
            "optimizer": get_optimizer_tensors(components.optimizer, unet),
            "timestep_sampler": components.loss.timestep_sampler.state_dict(),
        }
        if components.ema is not None:
            tensors["ema"] = get_ema_tensors(components.ema, unet)
        if components.discriminator is not None:
            discriminator = accelerator.unwrap_model(components.discriminator)
            tensors["discriminator"] = discriminator.state_dict()
            tensors["discriminator_optimizer"] = get_optimizer_tensors(components.optimizer, discriminator)
        state = {
            **get_loop_state(accelerator, progress, components.batches),
            "ema_step": None if components.ema is None else components.ema.optimization_step,
            "vae_sha256": None if components.vae is None else hash_vae(components.vae),
            **get_condition_state(unet),
        }
        write_checkpoint(folder / f"checkpoint-{progress.global_step}", tensors, state)
        for old in list_checkpoints(folder)[:-total_limit]:
            remove_folder(old)

    call_on_main_process(accelerator, write)


def get_condition_state(unet: Any) -> dict[str, Any]:
    """Returns the class names and the hash of the vocabulary, which give the embeddings of a model their meaning."""
    names, tokenizer = unet.config["label_names"], getattr(unet, "tokenizer", None)
    vocabulary = "" if tokenizer is None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return {
        "label_names": None if names is None else list(names),
        "vocabulary_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
    }


def get_loop_state(accelerator: Accelerator, progress: Progress, batches: Batches) -> dict[str, Any]:
    """Returns the items of `trainer.json` that both trainers save."""
    scaler = accelerator.scaler
    return {
        "progress": asdict(progress),
        "batches_per_epoch": len(batches),
        "grad_scaler": None if scaler is None else scaler.state_dict(),
    }


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> None:
    """Replaces `folder` with one safetensors file per item of `tensors`, `trainer.json` and a manifest.

    Raises:
        `WriteError`: If a file cannot be written.
    """
    with replace_folder(folder) as temporary:
        for name, values in tensors.items():
            write_tensors(temporary / f"{name}.safetensors", values)
        (temporary / "trainer.json").write_text(json.dumps(state) + "\n")
        write_manifest(temporary)


def load_checkpoint(accelerator: Accelerator, components: Components, checkpoint: Path) -> Progress:
    """Restores the tensors that `save_checkpoint` wrote, and returns the position of the run.

    The checkpoint does not change the settings of the optimizer and the EMA.

    Raises:
        `ValueError`: If the checkpoint does not fit the model or the data of this run.
    """
    unet = accelerator.unwrap_model(components.unet)
    load_weights(checkpoint, ("model", "optimizer"), unet, components.optimizer)
    with describe_load_errors(checkpoint / "timestep_sampler.safetensors") as path:
        copy_tensors(load_file(path), components.loss.timestep_sampler.state_dict())
    if components.discriminator is not None:
        discriminator = accelerator.unwrap_model(components.discriminator)
        names = ("discriminator", "discriminator_optimizer")
        load_weights(checkpoint, names, discriminator, components.optimizer)
    with describe_load_errors(checkpoint / "trainer.json") as path:
        state = json.loads(path.read_bytes())
        progress = load_loop_state(accelerator, state, components.batches)
        if progress.global_step != get_step(checkpoint):
            raise ValueError(f"it belongs to step {progress.global_step}")
        if components.vae is not None and hash_vae(components.vae) != state["vae_sha256"]:
            raise ValueError("the autoencoder has changed since this checkpoint was written")
        for name, value in get_condition_state(unet).items():
            # Older checkpoints do not contain these values.
            if state.get(name, value) != value:
                kind = "class names of the training images" if name == "label_names" else "vocabulary of the captions"
                raise ValueError(f"the {kind} changed, so restore the original data or start a new run")
        if components.ema is not None:
            components.ema.optimization_step = int(state["ema_step"])
    if components.ema is not None:
        with describe_load_errors(checkpoint / "ema.safetensors") as path:
            copy_tensors(load_file(path), get_ema_tensors(components.ema, unet))
    return progress


def load_weights(
    checkpoint: Path, names: tuple[str, str], model: torch.nn.Module, optimizer: AcceleratedOptimizer
) -> None:
    """Restores a model and its part of the optimizer; `names` are the names of their files without `.safetensors`."""
    with describe_load_errors(checkpoint / f"{names[0]}.safetensors") as path:
        copy_tensors(load_file(path), model.state_dict())
    with describe_load_errors(checkpoint / f"{names[1]}.safetensors") as path:
        set_optimizer_tensors(optimizer, model, load_file(path))


def load_loop_state(accelerator: Accelerator, state: Mapping[str, Any], batches: Batches) -> Progress:
    """Restores the gradient scaler from the result of `get_loop_state`, and returns the position of the run.

    Raises:
        `ValueError`: If the position is invalid or the number of batches per epoch has changed.
    """
    progress = Progress(**state["progress"])
    check_progress(progress, state["batches_per_epoch"], len(batches))
    if accelerator.scaler is not None and state["grad_scaler"]:
        accelerator.scaler.load_state_dict(state["grad_scaler"])
    return progress


def check_progress(progress: Progress, batches_per_epoch: int, expected_batches: int) -> None:
    if batches_per_epoch != expected_batches:
        raise ValueError(
            f"the training images have changed, because an epoch had {batches_per_epoch} batches and now has"
            f" {expected_batches}"
        )
    values = asdict(progress).values()
    if any(type(value) is not int or value < 0 for value in values) or progress.batch > batches_per_epoch:
        raise ValueError("the progress is invalid")


@contextmanager
def describe_load_errors(path: Path) -> Iterator[Path]:
    """Names `path` in the error if its content has valid hashes, but belongs to a different run or is malformed."""
    try:
        yield path
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, OSError, SafetensorError) as error:
        raise ValueError(f"Could not resume from {path}: {get_reason(error)}.") from error


def get_ema_tensors(ema: EMAModel, unet: torch.nn.Module) -> Tensors:
    names = [name for name, _ in unet.named_parameters()]
    return dict(zip(names, ema.shadow_params, strict=True))
