"""The command line: what it draws and tells, how fast it answers, and how it refuses."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

import fmnist_diffusion
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, export_pipeline
from fmnist_diffusion.cli import SCHEDULERS, main


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("cli") / "pipeline"
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8, num_class_embeds=10)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    export_pipeline(unet, scheduler, folder, train_config={"num_epochs": 3, "optimizer": {"name": "adam"}})
    return str(folder)


def draw(pipeline: str, output_dir: Path, *args: str) -> dict[str, Image.Image]:
    main(["sample", pipeline, "--num-inference-steps", "4", "--output-dir", str(output_dir), *args])
    images = {}
    for path in sorted(output_dir.iterdir()):
        with Image.open(path) as image:
            images[path.name] = image.copy()
    return images


def refusal(capsys, *args: str) -> str:
    """The line that `fmnist-diffusion ARGS` ends with, which must be its only output."""
    with pytest.raises(SystemExit) as exit_info:
        main(args)
    output = capsys.readouterr()
    assert exit_info.value.code == 2
    assert output.out == ""
    assert output.err.startswith("fmnist-diffusion: error: ")
    assert output.err.count("\n") == 1
    return output.err


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the console script, which is told by its name, in a process of its own."""
    script = cwd / "fmnist-diffusion"
    script.write_text("from fmnist_diffusion.cli import main\nmain()\n")
    source = str(Path(fmnist_diffusion.__file__).parents[1])
    return subprocess.run(
        [sys.executable, str(script), *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )


class TestProcess:
    def test_help_needs_no_torch(self, tmp_path):
        process = run("sample", "--help", cwd=tmp_path)
        assert process.returncode == 0
        for option in ("--class-labels", "--num-inference-steps", "--guidance-interval", "--upscale", "dpmsolver++"):
            assert option in process.stdout

        blocker = tmp_path / "torch.py"
        blocker.write_text("raise AssertionError('torch was imported')")
        assert run("sample", "--help", cwd=tmp_path).returncode == 0
        process = run("sample", "--num-images", "0", cwd=tmp_path)
        assert process.returncode == 2
        assert process.stderr == (
            "fmnist-diffusion: error: argument -n/--num-images: '0' must be a whole number from 1 on\n"
        )

    def test_help_is_fast(self, tmp_path):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            run("--help", cwd=tmp_path)
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 1

    def test_sample(self, pipeline, tmp_path):
        process = run("sample", pipeline, "--num-images", "2", "--num-inference-steps", "2", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        assert process.stdout == "The pictures are in samples/001, and together in samples/001/grid.png\n"
        assert (tmp_path / "samples/001/grid.png").is_file()


class TestSample:
    def test_labelled_pictures_and_grid(self, pipeline, tmp_path, capsys):
        images = draw(pipeline, tmp_path / "out", "-n", "5", "--class-labels", "Ankle boot", "T-SHIRT/TOP", "3")
        grid = images.pop("grid.png")
        assert list(images) == [
            "0000-ankle-boot.png",
            "0001-t-shirt-top.png",
            "0002-dress.png",
            "0003-ankle-boot.png",
            "0004-t-shirt-top.png",
        ]
        assert all((image.size, image.mode) == ((28, 28), "L") for image in images.values())
        assert grid.size == (3 * 28, 2 * 28)
        for i, image in enumerate(images.values()):
            x, y = i % 3 * 28, i // 3 * 28
            assert grid.crop((x, y, x + 28, y + 28)).tobytes() == image.tobytes()
        assert str(tmp_path / "out/grid.png") in capsys.readouterr().out

    def test_what_was_drawn_stays_where_the_rest_fails(self, pipeline, tmp_path, monkeypatch):
        call, calls = FashionMNISTPipeline.__call__, []

        def once(*args, **kwargs):
            if calls:
                raise KeyboardInterrupt
            calls.append(kwargs)
            return call(*args, **kwargs)

        monkeypatch.setattr(FashionMNISTPipeline, "__call__", once)
        with pytest.raises(SystemExit, match="130"):
            draw(pipeline, tmp_path / "out", "-n", "5", "--batch-size", "2")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.png", "0001.png"]

    def test_picture_depends_on_its_seed_alone(self, pipeline, tmp_path):
        many = draw(pipeline, tmp_path / "many", "-n", "5", "--seed", "7", "--class-labels", "bag")
        few = draw(pipeline, tmp_path / "few", "-n", "3", "--seed", "8", "--class-labels", "bag", "--batch-size", "2")
        for i in range(3):
            one, other = few[f"{i:04d}-bag.png"], many[f"{i + 1:04d}-bag.png"]
            # Rounding differs with the batch size, by one grey level at most.
            np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), rtol=0, atol=1)
        assert many["0000-bag.png"].tobytes() != many["0001-bag.png"].tobytes()

    def test_upscale_repeats_pixels(self, pipeline, tmp_path):
        small = draw(pipeline, tmp_path / "small", "-n", "1")["0000.png"]
        large = draw(pipeline, tmp_path / "large", "-n", "1", "--upscale", "3")["0000.png"]
        assert large.size == (84, 84)
        for x, y in ((0, 0), (13, 5), (27, 27)):
            assert {large.getpixel((3 * x + i, 3 * y + j)) for i in range(3) for j in range(3)} == {
                small.getpixel((x, y))
            }

    @pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "heun"])
    def test_schedulers(self, pipeline, tmp_path, scheduler):
        args = ("--scheduler", scheduler, "--class-labels", "1", "--guidance-scale", "2", "--dtype", "bfloat16")
        images = draw(pipeline, tmp_path / "out", "-n", "1", *args)
        assert set(images) == {"0000-trouser.png", "grid.png"}
        assert np.asarray(images["grid.png"]).std() > 5

    def test_heun_does_not_start_from_endless_noise(self, pipeline, tmp_path, capsys):
        message = refusal(capsys, "sample", pipeline, "-o", str(tmp_path / "out"), "--scheduler", "heun")
        assert "take another scheduler" in message

    def test_guidance(self, pipeline, tmp_path):
        def bag(name: str, *args: str) -> bytes:
            return draw(pipeline, tmp_path / name, "-n", "1", "--class-labels", "bag", *args)["0000-bag.png"].tobytes()

        plain = bag("plain")
        assert bag("guided", "--guidance-scale", "9") != plain
        assert bag("never", "--guidance-scale", "9", "--guidance-interval", "0", "0") == plain

    def test_numbered_folders_by_default(self, pipeline, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            main(["sample", pipeline, "-n", "1", "--num-inference-steps", "1"])
        assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["001", "002"]

    def test_a_numbered_folder_is_of_one_run_alone(self, pipeline, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "samples" / "001").mkdir(parents=True)  # of a run that has not drawn yet
        main(["sample", pipeline, "-n", "1", "--num-inference-steps", "1"])
        capsys.readouterr()
        refusal(capsys, "sample", pipeline, "--class-labels", "hat")
        assert sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "samples").rglob("*")) == [
            "samples/001",
            "samples/002",
            "samples/002/0000.png",
            "samples/002/grid.png",
        ]

    def test_never_overwrites(self, pipeline, tmp_path, capsys):
        mine = tmp_path / "grid.png"
        mine.write_text("mine")
        line = refusal(capsys, "sample", pipeline, "--output-dir", str(tmp_path))
        assert "holds files already: give a new or empty folder" in line
        assert mine.read_text() == "mine"

    @pytest.mark.parametrize(
        ("args", "words"),
        [
            (["--num-images", "0"], "--num-images: '0' must be a whole number from 1 on"),
            (["--num-images", "some"], "--num-images: 'some' must be a whole number from 1 on"),
            (["--seed", "-1"], "--seed: '-1' must be a whole number from 0"),
            (["--scheduler", "magic"], "choose from 'ddpm', 'ddim'"),
            (["--num-inference-steps", "2000"], "must be 1 to 1000"),
            (["--class-labels", "hat"], "T-shirt/top, Trouser"),
            (["--class-labels", "10"], "must be 0 to 9"),
            (["--guidance-scale", "2"], "give labels"),
            (["--class-labels", "1", "--guidance-scale", "2", "--guidance-interval", "1", "0"], "start <= stop"),
            (["--class-labels", "1", "--guidance-scale", "nan"], "must be a finite number"),
            (["--num-inference-steps", "1000", "--scheduler", "dpmsolver++"], "cannot draw in 1000 steps"),
            (["--device", "abacus"], "no device 'abacus'"),
            (["--device", "cpu", "--dtype", "float16"], "give --dtype float32 or bfloat16"),
            (["--output-dir", f"{__file__}/out"], "give another --output-dir"),
        ],
    )
    def test_refuses(self, pipeline, tmp_path, monkeypatch, capsys, args, words):
        monkeypatch.chdir(tmp_path)
        assert words in refusal(capsys, "sample", pipeline, *args)

    def test_refuses_a_scheduler_that_cannot_draw_with_the_model(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8)
        export_pipeline(unet, DDPMScheduler(prediction_type="sample"), tmp_path / "model")
        assert "not implemented yet: sample" in refusal(capsys, "sample", "model", "--scheduler", "euler_a")

    @pytest.mark.parametrize(
        ("options", "line"),
        [(["info"], "stopped"), (["evaluate", "--fast"], "stopped; the same command goes on from here")],
    )
    def test_ctrl_c_is_one_line(self, pipeline, monkeypatch, tmp_path, capsys, options, line):
        def load(*args, **options):
            raise KeyboardInterrupt

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("fmnist_diffusion.hub.load_pipeline", load)
        monkeypatch.setattr("fmnist_diffusion.load_pipeline", load)
        with pytest.raises(SystemExit) as exit_info:
            main([*options, pipeline])
        assert exit_info.value.code == 130
        assert capsys.readouterr().err == f"fmnist-diffusion: {line}\n"

    def test_refuses_what_is_no_pipeline(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert "'nowhere'" in refusal(capsys, "sample", "nowhere")
        assert "model_index.json" in refusal(capsys, "sample", str(tmp_path))


class TestInfo:
    def test_json(self, pipeline, capsys):
        main(["info", pipeline, "--json"])
        facts = json.loads(capsys.readouterr().out)
        weights = Path(pipeline, "unet", "diffusion_pytorch_model.safetensors")
        unet = FashionMNISTUNet2DModel.from_pretrained(pipeline, subfolder="unet")
        assert facts == {
            "folder": pipeline,
            "model": "FashionMNISTUNet2DModel",
            "parameters": sum(parameter.numel() for parameter in unet.parameters()),
            "config": {"block_out_channels": [8, 16], "attention_head_dim": 8, "num_class_embeds": 10},
            "weights": {weights.name: {"bytes": weights.stat().st_size, "dtype": "F32"}},
            "labels": list(fmnist_diffusion.FashionMNISTPipeline(unet, DDPMScheduler()).label_names or ()),
            "scheduler": "DDPMScheduler",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "scheduler_config": {"beta_schedule": "squaredcos_cap_v2"},
            "train_config": {"num_epochs": 3, "optimizer": {"name": "adam"}},
            "metrics": None,
        }

    def test_default_model_has_no_changed_options(self, tmp_path, capsys):
        export_pipeline(FashionMNISTUNet2DModel(), DDPMScheduler(), tmp_path)
        main(["info", str(tmp_path), "--json"])
        facts = json.loads(capsys.readouterr().out)
        assert facts["config"] == facts["scheduler_config"] == {}
        assert facts["labels"] is None

    def test_text(self, pipeline, capsys):
        main(["info", pipeline])
        text = capsys.readouterr().out
        for words in ("FashionMNISTUNet2DModel, ", "F32", "Ankle boot", "squaredcos_cap_v2", "optimizer.name  adam"):
            assert words in text

    def test_refuses_what_is_no_pipeline(self, tmp_path, capsys):
        assert "nowhere is no folder" in refusal(capsys, "info", "nowhere")
        assert "model_index.json" in refusal(capsys, "info", str(tmp_path))


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"fmnist-diffusion {fmnist_diffusion.__version__}\n"
