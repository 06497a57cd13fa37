from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import torch
from image_files import get_error, write_parquet

from fmnist_diffusion.data import FASHION_MNIST_LABELS, inspect_images, load_images, parquet


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


def test_class_names_of_the_hub_are_normalized(tmp_path, fashion_mnist):
    names = ["T - shirt / top", *FASHION_MNIST_LABELS[1:]]
    for classes, expected in ((names, FASHION_MNIST_LABELS), (names[::-1], tuple(names[::-1]))):
        features = {"label": datasets.ClassLabel(names=classes)}
        path = write_parquet(tmp_path / "train.parquet", fashion_mnist.images[:3], features, label=[0, 9, 4])
        tensors = load_images(train_data_dir=path)
        assert tensors.label_names == expected
        assert tensors.labels.tolist() == [0, 9, 4]
        assert inspect_images(train_data_dir=path).label_names == expected


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
    assert "contains no rows" in get_error(path)


def write_values(folder, **values):
    """Writes parquet files with one image each. The names of the files are keys, with __ instead of /."""
    for name, value in values.items():
        path = folder / f"{name.replace('__', '/')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path, torch.full((1, 1, 8, 8), value, dtype=torch.uint8))


def read_values(folder, split="train"):
    return sorted(load_images(train_data_dir=str(folder), split=split).images[:, 0, 0, 0].tolist())


@pytest.mark.parametrize(
    "names",
    [
        ("shoes-2023", "shoes-train-2024"),
        ("b", "a"),
        ("train__a", "shoes__b"),
        ("data__contest", "data__trainers"),
    ],
)
def test_all_files_belong_to_one_split(tmp_path, names):
    write_values(tmp_path, **{name: value for value, name in enumerate(names)})
    assert read_values(tmp_path) == read_values(tmp_path, "test") == [0, 1]


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("data__train-00000-of-00001", "data__test-00000-of-00001"),
        ("train__0000", "test__0000"),
        ("default__train__0000", "default__test__0000"),
        ("shoes_train", "shoes_test"),
        ("train__test-shoes", "test__train-shoes"),
        ("data__default__train__a__0000", "data__default__test__b__0000"),
        ("training__train__0000", "training__test__0000"),
    ],
)
def test_files_are_assigned_to_splits(tmp_path, names):
    write_values(tmp_path, **{name: value for value, name in enumerate(names)})
    assert read_values(tmp_path) == [0]
    assert read_values(tmp_path, "test") == [1]
    assert "Choose one of: train, test." in get_error(tmp_path, split="dev")


def test_shards_of_other_splits(tmp_path):
    names = ("train-00000-of-00002", "train-00001-of-00002", "unlabeled-00000-of-00001")
    write_values(tmp_path, **{name: value for value, name in enumerate(names)})
    assert read_values(tmp_path) == [0, 1]
    assert read_values(tmp_path, "unlabeled") == [2]


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (("balanced", "letters"), "train-00000-of-00001"),
        (("balanced", "letters"), "train"),
        (("data/balanced", "data/letters"), "0000-00000-of-00001"),
        (("balanced/train", "letters/test"), "0000"),
    ],
)
def test_several_configurations_are_an_error(tmp_path, folders, name):
    write_values(tmp_path, **{f"{folder.replace('/', '__')}__{name}": 0 for folder in folders})
    message = get_error(tmp_path)
    assert f"contains several configurations or splits in the folders {', '.join(folders)}. Pass" in message
    assert read_values(tmp_path / folders[0].removesuffix("/train")) == [0]


def test_file_without_a_split_is_an_error(tmp_path):
    write_values(tmp_path, train=0, test=1, extra=2)
    assert "of the splits test, train and files that belong to no split: extra.parquet." in get_error(tmp_path)


@pytest.mark.parametrize("name", ["data [v2]", "a::b", "100%25"])
def test_names_of_folders_are_not_patterns(tmp_path, name):
    write_values(tmp_path, a=3)
    (tmp_path / name).mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / name / f"{name}.parquet")
    assert read_values(tmp_path / name) == read_values(tmp_path / name / f"{name}.parquet") == [3]


def test_changed_file_is_read_again(tmp_path):
    for value in (1, 2):
        write_values(tmp_path, a=value)
        assert read_values(tmp_path) == [value]


def test_images_next_to_parquet_files_with_images_are_an_error(tmp_path):
    write_values(tmp_path, a=3)
    PIL.Image.new("L", (8, 8)).save(tmp_path / "logo.png")
    assert "contains image files (logo.png) and parquet files (a.parquet). Pass a folder" in get_error(tmp_path)


def test_stray_parquet_file_of_other_columns_is_skipped(tmp_path):
    PIL.Image.new("L", (8, 8), 5).save(tmp_path / "0.png")
    pyarrow.parquet.write_table(pyarrow.table({"embedding": [[0.5, 1.5]]}), tmp_path / "embeddings.parquet")
    assert read_values(tmp_path) == [5]


def test_stray_parquet_file_next_to_idx_files_is_skipped(tmp_path, fashion_mnist_folder):
    for path in fashion_mnist_folder.glob("*.gz"):
        (tmp_path / path.name).symlink_to(path)
    pyarrow.parquet.write_table(pyarrow.table({"embedding": [[0.5, 1.5]]}), tmp_path / "embeddings.parquet")
    summary = inspect_images(train_data_dir=str(tmp_path))
    assert summary.num_images == 512
    assert summary.skipped == ((str(tmp_path / "embeddings.parquet"), "not an IDX file"),)


def test_other_files_next_to_parquet_files_are_skipped(tmp_path):
    write_values(tmp_path, a=3)
    for name in ("README.md", "images.zip"):
        (tmp_path / name).write_text("text")
    skipped = inspect_images(train_data_dir=str(tmp_path)).skipped
    assert skipped == tuple((str(tmp_path / name), "not a parquet file") for name in ("README.md", "images.zip"))


def test_file_with_too_many_rows_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    labels = pyarrow.nulls(20_000_001, pyarrow.bool_())
    pyarrow.parquet.write_table(pyarrow.table({"image": labels}), path)
    assert "has 20,000,001 rows, more than the limit of 20,000,000." in get_error(path)


def write_repeated_value(path: Path, value: bytes, count: int, **kwargs: Any) -> None:
    images = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([value]))
    structure = pyarrow.StructArray.from_arrays([images, pyarrow.nulls(count, "string")], ["bytes", "path"])
    # If the file contained the Arrow schema, the reader would return dictionaries instead of repeated values.
    pyarrow.parquet.write_table(pyarrow.table({"image": structure}), path, store_schema=False, **kwargs)


@pytest.mark.parametrize(
    "encoding",
    [
        {"dictionary_pagesize_limit": 2**30},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}},
        {"use_dictionary": False, "compression": "zstd"},
    ],
)
def test_small_file_that_expands_to_too_much_data_is_an_error(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_SIZE", 20_000_000)
    path = tmp_path / "train.parquet"
    write_repeated_value(path, bytes(1_000_000), 30, **encoding)
    assert path.stat().st_size < 200_000
    message = get_error(path)
    assert message.startswith(f"The file {path} has a row group of at least ")
    assert "more than the limit of 20,000,000. Write it again with smaller row groups." in message


def test_decoded_sizes_are_checked_before_all_rows_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "train.parquet"
    write_repeated_value(path, bytes(10_000_000), 400, dictionary_pagesize_limit=2**30)
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_SIZE", 200_000_000)
    monkeypatch.setattr(parquet, "MAX_BATCH_SIZE", 20_000_000)
    pool = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    previous = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        assert "has a row group of at least 2" in get_error(path)
    finally:
        pyarrow.set_memory_pool(previous)
    assert pool.max_memory() < 300_000_000


def test_large_lists_of_equal_numbers_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_SIZE", 20_000_000)
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [[7] * 1_000_000] * 3}), path)
    assert path.stat().st_size < 100_000
    assert f"The file {path} has a row group of at least 24,000,000 bytes after decoding" in get_error(path)


def test_repeated_images_within_the_limit_are_loaded(tmp_path, monkeypatch, fashion_mnist):
    images = fashion_mnist.images[:1].repeat(50, 1, 1, 1)
    path = write_parquet(tmp_path / "train.parquet", images)
    # The upper bound from the metadata exceeds this limit, but the decoded images do not.
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_SIZE", 60_000)
    monkeypatch.setattr(parquet, "MAX_BATCH_SIZE", 1000)
    assert torch.equal(load_images(train_data_dir=str(path)).images, images)
