import datasets
import torch
from image_files import get_error, write_parquet

from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images


def test_file_and_folder_give_the_same_images(tmp_path, fashion_mnist):
    images, labels = fashion_mnist.images[:16], fashion_mnist.labels[:16]
    features = {"label": datasets.ClassLabel(names=list(FASHION_MNIST_LABELS))}
    path = write_parquet(tmp_path / "train-00000.parquet", images, features, label=labels.tolist())
    write_parquet(tmp_path / "test-00000.parquet", images[:4], features, label=labels[:4].tolist())
    for source in (path, tmp_path):
        tensors = load_images(train_data_dir=str(source))
        assert torch.equal(tensors.images, images)
        assert torch.equal(tensors.labels, labels)
        assert tensors.label_names == FASHION_MNIST_LABELS
    assert len(load_images(train_data_dir=str(tmp_path), split="test")) == 4
    assert "Could not find the split 'dev'" in get_error(tmp_path, split="dev")


def test_one_file_is_loaded_for_any_split(tmp_path, fashion_mnist):
    path = write_parquet(tmp_path / "images.parquet", fashion_mnist.images[:3])
    assert torch.equal(load_images(train_data_dir=path, split="anything").images, fashion_mnist.images[:3])


def test_corrupt_file_is_an_error(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    assert f"Could not read {path} as parquet data (" in get_error(path)


def test_file_without_rows_is_an_error(tmp_path):
    path = tmp_path / "empty.parquet"
    datasets.Dataset.from_dict({"image": []}, features=datasets.Features(image=datasets.Image())).to_parquet(path)
    assert "corresponds to no data" in get_error(path)
