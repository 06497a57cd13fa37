"""Uploads the demo to the Hub as a Space."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, SpaceCard

from fmnist_diffusion.files import find_source_folder
from fmnist_diffusion.hub_client import HubError, call_hub, connect, get_folder_size, get_full_repo_id

from .repository import create_repository


PACKAGE_DIR = Path(__file__).parents[1]
# The demo does not use these parts of the package. In a wheel, the package also contains the demo and the trainer.
UNUSED_PATHS = (
    *("captions", "commands", "evaluation", "export", "hub", "pretrained", "space", "training"),
    *("files.py", "objectives.py"),
)


def push_space(repo_id: str, model_id: str, *, private: bool = False, space_hardware: str | None = None) -> str:
    """
    Uploads the demo of a model as a Space. The Space contains the source code of this package.

    If nothing has changed since the last upload, no commit is made.

    Args:
        repo_id (`str`): Repository id of the Space, `owner/name`, or `name` for your own namespace.
        model_id (`str`): Repository id of the model, `owner/name`, or `name` for your own namespace.
        private (`bool`, defaults to `False`):
            Whether to create a private Space. Raises an error if it exists and is public.
        space_hardware (`str`, *optional*):
            Hardware of a new Space, such as `"zero-a10g"` (ZeroGPU). Defaults to `"cpu-basic"`. The hardware of an
            existing Space does not change.

    Returns:
        `str`: The URL of the Space.

    Raises:
        [`HubError`]: If the Hub cannot be reached or rejects a request, or if the model does not exist, is private or
            is gated.
    """
    api = connect()
    repo_id, model_id = get_full_repo_id(api, repo_id), get_full_repo_id(api, model_id)
    info = call_hub(lambda: api.model_info(model_id), model_id)
    if info.private or info.gated:
        kind = "private" if info.private else "gated"
        raise HubError(f"{model_id} is {kind}, so the Space could not load it. Make the model public first.")
    with TemporaryDirectory() as staging:
        make_space(model_id, Path(staging))
        create_repository(api, repo_id, private, repo_type="space", space_sdk="gradio", space_hardware=space_hardware)
        call_hub(lambda: api.add_space_variable(repo_id, "MODEL_ID", model_id), repo_id)
        patterns = ["*.py", "*.css", "examples/*", "fmnist_diffusion/*"]
        return upload_space(api, repo_id, Path(staging), "Upload demo", patterns)


def upload_space(api: HfApi, repo_id: str, folder: Path, commit_message: str, delete_patterns: list[str]) -> str:
    """
    Uploads a folder to an existing Space and returns the URL of the Space.

    If nothing has changed since the last upload, no commit is made.

    Args:
        api (`HfApi`): Client with write access.
        repo_id (`str`): Repository id of the Space, `owner/name`.
        folder (`Path`): Complete content of the Space.
        commit_message (`str`): Message of the commit.
        delete_patterns (`list[str]`): Patterns of files in the Space that are deleted if `folder` does not have them.

    Raises:
        [`HubError`]: If the Hub cannot be reached or rejects the upload.
    """
    call_hub(
        lambda: api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=folder,
            commit_message=commit_message,
            delete_patterns=delete_patterns,
        ),
        repo_id,
        num_bytes=get_folder_size(folder),
    )
    return f"{api.endpoint}/spaces/{repo_id}"


def make_space(model_id: str, target: Path) -> None:
    """
    Writes the complete content of a Space: the demo, and the modules of this package that it uses.

    Args:
        model_id (`str`): Repository id of the model for the card of the Space.
        target (`Path`): Output folder.
    """
    demo = find_source_folder("space")
    shutil.copytree(demo, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "browser"))
    for source in sorted(PACKAGE_DIR.rglob("*.py")):
        path = source.relative_to(PACKAGE_DIR)
        if not any(path.is_relative_to(unused) for unused in UNUSED_PATHS):
            copy = target / PACKAGE_DIR.name / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
    card = SpaceCard.load(target / "README.md")
    card.data["models"] = [model_id]
    card.save(target / "README.md")
