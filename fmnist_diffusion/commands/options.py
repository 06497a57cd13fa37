"""Defines options that several commands share, and finds and loads pipelines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fmnist_diffusion.schedulers import SCHEDULERS

from .command import import_libraries


if TYPE_CHECKING:
    from fmnist_diffusion import FashionMNISTPipeline

PIPELINE_HELP = "a bundled checkpoint, a local folder, or a Hub repository id"

SchedulerName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"scheduler: {', '.join(SCHEDULERS)}, or the name of a diffusers scheduler class",
        show_default="the scheduler of the checkpoint",
    ),
]
NumInferenceSteps = Annotated[
    int | None,
    typer.Option(metavar="N", help="number of denoising steps", show_default="the value of the checkpoint"),
]
GuidanceScale = Annotated[
    float, typer.Option(metavar="SCALE", help="scale of classifier-free guidance; 1 disables it")
]
ClassifierGuidanceScale = Annotated[
    float,
    typer.Option(metavar="SCALE", help="scale of classifier guidance, which requires a classifier; 0 disables it"),
]
GuidanceInterval = Annotated[
    tuple[float, float],
    typer.Option(
        metavar="START STOP",
        help="range of sampling steps that use guidance, as fractions from 0 (noise) to 1 (image)",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        max=4096,
        help="maximum number of images per batch, reduced for large images; only affects rounding errors",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE", help="torch device, such as cpu, cuda:1 or mps; auto uses a GPU if one is available"
    ),
]
Dtype = Annotated[Literal["float32", "float16", "bfloat16"], typer.Option(help="dtype of the model")]
DtypeOrAuto = Annotated[
    Literal["float32", "float16", "bfloat16", "auto"],
    typer.Option(help="dtype of the model; auto measures and selects the fastest one"),
]
RepoId = Annotated[str, typer.Option(metavar="ID", help="repository id: owner/name, or name in your own namespace")]


def make_data_dir_option(kind: str) -> Any:
    """Returns the option `--train-data-dir`; `kind` describes the data in the help text."""
    return typer.Option(
        metavar="DIR",
        help=f"{kind}, such as a folder of IDX files",
        show_default="Fashion-MNIST: the dataset on the Hub, or the Debian package dataset-fashion-mnist",
    )


def make_output_dir_option(default: str) -> Any:
    """Returns the option `--output-dir` of a command that can resume a run in the same folder."""
    return typer.Option(
        "--output-dir",
        "-o",
        metavar="DIR",
        help="new folder, or the folder of the run to resume",
        show_default=default,
    )


def get_existing_folder(name_or_path: str) -> Path:
    """Returns the folder of a bundled checkpoint or a local folder; raises `ValueError` if it does not exist."""
    from fmnist_diffusion.loading import bundled_pipelines, get_pipeline_folder

    folder = get_pipeline_folder(name_or_path)
    if not folder.is_dir():
        raise ValueError(
            f"Could not find the folder {folder}: pass the folder of a pipeline, or the name of a bundled checkpoint"
            f" ({', '.join(bundled_pipelines())})."
        )
    return folder


def load_for_sampling(name_or_path: str, device: str, dtype: str) -> "FashionMNISTPipeline":
    """
    Loads a pipeline onto a device.

    If `dtype` is `"auto"`, [`select_dtype`] selects the fastest dtype on this device.

    Raises:
        `OSError`: If the pipeline does not exist or cannot be read.
        `ValueError`: If the device does not exist or does not support `dtype`.
    """
    import_libraries()

    import torch

    from fmnist_diffusion.loading import get_device, load_pipeline
    from fmnist_diffusion.sampling import use_fastest_dtype

    torch_device = get_device(device)
    if dtype == "float16" and torch_device.type == "cpu":
        raise ValueError(
            "`dtype` must be float32 or bfloat16 on a CPU, got float16. Pass `dtype` float32, or use a GPU."
        )
    if dtype == "auto":
        pipe = load_pipeline(name_or_path).to(torch_device)
        use_fastest_dtype(pipe)
        return pipe
    return load_pipeline(name_or_path, dtype=getattr(torch, dtype)).to(torch_device)
