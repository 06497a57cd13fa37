import errno
import json
import os
from pathlib import Path

import pytest
from diffusers import DDPMScheduler

from checkpoint import Progress
from config import DataConfig, TrainingConfig
from export import PRIVATE_SETTINGS, get_public_name, make_train_config, save_with_train_config
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.files import WriteError
from fmnist_diffusion.sampling import make_pipeline


def test_export_replaces_metrics_and_samples_of_older_weights(tmp_path: Path):
    pipe = make_pipeline(FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8), DDPMScheduler())
    grid, folder = tmp_path / "epoch-0001.png", tmp_path / "pipeline"
    grid.write_bytes(b"grid of the first epoch")
    save_with_train_config(pipe, folder, make_train_config(TrainingConfig(), Progress(7, 1, 0)), grid)
    exported_grid, metrics = folder / "images" / "samples.png", folder / "metrics.json"
    assert exported_grid.read_bytes() == grid.read_bytes()
    metrics.write_text("{}")
    train_config = make_train_config(TrainingConfig(), Progress(14, 2, 0))
    save_with_train_config(pipe, folder, train_config, tmp_path / "epoch-0002.png")
    assert not exported_grid.exists()
    assert not metrics.exists()
    assert json.loads((folder / "train_config.json").read_text())["progress"] == {
        "global_step": 14,
        "epoch": 2,
        "batch": 0,
    }


def test_failed_export_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pipe = make_pipeline(FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8), DDPMScheduler())
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "old").touch()
    # The pipeline calls this method after it has written the weights.
    monkeypatch.setattr(FashionMNISTPipeline, "save_config", fail)
    for name in ("pipeline", "new"):
        with pytest.raises(WriteError, match=f"^Could not write {tmp_path / name}: No space left on device"):
            save_with_train_config(pipe, tmp_path / name, {})
    assert [path.name for path in tmp_path.rglob("*")] == ["pipeline", "old"]


def test_train_config_contains_neither_private_settings_nor_local_paths():
    data = DataConfig(train_data_dir="/home/somebody/pets")
    config = TrainingConfig(init_from="/home/somebody/cats", vae="/home/somebody/vae", data=data)
    train_config = make_train_config(config, Progress())
    assert train_config.keys().isdisjoint(PRIVATE_SETTINGS)
    assert (train_config["init_from"], train_config["vae"]) == ("cats", "vae")
    assert train_config["data"]["train_data_dir"] == "pets"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("zalando-datasets/fashion_mnist", "zalando-datasets/fashion_mnist"),
        ("spec", "spec"),
        ("/home/somebody/secret/pets", "pets"),
        ("./secret/pets", "pets"),
        ("~/pets", "pets"),
        ("secret/project/pets", "pets"),
        ("my photos/pets", "pets"),
    ],
)
def test_public_name_contains_no_local_path(source: str, name: str):
    assert get_public_name(source) == name
