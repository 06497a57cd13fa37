"""Pushes to the Hub during training."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import get_token

from config import TrainingConfig
from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.data.errors import get_reason
from fmnist_diffusion.hub.push import load_stored_pipeline, push_pipeline


FINISH_TIMEOUT = 1200  # seconds


class BackgroundPush:
    """Pushes a pipeline in a background thread. Training does not wait for it, and errors do not stop the training.

    Args:
        folder: Folder of the pipeline.
        repo_id: Repository on the Hub, which is created if it does not exist.
        private: Whether to create it as a private repository.
        license: License of the weights, as for [`push_pipeline`].
        report: Called with one line of text about each push.
    """

    def __init__(self, folder: Path, repo_id: str, private: bool, license: str | None, report: Callable[[str], None]):
        self.folder, self.repo_id, self.private, self.license, self.report = folder, repo_id, private, license, report
        self.lock = threading.Lock()
        # `waiting` is the next pipeline to push, with a copy of its folder. `thread` is the pushing thread.
        self.waiting: tuple[TemporaryDirectory, FashionMNISTPipeline] | None = None
        self.thread: threading.Thread | None = None

    def push(self) -> None:
        """Pushes the current content of the folder and cancels an earlier push that has not started."""
        copy = TemporaryDirectory(ignore_cleanup_errors=True)
        try:
            shutil.copytree(self.folder, copy.name, dirs_exist_ok=True)
            # While diffusers loads a model, models that other threads create have no weights.
            pipe = load_stored_pipeline(Path(copy.name))
        # Errors of a push must not stop the training.
        except Exception as error:
            self._report_failure(get_reason(error))
            copy.cleanup()
            return
        with self.lock:
            canceled, self.waiting = self.waiting, (copy, pipe)
            if self.thread is None:
                # A daemon thread does not keep the process alive.
                self.thread = threading.Thread(target=self._push_waiting, daemon=True)
                self.thread.start()
        if canceled is not None:
            canceled[0].cleanup()

    def _push_waiting(self) -> None:
        while True:
            with self.lock:
                if self.waiting is None:
                    self.thread = None
                    return
                (copy, pipe), self.waiting = self.waiting, None
            try:
                url = push_pipeline(copy.name, self.repo_id, private=self.private, license=self.license, pipe=pipe)
                self.report(f"Pushed the pipeline to {url}.")
            except Exception as error:
                self._report_failure(get_reason(error))
            copy.cleanup()

    def _report_failure(self, reason: str) -> None:
        command = f"fmnist-diffusion push {self.folder} --repo-id {self.repo_id}"
        command += " --private" if self.private else ""
        command += f" --license {self.license}" if self.license else ""
        self.report(f"Could not push the pipeline ({reason.rstrip('.')}). Run `{command}` to try again.")

    def finish(self) -> None:
        """Waits for the newest push, at most 20 minutes. A push fails after 30 seconds if the Hub does not respond."""
        with self.lock:
            thread = self.thread
        if thread is not None:
            thread.join(FINISH_TIMEOUT)
            if thread.is_alive():
                self._report_failure(f"the push was not complete after {FINISH_TIMEOUT // 60} minutes")


def check_token(config: TrainingConfig) -> None:
    """Raises `ValueError` if the run cannot push to the Hub because there is no token."""
    if config.push_to_hub and get_token() is None:
        raise ValueError(
            "`--push_to_hub` requires a token. Run `hf auth login`, set HF_TOKEN, or pass --push_to_hub=false."
        )


def make_background_push(config: TrainingConfig, report: Callable[[str], None]) -> BackgroundPush | None:
    """Returns `None` if `push_to_hub` is disabled."""
    if not config.push_to_hub:
        return None
    folder = Path(config.output_dir)
    repo_id = config.hub_model_id or folder.resolve().name
    return BackgroundPush(folder / "pipeline", repo_id, config.hub_private_repo, config.hub_license, report)
