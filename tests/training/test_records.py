from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from matplotlib.axes import Axes
from PIL import Image
from run_files import read_csv

from config import EvalConfig
from records import EvalRecord, LossLogger, LossRecord, SampleGrids


DISTANCE = "classifier_frechet_distance_train"
ROWS = [(step, 1 + (step > 3), 1 / step, 1e-4) for step in range(1, 7)]


def test_resumed_record_keeps_the_rows_up_to_the_checkpoint(tmp_path: Path):
    LossRecord(tmp_path / "first.csv", None, 0).append(ROWS)
    record = LossRecord(tmp_path / "second.csv", tmp_path / "first.csv", 4)
    record.append([(5, 2, 0.5, 1e-4)])
    assert [row["step"] for row in read_csv(tmp_path / "second.csv")] == ["1", "2", "3", "4", "5"]
    assert record.get_epoch_mean(2) == pytest.approx((1 / 4 + 0.5) / 2)


@pytest.mark.parametrize(
    "end", [b"5", b"5,2", b"5,2,0.2", b"5,2,0.2,0.0001", b"5,2,0.2,1e-\r", bytes(30), b"5,2,0.2\r\n", b"\xff\xfe,\r\n"]
)
def test_incomplete_rows_are_dropped(tmp_path: Path, end: bytes):
    path = tmp_path / "loss.csv"
    LossRecord(path, None, 0).append(ROWS[:4])
    complete = path.read_bytes()
    path.write_bytes(complete + end)
    record = LossRecord(path, path, 4)
    assert path.read_bytes() == complete
    record.append(ROWS[4:])
    values = record.read()
    assert values["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert values["epoch"].tolist() == [1, 1, 1, 2, 2, 2]
    assert values["loss"][-1] == 1 / 6


@pytest.mark.parametrize(
    "content", [b"", bytes(100), b"step,epoch\r\n1,1\r\n", b"a" * 200_000 + b"\n", b"\x89PNG\r\n"]
)
def test_lost_losses_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes):
    path = tmp_path / "loss.csv"
    path.write_bytes(content)
    record = LossRecord(path, path, 4)
    assert "loss.csv does not contain the losses of 4 of the first 4 steps." in caplog.text
    record.append(ROWS[4:])
    assert record.read()["step"].tolist() == [5, 6]


def record_calls(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[Any, ...]]:
    """Returns a list that records the positional arguments of each call of a method of `Axes`."""
    calls, original = [], getattr(Axes, method)

    def call(axes: Axes, *args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return original(axes, *args, **kwargs)

    monkeypatch.setattr(Axes, method, call)
    return calls


@pytest.mark.usefixtures("slow_legends")
def test_plot_shows_losses_running_means_and_epoch_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    record = LossRecord(tmp_path / "loss.csv", None, 0)
    losses = np.arange(1.0, 21.0)
    record.append([(step, 1 + (step > 12), loss, 1e-4) for step, loss in enumerate(losses, start=1)])
    curves = record_calls(monkeypatch, "plot")
    record.plot(tmp_path / "loss.png", 32)
    images = 32 * np.arange(1, 21)
    expected = [
        (images, losses),
        # The running mean covers two steps, a tenth of all steps.
        (images[1:], losses[1:] - 0.5),
        ([12 * 32, 20 * 32], [6.5, 16.5]),
    ]
    for (x, y, *_), (expected_x, expected_y) in zip(curves, expected, strict=True):
        assert np.allclose(x, expected_x) and np.allclose(y, expected_y)


def test_logger_averages_the_batches_of_a_step(tmp_path: Path):
    logger = LossLogger(Accelerator(cpu=True), LossRecord(tmp_path / "loss.csv", None, 0), 32)
    for loss in (1.0, 3.0):
        logger.add_batch(torch.tensor(loss))
    logger.add_step(1, 1, 1e-4)
    logger.report()
    logger.report()
    assert read_csv(tmp_path / "loss.csv") == [{"step": "1", "epoch": "1", "loss": "2.0", "learning_rate": "0.0001"}]


def test_terms_of_the_loss_are_recorded_and_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = ("consistency_loss", "generator_loss")
    record = LossRecord(tmp_path / "loss.csv", None, 0, names)
    logger = LossLogger(Accelerator(cpu=True), record, 32, names)
    logger.add_batch(torch.tensor(3.0), torch.tensor(1.0), torch.tensor(2.0))
    logger.add_batch(torch.tensor(7.0), torch.tensor(3.0), torch.tensor(4.0))
    logger.add_step(1, 1, 1e-4)
    logger.report()
    [row] = read_csv(tmp_path / "loss.csv")
    assert (row["loss"], row["consistency_loss"], row["generator_loss"]) == ("5.0", "2.0", "3.0")
    assert LossRecord(tmp_path / "resumed.csv", record.path, 1, names).read() == record.read()
    curves = record_calls(monkeypatch, "plot")
    record.plot(tmp_path / "loss.png", 32)
    assert [float(np.squeeze(y)) for _, y, *_ in curves] == [2.0] * 3 + [3.0] * 3


def test_progress_counts_images(monkeypatch: pytest.MonkeyPatch):
    logger = LossLogger(Accelerator(cpu=True), None, 32)
    with logger.show_progress(10, 110):
        assert logger.describe_progress().startswith("320 of 3,520 images, ")
        for step in range(11, 31):
            logger.add_batch(torch.tensor(1.0))
            logger.add_step(step, 1, 1e-4)
        monkeypatch.setattr(logger.bar, "_time", lambda: logger.bar.start_t + 40)
        # The 640 images of this run took 40 seconds, and 2,560 images remain.
        assert logger.describe_progress() == "960 of 3,520 images, 02:40 left"


def test_infinite_loss_is_recorded_and_raises(tmp_path: Path):
    logger = LossLogger(Accelerator(cpu=True), LossRecord(tmp_path / "loss.csv", None, 0), 32)
    for step, loss in enumerate((1.0, float("inf"), float("nan")), start=1):
        logger.add_batch(torch.tensor(loss))
        logger.add_step(step, 1, 1e-4)
    with pytest.raises(FloatingPointError, match=r"The loss is inf at step 2\."):
        logger.report()
    assert [row["loss"] for row in read_csv(tmp_path / "loss.csv")] == ["1.0", "inf", "nan"]


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_damaged_grids_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None):
    grids, expected = SampleGrids(tmp_path / "damaged"), SampleGrids(tmp_path / "expected")
    images = [Image.effect_noise((28, 28), 50) for _ in range(10)]
    for folder in (grids.folder, expected.folder):
        folder.mkdir()
    grids.save(images, 10, 1)
    path = grids.get_path(1)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    for other in (grids, expected):
        other.save(images, 10, 2)
    assert f"progress.png does not show {path}, which is damaged" in caplog.text
    assert (grids.folder / "progress.png").read_bytes() == (expected.folder / "progress.png").read_bytes()
    # The grid is written again when the run reaches its epoch again.
    grids.save(images, 10, 1)
    with Image.open(path) as grid:
        grid.load()


def test_progress_image_shows_the_first_row_of_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    grids = SampleGrids(tmp_path)
    shown = record_calls(monkeypatch, "imshow")
    rows, sizes = [], []
    # The epochs are sorted as numbers.
    for epoch in (9_999, 10_000):
        grid = grids.save([Image.new("L", (28, 28), 10 * i + epoch % 7) for i in range(20)], 10, epoch)
        assert grid.size == (560, 112)
        with Image.open(grids.get_path(epoch)) as saved:
            assert np.array_equal(np.asarray(saved), np.asarray(grid))
        with Image.open(tmp_path / "progress.png") as progress:
            sizes.append(progress.height)
        rows.append(np.asarray(grid)[:56])
    assert sizes[1] == 2 * sizes[0]
    for (row,), expected in zip(shown, [rows[0], *rows], strict=True):
        assert np.array_equal(row, expected)


def test_progress_image_shows_the_pixel_values(tmp_path: Path):
    # Without fixed limits, the darkest and the brightest pixel of the row would be shown as black
    # and white.
    SampleGrids(tmp_path).save([Image.new("L", (28, 28), value) for value in (100, 110)] * 5, 10, 1)
    with Image.open(tmp_path / "progress.png") as progress:
        values, counts = np.unique(np.asarray(progress.convert("L")), return_counts=True)
    assert set(values[np.argsort(counts)[-3:]]) == {100, 110, 255}


def test_lowest_distance_is_the_best(tmp_path: Path):
    record = EvalRecord(tmp_path / "eval.csv", EvalConfig(), 0)
    results = [record.add(step, step, {DISTANCE: value}) for step, value in enumerate([3.0, 2.0, 2.5, 1.0])]
    assert results == [True, True, False, True]


def test_evaluations_with_other_settings_are_not_compared(tmp_path: Path):
    path = tmp_path / "eval.csv"
    assert EvalRecord(path, EvalConfig(num_samples=1000), 0).add(1, 1, {DISTANCE: 1.0})
    record = EvalRecord(path, EvalConfig(num_samples=500), 1)
    assert record.add(2, 2, {DISTANCE: 3.0, "fid_train": 5.0})
    assert not record.add(3, 3, {DISTANCE: 3.5, "fid_train": 6.0})
    assert [(row["num_samples"], row[DISTANCE]) for row in read_csv(path)] == [
        ("1000", "1.0"),
        ("500", "3.0"),
        ("500", "3.5"),
    ]
    assert EvalRecord(path, EvalConfig(num_samples=500, guidance_scale=1.5), 3).add(4, 4, {DISTANCE: 9.0})
    assert EvalRecord(path, EvalConfig(num_samples=500, scheduler="ddim"), 4).add(5, 5, {DISTANCE: 9.0})


def test_step_has_one_row_when_it_is_evaluated_again(tmp_path: Path):
    path = tmp_path / "eval.csv"
    record = EvalRecord(path, EvalConfig(), 0)
    assert [record.add(step, step, {DISTANCE: value}) for step, value in ((1, 2.0), (2, 1.0))] == [True, True]
    assert EvalRecord(path, EvalConfig(), 2).add(2, 2, {DISTANCE: 1.0})
    assert [row["step"] for row in read_csv(path)] == ["1", "2"]
