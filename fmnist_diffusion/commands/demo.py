"""The command `fmnist-diffusion demo`."""

import signal
import subprocess
import sys
from contextlib import suppress
from typing import Annotated

import typer

from fmnist_diffusion.files import find_source_folder

from .command import check_packages
from .options import PIPELINE_HELP


SHUTDOWN_TIMEOUT = 5  # seconds


def demo(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help=PIPELINE_HELP, show_default="$MODEL_ID or fast")
    ] = None,
) -> None:
    """Run the demo on this machine, at http://127.0.0.1:7860 or the next free port."""
    check_packages("The demo", ["gradio"], "space")
    command = [sys.executable, str(find_source_folder("space") / "app.py"), *([] if pipeline is None else [pipeline])]
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        exit_code = process.wait()
    except KeyboardInterrupt:
        # A terminal sends Ctrl-C to both processes. If only this process was interrupted, it must stop the demo.
        with suppress(subprocess.TimeoutExpired):
            process.wait(SHUTDOWN_TIMEOUT)
        process.terminate()
        process.wait()
        raise
    # The exit code is negative if a signal terminated the process.
    raise typer.Exit(exit_code if exit_code >= 0 else 128 - exit_code)
