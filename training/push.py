"""Publishing while a run goes on."""

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from fmnist_diffusion.publish import push_pipeline


class BackgroundPush:
    """Pushes pipelines to `repo_id` from a thread of its own, so that training neither waits nor fails.

    Args:
        repo_id (`str`): The repository, which is made where there is none.
        private (`bool`): Whether one that is made now is private.
        license (`str`, *optional*): That of the weights, as for [`push_pipeline`].
        report (`Callable[[str], None]`): What happened, as a line of text.
    """

    def __init__(self, repo_id: str, private: bool, license: str | None, report: Callable[[str], None]):
        self.repo_id, self.private, self.license, self.report = repo_id, private, license, report
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.newest: Future[None] | None = None

    def push(self, folder: Path) -> None:
        """Pushes `folder` as it is now; an older state that is still waiting is left out."""
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
            self.report(f"the pipeline is published at {url}")
        # Whatever it is, the run goes on.
        except Exception as error:
            self._report_failure(folder, error)

    def _report_failure(self, folder: Path, error: Exception) -> None:
        self.report(
            f"not published, {error}; to do it by hand: fmnist-diffusion push {folder} --repo-id {self.repo_id}"
            f"{' --private' if self.private else ''}{f' --license {self.license}' if self.license else ''}"
        )

    def finish(self) -> None:
        """Waits for the newest push."""
        self.executor.shutdown()
