"""Uploads pipelines to the Hub."""

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from fmnist_diffusion.files import describe_write_errors
from fmnist_diffusion.hub_client import call_hub, connect, get_folder_size, get_full_repo_id
from fmnist_diffusion.loading import check_pipeline_folder, load_pipeline
from fmnist_diffusion.metadata import has_same_weights, read_metrics, read_train_config, stored_dtypes
from fmnist_diffusion.pipelines import FashionMNISTPipeline
from fmnist_diffusion.pipelines.pipeline_fmnist import MODELS

from .card import make_model_card
from .repository import create_repository, create_tag


# An upload deletes these files of earlier uploads, unless it contains them.
OWN_FILES = [
    *(f"{folder}/*" for folder in (*MODELS, "scheduler", "tokenizer", "images")),
    "metrics.json",
    "metrics-*.json",
    "train_config.json",
]


def push_pipeline(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    evaluation: str | os.PathLike | None = None,
    token: str | None = None,
    pipe: FashionMNISTPipeline | None = None,
) -> str:
    """
    Uploads a pipeline and its model card to a model repository, which is created if necessary.

    If nothing has changed since the last upload, no commit is made. After a failure, the same call completes the
    upload. `folder` is not modified.

    Args:
        folder (`str` or `os.PathLike`):
            A folder that the trainer or `save_pretrained` wrote. Besides the pipeline, only `train_config.json`,
            `metrics.json`, `metrics-*.json` (metrics with other numbers of steps) and `images/*.png` are uploaded.
        repo_id (`str`): Repository id, `owner/name`, or `name` for your own namespace.
        private (`bool`, defaults to `False`):
            Whether the repository must be private. Raises an error if it exists and is public. If `False`, the owner's
            default visibility applies to a new repository.
        revision (`str`, *optional*): Branch to push to, which is created if necessary. Defaults to `main`.
        tag (`str`, *optional*): Tag for the commit.
        create_pr (`bool`, defaults to `False`): Whether to open a pull request instead of pushing to the branch.
        license (`str`, *optional*):
            License of the weights, as a license identifier of the Hub. Defaults to `mit` if, according to
            `train_config.json`, the model was trained on Fashion-MNIST from the Hub, and to none otherwise.
        evaluation (`str` or `os.PathLike`, *optional*):
            Output folder of `fmnist-diffusion evaluate` whose `metrics.json` is uploaded and shown in the model card.
            Defaults to `folder`.
        token (`str`, *optional*): Token with write access. Defaults to the token from `hf auth login` or `HF_TOKEN`.
        pipe ([`FashionMNISTPipeline`], *optional*): The pipeline in `folder`, if it has already been loaded.

    Returns:
        `str`: The URL of the repository or of the pull request.

    Raises:
        [`HubError`]: If the Hub cannot be reached or rejects a request.
        `OSError`: If the folder does not contain a pipeline.
        `ValueError`: If incompatible arguments are passed, if a file in the folder is damaged, if the folder
            contains metrics of other weights, or if `evaluation` does not contain metrics of this pipeline.

    [`HubError`] is an `OSError`. [`call_hub`] documents the time limit of each request.
    """
    if create_pr and (tag or revision):
        raise ValueError(
            "Cannot use `create_pr` with `revision` or `tag`. Omit `create_pr`, or omit `revision` and `tag`."
        )
    check_pipeline_folder(Path(folder))
    api = connect(token)
    repo_id = get_full_repo_id(api, repo_id)
    with TemporaryDirectory() as staging:
        make_repository(Path(folder), repo_id, Path(staging), license, evaluation, pipe)
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
            retry=not create_pr,
            num_bytes=get_folder_size(Path(staging)),
        )
    if tag is not None:
        create_tag(api, repo_id, tag, commit.oid)
    return commit.pr_url or f"{api.endpoint}/{repo_id}"


def load_stored_pipeline(folder: Path) -> FashionMNISTPipeline:
    """Loads a pipeline in the dtypes in which it is stored."""
    return load_pipeline(folder.resolve(), dtype=stored_dtypes(folder))


def make_repository(
    folder: Path,
    repo_id: str,
    target: Path,
    license: str | None = None,
    evaluation: str | os.PathLike | None = None,
    pipe: FashionMNISTPipeline | None = None,
) -> None:
    """
    Writes the complete content of a model repository: the pipeline, its metadata and images, and the model card.

    Args:
        folder (`Path`): See [`push_pipeline`].
        repo_id (`str`): Repository id for the model card.
        target (`Path`): Output folder.
        license, evaluation, pipe (*optional*): See [`push_pipeline`].

    Raises:
        `OSError`, `ValueError`: See [`push_pipeline`].
    """
    metrics_path = Path(evaluation or folder) / "metrics.json"
    train_config, metrics = read_train_config(folder / "train_config.json"), read_metrics(metrics_path)
    other_metrics = {path.name: read_metrics(path) for path in sorted(folder.glob("metrics-*.json"))}
    pipe = pipe or load_stored_pipeline(folder)
    if evaluation is not None and (metrics is None or not has_same_weights(metrics, pipe)):
        raise ValueError(
            f"`evaluation` must be the output folder of a complete evaluation of the current weights of {folder}, got"
            f" {evaluation}. Run `fmnist-diffusion evaluate {folder}` and pass its output folder."
        )
    stored_metrics = other_metrics if evaluation is not None else {"metrics.json": metrics, **other_metrics}
    for name, content in stored_metrics.items():
        if content is not None and "weights_sha256" in content and not has_same_weights(content, pipe):
            raise ValueError(
                f"{folder / name} contains metrics of different weights. Remove it, or replace it with the metrics of"
                " a new evaluation."
            )
    images = sorted((folder / "images").glob("*.png"))
    names = [image.name for image in images]
    other_contents = [content for content in other_metrics.values() if content is not None]
    card = make_model_card(pipe, repo_id, train_config, metrics, names, license, other_contents)
    with describe_write_errors(target):
        pipe.save_pretrained(target)
        card.save(target / "README.md")
    if metrics is not None:
        shutil.copyfile(metrics_path, target / "metrics.json")
    for name, content in {"train_config.json": train_config, **other_metrics}.items():
        if content is not None:
            shutil.copyfile(folder / name, target / name)
    (target / "images").mkdir(exist_ok=True)
    for image in images:
        shutil.copyfile(image, target / "images" / image.name)
