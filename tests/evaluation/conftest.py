from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fmnist_diffusion.data import ImageTensors, load_images
from fmnist_diffusion.evaluation import Classifier, InceptionFeatures


@pytest.fixture(autouse=True, scope="module")
def module_cache(user_weights: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
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
def inception(inception_weights: Path) -> InceptionFeatures:
    return InceptionFeatures(inception_weights)


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    return Classifier()


@pytest.fixture(scope="session")
def real_test(complete_fashion_mnist_folder: Path) -> ImageTensors:
    """All 10,000 test images."""
    return load_images(split="test", train_data_dir=str(complete_fashion_mnist_folder))


@pytest.fixture(scope="session")
def test_features(classifier: Classifier, real_test: ImageTensors) -> torch.Tensor:
    """Classifier features of all test images, float32 `(10000, 256)`."""
    return classifier(real_test.images)
