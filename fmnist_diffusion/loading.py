"""Loads bundled checkpoints, local folders and Hub repositories."""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from .hub_client import HubError, call_hub, is_repo_id
from .pipelines import FashionMNISTPipeline
from .sampling import use_fastest_dtype
from .schedulers import make_scheduler


PRETRAINED_DIR = Path(__file__).parent / "pretrained"


def bundled_pipelines() -> tuple[str, ...]:
    """Returns the names of the checkpoints that are part of the package."""
    return tuple(sorted(index.parent.name for index in PRETRAINED_DIR.glob("*/model_index.json")))


def get_pipeline_folder(name_or_path: str | os.PathLike) -> Path:
    """
    Returns the folder of the bundled checkpoint called `name_or_path`, or `Path(name_or_path)` if there is none.

    A `Path` never refers to a bundled checkpoint.
    """
    if isinstance(name_or_path, str) and name_or_path in bundled_pipelines():
        return PRETRAINED_DIR / name_or_path
    return Path(name_or_path)


def check_pipeline_folder(folder: Path) -> None:
    """Raises `OSError` if `folder` contains no pipeline."""
    if not (folder / FashionMNISTPipeline.config_name).is_file():
        # The trainer writes the pipeline into this subfolder of its output folder.
        subfolder = folder / "pipeline"
        found = (subfolder / FashionMNISTPipeline.config_name).is_file()
        raise OSError(
            f"Could not find a pipeline in the folder {folder}: it contains no {FashionMNISTPipeline.config_name}."
            f" Pass {subfolder if found else 'a folder that `save_pretrained` or the trainer wrote'}."
        )


def find_pipeline_file(name_or_path: str | os.PathLike, file_name: str) -> Path | None:
    """
    Finds a file in the root folder of a pipeline, and downloads it if necessary.

    Args:
        name_or_path (`str` or `os.PathLike`): See [`load_pipeline`].
        file_name (`str`): Name of the file, such as `"metrics.json"`.

    Returns:
        `Path`, *optional*: Path of the file; `None` if the pipeline does not contain it.

    Raises:
        [`HubError`]: If the Hub cannot be reached or rejects a request.
        `ValueError`: If `name_or_path` is neither a folder nor a valid repository id.
    """
    folder = get_pipeline_folder(name_or_path)
    if folder.is_dir():
        return folder / file_name if (folder / file_name).is_file() else None
    repo_id = os.fspath(name_or_path)
    try:
        return Path(call_hub(lambda: hf_hub_download(repo_id, file_name), repo_id, access="read"))
    except HubError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):
            return None
        raise


def load_pipeline(
    pretrained_model_name_or_path: str | os.PathLike,
    *,
    scheduler: str | type | SchedulerMixin | None = None,
    dtype: Any = None,
    **kwargs: Any,
) -> FashionMNISTPipeline:
    r"""
    Loads a bundled checkpoint, a local folder or a Hub repository, without remote code.

    Args:
        pretrained_model_name_or_path (`str` or `os.PathLike`):
            A name in [`bundled_pipelines`], a folder, or a repository id such as `owner/name`. To load a folder with
            the name of a bundled checkpoint, pass `./name` or a `Path`.
        scheduler (`str`, [`SchedulerMixin`] or `type[SchedulerMixin]`, *optional*):
            Scheduler to use instead of the stored one: a name in `fmnist_diffusion.schedulers.SCHEDULERS`, such as
            `"ddim"`, a diffusers scheduler class, or a scheduler object. A name or a class keeps the noise schedule
            and the prediction type of the stored scheduler. The power-law timestep spacing is only kept if the new
            scheduler has the same class and options as the stored one.
        dtype (`torch.dtype`, `dict` or `"auto"`, *optional*):
            See [`FashionMNISTPipeline.from_pretrained`]. `"auto"` selects the fastest dtype on the device that the
            pipeline is loaded on, which is the CPU without a `device_map`; see
            [`~fmnist_diffusion.sampling.select_dtype`]. Defaults to float32.
        kwargs: Other arguments of [`FashionMNISTPipeline.from_pretrained`], such as `variant` and `revision`.

    Returns:
        [`FashionMNISTPipeline`]: The pipeline, with its models in evaluation mode.

    Raises:
        `OSError`: If the pipeline, revision or variant does not exist, if the Hub cannot be reached and there is no
            cached copy, or if a file is damaged. The message names the file.
        `ValueError`: If an argument is out of range, or if `scheduler` does not exist, requires arguments, or does not
            support the noise schedule. Other unsupported schedulers raise an error when the pipeline is called.

    Examples:
        ```py
        >>> from fmnist_diffusion import load_pipeline

        >>> pipe = load_pipeline("base")
        >>> image = pipe("Ankle boot").images[0]
        ```
    """
    path, folder = os.fspath(pretrained_model_name_or_path), get_pipeline_folder(pretrained_model_name_or_path)
    if folder.is_dir():
        check_pipeline_folder(folder)
        path = str(folder)
    elif not is_repo_id(path):
        raise OSError(
            f"Could not find a pipeline at {path!r}: pass the name of a bundled checkpoint"
            f" ({', '.join(bundled_pipelines())}), a local folder with {FashionMNISTPipeline.config_name}, or a Hub"
            " repository id (`owner/name`)."
        )
    if dtype is not None and dtype != "auto":
        kwargs["dtype"] = dtype
    if isinstance(scheduler, SchedulerMixin):
        kwargs["scheduler"] = scheduler
    pipe = FashionMNISTPipeline.from_pretrained(path, **kwargs)
    if dtype == "auto":
        use_fastest_dtype(pipe)
    if scheduler is not None and not isinstance(scheduler, SchedulerMixin):
        pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
    return pipe


def get_device(name: str, argument: str = "device") -> torch.device:
    """
    Returns the torch device `name`, where `auto` selects the best one.

    Args:
        name (`str`): Name of the device, such as `"cuda"`.
        argument (`str`, defaults to `"device"`): Name of the argument or option in the error message.

    Raises:
        `ValueError`: If the device is unavailable.
    """
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    # torch raises these errors for unknown devices, missing backends and missing hardware.
    except (AssertionError, ImportError, RuntimeError) as error:
        raise ValueError(f"`{argument}` must be auto or an available torch device, got {name!r}.") from error
    return device


def get_short_name(folder: Path) -> str:
    """Returns the name of a folder, such as `mine/pipeline` for output/mine/pipeline and `shoes` for data/shoes."""
    folder = folder.resolve()
    # Every training run has folders with these names, so the short name also contains the name of the run.
    return f"{folder.parent.name}/{folder.name}" if folder.name in ("pipeline", "best") else folder.name


def make_file_name(short_name: str) -> str:
    """Converts a short name, such as `mine/pipeline`, to the name of a file or folder, such as `mine-pipeline`."""
    return short_name.replace("/", "-")
