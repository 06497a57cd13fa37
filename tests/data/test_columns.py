import datasets
import pytest
import torch
from image_files import get_error, save_image_folder, write_parquet

from fmnist_diffusion.data import load_images, to_pil


def test_integer_labels_are_named_after_their_numbers(tmp_path, fashion_mnist):
    features = {"label": datasets.Value("int32")}
    path = write_parquet(tmp_path / "a.parquet", fashion_mnist.images[:3], features, label=[4, 0, 2])
    tensors = load_images(train_data_dir=path)
    assert tensors.labels.tolist() == [4, 0, 2]
    assert tensors.labels.dtype == torch.int64
    assert tensors.label_names == ("0", "1", "2", "3", "4")


def test_string_labels_are_sorted_over_all_splits(tmp_path, fashion_mnist):
    features = {"label": datasets.Value("string")}
    images = fashion_mnist.images[:3]
    write_parquet(tmp_path / "train.parquet", images, features, label=["shoe", "bag", "coat"])
    write_parquet(tmp_path / "test.parquet", images, features, label=["shoe", "shoe", "coat"])
    train = load_images(train_data_dir=str(tmp_path))
    test = load_images(train_data_dir=str(tmp_path), split="test")
    assert train.label_names == test.label_names == ("bag", "coat", "shoe")
    assert train.labels.tolist() == [2, 0, 1]
    assert test.labels.tolist() == [2, 2, 1]


@pytest.fixture
def table(tmp_path, fashion_mnist):
    """A parquet file with two image columns, two label columns and two columns of other types."""
    images = to_pil(fashion_mnist.images[:2])
    labels = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features(
        front=datasets.Image(),
        back=datasets.Image(),
        fine=labels,
        coarse=labels,
        note=datasets.Value("float32"),
        box=datasets.List(datasets.Value("int64")),
    )
    columns = {
        "front": images,
        "back": images[::-1],
        "fine": [0, 1],
        "coarse": [1, 1],
        "note": [0.5, 1.5],
        "box": [[0, 1], [2, 3]],
    }
    path = tmp_path / "table.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return path


def test_columns_are_selected_by_name(table, fashion_mnist):
    tensors = load_images(train_data_dir=str(table), image_column="back", label_column="coarse")
    assert torch.equal(tensors.images, fashion_mnist.images[:2].flip(0))
    assert tensors.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "Found several image columns in {}. Set `image_column` to one of: front, back."),
        ({"image_column": "front"}, "Found several label columns in {}. Set `label_column` to one of: fine, coarse."),
        ({"image_column": "nope"}, "Could not find the column 'nope' in {}. Set `image_column` to one of: front"),
        ({"label_column": "nope"}, "Could not find the column 'nope' in {}. Set `label_column` to one of: front"),
        ({"image_column": "note", "label_column": "fine"}, "The column 'note' of {} does not contain images."),
        (
            {"image_column": "front", "label_column": "note"},
            "The column 'note' of {} must contain class labels, integers or strings, got float32.",
        ),
        (
            {"image_column": "front", "label_column": "box"},
            "The column 'box' of {} must contain class labels, integers or strings, got List.",
        ),
    ],
)
def test_ambiguous_or_wrong_columns_are_errors(table, columns, message):
    assert get_error(table, **columns).startswith(message.format(table))


def test_missing_image_column_is_an_error(tmp_path):
    path = tmp_path / "table.parquet"
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(path)
    assert get_error(path) == f"Could not find an image column in {path}. Set `image_column` to one of: text."


def test_column_of_encoded_bytes_is_read_as_images(tmp_path, fashion_mnist):
    save_image_folder(tmp_path / "images", fashion_mnist.images[:1], fashion_mnist.labels[:1])
    encoded = next(tmp_path.rglob("*.png")).read_bytes()
    path = tmp_path / "bytes.parquet"
    datasets.Dataset.from_dict({"png": [encoded]}).to_parquet(path)
    tensors = load_images(train_data_dir=str(path), image_column="png")
    assert torch.equal(tensors.images, fashion_mnist.images[:1])


def test_missing_and_negative_labels_are_errors(tmp_path, fashion_mnist):
    features = {"label": datasets.Value("int64")}
    missing = write_parquet(tmp_path / "missing.parquet", fashion_mnist.images[:2], features, label=[1, None])
    assert f"The column 'label' of {missing} must not contain missing values, got 1." in get_error(missing)
    negative = write_parquet(tmp_path / "negative.parquet", fashion_mnist.images[:2], features, label=[1, -1])
    assert f"The labels in {negative} must not be negative, got -1." in get_error(negative)


def test_missing_image_is_an_error(tmp_path):
    path = tmp_path / "missing.parquet"
    datasets.Dataset.from_dict({"image": [None]}, features=datasets.Features(image=datasets.Image())).to_parquet(path)
    assert f"The column 'image' of {path} must not contain missing values, got 1." in get_error(path)
