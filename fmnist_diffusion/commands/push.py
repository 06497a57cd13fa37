"""The command `fmnist-diffusion push`."""

from typing import Annotated

import typer

from .command import import_libraries
from .options import RepoId, get_existing_folder


EXAMPLE = "Example: fmnist-diffusion push output/base/pipeline --repo-id base-fmnist --tag v1.0"


def push(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="folder of a pipeline, or a bundled checkpoint")],
    repo_id: RepoId,
    private: Annotated[
        bool, typer.Option("--private", help="create a private repository; fails if it exists and is public")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="branch to push to; created if necessary", show_default="main"),
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="tag for the commit, such as v1.0")] = None,
    evaluation: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="output folder of fmnist-diffusion evaluate, whose metrics are shown in the model card",
            show_default="metrics.json in FOLDER",
        ),
    ] = None,
    create_pr: Annotated[
        bool,
        typer.Option("--create-pr", help="open a pull request; cannot be combined with --revision or --tag"),
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="license identifier for the weights on the Hub, such as cc-by-4.0",
            show_default="mit if the model was trained on Fashion-MNIST from the Hub, otherwise none",
        ),
    ] = None,
) -> None:
    """
    Upload a pipeline and its model card to the Hub.

    If nothing has changed, no commit is made. After a failure, run the same command again to complete the upload.
    """
    import_libraries()
    from fmnist_diffusion.hub.push import push_pipeline
    from fmnist_diffusion.hub_client import HubError

    try:
        url = push_pipeline(
            get_existing_folder(folder),
            repo_id,
            private=private,
            revision=revision,
            tag=tag,
            create_pr=create_pr,
            license=license,
            evaluation=evaluation,
        )
    except HubError as error:
        raise typer.TyperException(str(error)) from error
    typer.echo(f"Uploaded the pipeline to {url}.")
