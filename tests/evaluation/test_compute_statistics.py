from pathlib import Path

import pytest
import torch

from fmnist_diffusion.data import ImageTensors
from fmnist_diffusion.evaluation import Classifier
from fmnist_diffusion.evaluation.bundled_statistics import load_moments
from fmnist_diffusion.evaluation.compute_statistics import add_noise, blur, compute_set_metrics, main, save_statistics
from fmnist_diffusion.evaluation.distances import compute_moments


def test_statistics_are_saved_and_loaded(tmp_path: Path, classifier: Classifier):
    images = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8)
    expected = save_statistics(classifier, {"train": ImageTensors(images)}, tmp_path)["train"]
    moments = load_moments("classifier", "train", tmp_path)
    assert moments.num_images == 300
    assert torch.allclose(moments.mean, expected.mean, rtol=1e-6)
    assert torch.allclose(moments.covariance, expected.covariance, rtol=1e-6)


@pytest.mark.slow
def test_metrics_of_altered_images_are_worse(
    classifier: Classifier, real_test: ImageTensors, test_features: torch.Tensor
):
    assert real_test.labels is not None
    reference, moments = test_features[5000:], compute_moments(test_features[5000:])
    first, labels = real_test.images[:2000], real_test.labels[:5000]
    unaltered = compute_set_metrics(test_features[:2000], moments, reference)
    noisy = compute_set_metrics(classifier(add_noise(first)), moments, reference)
    blurred = compute_set_metrics(classifier(blur(first)), moments, reference)
    five_classes = compute_set_metrics(test_features[:5000][labels < 5], moments, reference)
    for altered in (noisy, blurred, five_classes):
        assert altered["frechet_distance"] > 2 * unaltered["frechet_distance"]
        assert altered["kernel_distance"] > unaltered["kernel_distance"]
    for altered in (noisy, blurred):
        assert altered["precision"] < unaltered["precision"]
        assert altered["density"] < unaltered["density"]
    assert five_classes["recall"] < unaltered["recall"] - 0.2
    assert five_classes["coverage"] < unaltered["coverage"] - 0.2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--train-data-dir=none"], "Could not find none"),
        (["--device=nothing"], "`--device` must be auto or an available torch device, got 'nothing'"),
        (["--num-altered=256"], "`--num-altered` must be at least 257, got 256."),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    args: list[str],
    message: str,
    fashion_mnist_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    data = f"--train-data-dir={fashion_mnist_folder}"
    with pytest.raises(SystemExit, match="2"):
        main([data, f"--output-dir={tmp_path}", "--only=classifier", *args])
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
