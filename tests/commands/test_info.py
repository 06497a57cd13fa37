import json
import shutil
from pathlib import Path

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, load_pipeline
from fmnist_diffusion.commands import main
from latent_pipelines import get_latent_pipeline
from saved_pipelines import METRICS, save_pipeline
from text_pipelines import get_text_pipeline
from tiny_pipelines import get_pipeline, make_classifier, make_unet


def test_json_output_describes_the_pipeline(pipeline, capsys):
    main(["info", pipeline, "--json"])
    pipe = load_pipeline(pipeline)
    weights = Path(pipeline, "unet", "diffusion_pytorch_model.safetensors")
    assert json.loads(capsys.readouterr().out) == {
        "folder": pipeline,
        "model": "FashionMNISTUNet2DModel",
        "text_encoder": None,
        "parameters": {"unet": sum(parameter.numel() for parameter in pipe.unet.parameters())},
        "vae": None,
        "config": {
            "sample_size": 8,
            "block_out_channels": [8, 16],
            "norm_type": "group",
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "time_embedding_dim": 16,
            "num_class_embeds": 10,
        },
        "weights": {f"unet/{weights.name}": {"bytes": weights.stat().st_size, "dtype": "F32"}},
        "labels": list(pipe.label_names),
        "scheduler": "DPMSolverMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "scheduler_config": {"algorithm_type": "sde-dpmsolver++", "timestep_spacing": "leading"},
        "num_inference_steps": 20,
        "timestep_power": 1.5,
        "train_config": {"num_epochs": 3, "optimizer": {"name": "adam"}},
        "metrics": None,
    }


def test_default_options_are_left_out(tmp_path, capsys):
    FashionMNISTPipeline(FashionMNISTUNet2DModel(), DDPMScheduler()).save_pretrained(tmp_path)
    main(["info", str(tmp_path), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"] == facts["scheduler_config"] == {}
    assert facts["labels"] is facts["timestep_power"] is None


def test_flow_matching_is_described(tmp_path, capsys):
    save_pipeline(tmp_path, FlowMatchEulerDiscreteScheduler(shift=3.0))
    main(["info", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "scheduler   FlowMatchEulerDiscreteScheduler, 1,000 timesteps, flow_prediction" in lines
    assert "sampling    20 steps, timestep power 1.0" in lines


def test_text_output_lists_settings_and_metrics(pipeline, tmp_path, capsys):
    folder = shutil.copytree(pipeline, tmp_path / "pipeline")
    (folder / "metrics.json").write_text(json.dumps(METRICS | {"metrics": {"kid_train": -1.3992786e-05}}))
    main(["info", str(folder)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "block_out_channels 8, 16",
        "scheduler DPMSolverMultistepScheduler, 1,000 timesteps, epsilon",
        "sampling 20 steps, timestep power 1.5",
        "optimizer.name adam",
        "kid_train -0.00001399",
    ):
        assert line in lines
    assert any("Ankle boot" in line for line in lines)


def test_text_encoder_is_described_and_counted(tmp_path, capsys):
    pipe = get_text_pipeline()
    pipe.text_encoder.half()
    pipe.save_pretrained(tmp_path)
    main(["info", str(tmp_path)])
    unet, text = (sum(parameter.numel() for parameter in m.parameters()) for m in (pipe.unet, pipe.text_encoder))
    path = tmp_path / "text_encoder" / "model.safetensors"
    # Each parameter has two bytes, and the header of the file is small.
    assert 2 * text < path.stat().st_size < 2 * text + 4000
    lines = capsys.readouterr().out.splitlines()
    for line in (
        f"text        CLIPTextModel, {len(pipe.tokenizer):,} tokens",
        f"parameters  {unet + text:,} (unet {unet:,}, text_encoder {text:,})",
        f"weights     text_encoder/model.safetensors, {path.stat().st_size / 1e6:.1f} MB, F16",
    ):
        assert line in lines


def test_counts_of_one_are_singular(tmp_path, capsys):
    noise_scheduler = DDPMScheduler(num_train_timesteps=1)
    FashionMNISTPipeline(make_unet(), noise_scheduler, num_inference_steps=1).save_pretrained(tmp_path)
    main(["info", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert "scheduler   DDPMScheduler, 1 timestep, epsilon" in lines
    assert "sampling    1 step" in lines


def test_classifier_is_counted(tmp_path, capsys):
    pipe = get_pipeline(classifier=make_classifier())
    pipe.save_pretrained(tmp_path)
    main(["info", str(tmp_path)])
    unet, classifier = (sum(parameter.numel() for parameter in m.parameters()) for m in (pipe.unet, pipe.classifier))
    line = f"parameters  {unet + classifier:,} (unet {unet:,}, classifier {classifier:,})"
    assert line in capsys.readouterr().out.splitlines()


def test_autoencoder_is_described(tmp_path, capsys):
    pipe = get_latent_pipeline()
    pipe.save_pretrained(tmp_path)
    main(["info", str(tmp_path)])
    assert "latents     AutoencoderKL, 2x8x8" in capsys.readouterr().out.splitlines()


def test_folder_without_a_pipeline_is_an_error(get_error, tmp_path):
    assert get_error("info", "nowhere").startswith("Could not find the folder nowhere")
    assert "model_index.json" in get_error("info", tmp_path)
