"""Pushes to the Hub during training."""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import get_token

from config import TrainingConfig
from fmnist_diffusion.hub.push import push_pipeline


class BackgroundPush:
    """Pushes pipelines in a background thread. Training does not wait for it, and errors do not stop the training.

    Args:
        repo_id: Repository on the Hub, which is created if it does not exist.
        private: Whether to create it as a private repository.
        license: License of the weights, as for [`push_pipeline`].
        report: Called with one line of text about each push.
    """

    def __init__(self, repo_id: str, private: bool, license: str | None, report: Callable[[str], None]):
        self.repo_id, self.private, self.license, self.report = repo_id, private, license, report
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.newest: Future[None] | None = None

    def push(self, folder: Path) -> None:
        """Pushes the current content of `folder` and cancels an earlier push that has not started."""
        if self.newest is not None:
            self.newest.cancel()
        copy = TemporaryDirectory(ignore_cleanup_errors=True)
        try:
            shutil.copytree(folder, copy.name, dirs_exist_ok=True)
        except OSError as error:
            self._report_failure(folder, error)
            copy.cleanup()
            return
        self.newest = self.executor.submit(self._push, copy, folder)
        self.newest.add_done_callback(lambda _: copy.cleanup())

    def _push(self, copy: TemporaryDirectory, folder: Path) -> None:
        try:
            url = push_pipeline(copy.name, self.repo_id, private=self.private, license=self.license)
            self.report(f"Pushed the pipeline to {url}.")
        # Errors in this thread must not stop the training.
        except Exception as error:
            self._report_failure(folder, error)

    def _report_failure(self, folder: Path, error: Exception) -> None:
        command = f"fmnist-diffusion push {folder} --repo-id {self.repo_id}"
        command += " --private" if self.private else ""
        command += f" --license {self.license}" if self.license else ""
        self.report(f"Could not push the pipeline ({error}). Run `{command}` to try again.")

    def finish(self) -> None:
        """Waits for the newest push."""
        self.executor.shutdown()


def make_background_push(config: TrainingConfig, report: Callable[[str], None]) -> BackgroundPush | None:
    """Returns `None` if `push_to_hub` is disabled; raises `ValueError` if there is no token."""
    if not config.push_to_hub:
        return None
    if get_token() is None:
        raise ValueError("`push_to_hub` requires a token. Run `hf auth login`, set HF_TOKEN, or omit --push_to_hub.")
    repo_id = config.hub_model_id or Path(config.output_dir).resolve().name
    return BackgroundPush(repo_id, config.hub_private_repo, config.hub_license, report)
