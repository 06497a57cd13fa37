"""Base class of the commands, which reports errors and interruptions, and helpers that several commands share."""

import gc
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand


PROGRAM = "fmnist-diffusion"
# These are the packages of the extra `eval` that all evaluations import.
EVALUATION_PACKAGES = ("datasets", "matplotlib", "torchmetrics", "tqdm", "transformers")


def check_packages(feature: str, packages: Sequence[str], extra: str) -> None:
    """Raises `ValueError` if one of the `packages` is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{feature} requires {', '.join(missing)}. Run `pip install 'fmnist-diffusion[{extra}]'`.")


def import_libraries() -> None:
    """
    Imports the libraries that all pipelines need, and hides the progress bars that they show while loading a pipeline.

    Garbage collection is paused during the imports, which create many objects and free almost none. `gc.freeze`
    excludes these objects from later collections, including the one at exit.
    """
    if "diffusers" not in sys.modules:
        gc.disable()
        try:
            import diffusers.pipelines.pipeline_utils
        finally:
            gc.freeze()
            gc.enable()

    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    if diffusers.utils.is_transformers_available():
        import transformers

        transformers.utils.logging.disable_progress_bar()


def prepare_export(feature: str) -> None:
    """Checks the packages, imports the libraries, and hides their progress bars and the warnings of torch.onnx."""
    check_packages(feature, ("onnx", "onnxruntime", "onnxscript"), "onnx")
    import_libraries()
    # If torchvision is not installed, the exporter warns about its operators.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)


@contextmanager
def report_resumable_interruption() -> Iterator[None]:
    """On Ctrl-C in the block, prints how to resume and exits with code 130.

    Only use this in commands that resume when they are run again.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"{PROGRAM}: interrupted; run the same command again to resume", err=True)
        raise typer.Exit(130) from None


class CommandError(typer.TyperException):
    """Raised if an option or other user input is invalid."""

    exit_code = 2


class Command(TyperCommand):
    """A command that reports invalid input in one line and names the options as the user typed them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        # diffusers raises NotImplementedError if a scheduler does not support a model.
        except (NotImplementedError, ValueError) as error:
            raise CommandError(self.replace_parameters(str(error))) from error
        except KeyboardInterrupt:
            typer.echo(f"{PROGRAM}: interrupted", err=True)
            raise typer.Exit(130) from None

    def replace_parameters(self, message: str) -> str:
        """Replaces parameter names in `message` with options of this command, such as --num-images."""
        names = {param.name for param in self.params}
        if "unconditional" in names:
            message = message.replace("`conditional=False`", "--unconditional")

        def replace(match: re.Match[str]) -> str:
            return f"--{match[1].replace('_', '-')}" if match[1] in names else match[0]

        return re.sub(r"`(\w+)`", replace, message)
