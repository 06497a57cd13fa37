import datetime
import io

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from image_files import get_error, save_image_folder, write_parquet

from fmnist_diffusion.data import DataError, ImageStream, inspect_images, load_images, load_split, to_pil


def test_classes_of_integer_labels_are_the_distinct_values(tmp_path, fashion_mnist):
    features = {"label": datasets.Value("int32")}
    path = write_parquet(tmp_path / "a.parquet", fashion_mnist.images[:3], features, label=[4, 0, 2])
    tensors = load_images(train_data_dir=path)
    assert tensors.labels.tolist() == [2, 0, 1]
    assert tensors.labels.dtype == torch.int64
    assert tensors.label_names == ("0", "2", "4")


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
            "The column 'note' of {} must contain class labels, integers, booleans or strings, got float32.",
        ),
        (
            {"image_column": "front", "label_column": "box"},
            "The column 'box' of {} must contain class labels, integers, booleans or strings, got List.",
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


def test_missing_labels_are_an_error(tmp_path, fashion_mnist):
    features = {"label": datasets.Value("int64")}
    missing = write_parquet(tmp_path / "missing.parquet", fashion_mnist.images[:2], features, label=[1, None])
    assert f"The column 'label' of {missing} must not contain missing values, got 1." in get_error(missing)
    assert load_images(train_data_dir=missing, label_column="none").labels is None


def test_missing_image_is_an_error(tmp_path):
    path = tmp_path / "missing.parquet"
    datasets.Dataset.from_dict({"image": [None]}, features=datasets.Features(image=datasets.Image())).to_parquet(path)
    assert f"The column 'image' of {path} must not contain missing values, got 1." in get_error(path)


@pytest.mark.parametrize(
    ("dtype", "labels", "names"),
    [
        ("int64", [3_000_000, 0, 1], ("0", "1", "3000000")),
        ("int64", [2**62, -(2**62), 10], (str(-(2**62)), "10", str(2**62))),
        ("uint8", [10, 9, 255], ("9", "10", "255")),
        ("int32", [-1, 0, -1], ("-1", "0")),
        ("bool", [True, False, True], ("False", "True")),
        ("string", ["b", "", "a"], ("", "a", "b")),
        ("large_string", ["10", "9", "100"], ("9", "10", "100")),
        ("string_view", ["b", "a", "b"], ("a", "b")),
    ],
)
def test_classes_are_the_sorted_distinct_values(tmp_path, fashion_mnist, dtype, labels, names):
    path = write_parquet(
        tmp_path / "a.parquet", fashion_mnist.images[:3], {"label": datasets.Value(dtype)}, label=labels
    )
    tensors = load_images(train_data_dir=path)
    assert tensors.label_names == names
    assert [names[label] for label in tensors.labels.tolist()] == [str(label) for label in labels]


@pytest.mark.parametrize(
    ("feature", "labels"),
    [
        (datasets.List(datasets.Value("int64")), [[1], [2]]),
        (datasets.Value("float32"), [0.5, float("nan")]),
        (datasets.Value("date32"), [datetime.date(2020, 1, 1)] * 2),
        (datasets.Value("null"), [None, None]),
        (datasets.ClassLabel(names=["a", "b"]), [-1, 0]),
        (datasets.Value("int64"), [None, 1]),
    ],
    ids=["list", "float", "date", "null", "unknown class", "missing"],
)
def test_labels_may_be_ignored(tmp_path, fashion_mnist, feature, labels):
    path = write_parquet(tmp_path / "a.parquet", fashion_mnist.images[:2], {"label": feature}, label=labels)
    get_error(path)
    assert torch.equal(load_images(train_data_dir=path, label_column="none").images, fashion_mnist.images[:2])
    assert inspect_images(train_data_dir=path, label_column="none").label_names is None


def test_integer_labels_of_two_splits_may_have_different_sizes(tmp_path, fashion_mnist):
    for split, dtype, labels in (("train", "int8", [1, -1]), ("test", "int64", [2**62, 1])):
        features = {"label": datasets.Value(dtype)}
        write_parquet(tmp_path / f"{split}.parquet", fashion_mnist.images[:2], features, label=labels)
    for split, labels in (("train", [1, 0]), ("test", [2, 1])):
        tensors = load_images(train_data_dir=str(tmp_path), split=split)
        assert tensors.label_names == ("-1", "1", str(2**62))
        assert tensors.labels.tolist() == labels


def test_label_column_of_different_types_in_two_splits_is_an_error(tmp_path, fashion_mnist):
    for split, dtype, labels in (("train", "int64", [1, 2]), ("test", "string", ["a", "b"])):
        features = {"label": datasets.Value(dtype)}
        write_parquet(tmp_path / f"{split}.parquet", fashion_mnist.images[:2], features, label=labels)
    assert get_error(tmp_path) == f"The column 'label' must have the same type in all splits of {tmp_path}."


@pytest.mark.parametrize("value", [{"bytes": None, "path": None}, {"bytes": b"text", "path": None}])
def test_row_without_an_image_is_an_error_that_names_it(tmp_path, fashion_mnist, value):
    good = {"bytes": encode_png(fashion_mnist.images[0]), "path": None}
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [good, value, good]}), path)
    reason = "it has neither bytes nor a path" if value["bytes"] is None else "unknown image format"
    message = f"Could not read the image in row 1 of {path} ({reason}). Replace or remove it."
    for load in (load_images, inspect_images):
        with pytest.raises(DataError) as error:
            load(train_data_dir=str(path))
        assert str(error.value) == message
    stream = ImageStream(load_split(train_data_dir=str(path)), resolution=28, channels=1)
    assert torch.equal(stream[2]["images"], fashion_mnist.images[0])
    with pytest.raises(DataError) as error:
        stream[1]
    assert str(error.value) == message


def encode_png(image):
    buffer = io.BytesIO()
    to_pil(image[None])[0].save(buffer, "PNG")
    return buffer.getvalue()
