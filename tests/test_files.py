"""Files and folders that are written atomically."""

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fmnist_diffusion.files import (
    WriteError,
    remove_folder,
    remove_temporary_files,
    replace_folder,
    write_atomically,
    write_tensors,
)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def test_tensors_have_the_permissions_of_other_files(tmp_path: Path):
    (tmp_path / "text").touch()
    write_tensors(tmp_path / "tensors", {"weight": torch.ones(2, 3).T}, {"name": "value"})
    modes = [path.stat().st_mode for path in (tmp_path / "text", tmp_path / "tensors")]
    assert modes[0] == modes[1]
    with safe_open(tmp_path / "tensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("weight"), torch.ones(3, 2))
        assert file.metadata() == {"name": "value"}


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_has_its_name_when_it_is_complete(tmp_path: Path):
    path = tmp_path / "loss.csv"
    path.write_text("old")
    with write_atomically(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".csv"
    assert path.read_text() == "new"
    assert list_names(tmp_path) == ["loss.csv"]


def test_folder_is_replaced_as_a_whole(tmp_path: Path):
    folder = tmp_path / "pipeline"
    for number in (1, 2):
        with replace_folder(folder) as temporary:
            (temporary / "unet").mkdir()
            (temporary / "unet" / f"{number}.txt").write_text("weights")
            if number == 2:
                assert list_names(folder / "unet") == ["1.txt"]
    assert list_names(folder / "unet") == ["2.txt"]
    assert list_names(tmp_path) == ["pipeline"]


def test_current_folder_and_symbolic_link_can_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    monkeypatch.chdir(folder)
    for number, path in enumerate((Path(), link)):
        with replace_folder(path) as temporary:
            (temporary / f"{number}").touch()
        assert list_names(folder) == [f"{number}"]
    assert link.is_symlink()
    assert list_names(tmp_path) == ["folder", "link"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(errno.EACCES, "Permission denied")])
def test_failed_write_changes_nothing(tmp_path: Path, error: type[BaseException] | BaseException):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(WriteError if isinstance(error, OSError) else error), write_atomically(file) as temporary:
        temporary.write_text("new")
        raise error
    with pytest.raises(WriteError if isinstance(error, OSError) else error), replace_folder(folder) as temporary:
        (temporary / "new").touch()
        raise error
    assert file.read_text() == "old"
    assert list_names(folder) == ["old"]
    assert list_names(tmp_path) == ["file", "folder"]


@pytest.mark.usefixtures("full_disk")
def test_full_disk_is_an_error_that_names_the_target(tmp_path: Path):
    with (
        pytest.raises(WriteError, match=rf"^Could not write {tmp_path}/file: No space left on device\.$"),
        write_atomically(tmp_path / "file") as temporary,
    ):
        temporary.touch()
    with (
        pytest.raises(WriteError, match=rf"^Could not write {tmp_path}/folder: No space left on device\.$"),
        replace_folder(tmp_path / "folder"),
    ):
        pass
    assert list_names(tmp_path) == []


def test_writers_with_the_same_process_id_have_different_temporary_files(tmp_path: Path):
    with write_atomically(tmp_path / "file") as first, write_atomically(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
        assert first.read_text() == "first"
    assert (tmp_path / "file").read_text() == "first"
    assert list_names(tmp_path) == ["file"]


def test_missing_parent_folder_is_an_error_that_names_the_target(tmp_path: Path):
    path = tmp_path / "missing" / "file.txt"
    with (
        pytest.raises(WriteError, match=f"^Could not write {path}: No such file or directory"),
        write_atomically(path) as temporary,
    ):
        temporary.write_text("text")


def test_errors_of_safetensors_name_the_target(tmp_path: Path):
    with (
        pytest.raises(WriteError, match=f"^Could not write {tmp_path}/folder: .*No such file or directory"),
        replace_folder(tmp_path / "folder") as temporary,
    ):
        save_file({"weight": torch.zeros(1)}, temporary / "missing" / "model.safetensors")
    assert list_names(tmp_path) == []


def test_failed_copy_is_an_error_that_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(source: Path, target: Path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr("shutil.copyfile", fail)
    with (
        pytest.raises(WriteError, match=rf"^Could not write {tmp_path}/pipeline: No space left on device\.$"),
        replace_folder(tmp_path / "pipeline") as temporary,
    ):
        shutil.copyfile(__file__, temporary / "copy")


def test_failed_rename_restores_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "pipeline"
    folder.mkdir()
    (folder / "old").touch()
    rename = Path.rename

    def fail_at_the_second_call(path: Path, target: Path) -> Path:
        if path.name.startswith(".incomplete"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_at_the_second_call)
    with pytest.raises(WriteError, match="Input/output error"), replace_folder(folder) as temporary:
        (temporary / "new").touch()
    assert list_names(tmp_path) == ["pipeline"]
    assert list_names(folder) == ["old"]


def test_previous_folder_of_an_interrupted_call_is_removed(tmp_path: Path):
    for name in ("pipeline", ".previous-pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    with replace_folder(tmp_path / "pipeline") as temporary:
        (temporary / "new").touch()
    assert list_names(tmp_path) == ["pipeline"]
    assert list_names(tmp_path / "pipeline") == ["new"]


def test_interrupted_deletion_leaves_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda path, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            remove_folder(folder)
    (name,) = list_names(tmp_path)
    assert name.startswith(".deleted-") and name.endswith("-checkpoint-4")
    remove_temporary_files(tmp_path)
    assert list_names(tmp_path) == []


def test_folder_that_cannot_be_deleted_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """NFS keeps a file in a deleted folder as long as another process has it open."""

    def fail(*args: object, **kwargs: object):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr("os.rmdir", fail)
    for i in range(3):
        with replace_folder(tmp_path / "pipeline") as temporary:
            (temporary / f"{i}").touch()
        assert list_names(tmp_path / "pipeline") == [f"{i}"]
    monkeypatch.undo()
    remove_temporary_files(tmp_path)
    assert list_names(tmp_path) == ["pipeline"]


def test_missing_folder_fsync_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Some network file systems do not support fsync on folders."""
    fsync = os.fsync

    def sync_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", sync_files_only)
    with replace_folder(tmp_path / "folder") as temporary, write_atomically(temporary / "file") as path:
        path.touch()
    assert list_names(tmp_path / "folder") == ["file"]


def test_next_start_removes_leftovers_and_restores_the_previous_folder(tmp_path: Path):
    for name in (".incomplete-7-pipeline", ".previous-pipeline", "best", ".previous-best", ".deleted-checkpoint-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()
    (tmp_path / ".incomplete-7-loss.csv").touch()
    (tmp_path / "loss.csv").touch()
    remove_temporary_files(tmp_path)
    assert list_names(tmp_path) == ["best", "loss.csv", "pipeline"]
    assert list_names(tmp_path / "pipeline") == ["of .previous-pipeline"]
    assert list_names(tmp_path / "best") == ["of best"]
