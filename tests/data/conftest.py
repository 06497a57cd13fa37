import gzip

import datasets
import pytest

from fmnist_diffusion.data import load_images


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def idx_folder(fashion_mnist_folder, tmp_path):
    """A writable copy of the IDX fixture with uncompressed files."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for path in fashion_mnist_folder.glob("*.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.fixture(scope="session")
def fashion_mnist(fashion_mnist_folder):
    """The training split of the IDX fixture."""
    return load_images(train_data_dir=str(fashion_mnist_folder))
