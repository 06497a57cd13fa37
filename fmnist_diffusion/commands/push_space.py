"""The command `fmnist-diffusion push-space`."""

from typing import Annotated

import typer

from .command import prepare_export
from .options import RepoId, get_existing_folder


EXAMPLE = "Example: fmnist-diffusion push-space --repo-id fashion-mnist-demo --model me/base-fmnist"
# The browser page contains these bundled checkpoints by default.
STATIC_MODELS = ("fast", "base")


def push_space(
    repo_id: RepoId,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="repository id of one public model; with --static, a bundled checkpoint or a local folder"
            " (can be repeated)",
            show_default=f"with --static: {', '.join(STATIC_MODELS)}",
        ),
    ] = None,
    static: Annotated[
        bool,
        typer.Option("--static", help="upload the browser page, which runs the model without a server; requires npm"),
    ] = False,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="hardware of a new Space, such as zero-a10g (ZeroGPU); not with --static",
            show_default="cpu-basic, which requires a paid plan",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="create a private Space; fails if it exists and is public")
    ] = False,
) -> None:
    """
    Upload the demo of a model, or the browser page, to the Hub as a Space.

    If nothing has changed, no commit is made.
    """
    from fmnist_diffusion.export import ExportError
    from fmnist_diffusion.hub import space, static_space
    from fmnist_diffusion.hub_client import HubError, is_repo_id

    models = model or []
    if static and hardware is not None:
        raise ValueError("`hardware` does not apply to a static Space. Omit it, or omit `static`.")
    try:
        if static:
            prepare_export("A static Space")
            folders = [get_existing_folder(name).resolve() for name in models or STATIC_MODELS]
            url = static_space.push_static_space(repo_id, folders, private=private)
        elif len(models) == 1:
            # The owner may be omitted.
            if "/" in models[0] and not is_repo_id(models[0]):
                raise ValueError(
                    f"`model` must be the repository id of a public model, got {models[0]}. Upload a local pipeline"
                    " with `fmnist-diffusion push` first, or pass `static` to upload the browser page."
                )
            url = space.push_space(repo_id, models[0], private=private, space_hardware=hardware)
        else:
            raise ValueError(
                f"`model` must be the repository id of one public model, got {len(models)} values. Pass one value, or"
                " pass `static` to upload the browser page, which can contain several models."
            )
    except (ExportError, HubError) as error:
        raise typer.TyperException(str(error)) from error
    typer.echo(f"Uploaded the Space to {url}.")
