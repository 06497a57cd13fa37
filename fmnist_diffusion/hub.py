"""Export of a trained model as a repository folder for the Hub, and loading of pipelines from wherever they are."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline

from .models import unet_fmnist
from .models.unet_fmnist import FashionMNISTUNet2DModel
from .pipelines import pipeline_fmnist
from .pipelines.pipeline_fmnist import FashionMNISTPipeline
from .schedulers import scheduler_class


PRETRAINED_DIR = Path(__file__).parent / "pretrained"
DEFAULT_SCHEDULER = "SDEDPMSolverScheduler"

STOCK_PIPELINES: dict[type, Callable[..., DiffusionPipeline]] = {
    DDPMScheduler: DDPMPipeline,
    DDIMScheduler: DDIMPipeline,
}


def bundled_pipelines() -> tuple[str, ...]:
    """Names of the checkpoints that come with the package, which [`load_pipeline`] takes."""
    return tuple(sorted(index.parent.name for index in PRETRAINED_DIR.glob("*/model_index.json")))


def pipeline_folder(name: str | os.PathLike) -> Path:
    """The folder of the bundled pipeline of that name, else of that path; a `Path` is no name."""
    return PRETRAINED_DIR / name if isinstance(name, str) and name in bundled_pipelines() else Path(name)


def load_pipeline(
    pretrained_model_name_or_path: str | os.PathLike, *, scheduler: str | None = DEFAULT_SCHEDULER, **kwargs
) -> FashionMNISTPipeline:
    r"""
    Loads a pipeline with the classes of this package, without remote code.

    Args:
        pretrained_model_name_or_path (`str` or `os.PathLike`):
            One of [`bundled_pipelines`], else a folder that [`export_pipeline`] or `save_pretrained` wrote, else the
            id of a repository on the Hub that `push_pipeline` made. A folder named like a bundled pipeline is reached
            as `./name` or by a `Path`.
        scheduler (`str`, *optional*, defaults to `"SDEDPMSolverScheduler"`):
            The class to sample with, of this package or of diffusers, made from the config of the scheduler that was
            stored, which `None` keeps. The default draws best in 20 steps (`tests/benchmarks/samplers.py`).
        kwargs:
            What `from_pretrained` of both [`ModelMixin`] and [`DiffusionPipeline`] takes: `dtype`, `variant`,
            `revision`, `cache_dir`, `local_files_only`, `force_download`, `token`.

    Returns:
        [`FashionMNISTPipeline`]: the pipeline, with its model in evaluation mode.

    Raises:
        `OSError`: there is no pipeline of that name, or it has no such `revision` or `variant`.
        `ValueError`: there is no scheduler of that name.
    """
    path, folder = os.fspath(pretrained_model_name_or_path), pipeline_folder(pretrained_model_name_or_path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise OSError(f"The folder {path} holds no pipeline, for it has no model_index.json: give another folder.")
        return _load(str(folder), scheduler, **kwargs)

    missing = (
        f"There is no pipeline {path!r}: give a bundled one ({', '.join(bundled_pipelines())}), a folder with"
        " model_index.json, or the id `owner/name` of a Hub repository that you can reach and that has the"
        " `revision` and `variant` that you ask for."
    )
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise OSError(missing)
    try:
        return _load(path, scheduler, **kwargs)
    except OSError as error:
        # Such as a full disk; what the Hub's client raises has no number.
        if error.errno is not None:
            raise
        raise OSError(missing) from error


def _load(path: str, scheduler: str | None, **kwargs) -> FashionMNISTPipeline:
    unet = FashionMNISTUNet2DModel.from_pretrained(path, subfolder="unet", **kwargs)
    # Faster on a CPU.
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    pipe = FashionMNISTPipeline.from_pretrained(path, unet=unet, **kwargs)
    if scheduler is not None:
        pipe.scheduler = scheduler_class(scheduler).from_config(pipe.scheduler.config)
    return pipe


def export_pipeline(
    unet: FashionMNISTUNet2DModel,
    scheduler: DDPMScheduler | DDIMScheduler,
    folder: str | os.PathLike,
    *,
    train_config: dict | None = None,
) -> None:
    r"""
    Writes a repository folder that loads from the Hub with this package and without it.

    The folder names a stock [`DDPMPipeline`] or [`DDIMPipeline`] and carries the source of the model and of
    [`FashionMNISTPipeline`], which `trust_remote_code=True` runs where the package is not installed. Weights keep the
    dtype that `unet` has.

    Args:
        unet ([`FashionMNISTUNet2DModel`]): The model.
        scheduler ([`DDPMScheduler`] or [`DDIMScheduler`]): The scheduler that it was trained with.
        folder (`str` or `os.PathLike`): Where to write; made where it does not exist.
        train_config (`dict`, *optional*): How the model was trained, written as `train_config.json`.

    Raises:
        `TypeError`: `unet` is not the class of this package but a copy or a wrapper of it, or `scheduler` is of a
            class that no stock pipeline holds.
    """
    if type(unet) is not FashionMNISTUNet2DModel:
        raise TypeError(
            f"`unet` is a {type(unet).__module__}.{type(unet).__name__}: unwrap it, or load it again with"
            " `fmnist_diffusion.load_pipeline`, and export that."
        )
    if type(scheduler) not in STOCK_PIPELINES:
        raise TypeError(
            f"`scheduler` is a {type(scheduler).__name__} but must be a DDPMScheduler or a DDIMScheduler: give the one"
            " that was trained with, which `load_pipeline(..., scheduler=None)` keeps."
        )
    folder = Path(folder)
    STOCK_PIPELINES[type(scheduler)](unet, scheduler).save_pretrained(folder)

    # A model that was loaded remembers its path, which is nobody's business.
    config_path = folder / "unet" / "config.json"
    config = json.loads(config_path.read_text())
    config.pop("_name_or_path", None)
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    shutil.copyfile(unet_fmnist.__file__, folder / "unet" / f"{unet_fmnist.__name__}.py")
    shutil.copyfile(pipeline_fmnist.__file__, folder / "pipeline_fmnist.py")
    if train_config is not None:
        (folder / "train_config.json").write_text(json.dumps(train_config, indent=2) + "\n")
