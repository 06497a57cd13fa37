"""The command line `fmnist-diffusion`.

Commands import torch and other slow modules locally, so that help and usage errors appear immediately.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from fmnist_diffusion import __version__

from . import demo, evaluate, export, info, likelihood, push, push_space, sample, train
from .command import PROGRAM, Command


app = typer.Typer(
    help="Fashion-MNIST diffusion models for Hugging Face diffusers.",
    add_completion=False,
    # Without rich, messages are plain text and help appears faster.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("sample", cls=Command, short_help="generate images", epilog=sample.EXAMPLE)(sample.sample)
app.command(
    "train",
    cls=Command,
    short_help="fine-tune a pipeline on your own images",
    epilog=train.EXAMPLE,
    # Unknown options are settings of the trainer, so they are passed on to it.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(train.train)
app.command("evaluate", cls=Command, short_help="evaluate a pipeline or existing images", epilog=evaluate.EXAMPLE)(
    evaluate.evaluate
)
app.command(
    "likelihood", cls=Command, short_help="measure the bits per dimension of test images", epilog=likelihood.EXAMPLE
)(likelihood.likelihood)
app.command("info", cls=Command, short_help="describe a pipeline")(info.info)
app.command("demo", cls=Command, short_help="run the demo on this machine")(demo.demo)
app.command("export", cls=Command, short_help="export a checkpoint for use without Python", epilog=export.EXAMPLE)(
    export.export
)
app.command("push", cls=Command, short_help="upload a pipeline to the Hub", epilog=push.EXAMPLE)(push.push)
app.command("push-space", cls=Command, short_help="upload the demo to the Hub as a Space", epilog=push_space.EXAMPLE)(
    push_space.push_space
)


def show_version(show: bool) -> None:
    if show:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit()


@app.callback()
def set_options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Defines the options of the program itself."""


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line with `args`, which default to the arguments of the process."""
    try:
        exit_code = app(args, prog_name=PROGRAM, standalone_mode=False)
    except typer.TyperException as error:
        # Messages of typer can contain the prefix "Value error, " of pydantic, and some lack a full stop.
        message = error.format_message().rstrip().replace(": Value error, ", ": ")
        fail(message if message.endswith((".", "?")) else f"{message}.", error.exit_code)
    except OSError as error:
        fail(str(error), 2)
    if exit_code:
        sys.exit(exit_code)


def fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(f"{PROGRAM}: error: {' '.join(message.split())}", err=True)
    sys.exit(exit_code)
