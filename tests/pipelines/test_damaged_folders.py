"""Loading of damaged pipeline folders."""

import itertools
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from damaged_folders import damage_folders
from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.commands import main
from saved_pipelines import save_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("saved") / "pipeline", num_class_embeds=10)


def check_error(load: Callable[[Path], object], path: Path, fault: str, name: str) -> None:
    with pytest.raises(OSError) as error:
        load(path)
    message = str(error.value)
    assert Path(name).name in message, (fault, message)
    assert message.endswith(".") and "\n" not in message and len(message) < 700, (fault, message)


def test_damaged_files_are_named(folder: Path, tmp_path: Path):
    for fault, name in itertools.islice(damage_folders(folder, tmp_path / "damaged"), 0, None, 12):
        check_error(load_pipeline, tmp_path / "damaged", fault, name)


@pytest.mark.slow
def test_all_damaged_files_are_named(folder: Path, tmp_path: Path):
    number = 0
    for fault, name in damage_folders(folder, tmp_path / "damaged"):
        number += 1
        check_error(FashionMNISTPipeline.from_pretrained, tmp_path / "damaged", fault, name)
    assert number >= 400


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "PIPELINE", "-n", "1"],
        ["info", "PIPELINE"],
        ["push", "PIPELINE", "--repo-id", "someone/tiny"],
    ],
    ids=lambda command: command[0],
)
def test_commands_name_the_damaged_file(folder, tmp_path, monkeypatch, capsys, hub, command):
    monkeypatch.chdir(tmp_path)
    for fault, name in itertools.islice(damage_folders(folder, tmp_path / "damaged"), 0, None, 30):
        with pytest.raises(SystemExit) as exit_info:
            main([str(tmp_path / "damaged") if argument == "PIPELINE" else argument for argument in command])
        assert exit_info.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("fmnist-diffusion: error: ") and message.count("\n") == 1, (fault, message)
        assert Path(name).name in message, (fault, message)


def test_large_models_are_not_allocated(folder: Path, tmp_path: Path):
    (tmp_path / "unet").mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
    config = (tmp_path / "unet" / "config.json").read_text()
    # This model has 38 billion parameters.
    config = config.replace("8,\n    16", "8192,\n    8192").replace('"layers_per_block": 1', '"layers_per_block": 16')
    assert "8192" in config
    (tmp_path / "unet" / "config.json").write_text(config)
    tracemalloc.start()
    try:
        check_error(load_pipeline, tmp_path, "large", "diffusion_pytorch_model.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_random_state_is_not_changed_by_loading(folder: Path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_pipeline(folder)
    assert torch.equal(torch.rand(1), expected)


def test_pickle_files_are_never_loaded(folder: Path):
    with pytest.raises(ValueError, match="`use_safetensors` must be True"):
        load_pipeline(folder, use_safetensors=False)
