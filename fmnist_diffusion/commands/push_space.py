"""The command `fmnist-diffusion push-space`."""

from typing import Annotated

import typer

from .options import RepoId


EXAMPLE = "Example: fmnist-diffusion push-space --repo-id fashion-mnist-demo --model me/base-fmnist"


def push_space(
    repo_id: RepoId,
    model: Annotated[str, typer.Option(metavar="ID", help="repository id of a public model")],
    private: Annotated[
        bool, typer.Option("--private", help="create a private Space; fails if it exists and is public")
    ] = False,
) -> None:
    """
    Upload the demo of a model to the Hub as a Space.

    If nothing has changed, no commit is made.
    """
    from fmnist_diffusion.hub import space
    from fmnist_diffusion.hub.client import HubError

    try:
        url = space.push_space(repo_id, model, private=private)
    except HubError as error:
        raise typer.TyperException(str(error)) from error
    typer.echo(f"Uploaded the demo to {url}.")
