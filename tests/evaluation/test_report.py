from pathlib import Path

import pytest
import torch
from PIL import Image

from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.evaluation.bundled_statistics import load_test_metrics
from fmnist_diffusion.evaluation.report import class_grid, metric_rows, save_report
from fmnist_diffusion.evaluation.sample_metrics import Measurement, Memorization
from fmnist_diffusion.sampling import Samples


NEAREST = {"median": 5.0, "test_median": 5.0, "nearer_than_99_percent_of_test": 0.02}
RESULTS = {
    "source": "test",
    "num_samples": 1234,
    "metrics": {
        "fid_train": {"mean": 2.5, "min": 2.0, "seeds": [2.0, 3.0]},
        "kid_train": 0.0015,
        "nearest_pixels": NEAREST,
        "nearest_classifier": NEAREST,
    },
    "real_metrics": load_test_metrics(),
}


def test_class_grid_has_one_column_per_class():
    images = torch.arange(1, 21, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 32, 28)
    grid = class_grid(images, torch.tensor([0] * 9 + [9] * 11))
    assert grid.shape == (3, 8 * 32, 10 * 28)
    pixels = grid[0, ::32, ::28]
    assert pixels[:, 0].tolist() == list(range(1, 9))
    assert pixels[:, 9].tolist() == list(range(10, 18))
    assert not pixels[:, 1:9].any()


def test_metric_rows_contain_scaled_means_and_test_values():
    rows = {title: (value, test) for title, value, test in metric_rows(RESULTS)}
    assert rows["Images"] == ("1,234", "10,000")
    assert rows["FID (training images)"][0] == "2.500"
    assert rows["KID (training images) x 1000"][0] == "1.500"
    assert rows["Nearer than 99% of test images (pixels)"] == ("2.0%", "1.0%")
    assert "Precision" not in rows


def test_metric_rows_contain_the_floor_of_another_reference():
    metrics = {"fid": 40.0, "kid": 0.01, "kid_std": 0.002, "precision": 0.5, "images_per_second": 7.0}
    floor = {"num_images": 300, "kid": 0.001, "kid_std": 0.0005, "precision": 0.8}
    results = {"num_samples": 500, "metrics": metrics, "real_metrics": floor, "reference": {}}
    assert list(metric_rows(results)) == [
        ("", "samples", "half"),
        ("Images", "500", "300"),
        ("FID", "40.000", ""),
        ("KID x 1000", "10.000", "1.000"),
        ("Precision", "0.500", "0.800"),
        ("Standard deviation of KID x 1000", "2.000", "0.500"),
        ("Images per second", "7.000", ""),
    ]


# Matplotlib would parse the text between two dollar signs as a formula, and `x^` is not a valid one.
@pytest.mark.usefixtures("slow_legends")
@pytest.mark.parametrize("name", ["base", "cost $x^$"])
def test_report_is_saved_with_and_without_labels(tmp_path: Path, name: str):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 28, 28), dtype=torch.uint8, generator=generator)
    memorization = Memorization(torch.rand(30, generator=generator), torch.arange(30), torch.rand(50))
    nearest = {"pixels": memorization, "classifier": memorization}
    for labels in (None, torch.arange(30) % 10):
        measurement = Measurement(Samples(images, labels), nearest, {}, torch.arange(30) % 10)
        label_names = (*FASHION_MNIST_LABELS[:9], name)
        save_report(tmp_path / "report.png", RESULTS | {"source": name}, measurement, images, label_names)
        with Image.open(tmp_path / "report.png") as report:
            assert report.size == (1500, 1680)
