"""How commands report errors and interruptions."""

import re
from typing import Any

import typer
from typer.core import TyperCommand


PROGRAM = "fmnist-diffusion"


class CommandError(typer.TyperException):
    """An error of the user, such as an invalid option."""

    exit_code = 2


class Command(TyperCommand):
    """A command that reports errors of the user in one line, with the options that the user typed."""

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
        """Replaces Python parameters by the options of this command, for example `num_images` by --num-images."""
        names = {param.name for param in self.params}
        return re.sub(
            r"`(\w+)`", lambda match: f"--{match[1].replace('_', '-')}" if match[1] in names else match[0], message
        )
