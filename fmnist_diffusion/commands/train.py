"""The command `fmnist-diffusion train`."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from fmnist_diffusion.files import find_source_folder

from .command import check_packages


EXAMPLE = "Example: fmnist-diffusion train path/to/images --from base --output-dir output/mine --num_epochs=20"
FILE_SUFFIXES = (".parquet", ".safetensors")
# These are the packages of the extra `train` that the trainer imports.
REQUIRED_PACKAGES = ("datasets", "jsonargparse", "matplotlib", "tqdm", "yaml")


def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="training images: a folder, a .parquet or .safetensors file, or a dataset id on the Hub",
        ),
    ],
    init_from: Annotated[
        str,
        typer.Option(
            "--from", metavar="PIPELINE", help="a bundled checkpoint, a local folder, or a Hub repository id"
        ),
    ] = "base",
    output_dir: Annotated[
        str,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="FOLDER",
            help="new folder for all outputs; with --resume=latest, the folder of the run to resume",
        ),
    ] = "output/finetune",
) -> None:
    """
    Fine-tune a pipeline on your own images.

    The images determine the size, the channels and the classes of the new model. With one subfolder per class, the
    model is class-conditional. You can also pass any setting of the trainer, such as --num_epochs=20 or
    --optimizer.learning_rate=1e-4; training/README.md describes them.
    """
    check_packages("The trainer", REQUIRED_PACKAGES, "train")
    folder = find_source_folder("training")
    settings = [
        f"--config={folder / 'configs' / 'finetune.yaml'}",
        f"--{get_data_setting(data)}={data}",
        f"--init_from={init_from}",
        f"--output_dir={output_dir}",
        *context.args,
    ]
    raise typer.Exit(run([*get_launcher(), str(folder / "train.py"), *settings]))


def get_data_setting(data: str) -> str:
    """Returns the setting of the trainer for `data`; raises `ValueError` if a path cannot be used."""
    if data.startswith("-"):
        raise ValueError(f"DATA must be the first argument, got {data}. Pass the settings of the trainer after it.")
    if Path(data).exists():
        if Path(data).is_file() and not data.endswith(FILE_SUFFIXES):
            raise ValueError(f"DATA must be a folder, a .parquet file or a .safetensors file, got {data}.")
        return "data.train_data_dir"
    from fmnist_diffusion.hub_client import is_repo_id

    if not is_repo_id(data) or data.endswith(FILE_SUFFIXES):
        raise ValueError(
            f"Could not find {data}. Pass an existing folder or file, or the id of a dataset on the Hub (owner/name)."
        )
    return "data.dataset_name"


def get_launcher() -> list[str]:
    """Returns the start of the command that runs a script on all GPUs of this machine, or on the CPU."""
    import torch

    num_gpus = torch.cuda.device_count()
    if num_gpus < 2:
        # With one process, `accelerate launch` would pass on neither signals nor the exit code of the script.
        return [sys.executable]
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"),
        *(f"--num_processes={num_gpus}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"),
    ]


def run(command: list[str]) -> int:
    """Runs a command, which handles Ctrl-C, SIGTERM and SIGHUP (a closed terminal), and returns its exit code."""
    # In its own process group, the command only receives the signals that this process forwards.
    process = subprocess.Popen(command, process_group=0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # `nohup` makes a process ignore SIGHUP, but torchrun would handle it.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: process.send_signal(number))
    exit_code = process.wait()
    # The exit code is negative if a signal terminated the process.
    return exit_code if exit_code >= 0 else 128 - exit_code
