"""The measurement of samples while a run trains, and the best pipeline that it keeps."""

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from fmnist_diffusion import FashionMNISTUNet2DModel, SDEDPMSolverScheduler, load_pipeline
from fmnist_diffusion.evaluation import FastMetrics, SamplingSettings, draw_all
from training import evaluation
from training.config import EvalConfig
from training.evaluation import SampleEvaluator


EVAL = ["--eval.every_n_epochs=1", "--eval.num_samples=257", "--eval.num_inference_steps=2"]
DISTANCE = "classifier_frechet_distance_train"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "eval.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_measures_its_epochs_and_keeps_the_best(tmp_path: Path, launch: Callable[..., None]):
    launch(*EVAL, "--model.num_class_embeds=10", "--save_images_epochs=1")
    run = tmp_path / "run"
    rows = table(run)
    assert [(float(row["epoch"]), float(row["step"])) for row in rows] == [(1, 6), (2, 12)]
    distances = [float(row["classifier_frechet_distance_train"]) for row in rows]
    assert all(distance > 0 for distance in distances)
    assert all(0 <= float(row["class_agreement"]) <= 1 for row in rows)
    best = json.loads((run / "best" / "train_config.json").read_text())["progress"]["global_step"]
    assert best == [6, 12][distances.index(min(distances))]
    load_pipeline(run / "best")
    # The grid is of those weights.
    grid = (run / "samples" / f"epoch-{best // 6:04d}.png").read_bytes()
    assert (run / "best" / "images" / "samples.png").read_bytes() == grid


def test_the_best_shows_no_pictures_of_other_weights(tmp_path: Path, launch: Callable[..., None]):
    launch(*EVAL, "--save_images_epochs=3", "--save_model_epochs=1", "--num_epochs=3", "--max_train_steps=12")
    names = [path.name for path in (tmp_path / "run" / "samples").iterdir()]
    assert names == ["epoch-0002.png"]
    best = json.loads((tmp_path / "run" / "best" / "train_config.json").read_text())["progress"]["global_step"]
    assert (tmp_path / "run" / "best" / "images" / "samples.png").exists() == (best == 12)


def test_what_is_measured_is_what_the_exported_pipeline_draws(tmp_path: Path, launch: Callable[..., None]):
    launch(*EVAL, "--num_epochs=1", "--model.num_class_embeds=10")
    samples = draw_all(load_pipeline(tmp_path / "run" / "pipeline"), SamplingSettings(2, conditional=True), 257, 257)
    expected = FastMetrics(len(samples))(samples)
    [row] = table(tmp_path / "run")
    for name in ("classifier_frechet_distance_train", "class_agreement"):
        assert float(row[name]) == pytest.approx(expected[name], rel=0.01)


def test_guidance_asks_nothing_of_a_model_without_classes(tmp_path: Path, launch: Callable[..., None]):
    launch(*EVAL, "--num_epochs=1", "--eval.guidance_scale=1.5", "--samples.guidance_scale=1.5")
    [row] = table(tmp_path / "run")
    assert float(row["classifier_frechet_distance_train"]) > 0


def test_measuring_changes_nothing_of_the_training(tmp_path: Path, launch: Callable[..., None]):
    launch("--ema.enabled=true")
    plain = (tmp_path / "run" / "loss.csv").read_text()
    launch(*EVAL, "--ema.enabled=true", f"--output_dir={tmp_path / 'measured'}")
    assert (tmp_path / "measured" / "loss.csv").read_text() == plain


def test_a_resumed_run_keeps_its_table(tmp_path: Path, launch: Callable[..., None]):
    launch(*EVAL, "--num_epochs=1")
    first = table(tmp_path / "run")
    launch(*EVAL, "--resume=latest")
    rows = table(tmp_path / "run")
    assert rows[:1] == first
    assert len(rows) == 2


@pytest.fixture
def make_evaluator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SampleEvaluator]:
    """One that keeps the table of `tmp_path`, up to a step."""
    monkeypatch.setattr(evaluation, "FastMetrics", lambda num_samples, device: None)

    def make(global_step: int, **settings) -> SampleEvaluator:
        evaluator = SampleEvaluator(EvalConfig(**settings), device=None)  # pyright: ignore[reportArgumentType]
        evaluator.keep(tmp_path / "eval.csv", global_step)
        return evaluator

    return make


def test_the_best_is_the_lowest(make_evaluator: Callable[..., SampleEvaluator]):
    evaluator = make_evaluator(0)
    assert [evaluator.record(i, i, {DISTANCE: value}) for i, value in enumerate([3.0, 2.0, 2.5, 1.0])] == [
        True,
        True,
        False,
        True,
    ]


def test_measurements_of_another_size_are_kept_and_not_compared(
    tmp_path: Path, make_evaluator: Callable[..., SampleEvaluator]
):
    assert make_evaluator(0, num_samples=1000).record(1, 1, {DISTANCE: 1.0})
    resumed = make_evaluator(1, num_samples=500)
    assert resumed.record(2, 2, {DISTANCE: 3.0, "fid_train": 5.0})
    assert not resumed.record(3, 3, {DISTANCE: 3.5, "fid_train": 6.0})
    assert [(row["num_samples"], row[DISTANCE]) for row in table(tmp_path)] == [
        ("1000", "1.0"),
        ("500", "3.0"),
        ("500", "3.5"),
    ]


def test_measurements_of_guided_samples_are_not_compared_with_plain_ones(
    make_evaluator: Callable[..., SampleEvaluator],
):
    assert make_evaluator(0, guidance_scale=1.5).record(1, 1, {DISTANCE: 1.0})
    assert make_evaluator(1).record(2, 2, {DISTANCE: 1.5})


def test_a_step_that_is_measured_again_has_one_row(tmp_path: Path, make_evaluator: Callable[..., SampleEvaluator]):
    run = make_evaluator(0)
    assert [run.record(step, step, {DISTANCE: value}) for step, value in ((1, 2.0), (2, 1.0))] == [True, True]
    assert make_evaluator(2).record(2, 2, {DISTANCE: 1.0})
    assert [row["step"] for row in table(tmp_path)] == ["1", "2"]


def test_what_cannot_be_measured_does_not_end_the_run(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def measure(*args):
        raise ValueError("the model draws pixels that are not finite")

    monkeypatch.setattr(SampleEvaluator, "measure", measure)
    launch("--eval.every_n_epochs=1", "--eval.num_samples=257")
    assert "epoch 2: not measured: the model draws pixels that are not finite" in "".join(capsys.readouterr())
    assert (tmp_path / "run" / "pipeline").is_dir()
    assert not (tmp_path / "run" / "best").exists()


def test_the_same_weights_measure_the_same(tmp_path: Path):
    evaluator = SampleEvaluator(EvalConfig(num_samples=257, num_inference_steps=2), device="cpu")  # pyright: ignore
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8).eval()
    first, again = (evaluator.measure(unet, SDEDPMSolverScheduler(), nullcontext()) for _ in range(2))
    for metrics in (first, again):
        assert metrics.pop("images_per_second") > 0
    assert first == again


def test_other_images_are_refused(launch: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info:
        launch(*EVAL, "--data.resolution=32")
    assert exit_info.value.code == 2
    assert "the images are not those of Fashion-MNIST" in capsys.readouterr().err


def test_too_few_samples_are_refused(launch: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        launch("--eval.num_samples=256")
    assert "eval.num_samples is 256; give a number from 257 on" in capsys.readouterr().err
