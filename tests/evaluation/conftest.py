import os
from pathlib import Path

import pytest
import torch

from fmnist_diffusion.data import DEBIAN_FOLDER, ImageTensors, load_images
from fmnist_diffusion.evaluation import Classifier, InceptionFeatures, find_inception


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of features that no other test has written to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def inception_weights() -> Path:
    weights = find_inception()
    if weights is None:
        if os.environ.get("FMNIST_DIFFUSION_FULL_DATA"):
            pytest.fail("the network of FID was promised and is not there")
        pytest.skip("needs the network of FID: run make inception")
    return weights


@pytest.fixture(scope="session")
def inception(inception_weights: Path) -> InceptionFeatures:
    return InceptionFeatures(inception_weights)


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    return Classifier()


@pytest.fixture(scope="session")
def real_test() -> ImageTensors:
    if not DEBIAN_FOLDER.is_dir():
        if os.environ.get("FMNIST_DIFFUSION_FULL_DATA"):
            pytest.fail("all of Fashion-MNIST was promised and is not there")
        pytest.skip("needs all of Fashion-MNIST: install dataset-fashion-mnist")
    return load_images(split="test", train_data_dir=str(DEBIAN_FOLDER))


@pytest.fixture(scope="session")
def test_features(classifier: Classifier, real_test: ImageTensors) -> torch.Tensor:
    """The classifier's, of all test images."""
    return classifier(real_test.images)
