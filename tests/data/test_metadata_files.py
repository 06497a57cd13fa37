import json

import datasets
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from image_files import get_error

from fmnist_diffusion.data import DataError, ImageStream, inspect_images, load_images, load_split


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "more/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PIL.Image.new("L", (8, 8), ord(name[-5])).save(tmp_path / name)
    return tmp_path


ROWS = {"file_name": ["b.png", "a.png", "more/c.png"], "label": ["y", "x", "y"], "note": [0.5, 1.5, 2.5]}


def write_metadata(path, rows=ROWS):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    else:
        pd.DataFrame(rows).to_parquet(path)


def load(folder, **kwargs):
    tensors = load_images(train_data_dir=str(folder), resolution=8, **kwargs)
    names = [tensors.label_names[label] for label in tensors.labels.tolist()]
    return dict(zip(map(chr, tensors.images[:, 0, 0, 0].tolist()), names, strict=True))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_replaces_class_folders(folder, suffix):
    write_metadata(folder / f"metadata.{suffix}")
    assert load(folder) == {"a": "x", "b": "y", "c": "y"}


def test_strings_may_have_any_arrow_type(folder):
    for dtype in (pa.large_string(), pa.string_view()):
        columns = {"file_name": pa.array(ROWS["file_name"], dtype), "label": pa.array(ROWS["label"], dtype)}
        pyarrow.parquet.write_table(pa.table(columns), folder / "metadata.parquet")
        assert load(folder) == {"a": "x", "b": "y", "c": "y"}


def test_parquet_metadata_keeps_the_class_names(folder):
    features = {"file_name": datasets.Value("string"), "label": datasets.ClassLabel(names=["dog", "cat", "cow"])}
    columns = {"file_name": ROWS["file_name"], "label": [1, 0, 0]}
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(folder / "metadata.parquet")
    assert load(folder) == {"a": "dog", "b": "cat", "c": "dog"}
    assert inspect_images(train_data_dir=str(folder)).label_names == ("dog", "cat", "cow")


def test_empty_label_in_a_csv_file_is_an_error(folder):
    (folder / "metadata.csv").write_text("file_name,label\na.png,x\nb.png,\nmore/c.png,NA\n")
    assert "The column 'label' of" in get_error(folder)
    assert "must not contain missing values, got 1." in get_error(folder)


def test_column_whose_rows_cannot_be_selected_is_an_error(folder):
    note = pa.array([["x"]] * 3, pa.list_(pa.string_view()))
    pyarrow.parquet.write_table(pa.table(ROWS | {"note": note}), folder / "metadata.parquet")
    assert f"Could not read the metadata file {folder / 'metadata.parquet'} (" in get_error(folder)


def test_columns_of_other_images_may_have_missing_values(folder):
    rows = [{"file_name": f"{name}.png", "label": 0} for name in ("a", "b", "more/c")]
    rows[0]["edited_file_name"] = "b.png"
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load(folder, image_column="image") == {"a": "0", "b": "0", "c": "0"}
    with pytest.raises(DataError, match=r"The column 'edited' of .* must not contain missing values, got 2"):
        load(folder, image_column="edited")


def test_columns_of_other_images_may_have_empty_strings(folder):
    rows = [{"file_name": f"{name}.png", "mask_file_name": ""} for name in ("a", "b", "more/c")]
    rows[0]["mask_file_name"] = "b.png"
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(load_images(train_data_dir=str(folder), image_column="image")) == 3


def test_class_names_of_several_files_must_be_equal(folder):
    for name, path, labels in (("a.png", folder, ["cat"]), ("c.png", folder / "more", ["dog"])):
        features = {"file_name": datasets.Value("string"), "label": datasets.ClassLabel(names=labels)}
        columns = {"file_name": [name], "label": [0]}
        datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path / "metadata.parquet")
    (folder / "b.png").unlink()
    assert "Could not combine the metadata files" in get_error(folder)
    assert "the column label has different class names" in get_error(folder)


def test_columns_of_other_images_must_contain_file_names(folder):
    write_metadata(folder / "metadata.csv", ROWS | {"old_file_name": [1, 2, 3]})
    assert "The column old_file_name of" in get_error(folder)
    assert "must contain file names, got 1. Rename the column" in get_error(folder)


def test_names_may_have_another_unicode_normalization(folder):
    (folder / "a.png").rename(folder / "cafe\u0301.png")
    rows = ROWS | {"file_name": ["b.png", "caf\u00e9.png", "more/c.png"]}
    write_metadata(folder / "metadata.csv", rows)
    assert load(folder) == {"a": "x", "b": "y", "c": "y"}
    # File systems of macOS do not distinguish the two names.
    if not (folder / "caf\u00e9.png").exists():
        PIL.Image.new("L", (8, 8), ord("d")).save(folder / "caf\u00e9.png")
        assert "do not list cafe\u0301.png. Add rows" in get_error(folder)


def test_each_folder_may_have_its_own_metadata(folder):
    write_metadata(folder / "metadata.csv", {"file_name": ["a.png", "b.png"], "label": [3, 20]})
    write_metadata(folder / "more" / "metadata.csv", {"file_name": ["c.png"], "label": [3]})
    assert load(folder) == {"a": "3", "b": "20", "c": "3"}


def test_metadata_of_splits(folder):
    for split, name in (("train", "a.png"), ("test", "b.png")):
        (folder / split).mkdir()
        (folder / name).rename(folder / split / name)
        write_metadata(folder / split / "metadata.jsonl", {"file_name": [name], "label": [split]})
    (folder / "more" / "c.png").unlink()
    assert load(folder) == {"a": "train"}
    assert load(folder, split="test") == {"b": "test"}


def test_metadata_above_the_splits(folder):
    for split, name in (("train", "a.png"), ("test", "b.png")):
        (folder / split).mkdir()
        (folder / name).rename(folder / split / name)
    (folder / "more" / "c.png").unlink()
    write_metadata(folder / "metadata.csv", {"file_name": ["train/a.png", "test/b.png"], "label": ["x", "y"]})
    assert load(folder, split="test") == {"b": "y"}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("contents", [b"", b"\xff\xfe\x00{", b'{"a": ', b"\n\n"])
def test_damaged_metadata_is_an_error(folder, suffix, contents):
    (folder / f"metadata.{suffix}").write_bytes(contents)
    assert f"metadata.{suffix}" in get_error(folder)


def test_csv_file_in_another_encoding_is_an_error(folder):
    rows = "file_name,text\na.png,café\nb.png,tea\nmore/c.png,tea\n"
    (folder / "metadata.csv").write_bytes(rows.encode("latin-1"))
    assert "metadata.csv (it is not encoded in UTF-8). Fix or remove it." in get_error(folder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"name": ["a.png"]}, "Could not find the column file_name"),
        ({"file_name": []}, "lists no images"),
        ({**ROWS, "file_name": ["b.png", "a.png", "d.png"]}, "Could not find the image d.png"),
        ({**ROWS, "file_name": ["b.png", "a.png", "a.png"]}, "lists the image a.png, which is already listed"),
        ({"file_name": ["a.png"]}, "do not list b.png, more/c.png"),
    ],
)
def test_metadata_must_match_the_images(folder, rows, message):
    write_metadata(folder / "metadata.csv", rows)
    assert message in get_error(folder)


def test_two_metadata_files_in_one_folder_are_an_error(folder):
    write_metadata(folder / "metadata.csv")
    write_metadata(folder / "metadata.jsonl")
    assert "contains several metadata files" in get_error(folder)


def test_metadata_of_different_types_is_an_error(folder):
    write_metadata(folder / "metadata.jsonl", {"file_name": ["a.png", "b.png"], "label": ["x", "y"]})
    (folder / "more" / "metadata.jsonl").write_text(json.dumps({"file_name": "c.png", "label": [1]}))
    assert "Could not combine the metadata files" in get_error(folder)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_text_column_contains_captions(folder, suffix):
    write_metadata(folder / f"metadata.{suffix}", ROWS | {"text": ["a b", "an a", "the c"]})
    tensors = load_images(train_data_dir=str(folder), resolution=8)
    captions = dict(zip(map(chr, tensors.images[:, 0, 0, 0].tolist()), tensors.captions, strict=True))
    assert captions == {"b": "a b", "a": "an a", "c": "the c"}
    assert load_images(train_data_dir=str(folder), resolution=8, max_samples=2).captions == tensors.captions[:2]


def test_captions_may_have_several_lines(folder):
    # pyarrow reads blocks of 1 MiB, which may end at any of these lines.
    caption = "\n".join(["word"] * 400_000)
    write_metadata(folder / "metadata.csv", ROWS | {"text": [caption, "a", "c"]})
    assert caption in load_images(train_data_dir=str(folder), resolution=8).captions


def test_captions_do_not_require_labels(folder):
    rows = {"file_name": ROWS["file_name"], "text": ["a b", None, "the c"]}
    write_metadata(folder / "metadata.csv", rows)
    tensors = load_images(train_data_dir=str(folder), resolution=8)
    assert tensors.labels is None
    assert sorted(tensors.captions) == ["", "a b", "the c"]


def test_caption_column_selects_a_different_column(folder):
    write_metadata(folder / "metadata.csv", ROWS | {"description": ["1st", "2nd", "3rd"]})
    assert load_images(train_data_dir=str(folder)).captions is None
    tensors = load_images(train_data_dir=str(folder), caption_column="description")
    assert sorted(tensors.captions) == ["1st", "2nd", "3rd"]


def test_unusable_caption_column_is_an_error(folder):
    write_metadata(folder / "metadata.csv", ROWS | {"text": [1, 2, 3]})
    assert load_images(train_data_dir=str(folder)).captions is None
    with pytest.raises(DataError, match=r"The column 'note' of .* must contain strings\. Set `caption_column`"):
        load_images(train_data_dir=str(folder), caption_column="note")
    with pytest.raises(DataError, match=r"Could not find the column 'caption' in .*\. Set `caption_column` to one of"):
        load_images(train_data_dir=str(folder), caption_column="caption")


def test_streamed_images_have_captions(folder):
    write_metadata(folder / "metadata.csv", ROWS | {"text": ["a b", "an a", "the c"]})
    stream = ImageStream(load_split(train_data_dir=str(folder)), resolution=8, channels=1)
    assert [stream[index]["captions"] for index in range(3)] == list(
        load_images(train_data_dir=str(folder), resolution=8).captions
    )
