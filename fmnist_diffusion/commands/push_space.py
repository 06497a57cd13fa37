"""The command `fmnist-diffusion push-space`."""

from typing import Annotated

import typer

from .export import prepare_export
from .info import get_existing_folder
from .options import RepoId


EXAMPLE = "Example: fmnist-diffusion push-space --repo-id fashion-mnist-demo --model me/base-fmnist"
# The page of a static Space contains these bundled checkpoints by default.
STATIC_MODELS = ("base",)


def push_space(
    repo_id: RepoId,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="repository id of a public model; with --static, a bundled checkpoint or a local folder, which can be"
            " repeated",
            show_default=f"with --static: {', '.join(STATIC_MODELS)}",
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option("--static", help="upload a page that runs the model in the browser, without a server; needs npm"),
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="create a private Space; fails if it exists and is public")
    ] = False,
) -> None:
    """
    Upload the demo of a model to the Hub as a Space.

    If nothing has changed, no commit is made.
    """
    from fmnist_diffusion.export import ExportError
    from fmnist_diffusion.hub import space, static_space
    from fmnist_diffusion.hub.client import HubError

    models = model or []
    try:
        if static:
            prepare_export("A static Space")
            folders = [get_existing_folder(name).resolve() for name in models or STATIC_MODELS]
            url = static_space.push_static_space(repo_id, folders, private=private)
        elif len(models) == 1:
            url = space.push_space(repo_id, models[0], private=private)
        else:
            raise ValueError(
                f"`model` must be the repository id of one public model, got {len(models)} values. Pass one value, or"
                " pass `static` to upload a page with several models."
            )
    except (ExportError, HubError) as error:
        raise typer.TyperException(str(error)) from error
    typer.echo(f"Uploaded the demo to {url}.")
