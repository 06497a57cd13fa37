import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from combine import combine, main
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, load_pipeline
from fmnist_diffusion.metadata import weights_dtypes, weights_hash
from latent_pipelines import get_latent_pipeline
from text_pipelines import get_text_pipeline


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two pipelines of a small model with BatchNorm, after 0 and after 7 training steps."""
    names = []
    for steps in (0, 7):
        torch.manual_seed(steps)
        unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8)
        unet.train()(torch.randn(4, 1, 28, 28), 3)
        folder = tmp_path / f"after-{steps}"
        FashionMNISTPipeline(unet, DDPMScheduler(), num_inference_steps=7 + steps).save_pretrained(folder)
        (folder / "train_config.json").write_text(json.dumps({"progress": {"global_step": steps}}))
        names.append(str(folder))
    return names


def test_every_weight_is_the_linear_combination(folders: list[str], tmp_path: Path):
    main([folders[1], folders[0], "--weights", "1.25", "-0.25", f"--output_dir={tmp_path / 'merged'}"])
    before, after, merged = (load_pipeline(name) for name in (*folders, tmp_path / "merged"))
    for name, tensor in merged.unet.state_dict().items():
        old, new = before.unet.state_dict()[name], after.unet.state_dict()[name]
        expected = 1.25 * new - 0.25 * old if tensor.is_floating_point() else new
        torch.testing.assert_close(tensor, expected)
    assert merged(output_type="pt", num_inference_steps=2).images.isfinite().all()
    assert isinstance(merged.scheduler, DDPMScheduler)
    assert merged.config["num_inference_steps"] == 14
    combined = {"weights": [1.25, -0.25], "weights_sha256": [weights_hash(after), weights_hash(before)]}
    settings = json.loads((tmp_path / "merged" / "train_config.json").read_text())
    assert settings == {"progress": {"global_step": 7}, "combined": combined}

    main([str(tmp_path / "merged"), folders[0], "--weights", "0.5", "0.5", f"--output_dir={tmp_path / 'again'}"])
    settings = json.loads((tmp_path / "again" / "train_config.json").read_text())
    assert settings["combined"]["weights_sha256"] == [weights_hash(merged), weights_hash(before)]
    assert settings["combined"]["first"] == combined


def test_single_pipeline_can_be_converted_to_another_dtype(
    folders: list[str], tmp_path: Path, diffusers_log: pytest.LogCaptureFixture
):
    main([folders[0], "--weights", "1", "--dtype=float16", f"--output_dir={tmp_path / 'half'}"])
    assert diffusers_log.records == []
    assert weights_dtypes(tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors") == {"F16"}
    half, single = load_pipeline(tmp_path / "half").unet, load_pipeline(folders[0]).unet
    for name, tensor in single.state_dict().items():
        # Loading may keep the stored dtype.
        torch.testing.assert_close(half.state_dict()[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weights", [["1"], ["1.2", "-0.3"], ["0.5", "0.2", "0.3"], ["nan", "1"]])
def test_weights_must_have_a_sum_of_one(
    weights: list[str], folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        main([*folders, f"--output_dir={tmp_path / 'merged'}", "--weights", *weights])
    assert "must be one number per pipeline (2) and sum to 1" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_folder_with_files_is_not_overwritten(folders: list[str], capsys: pytest.CaptureFixture[str]):
    before = load_pipeline(folders[0]).unet.state_dict()
    with pytest.raises(SystemExit, match="2"):
        main([*folders, "--weights", "0.5", "0.5", f"--output_dir={folders[0]}"])
    assert "`--output_dir` must be new or empty" in capsys.readouterr().err
    after = load_pipeline(folders[0]).unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_different_models_cannot_be_combined(folders: list[str]):
    pipe = load_pipeline(folders[0])
    wider = FashionMNISTUNet2DModel(block_out_channels=(16, 16), attention_head_dim=8)
    others = [
        FashionMNISTPipeline(wider, DDPMScheduler()),
        FashionMNISTPipeline(pipe.unet, DDPMScheduler(prediction_type="v_prediction")),
        FashionMNISTPipeline(pipe.unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2")),
        FashionMNISTPipeline(pipe.unet, FlowMatchEulerDiscreteScheduler()),
    ]
    for other in others:
        with pytest.raises(ValueError, match="Pipeline 2 differs from the first one in its architecture"):
            combine([pipe, other], [0.5, 0.5])


def test_pipelines_with_different_dropout_can_be_combined(folders: list[str]):
    pipe = load_pipeline(folders[0])
    unet = FashionMNISTUNet2DModel.from_config(pipe.unet.config, dropout=0.1)
    combine([pipe, FashionMNISTPipeline(unet, DDPMScheduler())], [0.5, 0.5])


def test_pipelines_with_different_autoencoders_cannot_be_combined():
    pipe, other = get_latent_pipeline(), get_latent_pipeline()
    combine([pipe, other], [0.5, 0.5])
    torch.nn.init.zeros_(other.vae.quant_conv.bias)
    with pytest.raises(ValueError, match="Pipeline 2 differs from the first one in its architecture, autoencoder"):
        combine([pipe, other], [0.5, 0.5])


def test_text_encoders_are_combined(tmp_path: Path):
    states = []
    for number in range(2):
        pipe = get_text_pipeline()
        with torch.no_grad():
            for parameter in pipe.text_encoder.parameters():
                parameter.add_(number)
        pipe.save_pretrained(tmp_path / str(number))
        states.append(pipe.text_encoder.state_dict())
    pipelines = [str(tmp_path / str(number)) for number in range(2)]
    main([*pipelines, "--weights", "0.75", "0.25", f"--output_dir={tmp_path / 'merged'}"])
    merged = load_pipeline(tmp_path / "merged").text_encoder.state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.75 * states[0][name] + 0.25 * states[1][name])


def test_negative_variance_raises(folders: list[str]):
    pipelines = [load_pipeline(name) for name in folders]
    with pytest.raises(ValueError, match=r"make the running variance .*running_var zero or negative"):
        combine(pipelines, [1000, -999])
