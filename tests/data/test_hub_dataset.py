import logging
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub.utils import httpx
from image_files import write_parquet

from fmnist_diffusion import hub_client
from fmnist_diffusion.data import (
    DEFAULT_DATASET,
    FASHION_MNIST_LABELS,
    DataError,
    hub_dataset,
    load_images,
    load_split,
)


@pytest.fixture
def unreachable_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(hub_client, "is_hub_reachable", lambda: False)
    monkeypatch.setattr(hub_dataset, "DEBIAN_FOLDER", tmp_path / "not-installed")


def raise_on_load(monkeypatch, error):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub_client, "is_hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_default_dataset_falls_back_to_the_debian_folder(unreachable_hub, fashion_mnist_folder, monkeypatch, caplog):
    monkeypatch.setattr(hub_dataset, "DEBIAN_FOLDER", fashion_mnist_folder)
    with caplog.at_level(logging.WARNING, logger=hub_dataset.__name__):
        assert len(load_images()) == 512
        assert len(load_images(split="test")) == 128
    assert f"Reading {fashion_mnist_folder} instead." in caplog.text
    assert not datasets.config.HF_HUB_OFFLINE


def test_missing_debian_folder_is_an_error(unreachable_hub, tmp_path):
    with pytest.raises(DataError) as error:
        load_split()
    message = str(error.value)
    assert message.startswith(f"Could not load the dataset {DEFAULT_DATASET} (")
    assert f"{tmp_path / 'not-installed'} does not exist. Install the Debian package" in message
    assert "\n" not in message


def test_other_datasets_do_not_fall_back(unreachable_hub, monkeypatch, fashion_mnist_folder):
    monkeypatch.setattr(hub_dataset, "DEBIAN_FOLDER", fashion_mnist_folder)
    with pytest.raises(DataError, match=r"dataset someone/other \(.*\)\. Check its name and the network connection"):
        load_split("someone/other")


def test_cached_dataset_is_loaded_offline(unreachable_hub, tmp_path, fashion_mnist):
    source = tmp_path / "other"
    source.mkdir()
    features = {"label": datasets.ClassLabel(names=list(FASHION_MNIST_LABELS))}
    labels = fashion_mnist.labels[:6].tolist()
    write_parquet(source / "train.parquet", fashion_mnist.images[:6], features, label=labels)
    datasets.load_dataset(str(source))
    # load_dataset("someone/other") uses this folder of the cache.
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    prepared = next(cache.glob("other/*/*/*/dataset_info.json")).parent
    shutil.copytree(prepared, cache / "someone___other" / "default" / "0.0.0" / prepared.name)
    tensors = load_images("someone/other")
    assert torch.equal(tensors.images, fashion_mnist.images[:6])
    assert tensors.labels.tolist() == labels
    with pytest.raises(DataError, match=r"the split 'test' in someone/other\. Choose one of: train\."):
        load_images("someone/other", "test")
    with pytest.raises(DataError, match=r"someone/other \(.*\)\. Check `dataset_name` and `dataset_config_name`\."):
        load_images("someone/other", dataset_config_name="nope")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("reset"),
        FileNotFoundError("missing"),
        RuntimeError("xet"),
        httpx.ReadTimeout("slow"),
        datasets.exceptions.DatasetGenerationError("broken"),
        datasets.exceptions.DatasetNotFoundError("private"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_hub_become_data_errors(monkeypatch, error):
    raise_on_load(monkeypatch, error)
    with pytest.raises(DataError, match=rf"someone/other \({error}\)"):
        load_split("someone/other")


def test_empty_split_is_an_error(monkeypatch, fashion_mnist_folder):
    train = load_split(train_data_dir=str(fashion_mnist_folder))
    splits = {"train": train, "validation": train.select([])}
    monkeypatch.setattr(hub_client, "is_hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: splits)
    with pytest.raises(DataError, match=r"The split 'validation' of someone/other contains no images\. Choose"):
        load_images("someone/other", split="validation")


def test_available_configs_are_listed(monkeypatch):
    text = "Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample of usage:\n`x`"
    raise_on_load(monkeypatch, ValueError(text))
    with pytest.raises(DataError, match=r"among the available configs: \['a', 'b'\]\)\. Check `dataset_name` and"):
        load_split("someone/other")


def test_programming_errors_are_not_hidden(monkeypatch):
    raise_on_load(monkeypatch, TypeError("bug"))
    with pytest.raises(TypeError, match="bug"):
        load_split()
