import json
from pathlib import Path

import pytest

from fmnist_diffusion.evaluation.run_folder import prepare_folder, write_json
from fmnist_diffusion.files import WriteError


def test_settings_of_another_program_are_not_changed(tmp_path: Path):
    path = tmp_path / "settings.json"
    path.write_text('{"editor": "theirs"}')
    with pytest.raises(ValueError, match="contains a different run or other files"):
        prepare_folder(tmp_path, {"source": "test"})
    assert path.read_text() == '{"editor": "theirs"}'


def test_a_folder_without_samples_can_be_used_again(tmp_path: Path):
    prepare_folder(tmp_path / "out", {"source": "first"})
    prepare_folder(tmp_path / "out", {"source": "second"})
    (tmp_path / "out" / "seed-0").mkdir()
    prepare_folder(tmp_path / "out", {"source": "second"})
    with pytest.raises(ValueError, match="contains a different run or other files"):
        prepare_folder(tmp_path / "out", {"source": "third"})


def test_a_folder_with_an_incomplete_file_can_be_used_again(tmp_path: Path):
    (tmp_path / ".incomplete-1234-settings.json").write_text("{")
    prepare_folder(tmp_path, {"source": "test"})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"source": "test"}


def test_a_folder_that_cannot_be_created_is_a_write_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=f"Could not write {tmp_path}/file/out: Not a directory."):
        prepare_folder(tmp_path / "file" / "out", {"source": "test"})


def test_json_files_are_complete_or_missing(tmp_path: Path):
    write_json(tmp_path / "metrics.json", {"value": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "metrics.json", {"value": object()})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
