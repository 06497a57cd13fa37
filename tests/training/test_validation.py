"""Evaluation during training, and the best pipeline of a run."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from diffusers import DDPMScheduler
from run_files import read_csv, read_losses

from config import EvalConfig
from fmnist_diffusion import FashionMNISTUNet2DModel, load_pipeline
from fmnist_diffusion.evaluation import FastMetrics
from fmnist_diffusion.sampling import Samples, SamplingConfig, generate, make_pipeline
from validation import Validator


EVAL = ["--eval.every_n_epochs=1", "--eval.num_samples=257", "--eval.num_inference_steps=2"]
DISTANCE = "classifier_frechet_distance_train"


def read_step(pipeline: Path) -> int:
    return json.loads((pipeline / "train_config.json").read_text())["progress"]["global_step"]


def test_run_evaluates_its_epochs_and_keeps_the_best(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    evaluate, distances = Validator.evaluate, []

    def make_worse(*args):
        metrics = evaluate(*args)
        distances.append(metrics[DISTANCE])
        return metrics | {DISTANCE: float(len(distances))}

    monkeypatch.setattr(Validator, "evaluate", make_worse)
    launch(*EVAL, "--model.num_class_embeds=10", "--save_images_epochs=1")
    run = tmp_path / "run"
    rows = read_csv(run / "eval.csv")
    assert [(float(row["epoch"]), float(row["step"]), float(row[DISTANCE])) for row in rows] == [(1, 6, 1), (2, 12, 2)]
    assert all(distance > 0 for distance in distances)
    assert all(0 <= float(row["class_accuracy"]) <= 1 for row in rows)
    assert read_step(run / "best") == 6
    load_pipeline(run / "best")
    # The sample grid belongs to these weights.
    grids = [(run / "samples" / f"epoch-000{epoch}.png").read_bytes() for epoch in (1, 2)]
    assert (run / "best" / "images" / "samples.png").read_bytes() == grids[0] != grids[1]


def test_best_pipeline_has_no_samples_of_other_weights(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    distances = iter((1.0, 2.0))
    monkeypatch.setattr(Validator, "evaluate", lambda *args: {DISTANCE: next(distances)})
    launch(*EVAL, "--save_images_epochs=3", "--save_model_epochs=1", "--num_epochs=3", "--max_train_steps=12")
    run = tmp_path / "run"
    assert [path.name for path in (run / "samples").iterdir()] == ["epoch-0002.png"]
    assert (run / "pipeline" / "images" / "samples.png").exists()
    assert read_step(run / "best") == 6
    assert not (run / "best" / "images").exists()


@pytest.mark.slow
def test_metrics_are_those_of_the_exported_pipeline(tmp_path: Path, launch: Callable[..., None]):
    launch(*EVAL, "--num_epochs=1", "--model.num_class_embeds=10")
    pipe = load_pipeline(tmp_path / "run" / "pipeline")
    parts = generate(pipe, SamplingConfig(num_inference_steps=2), 257, class_labels=range(10), batch_size=257)
    expected = FastMetrics(257)(Samples.concatenate(list(parts)))
    [row] = read_csv(tmp_path / "run" / "eval.csv")
    for name in (DISTANCE, "class_accuracy"):
        assert float(row[name]) == pytest.approx(expected[name], rel=0.01)


@pytest.mark.slow
def test_unconditional_models_ignore_guidance(tmp_path: Path, launch: Callable[..., None]):
    launch(*EVAL, "--num_epochs=1", "--eval.guidance_scale=1.5", "--samples.guidance_scale=1.5")
    [row] = read_csv(tmp_path / "run" / "eval.csv")
    assert float(row[DISTANCE]) > 0
    assert (tmp_path / "run" / "progress.png").is_file()


def test_evaluation_does_not_change_the_training(tmp_path: Path, launch: Callable[..., None]):
    launch("--ema.enabled=true")
    launch(*EVAL, "--ema.enabled=true", f"--output_dir={tmp_path / 'evaluated'}")
    assert read_losses(tmp_path / "evaluated") == read_losses(tmp_path / "run")


@pytest.mark.slow
def test_resumed_run_keeps_its_table(tmp_path: Path, launch: Callable[..., None]):
    launch(*EVAL, "--num_epochs=1")
    first = read_csv(tmp_path / "run" / "eval.csv")
    launch(*EVAL, "--resume=latest")
    rows = read_csv(tmp_path / "run" / "eval.csv")
    # The resumed run repeats the evaluation, because the checkpoint was written before it. Only the speed can differ.
    for row in (*first, *rows):
        del row["images_per_second"]
    assert rows[:1] == first
    assert [(row["step"], row[DISTANCE] == first[0][DISTANCE]) for row in rows] == [("6", True), ("12", False)]


def test_failed_evaluation_does_not_end_the_run(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*args):
        raise ValueError("Sampling produced NaN or infinite pixels.")

    monkeypatch.setattr(Validator, "evaluate", fail)
    launch("--eval.every_n_epochs=1", "--eval.num_samples=257", "--num_epochs=1")
    output = "".join(capsys.readouterr())
    assert "Epoch 1: could not evaluate samples. Sampling produced NaN or infinite pixels." in output
    assert (tmp_path / "run" / "pipeline").is_dir()
    assert not (tmp_path / "run" / "best").exists()


def test_same_weights_have_the_same_metrics():
    config = EvalConfig(num_samples=257, num_inference_steps=2)
    validator = Validator(config, "cpu")
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8)
    pipe = make_pipeline(unet, DDPMScheduler())
    first, second = (validator.evaluate(pipe, {}, nullcontext()) for _ in range(2))
    for metrics in (first, second):
        assert metrics.pop("images_per_second") > 0
    assert first == second


def test_only_images_like_fashion_mnist_can_be_evaluated(fail_to_launch: Callable[..., str]):
    error = fail_to_launch(*EVAL, "--data.resolution=32")
    assert "`--eval.every_n_epochs` requires grayscale 28x28 images" in error
