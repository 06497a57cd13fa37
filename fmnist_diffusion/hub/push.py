"""Upload of pipelines to the Hub."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from fmnist_diffusion.loading import load_pipeline

from .card import make_model_card
from .client import DELAYS, call_hub, connect, get_full_repo_id
from .metadata import read_metrics, read_train_config, stored_dtype
from .repository import create_repository, create_tag


# Files of an earlier upload, which are removed if the new one does not contain them.
OWN_FILES = ["images/*", "scheduler/*", "unet/*", "metrics.json", "train_config.json"]


def push_pipeline(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    token: str | None = None,
) -> str:
    """
    Uploads a pipeline and its model card to a model repository, which is created if necessary.

    A second call with the same files makes no commit. After a failure, the same call completes the upload. `folder` is
    not changed.

    Args:
        folder (`str` or `os.PathLike`):
            A folder that the trainer or `save_pretrained` wrote. `train_config.json`, `metrics.json` and
            `images/*.png` are uploaded as well, other files are not.
        repo_id (`str`): `owner/name`, or `name` for a repository of your own.
        private (`bool`, defaults to `False`): Whether the repository must be private.
        revision (`str`, *optional*): The branch to push to, which is created if necessary; by default `main`.
        tag (`str`, *optional*): A tag for the commit.
        create_pr (`bool`, defaults to `False`): Whether to open a pull request instead.
        license (`str`, *optional*):
            License of the weights, as a license identifier of the Hub. By default, `mit` if `train_config.json` says
            that the model was trained on Fashion-MNIST from the Hub, otherwise none.
        token (`str`, *optional*): A token with write access; by default, that of `hf auth login` or `HF_TOKEN`.

    Returns:
        `str`: The URL of the repository or of the pull request.

    Raises:
        [`HubError`]: If the Hub cannot be reached or rejects a request.
        `OSError`: If the folder does not contain a pipeline.
        `ValueError`: If arguments contradict each other, or if a file in the folder is damaged.
    """
    if create_pr and (tag or revision):
        raise ValueError("`revision` and `tag` must not be passed together with `create_pr`.")
    api = connect(token)
    repo_id = get_full_repo_id(api, repo_id)
    with TemporaryDirectory() as staging:
        make_repository(Path(folder), repo_id, Path(staging), license)
        create_repository(api, repo_id, private)
        if revision is not None:
            call_hub(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), repo_id)
        commit = call_hub(
            lambda: api.upload_folder(
                repo_id=repo_id,
                folder_path=staging,
                commit_message="Upload pipeline",
                revision=revision,
                create_pr=create_pr,
                delete_patterns=OWN_FILES,
            ),
            repo_id,
            # A retry after a lost response would open a second pull request.
            delays=() if create_pr else DELAYS,
        )
    if tag is not None:
        create_tag(api, repo_id, tag, commit.oid)
    return commit.pr_url or f"{api.endpoint}/{repo_id}"


def make_repository(folder: Path, repo_id: str, target: Path, license: str | None = None) -> None:
    """
    Writes the complete content of a model repository: the pipeline, its metadata and images, and the model card.

    Args:
        folder (`Path`): See [`push_pipeline`].
        repo_id (`str`): The repository that the model card names.
        target (`Path`): Where to write.
        license (`str`, *optional*): See [`push_pipeline`].

    Raises:
        `OSError`, `ValueError`: See [`push_pipeline`].
    """
    train_config, metrics = read_train_config(folder / "train_config.json"), read_metrics(folder / "metrics.json")
    pipe = load_pipeline(folder.resolve(), dtype=stored_dtype(folder))
    pipe.save_pretrained(target)
    for name, content in (("train_config.json", train_config), ("metrics.json", metrics)):
        if content is not None:
            shutil.copyfile(folder / name, target / name)
    images = sorted((folder / "images").glob("*.png"))
    (target / "images").mkdir(exist_ok=True)
    for image in images:
        shutil.copyfile(image, target / "images" / image.name)
    card = make_model_card(pipe, repo_id, train_config, metrics, [image.name for image in images], license)
    card.save(target / "README.md")
