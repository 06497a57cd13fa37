"""The command `fmnist-diffusion export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .command import prepare_export
from .options import get_existing_folder


EXAMPLE = "Example: fmnist-diffusion export base --format onnx -o output/onnx"


def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="a bundled checkpoint or a local folder")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="DIR", help="folder for the file CHECKPOINT.onnx")
    ],
    format: Annotated[Literal["onnx"], typer.Option(help="file format")] = "onnx",
    num_inference_steps: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="number of denoising steps that the metadata describes; can be repeated, and the first is the default"
            " of the file",
            show_default="the value of the checkpoint",
        ),
    ] = None,
) -> None:
    """
    Export a checkpoint for use without Python.

    The file contains the model in float32 with a dynamic batch size, and the timesteps and coefficients of the sampler
    as JSON metadata, which fmnist_diffusion/export/README.md describes. The command fails if the predictions differ
    from those of PyTorch by more than 1e-4.
    """
    prepare_export("The export")
    import torch

    from fmnist_diffusion.export import ExportError, export_onnx
    from fmnist_diffusion.files import describe_write_errors
    from fmnist_diffusion.loading import get_short_name, load_pipeline, make_file_name
    from fmnist_diffusion.metadata import get_license, read_train_config

    folder = get_existing_folder(checkpoint).resolve()
    name = get_short_name(folder)
    path = output_dir / f"{make_file_name(name)}.{format}"
    if path.exists():
        raise ValueError(f"{path} already exists. Remove it, or pass a different `output_dir`.")
    pipe = load_pipeline(folder, dtype=torch.float32)
    license = get_license(read_train_config(folder / "train_config.json"))
    with describe_write_errors(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
    try:
        difference = export_onnx(pipe, path, name=name, num_inference_steps=num_inference_steps, license=license)
    except ExportError as error:
        raise typer.TyperException(str(error)) from error
    typer.echo(f"Saved {path} ({path.stat().st_size / 1e6:.1f} MB).")
    typer.echo(f"The maximum difference from the predictions of PyTorch is {difference:.1e}.")
