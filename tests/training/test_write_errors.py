"""Full disks and folders without write permission during a run."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_files import read_losses

from checkpoint import list_checkpoints
from manifest import find_damage


def read_pipeline(run: Path) -> dict[str, Any]:
    """Reads all files of the exported pipeline and its progress. A resumed run changes the other settings."""
    paths = [path for path in (run / "pipeline").rglob("*") if path.is_file()]
    content: dict[str, Any] = {str(path): path.read_bytes() for path in paths if path.name != "train_config.json"}
    return content | {"progress": json.loads((run / "pipeline" / "train_config.json").read_text())["progress"]}


@pytest.mark.parametrize(
    ("name", "number", "reason"),
    [
        ("checkpoint-8", errno.ENOSPC, "No space left on device"),
        ("loss.csv", errno.EROFS, "Read-only file system"),
        *(
            pytest.param(name, errno.EACCES, "Permission denied", marks=pytest.mark.slow)
            for name in ("config.yaml", "loss.png", "epoch-0002.png", "progress.png", "pipeline")
        ),
    ],
)
def test_failed_write_exits_with_one_line_and_loses_nothing(
    tmp_path: Path,
    launch: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    number: int,
    reason: str,
):
    options = ["--checkpointing_steps=4"]
    run = tmp_path / "run"
    launch(*options, "--max_train_steps=6", "--save_images_epochs=1", "--save_model_epochs=1")
    before = read_pipeline(run)
    open_file = os.open

    def fail(path, flags, mode=0o777, **kwargs):
        # Every written file and folder is opened for fsync.
        if str(path).endswith(name) and flags == os.O_RDONLY and "dir_fd" not in kwargs:
            raise OSError(number, os.strerror(number), str(path))
        return open_file(path, flags, mode, **kwargs)

    monkeypatch.setattr(os, "open", fail)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        launch(*options, "--resume=latest", "--max_train_steps=null")
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    folder = {"epoch-0002.png": "samples/", "checkpoint-8": "checkpoints/"}.get(name, "")
    assert message == (
        f"train.py: error: Could not write {run}/{folder}{name}: {reason}. Resume from the last checkpoint with"
        f" --config={run / 'config.yaml'} --resume=latest."
    )
    assert not list(run.rglob(".incomplete*"))
    assert find_damage(list_checkpoints(run / "checkpoints")[-1]) is None
    assert read_pipeline(run) == before
    monkeypatch.undo()
    launch(*options, "--resume=latest", "--max_train_steps=null")
    assert [int(row["step"]) for row in read_losses(run)] == list(range(1, 13))


def test_output_folder_without_write_permission_exits_with_one_line(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    open_file = os.open

    # Root ignores the permissions of a folder, so the test raises the error itself.
    def fail(path, flags, *args, **kwargs):
        if Path(path).parent == tmp_path / "run" and flags & os.O_CREAT:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(SystemExit) as exit_info:
        launch()
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == (
        f"train.py: error: Could not write {tmp_path}/run/.lock: Permission denied. There is no checkpoint yet. Start"
        " again with a different --output_dir."
    )


def test_output_folder_that_is_a_file_exits_with_one_line(
    tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_info:
        launch(f"--output_dir={tmp_path / 'file' / 'run'}")
    assert exit_info.value.code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == (
        f"train.py: error: Could not write {tmp_path}/file/run: Not a directory. There is no checkpoint"
        " yet. Start again with a different --output_dir."
    )
