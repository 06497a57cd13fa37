import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components import make_components
from output_folder import check_new_folder, lock_folder


LOCK_AND_WAIT = """
import sys
from pathlib import Path
from output_folder import lock_folder
lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process that has locked `tmp_path / "run"`."""
    (tmp_path / "run").mkdir()
    paths = str(Path(__file__).parents[2] / "training"), str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_WAIT, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "locked\n"
        yield process


def test_second_run_in_the_same_folder_is_rejected(
    tmp_path: Path, other_run: subprocess.Popen, fail_to_launch: Callable[..., str], launch: Callable[..., None]
):
    error = fail_to_launch("--max_train_steps=1")
    assert f"Another run is writing to {tmp_path / 'run'}. Wait until it has ended" in error
    assert not (tmp_path / "run" / "config.yaml").exists()
    # A killed process does not leave its lock behind.
    other_run.kill()
    other_run.wait()
    launch("--max_train_steps=1")
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_checkpoints_of_another_run_that_has_ended_are_kept(
    tmp_path: Path,
    launch: Callable[..., None],
    fail_to_launch: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    resume: bool,
):
    launch("--max_train_steps=2", "--checkpointing_steps=1")
    checkpoints, hidden = tmp_path / "run" / "checkpoints", tmp_path / "hidden"
    hidden.mkdir()
    # The other run writes these files while this run loads its data.
    for path in [checkpoints / "checkpoint-2"] if resume else list((tmp_path / "run").iterdir()):
        path.rename(hidden / path.name)

    def load_slowly(*args):
        for path in hidden.iterdir():
            path.rename((checkpoints if resume else tmp_path / "run") / path.name)
        return make_components(*args)

    monkeypatch.setattr("trainer.make_components", load_slowly)
    error = fail_to_launch("--max_train_steps=4", *(["--resume=latest"] if resume else []))
    assert ("Another run has written to" if resume else "`--output_dir` must be new or empty") in error
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_output_dir_that_is_a_file_is_an_error(tmp_path: Path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=r"`--output_dir` must be a folder, but .*run is a file\. Pass a different"):
        check_new_folder(tmp_path / "run")


def test_same_process_can_lock_a_folder_again(tmp_path: Path):
    lock_folder(tmp_path)
    lock_folder(tmp_path)


def test_file_system_without_locks_causes_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", fail)
    lock_folder(tmp_path)
    assert caplog.messages == [f"Could not lock {tmp_path} (No locks available). Do not start a second run there."]


@pytest.mark.parametrize(
    ("resume", "advice"),
    [
        (None, "Pass a different --output_dir."),
        ("latest", "Pass a different --output_dir, or --resume=latest to resume the run in this folder."),
    ],
)
def test_folder_with_files_is_not_new(tmp_path: Path, resume: str | None, advice: str):
    check_new_folder(tmp_path / "missing")
    lock_folder(tmp_path)
    check_new_folder(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError) as error:
        check_new_folder(tmp_path, resume)
    assert str(error.value) == f"`--output_dir` must be new or empty, but {tmp_path} contains files. {advice}"
