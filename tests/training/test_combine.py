"""Weighted sums of checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, export_pipeline, load_pipeline
from fmnist_diffusion.evaluation import pipeline_hash
from fmnist_diffusion.publish import weights_dtypes
from training.combine import combine, main


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two pipelines of a small model with BatchNorm, in training for no steps and for 7."""
    names = []
    for steps in (0, 7):
        torch.manual_seed(steps)
        unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8)
        unet.train()(torch.randn(4, 1, 28, 28), 3)
        names.append(str(tmp_path / f"after-{steps}"))
        export_pipeline(unet, DDPMScheduler(), names[-1], train_config={"progress": {"global_step": steps}})
    return names


def test_every_weight_is_the_sum(folders: list[str], tmp_path: Path):
    main([folders[1], folders[0], "--weights", "1.25", "-0.25", f"--output_dir={tmp_path / 'sum'}"])
    before, after, combined = (load_pipeline(name) for name in (*folders, tmp_path / "sum"))
    for name, tensor in combined.unet.state_dict().items():
        old, new = before.unet.state_dict()[name], after.unet.state_dict()[name]
        expected = 1.25 * new - 0.25 * old if tensor.is_floating_point() else new
        torch.testing.assert_close(tensor, expected)
    assert combined(output_type="pt", num_inference_steps=2).images.isfinite().all()
    once = {"weights": [1.25, -0.25], "unet_sha256": [pipeline_hash(after), pipeline_hash(before)]}
    settings = json.loads((tmp_path / "sum" / "train_config.json").read_text())
    assert settings == {"progress": {"global_step": 7}, "combined": once}

    main([str(tmp_path / "sum"), folders[0], "--weights", "0.5", "0.5", f"--output_dir={tmp_path / 'of-sum'}"])
    settings = json.loads((tmp_path / "of-sum" / "train_config.json").read_text())
    assert settings["combined"]["unet_sha256"] == [pipeline_hash(combined), pipeline_hash(before)]
    assert settings["combined"]["first"] == once


def test_one_alone_is_itself_in_another_dtype(folders: list[str], tmp_path: Path):
    main([folders[0], "--weights", "1", "--dtype=float16", f"--output_dir={tmp_path / 'half'}"])
    assert weights_dtypes(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors") == {"F16"}
    half, whole = load_pipeline(tmp_path / "half").unet, load_pipeline(folders[0]).unet
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weights", [["1"], ["1.2", "-0.3"], ["0.5", "0.2", "0.3"], ["nan", "1"]])
def test_weights_that_are_none_are_refused_in_a_sentence(
    weights: list[str], folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit, match="2"):
        main([*folders, f"--output_dir={tmp_path / 'sum'}", "--weights", *weights])
    assert "one for each pipeline, which add up to 1." in capsys.readouterr().err
    assert not (tmp_path / "sum").exists()


def test_a_folder_that_holds_files_is_left_alone(folders: list[str], capsys: pytest.CaptureFixture):
    before = load_pipeline(folders[0]).unet.state_dict()
    with pytest.raises(SystemExit, match="2"):
        main([*folders, "--weights", "0.5", "0.5", f"--output_dir={folders[0]}"])
    assert "holds files already; give a new folder as --output_dir." in capsys.readouterr().err
    after = load_pipeline(folders[0]).unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_pipeline_that_cannot_be_exported_is_refused_in_a_sentence(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
):
    load_pipeline(folders[0]).save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "other"), "--weights", "1", f"--output_dir={tmp_path / 'sum'}"])
    assert "but must be a DDPMScheduler or a DDIMScheduler" in capsys.readouterr().err


def test_other_models_are_refused(folders: list[str]):
    pipe = load_pipeline(folders[0], scheduler=None)
    wider = FashionMNISTUNet2DModel(block_out_channels=(16, 16), attention_head_dim=8)
    others = [
        FashionMNISTPipeline(wider, DDPMScheduler()),
        FashionMNISTPipeline(pipe.unet, DDPMScheduler(prediction_type="v_prediction")),
        FashionMNISTPipeline(pipe.unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2")),
    ]
    for other in others:
        with pytest.raises(ValueError, match="different models"):
            combine([pipe, other], [0.5, 0.5])


def test_a_variance_below_zero_is_refused(folders: list[str]):
    pipelines = [load_pipeline(name, scheduler=None) for name in folders]
    with pytest.raises(ValueError, match=r"running_var would not be positive"):
        combine(pipelines, [1000, -999])
