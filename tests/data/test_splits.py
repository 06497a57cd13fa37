import subprocess
import sys

import datasets
import pytest
import torch
from image_files import get_error

from fmnist_diffusion.data import DataError, load_images, load_split


def test_max_samples_selects_the_first_images(fashion_mnist_folder, fashion_mnist):
    tensors = load_images(train_data_dir=str(fashion_mnist_folder), max_samples=20)
    assert torch.equal(tensors.images, fashion_mnist.images[:20])
    assert len(load_images(train_data_dir=str(fashion_mnist_folder), max_samples=10_000)) == 512
    with pytest.raises(DataError, match=r"^`max_samples` must be at least 1 or None, got 0\.$"):
        load_images(train_data_dir=str(fashion_mnist_folder), max_samples=0)
    assert len(load_split(train_data_dir=str(fashion_mnist_folder), max_samples=20)) == 20
    with pytest.raises(DataError, match=r"^`max_samples` must be at least 1 or None, got 0\.$"):
        load_split(train_data_dir=str(fashion_mnist_folder), max_samples=0)


@pytest.mark.parametrize("name", ["missing", "missing.parquet", "missing.safetensors"])
def test_missing_path_is_an_error(tmp_path, name):
    assert get_error(tmp_path / name).startswith(f"Could not find {tmp_path / name}.")


@pytest.mark.parametrize("files", [[], ["notes.txt"]], ids=["empty", "text"])
def test_folder_without_images_is_an_error(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("no images here")
    assert f"The folder {tmp_path} contains no IDX, image or parquet files." in get_error(tmp_path)
    datasets.Dataset.from_dict({"label": [1]}).save_to_disk(tmp_path / "saved")
    assert "To read a dataset from `save_to_disk`, save it with `to_parquet` instead." in get_error(tmp_path / "saved")


def test_file_of_another_type_is_an_error(tmp_path):
    path = tmp_path / "images.npz"
    path.touch()
    assert "`train_data_dir` must be a folder, a .parquet file or a .safetensors file" in get_error(path)


def test_missing_datasets_package_is_an_error(monkeypatch, fashion_mnist_folder):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"Run `pip install 'fmnist-diffusion\[train\]'`"):
        load_images(train_data_dir=str(fashion_mnist_folder))


def test_importing_the_package_does_not_import_datasets():
    code = "import sys, fmnist_diffusion.data; sys.exit(bool({'datasets', 'pyarrow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
