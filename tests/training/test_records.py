from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from run_files import read_csv

from records import LossLogger, LossRecord, SampleGrids


ROWS = [(step, 1 + (step > 3), 1 / step, 1e-4) for step in range(1, 7)]


def test_resumed_record_keeps_the_rows_up_to_the_checkpoint(tmp_path: Path):
    LossRecord(tmp_path / "first.csv", None, 0).append(ROWS)
    record = LossRecord(tmp_path / "second.csv", tmp_path / "first.csv", 4)
    record.append([(5, 2, 0.5, 1e-4)])
    assert [row["step"] for row in read_csv(tmp_path / "second.csv")] == ["1", "2", "3", "4", "5"]
    assert record.get_epoch_mean(2) == pytest.approx((1 / 4 + 0.5) / 2)


def test_plot_is_not_empty(tmp_path: Path):
    record = LossRecord(tmp_path / "loss.csv", None, 0)
    record.append(ROWS)
    record.plot(tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as plot:
        assert np.asarray(plot).std() > 0


def test_logger_averages_the_batches_of_a_step(tmp_path: Path):
    logger = LossLogger(Accelerator(cpu=True), LossRecord(tmp_path / "loss.csv", None, 0), 32)
    for loss in (1.0, 3.0):
        logger.add_batch(torch.tensor(loss))
    logger.add_step(1, 1, 1e-4)
    logger.report()
    logger.report()
    assert read_csv(tmp_path / "loss.csv") == [{"step": "1", "epoch": "1", "loss": "2.0", "learning_rate": "0.0001"}]


def test_infinite_loss_is_recorded_and_raises(tmp_path: Path):
    logger = LossLogger(Accelerator(cpu=True), LossRecord(tmp_path / "loss.csv", None, 0), 32)
    for step, loss in enumerate((1.0, float("inf"), float("nan")), start=1):
        logger.add_batch(torch.tensor(loss))
        logger.add_step(step, 1, 1e-4)
    with pytest.raises(FloatingPointError, match=r"The loss is inf at step 2\."):
        logger.report()
    assert [row["loss"] for row in read_csv(tmp_path / "loss.csv")] == ["1.0", "inf", "nan"]


def test_progress_image_shows_the_first_row_of_each_epoch(tmp_path: Path):
    grids = SampleGrids(tmp_path)
    sizes = []
    for epoch in (1, 2):
        grid = grids.save([Image.new("L", (28, 28), 20 * i) for i in range(20)], 10, epoch)
        assert grid.size == (560, 112)
        with Image.open(grids.get_path(epoch)) as saved:
            assert np.array_equal(np.asarray(saved), np.asarray(grid))
        with Image.open(tmp_path / "progress.png") as progress:
            assert np.asarray(progress).std() > 0
            sizes.append(progress.height)
    assert sizes[1] == 2 * sizes[0]
