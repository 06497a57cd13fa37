"""Downloads pipelines from the Hub into its cache, and replaces damaged files in the cache."""

import hashlib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, FileMetadataError, HfHubHTTPError

from ..hub_client import HubError, call_hub
from .files import (
    INDEX_NAME,
    MAX_WEIGHTS_BYTES,
    SCHEDULER_CONFIG,
    TOKENIZER_FILES,
    get_shard_names,
    get_weights_index_name,
    get_weights_name,
    has_component,
    read_json_object,
)
from .pipeline_fmnist import MODELS


logger = logging.get_logger(f"diffusers.{__name__}")


def download_pipeline(
    repo_id: str,
    *,
    exclude: Collection[str] = (),
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """
    Downloads the files of a pipeline that are not in the cache.

    If the Hub does not respond or responds with a server error, the cached copy is used. Files are compared with the
    hashes that the Hub sent, and damaged files are downloaded again.

    Args:
        repo_id (`str`): Repository id, `owner/name`.
        exclude (`Collection[str]`, defaults to `()`): Names of components that are not downloaded.
        variant (`str`, *optional*): Variant of the weights, such as `"fp16"`.
        revision, token, cache_dir, force_download, local_files_only: See [`DiffusionPipeline.from_pretrained`].

    Returns:
        `Path`: The folder with the files.

    Raises:
        `OSError`: If a file does not exist, cannot be downloaded, or is damaged.
    """
    offline = local_files_only or constants.HF_HUB_OFFLINE
    files = _Files(repo_id, exclude, variant, None if cache_dir is None else Path(cache_dir), token, offline)
    revision = revision or constants.DEFAULT_REVISION
    if offline or (re.fullmatch("[0-9a-f]{40}", revision) and not force_download):
        folder = files.find(revision)
        if folder is not None:
            return folder
    if offline:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "`local_files_only` is True"
        raise OSError(
            f"Could not find {repo_id} with revision {revision} in the cache, and {reason}. Allow requests to the Hub"
            " to download it."
        )
    try:
        return files.download(revision, force_download)
    except HubError as error:
        folder = files.find(revision) if error.is_temporary and not force_download else None
        if folder is None:
            raise
        logger.warning("%s Using the cached copy of %s.", error, repo_id)
        return folder


@dataclass
class _Files:
    """The files of a pipeline on the Hub and in the cache."""

    repo_id: str
    exclude: Collection[str]
    variant: str | None
    cache_dir: Path | None
    token: str | bool | None
    offline: bool

    def find(self, revision: str) -> Path | None:
        """Returns the folder of a revision in the cache, or `None` if it is incomplete or damaged.

        Raises:
            `OSError`: If a file is damaged and `offline` is `True`.
        """
        index = self._find_file(INDEX_NAME, revision)
        if index is None or not self._is_intact(index):
            return None
        names, models = self._list_files(index)
        for model in models:
            name, shards = get_weights_name(model, self.variant), get_weights_index_name(model, self.variant)
            # If a repository contains both, the shards take precedence, as in diffusers.
            path = self._find_file(shards, revision)
            names += [name] if path is None else [shards, *get_shard_names(path)]
        paths = [path for name in names if (path := self._find_file(name, revision)) is not None]
        if len(paths) < len(names) or not all(map(self._is_intact, paths)):
            return None
        return index.parent

    def download(self, revision: str, force_download: bool) -> Path:
        """Downloads the files of a revision and returns their folder."""
        commit = self._get_metadata(INDEX_NAME, revision).commit_hash
        index = self._download_file(INDEX_NAME, commit, force_download)
        names, models = self._list_files(index)
        for name in names:
            self._download_file(name, commit, force_download)
        for model in models:
            self._download_weights(model, commit, force_download)
        # This request updates the branch in the cache. It is the last one, so that the branch does not refer to an
        # incomplete copy if the download fails. If someone has pushed a new commit in the meantime, the cache only
        # contains this file of the new commit, so the folder of `commit` is returned.
        self._request_file(INDEX_NAME, revision)
        return index.parent

    def _download_weights(self, model: str, commit: str, force_download: bool) -> None:
        name, shards = get_weights_name(model, self.variant), get_weights_index_name(model, self.variant)
        names = [name]
        is_cached = self._find_file(name, commit) is not None and self._find_file(shards, commit) is None
        if force_download or not is_cached:
            index = self._download_optional_file(shards, commit, force_download)
            names = names if index is None else get_shard_names(index)
        for name in names:
            if self._download_optional_file(name, commit, force_download) is None:
                raise OSError(
                    f"Could not find {name} in {self.repo_id}. Check `revision` and `variant`. Only safetensors"
                    " weights are supported."
                )

    def _download_optional_file(self, name: str, commit: str, force: bool) -> Path | None:
        """Downloads a file; returns `None` if the repository does not contain it."""
        try:
            return self._download_file(name, commit, force)
        except HubError as error:
            if isinstance(error.__cause__, EntryNotFoundError):
                return None
            raise

    def _list_files(self, index: Path) -> tuple[list[str], list[str]]:
        """Returns the files that this `model_index.json` requires, except weights, and the names of its models."""
        content = read_json_object(index)
        files = {"scheduler": [SCHEDULER_CONFIG], "tokenizer": list(TOKENIZER_FILES)}
        files |= {model: [f"{model}/config.json"] for model in MODELS}
        components = [name for name in files if has_component(content, name) and name not in self.exclude]
        names = [name for component in components for name in files[component]]
        return names, [component for component in components if component in MODELS]

    def _find_file(self, name: str, revision: str) -> Path | None:
        path = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache_dir, revision=revision)
        return Path(path) if isinstance(path, str) else None

    def _is_intact(self, path: Path) -> bool:
        if not _is_damaged(path):
            return True
        if self.offline:
            raise OSError(f"The cached file {path} is damaged. Allow requests to the Hub to download it again.")
        return False

    def _get_metadata(self, name: str, revision: str) -> Any:
        url = hf_hub_url(self.repo_id, name, revision=revision)

        def get_metadata() -> Any:
            metadata = get_hf_file_metadata(url, token=self.token)
            if metadata.commit_hash is None or metadata.etag is None:
                raise FileMetadataError(f"the response for {name} has no commit or ETag")
            return metadata

        return call_hub(get_metadata, self.repo_id, access="read")

    def _download_file(self, name: str, commit: str, force: bool) -> Path:
        path = None if force else self._find_file(name, commit)
        if path is not None and not _is_damaged(path):
            return path
        if path is not None:
            logger.warning("The cached file %s is damaged. Downloading it again.", path)
        size = self._get_metadata(name, commit).size or 0
        if size > MAX_WEIGHTS_BYTES:
            raise OSError(f"{name} of {self.repo_id} has {size} bytes, more than the limit of {MAX_WEIGHTS_BYTES}.")
        path = self._request_file(name, commit, path is not None or force, size)
        if _is_damaged(path):
            path = self._request_file(name, commit, True, size)
        if _is_damaged(path):
            path.resolve().unlink()
            raise HubError(f"The Hub sent a damaged file {name} of {self.repo_id}. Try again later.", True)
        return path

    def _request_file(self, name: str, revision: str, force: bool = False, num_bytes: int = 0) -> Path:
        def download() -> str:
            try:
                return hf_hub_download(
                    self.repo_id,
                    name,
                    revision=revision,
                    cache_dir=self.cache_dir,
                    force_download=force,
                    token=self.token,
                )
            except OSError as error:
                # huggingface_hub raises an OSError without an errno if a file has the wrong size.
                if error.errno is not None or isinstance(
                    error, (EntryNotFoundError, FileMetadataError, HfHubHTTPError)
                ):
                    raise
                raise ConnectionError(str(error)) from error

        return Path(call_hub(download, self.repo_id, num_bytes=num_bytes, access="read"))


def _is_damaged(path: Path) -> bool:
    """Compares a file in the cache with its hash, which is the name of the file that the symbolic link refers to."""
    if not path.is_symlink():
        # Without symbolic links, the cache does not contain the hash.
        return False
    expected = path.readlink().name
    if re.fullmatch("[0-9a-f]{64}", expected):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", expected):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return False
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() != expected
