"""The GAN benchmark with tiny networks, and its report on fixed results."""

import json
from itertools import count
from pathlib import Path

import gan
import numpy as np
import pytest
import torch

from fmnist_diffusion.data import to_model_input


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses tiny networks, and a clock that makes each training step take one second."""
    monkeypatch.setattr(gan.Generator.__init__, "__defaults__", ((8, 8, 4),))
    monkeypatch.setattr(gan.Discriminator.__init__, "__defaults__", ((4, 8, 8),))
    seconds = count()
    monkeypatch.setattr(gan.time, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(gan, "BATCH_SIZE", 16)


def train(folder: Path, data: Path, seconds: int) -> dict[str, np.ndarray]:
    options = ["--seconds", str(seconds), "--threads", "1", "--train-data-dir", str(data), "-n", "20"]
    gan.main(["train", *options, "-o", str(folder)])
    return dict(np.load(folder / "samples.npz"))


def test_interrupted_run_gives_the_same_samples(tiny, tmp_path: Path, fashion_mnist_folder: Path):
    expected = train(tmp_path / "whole", fashion_mnist_folder, 40)
    shorter = train(tmp_path / "parts", fashion_mnist_folder, 23)
    resumed = train(tmp_path / "parts", fashion_mnist_folder, 40)
    assert expected["images"].shape == (20, 1, 28, 28) and expected["images"].dtype == np.uint8
    assert expected["labels"].tolist() == [*range(10)] * 2
    np.testing.assert_array_equal(resumed["images"], expected["images"])
    assert (shorter["images"] != expected["images"]).any()
    assert (tmp_path / "parts" / "losses.jsonl").read_text() == (tmp_path / "whole" / "losses.jsonl").read_text()


def test_r1_penalty_of_a_linear_discriminator():
    weight = torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(5, 1, 28, 28, requires_grad=True)
    logits = (weight * images).sum((1, 2, 3))
    torch.testing.assert_close(gan.compute_r1_penalty(logits, images), weight.square().sum())


@pytest.mark.parametrize("bf16", [False, True])
def test_training_learns_the_brightness_of_two_classes(bf16: bool):
    torch.manual_seed(0)
    networks = gan.GAN(0, gan.Generator((8, 8, 4)), gan.Discriminator((4, 8, 8)), bf16=bf16)
    labels = torch.arange(16) % 2
    images = to_model_input((255 * labels).to(torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28))
    for _ in range(60):
        networks.step(images.clone(), labels)
    with torch.no_grad():
        right, wrong = networks.discriminator(images, labels), networks.discriminator(images, 1 - labels)
    assert right.mean() > wrong.mean()
    samples = networks.sample(labels, seed=1).float()
    assert samples[labels == 1].mean() > samples[labels == 0].mean() + 20


def test_report_contains_the_mean_and_the_standard_deviation(tmp_path: Path, capsys):
    for name, fid, is_gan in [("0", 8.0, True), ("1", 10.0, True), ("2", 12.0, True), ("diffusion", 5.0, False)]:
        folder = tmp_path / name / "evaluation"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(
            json.dumps({"metrics": dict.fromkeys(gan.METRICS, 0.5) | {"fid_train": fid}})
        )
        if is_gan:
            (folder.parent / "samples.npz").touch()
    gan.main(["report", *[str(path) for path in sorted(tmp_path.iterdir())]])
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith("| GAN | 3 | 10.000 ± 2.000 | 0.500 ± 0.000 |")
    assert rows[3].startswith("| diffusion | 1 | 5.000 | 0.500 |")
