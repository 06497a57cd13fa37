"""A measurement from the command to metrics.json and the report, stopped and continued, and refused in words."""

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from fmnist_diffusion import FashionMNISTUNet2DModel, export_pipeline
from fmnist_diffusion.cli import main
from fmnist_diffusion.evaluation import InceptionFeatures
from fmnist_diffusion.evaluation import evaluate as module
from fmnist_diffusion.evaluation.evaluate import Evaluation, check_num_samples, summarise


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("evaluate") / "tiny"
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8, num_class_embeds=10)
    export_pipeline(unet, DDPMScheduler(), folder)
    return str(folder)


@pytest.fixture
def fast(fashion_mnist_folder: Path, tmp_path: Path):
    """Runs the fast metrics against the few real images at hand; returns metrics.json."""

    def run(*args: str, folder: Path = tmp_path / "out") -> dict:
        main(["evaluate", *args, "--fast", "--train-data-dir", str(fashion_mnist_folder), "-o", str(folder)])
        return json.loads((folder / "metrics.json").read_text())

    return run


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", *args])
    assert exit_info.value.code == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1, output.err
    return output.err


OPTIONS = ("--num-samples", "300", "--num-inference-steps", "2", "--batch-size", "128")


def test_fast_metrics_of_a_pipeline(pipeline: str, fast, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    facts = fast(pipeline, *OPTIONS, "--scheduler", "dpmsolver++", "--guidance-scale", "2")
    # An infinite default, for which JSON has no number.
    assert facts["scheduler_config"]["lambda_min_clipped"] == "-inf"
    assert "Inception" not in facts["protocol"] and "KID" not in facts["protocol"]
    metrics = facts["metrics"]
    assert metrics["evaluations_per_image"] == 4
    assert metrics["images_per_second"] > 0
    assert metrics["classifier_frechet_distance_train"] > facts["real"]["classifier"]["test"]["frechet_distance"]
    assert sum(metrics["class_shares"]) == pytest.approx(1)
    assert 0 <= metrics["class_agreement"] <= 1
    assert metrics["nearest_pixels"]["median"] > metrics["nearest_pixels"]["test_median"]
    assert "fid_train" not in metrics
    assert (facts["num_samples"], facts["seeds"], facts["scheduler"]) == (300, [0], "DPMSolverMultistepScheduler")
    assert facts["guidance_scale"] == 2
    assert {"torch", "diffusers", "fmnist-diffusion"} <= facts["versions"].keys()
    assert {"classifier", "statistics_classifier_train", "statistics_classifier_test"} == facts["sha256"].keys()
    with Image.open(tmp_path / "out" / "report.png") as report:
        assert report.width > 1000
    assert "classifier_frechet_distance_train" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(
    pipeline: str, fast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = fast(pipeline, *OPTIONS, folder=tmp_path / "whole")
    drawn, draw = [], module.draw

    def stopping(pipe, settings, start, count, seed):
        if start == 128 and 128 not in drawn:
            drawn.append(start)
            raise KeyboardInterrupt
        drawn.append(start)
        return draw(pipe, settings, start, count, seed)

    monkeypatch.setattr(module, "draw", stopping)
    with pytest.raises(SystemExit, match="130"):
        fast(pipeline, *OPTIONS)
    assert drawn == [0, 128]
    resumed = fast(pipeline, *OPTIONS)
    assert drawn == [0, 128, 128, 256]
    for facts in (whole, resumed):
        del facts["metrics"]["images_per_second"]
    assert resumed == whole


def test_several_seeds_give_mean_and_minimum(pipeline: str, fast):
    metrics = fast(pipeline, *OPTIONS, "--seeds", "0", "1", "--unconditional")["metrics"]
    distance = metrics["classifier_frechet_distance_train"]
    assert distance["min"] == min(distance["seeds"])
    assert distance["mean"] == pytest.approx(sum(distance["seeds"]) / 2)
    assert distance["seeds"][0] != distance["seeds"][1]
    assert "class_agreement" not in metrics


def test_pictures_of_a_file_are_measured_without_a_pipeline(fast, tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", images=images)
    facts = fast(str(tmp_path / "noise.npz"))
    assert facts["source"] == "noise"
    assert facts["num_samples"] == 300
    assert "evaluations_per_image" not in facts["metrics"]


@pytest.mark.parametrize("option", [["--num-inference-steps", "50"], ["--unconditional"], ["--seeds", "1"]])
def test_how_to_draw_is_refused_for_pictures(option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.savez(tmp_path / "noise.npz", images=np.zeros((300, 28, 28), np.uint8))
    message = refusal(capsys, str(tmp_path / "noise.npz"), "--fast", *option, "-o", str(tmp_path / "out"))
    assert f"noise.npz holds pictures, which are not drawn again: leave out {option[0]}" in message
    assert not (tmp_path / "out").exists()


def test_fid_against_other_images_is_refused(fashion_mnist_folder: Path):
    inception = cast(InceptionFeatures, torch.nn.Identity())
    with pytest.raises(ValueError, match=r"other images than the 60,000 training images .* in their order"):
        Evaluation(inception, train_data_dir=str(fashion_mnist_folder))


def test_another_run_in_the_folder_is_left_alone(pipeline: str, fast, tmp_path: Path, capsys):
    fast(pipeline, *OPTIONS)
    capsys.readouterr()
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    message = refusal(capsys, pipeline, *OPTIONS, "--seeds", "5", "--fast", "-o", str(tmp_path / "out"))
    assert "holds another run or other files: give another --output-dir" in message
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before


def test_a_file_of_another_program_is_left_alone(pipeline: str, tmp_path: Path, capsys):
    path = tmp_path / "out" / "settings.json"
    path.parent.mkdir()
    path.write_text('{"editor": "theirs"}')
    message = refusal(capsys, pipeline, *OPTIONS, "--fast", "-o", str(path.parent))
    assert "holds another run or other files: give another --output-dir" in message
    assert path.read_text() == '{"editor": "theirs"}'


def test_a_refused_run_leaves_the_folder_to_the_right_one(
    pipeline: str, fast, fashion_mnist_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wrong = (pipeline, "--num-inference-steps", "2000", "--fast", "--train-data-dir", str(fashion_mnist_folder))
    assert "must be 1 to 1000" in refusal(capsys, *wrong, "-o", str(tmp_path / "out"))
    assert fast(pipeline, *OPTIONS)["num_samples"] == 300


def test_what_cannot_be_measured_is_refused(pipeline: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    out = ("-o", str(tmp_path / "out"))
    monkeypatch.delenv("FMNIST_DIFFUSION_INCEPTION", raising=False)
    assert "give what to measure" in refusal(capsys)
    assert "run fmnist-diffusion evaluate --download-inception once, or give --fast" in refusal(capsys, pipeline, *out)
    assert "there is no Inception network" in refusal(capsys, pipeline, *out, "--inception-weights", "nowhere.pt")
    assert "leave out --fast or --inception-weights" in refusal(
        capsys, pipeline, *out, "--fast", "--inception-weights", "nowhere.pt"
    )
    assert "100 samples are too few for the covariance of 256 features: take 257" in refusal(
        capsys, pipeline, *out, "--fast", "-n", "100"
    )
    assert "There is no pipeline" in refusal(capsys, str(tmp_path / "missing"), *out, "--fast")
    assert "must be below 4096" in refusal(capsys, pipeline, "--seeds", "4096")
    (tmp_path / "empty").mkdir()
    assert "holds no PNG" in refusal(capsys, str(tmp_path / "empty"), *out, "--fast")
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"wrong")
    message = refusal(capsys, pipeline, *out, "--inception-weights", str(wrong))
    assert "is not the Inception network of FID" in message
    colour = tmp_path / "colour"
    unet = FashionMNISTUNet2DModel(32, 3, 3, block_out_channels=(8, 16), attention_head_dim=8)
    export_pipeline(unet, DDPMScheduler(), colour)
    assert "cannot be compared with grey 28x28" in refusal(capsys, str(colour), *out, "--fast")
    assert not (tmp_path / "out").exists()


def test_fid_of_few_samples_is_refused():
    with pytest.raises(ValueError, match=r"50 samples are too few .* take 2049 or more .* or give --fast"):
        check_num_samples(50, inception=True)
    check_num_samples(2049, inception=True)


def test_samples_that_would_repeat_are_refused(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    message = refusal(capsys, pipeline, "--fast", "-n", str(2**21), "-o", str(tmp_path / "out"))
    assert "2097152 samples of one seed would repeat: give --num-samples 1048576 or less" in message


def test_a_run_gives_its_name_to_the_measurement(
    pipeline: str, fashion_mnist_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained = tmp_path / "mine" / "pipeline"
    trained.parent.mkdir()
    shutil.copytree(pipeline, trained)
    monkeypatch.chdir(tmp_path)
    main(["evaluate", str(trained), *OPTIONS, "--fast", "--train-data-dir", str(fashion_mnist_folder)])
    facts = json.loads((tmp_path / "evaluation" / "mine-pipeline" / "metrics.json").read_text())
    assert facts["source"] == "pipeline"


def test_summary_of_one_seed_is_its_numbers():
    one, other = {"a": 1.0, "b": {"c": 2.0}, "d": [1, 2]}, {"a": 3.0, "b": {"c": 4.0}, "d": [3, 2]}
    assert summarise([one]) == one
    assert summarise([one, other]) == {
        "a": {"mean": 2.0, "min": 1.0, "seeds": [1.0, 3.0]},
        "b": {"c": {"mean": 3.0, "min": 2.0, "seeds": [2.0, 4.0]}},
        "d": [2.0, 2.0],
    }
