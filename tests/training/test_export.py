import json
from pathlib import Path

import pytest
from diffusers import DDPMScheduler

from checkpoint import Progress
from config import TrainingConfig
from export import check_new_folder, export_run, get_public_name
from fmnist_diffusion import FashionMNISTUNet2DModel
from fmnist_diffusion.sampling import make_pipeline


def test_export_replaces_metrics_and_samples_of_older_weights(tmp_path: Path):
    pipe = make_pipeline(FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8), DDPMScheduler())
    grid, folder = tmp_path / "epoch-0001.png", tmp_path / "pipeline"
    grid.write_bytes(b"grid of the first epoch")
    export_run(pipe, folder, TrainingConfig(), Progress(7, 1, 0), grid)
    exported_grid, metrics = folder / "images" / "samples.png", folder / "metrics.json"
    assert exported_grid.read_bytes() == grid.read_bytes()
    metrics.write_text("{}")
    export_run(pipe, folder, TrainingConfig(), Progress(14, 2, 0), tmp_path / "epoch-0002.png")
    assert not exported_grid.exists()
    assert not metrics.exists()
    assert json.loads((folder / "train_config.json").read_text())["progress"] == {
        "global_step": 14,
        "epoch": 2,
        "batch": 0,
    }


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("zalando-datasets/fashion_mnist", "zalando-datasets/fashion_mnist"),
        ("spec", "spec"),
        ("/home/somebody/secret/pets", "pets"),
        ("./secret/pets", "pets"),
        ("~/pets", "pets"),
        ("secret/project/pets", "pets"),
    ],
)
def test_public_name_contains_no_local_path(source: str, name: str):
    assert get_public_name(source) == name


def test_folder_with_files_is_not_new(tmp_path: Path):
    check_new_folder(tmp_path)
    check_new_folder(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`--output_dir` must be new or empty, but .* contains files"):
        check_new_folder(tmp_path)
