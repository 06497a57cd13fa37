"""The null label, moved towards classes that are drawn too rarely."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from fmnist_diffusion import FashionMNISTUNet2DModel, export_pipeline, load_pipeline
from fmnist_diffusion.evaluation import pipeline_hash
from training.balance import main


SHARES = [0.05, 0.15, *[0.1] * 8]


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8, num_class_embeds=10)
    export_pipeline(unet, DDPMScheduler(), tmp_path / "pipeline", train_config={"progress": {"global_step": 7}})
    return str(tmp_path / "pipeline")


def evaluation(pipeline: str, folder: Path, **measured: object) -> str:
    """The part of an evaluation's `metrics.json` that is read."""
    folder.mkdir()
    facts = {"conditional": False, "dtype": "float32", "unet_sha256": pipeline_hash(load_pipeline(pipeline))}
    (folder / "metrics.json").write_text(json.dumps(facts | {"metrics": {"class_shares": SHARES}} | measured))
    return str(folder)


def test_only_the_null_label_moves_towards_the_rare_class_and_away_from_the_frequent(pipeline: str, tmp_path: Path):
    main([pipeline, evaluation(pipeline, tmp_path / "shares"), f"--output_dir={tmp_path / 'new'}", "--strength=0.2"])
    before, after = (load_pipeline(name).unet.state_dict() for name in (pipeline, tmp_path / "new"))
    old, new = (state.pop("class_embedding.weight") for state in (before, after))
    assert torch.equal(new[:10], old[:10]) and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    # log(2) and -log(1.5), times the strength
    expected = old[10] + 0.13863 * (old[0] - old[:10].mean(0)) - 0.08109 * (old[1] - old[:10].mean(0))
    torch.testing.assert_close(new[10], expected, rtol=0, atol=1e-4)

    main([str(tmp_path / "new"), evaluation(str(tmp_path / "new"), tmp_path / "2"), f"--output_dir={tmp_path / '3'}"])
    settings = json.loads((tmp_path / "3" / "train_config.json").read_text())
    assert settings["progress"] == {"global_step": 7}
    assert [step["strength"] for step in settings["balanced"]] == [0.2, 0.15]
    assert settings["balanced"][0] == {
        "class_shares": SHARES,
        "strength": 0.2,
        "unet_sha256": pipeline_hash(load_pipeline(pipeline)),
    }


def test_samples_may_be_drawn_in_half_precision(pipeline: str, tmp_path: Path):
    drawn_with = {"dtype": "bfloat16", "unet_sha256": pipeline_hash(load_pipeline(pipeline, dtype=torch.bfloat16))}
    main([pipeline, evaluation(pipeline, tmp_path / "shares", **drawn_with), f"--output_dir={tmp_path / 'new'}"])
    assert load_pipeline(tmp_path / "new").unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"conditional": True}, "without labels; give what"),
        ({"unet_sha256": "0" * 64}, "without labels; give what"),
        ({"metrics": {"class_shares": [0.5, 0.5]}}, "knows 10 classes, and 2 were measured; give"),
        ({"metrics": {"class_shares": [0.0, 0.2, *[0.1] * 8]}}, "never drawn, .*; give more samples"),
    ],
)
def test_measurements_of_something_else_are_refused_in_a_sentence(
    measured: dict, message: str, pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit, match="2"):
        main([pipeline, evaluation(pipeline, tmp_path / "shares", **measured), f"--output_dir={tmp_path / 'new'}"])
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "new").exists()


def test_a_folder_that_holds_files_is_refused(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        main([pipeline, evaluation(pipeline, tmp_path / "shares"), f"--output_dir={pipeline}"])
    assert "holds files already; give a new folder" in capsys.readouterr().err
