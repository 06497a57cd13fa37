import os

import PIL.Image
import pytest
from image_files import get_error

from fmnist_diffusion.data import inspect_images, load_images


def add_image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("L", (8, 8), value).save(path)


def load(folder, **kwargs):
    """Returns the pixel value and the class name of each image."""
    tensors = load_images(train_data_dir=str(folder), resolution=8, **kwargs)
    values = tensors.images[:, 0, 0, 0].tolist()
    if tensors.labels is None:
        return [(value, None) for value in values]
    return [(value, tensors.label_names[label]) for value, label in zip(values, tensors.labels, strict=True)]


def test_class_folders_may_be_named_like_splits(tmp_path):
    for index, name in enumerate(["bus", "car", "train", "__background__"]):
        add_image(tmp_path / name / "shoe_train_6.png", index)
    assert load(tmp_path) == [(3, "__background__"), (0, "bus"), (1, "car"), (2, "train")]


def test_names_of_images_do_not_select_a_split(tmp_path):
    for index in range(7):
        add_image(tmp_path / f"shoe_{'train' if index == 6 else 'test'}_{index}.png", index)
    assert len(load(tmp_path)) == 7


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_split_folders_may_have_no_class_folders(tmp_path, validation):
    add_image(tmp_path / "train" / "0.png", 0)
    add_image(tmp_path / "test" / "1.png", 1)
    add_image(tmp_path / validation / "2.png", 2)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "notes.txt").write_text("no image")
    assert load(tmp_path) == [(0, None)]
    assert load(tmp_path, split="test") == [(1, None)]
    assert load(tmp_path, split="val") == load(tmp_path, split="validation") == [(2, None)]
    assert "Choose one of: train, test, validation." in get_error(tmp_path, split="dev")


def test_classes_are_the_same_in_all_splits(tmp_path):
    add_image(tmp_path / "train" / "cat" / "0.png", 0)
    add_image(tmp_path / "test" / "ant" / "1.png", 1)
    assert load(tmp_path) == [(0, "cat")]
    assert load(tmp_path, split="test") == [(1, "ant")]
    assert load_images(train_data_dir=str(tmp_path)).label_names == ("ant", "cat")


def test_splits_may_be_in_a_single_folder(tmp_path):
    for name in ("train", "test"):
        for index, label in enumerate(["cat", "dog"]):
            add_image(tmp_path / "data" / "images" / name / label / "0.png", 2 * index + (name == "test"))
    assert load(tmp_path) == [(0, "cat"), (2, "dog")]
    assert load(tmp_path, split="test") == [(1, "cat"), (3, "dog")]


def test_inner_splits_take_precedence(tmp_path):
    add_image(tmp_path / "training" / "train" / "0.png", 0)
    # A single folder can be a class.
    assert load(tmp_path) == [(0, "train")]
    add_image(tmp_path / "training" / "test" / "1.png", 1)
    assert load(tmp_path) == [(0, None)]
    assert load(tmp_path, split="test") == [(1, None)]


def test_images_in_a_single_folder_may_be_next_to_folders(tmp_path):
    add_image(tmp_path / "data" / "0.png", 0)
    add_image(tmp_path / "data" / "train" / "1.png", 1)
    assert load(tmp_path, label_column="none") == [(0, None), (1, None)]
    assert "images at different levels" in get_error(tmp_path)


def test_one_class_folder_is_one_class(tmp_path):
    add_image(tmp_path / "cat" / "0.png", 5)
    assert load(tmp_path) == [(5, "cat")]
    assert load(tmp_path, label_column="none") == [(5, None)]


def test_nested_class_folders_are_named_after_the_innermost_folder(tmp_path):
    add_image(tmp_path / "animals" / "cat" / "0.png", 0)
    add_image(tmp_path / "animals" / "dog" / "1.png", 1)
    add_image(tmp_path / "vehicles" / "bus" / "2.png", 2)
    assert load(tmp_path) == [(0, "cat"), (1, "dog"), (2, "bus")]


def test_numeric_class_folders_are_sorted_numerically(tmp_path):
    for index in (10, 9, 0):
        add_image(tmp_path / str(index) / "a.png", index)
    assert load_images(train_data_dir=str(tmp_path)).label_names == ("0", "9", "10")


@pytest.mark.parametrize("misplaced", ["a.png", "cat/kitten/a.png"])
def test_misplaced_image_is_an_error(tmp_path, misplaced):
    for name in ("cat/0.png", "dog/0.png"):
        add_image(tmp_path / name)
    add_image(tmp_path / misplaced)
    message = get_error(tmp_path)
    assert f"has images at different levels. Move {misplaced} into the class folders" in message
    assert len(load(tmp_path, label_column="none")) == 3


def test_class_folders_with_the_same_name_are_an_error(tmp_path):
    add_image(tmp_path / "a" / "cat" / "0.png")
    add_image(tmp_path / "b" / "cat" / "0.png")
    assert "several class folders called 'cat': a/cat, b/cat." in get_error(tmp_path)


def test_image_next_to_the_splits_is_an_error(tmp_path):
    for name in ("train/0.png", "test/0.png", "logo.png"):
        add_image(tmp_path / name)
    assert "contains files next to its splits test, train: logo.png." in get_error(tmp_path)


def test_val_and_validation_together_are_an_error(tmp_path):
    for name in ("val/0.png", "validation/0.png"):
        add_image(tmp_path / name)
    assert "contains several folders for the split validation: val, validation." in get_error(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"), [("Train", "train"), ("training", "train"), ("TEST", "test"), ("valid", "val")]
)
def test_other_names_of_splits_are_recognized(tmp_path, name, split):
    for index, folder in enumerate((name, "train" if split == "test" else "test")):
        add_image(tmp_path / folder / "cat" / "0.png", index)
    assert load(tmp_path, split=split) == [(0, "cat")]


@pytest.mark.parametrize("linked", [["cat"], ["cat", "dog"]], ids=["one", "all"])
def test_links_to_class_folders_are_followed(tmp_path, linked):
    for index, name in enumerate(["cat", "dog"]):
        add_image((tmp_path / "elsewhere" if name in linked else tmp_path / "data") / name / "0.png", index)
    (tmp_path / "data").mkdir(exist_ok=True)
    for name in linked:
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert sorted(load(tmp_path / "data")) == [(0, "cat"), (1, "dog")]


def test_two_links_to_the_same_folder_are_two_classes(tmp_path):
    add_image(tmp_path / "images" / "0.png", 3)
    for name in ("cat", "dog"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "images")
    assert load(tmp_path / "data") == [(3, "cat"), (3, "dog")]


def test_link_to_a_parent_is_skipped(tmp_path):
    add_image(tmp_path / "cat" / "0.png")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    assert load(tmp_path) == [(0, "cat")]
    summary = inspect_images(train_data_dir=str(tmp_path))
    assert summary.skipped == ((str(tmp_path / "cat" / "loop"), "a symbolic link to a folder that contains it"),)


def test_broken_link_to_an_image_is_an_error(tmp_path):
    add_image(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to(tmp_path / "missing.png")
    assert get_error(tmp_path).startswith(f"Could not read the image {tmp_path / '1.png'} (No such file or directory)")


def test_link_to_itself_is_an_error(tmp_path):
    add_image(tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to(tmp_path / "1.png")
    assert get_error(tmp_path).startswith(f"Could not read the image {tmp_path / '1.png'} (Too many levels of")


def test_pipes_are_not_read(tmp_path):
    add_image(tmp_path / "0.png")
    os.mkfifo(tmp_path / "1.png")
    assert len(load(tmp_path)) == 1
    assert inspect_images(train_data_dir=str(tmp_path)).skipped == ((str(tmp_path / "1.png"), "not a regular file"),)


@pytest.mark.parametrize("name", ["images [v2]", "a::b", "hf::*?", "données", "100%25", "file:"])
def test_names_of_folders_are_not_patterns(tmp_path, name):
    add_image(tmp_path / name / "cat" / f"{name}.png", 7)
    assert load(tmp_path / name) == [(7, "cat")]


def test_files_that_are_not_images_are_skipped(tmp_path):
    for name in ("0.png", "1.PNG", "2.JPE", "3.webp"):
        add_image(tmp_path / name)
    add_image(tmp_path / "4.png")
    (tmp_path / "4.png").rename(tmp_path / "4")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "embeddings.parquet").write_bytes(b"PAR1")
    (tmp_path / ".DS_Store").write_bytes(b"hidden")
    (tmp_path / ".cache").mkdir()
    add_image(tmp_path / ".cache" / "5.png")
    assert len(load(tmp_path)) == 5
    summary = inspect_images(train_data_dir=str(tmp_path))
    assert summary.num_images == 5
    assert summary.skipped == (
        (str(tmp_path / "embeddings.parquet"), "not an image"),
        (str(tmp_path / "notes.txt"), "not an image"),
    )
    assert len(load(tmp_path, ignored_files=("0.png", "grid.png"))) == 4


@pytest.mark.parametrize("suffix", [".avif", ".heic", ".jxl"])
def test_images_of_any_format_are_read_or_named(tmp_path, suffix):
    add_image(tmp_path / "0.png")
    (tmp_path / f"1{suffix}").write_bytes(b"not supported")
    assert f"1{suffix} (unknown image format)" in get_error(tmp_path)


def test_archive_is_an_error(tmp_path):
    add_image(tmp_path / "0.png")
    (tmp_path / "images.zip").write_bytes(b"PK broken")
    assert "contains archives: images.zip. Extract them" in get_error(tmp_path)


def test_name_that_is_not_utf8_is_an_error(tmp_path):
    add_image(tmp_path / "0.png")
    os.rename(tmp_path / "0.png", os.fsencode(tmp_path) + b"/\xff.png")
    assert "The name of the file \\xff.png" in get_error(tmp_path)


@pytest.mark.parametrize("path", ["", "a\0b", "x" * 5000])
def test_invalid_path_is_an_error(path):
    assert "as `train_data_dir`." in get_error(path if "\0" not in path else repr(path)[1:-1])
