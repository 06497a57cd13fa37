import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fmnist_diffusion.data import DEBIAN_FOLDER, ImageTensors, load_images
from fmnist_diffusion.evaluation import Classifier, InceptionFeatures, find_inception


@pytest.fixture(scope="session")
def weights_of_user() -> Path | None:
    """The Inception network in the user's cache, which the tests do not write to."""
    return find_inception()


@pytest.fixture(autouse=True, scope="module")
def module_cache(weights_of_user: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary cache folder that the tests of a module share."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fmnist-diffusion"


@pytest.fixture(scope="session")
def inception_weights(weights_of_user: Path | None) -> Path:
    if weights_of_user is None:
        if os.environ.get("FMNIST_DIFFUSION_FULL_DATA"):
            pytest.fail("FMNIST_DIFFUSION_FULL_DATA is set, but the Inception network is missing")
        pytest.skip("needs the Inception network: run `make inception`")
    return weights_of_user


@pytest.fixture(scope="session")
def inception(inception_weights: Path) -> InceptionFeatures:
    return InceptionFeatures(inception_weights)


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    return Classifier()


@pytest.fixture(scope="session")
def real_test() -> ImageTensors:
    """All 10,000 test images."""
    if not DEBIAN_FOLDER.is_dir():
        if os.environ.get("FMNIST_DIFFUSION_FULL_DATA"):
            pytest.fail(f"FMNIST_DIFFUSION_FULL_DATA is set, but {DEBIAN_FOLDER} is missing")
        pytest.skip("needs all of Fashion-MNIST: install the Debian package dataset-fashion-mnist")
    return load_images(split="test", train_data_dir=str(DEBIAN_FOLDER))


@pytest.fixture(scope="session")
def test_features(classifier: Classifier, real_test: ImageTensors) -> torch.Tensor:
    """Classifier features of all test images, float32 `(10000, 256)`."""
    return classifier(real_test.images)
