import gzip
import logging
import os
import pickle
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from fmnist_diffusion import data
from fmnist_diffusion.data import (
    DEBIAN_FOLDER,
    DEFAULT_DATASET,
    FASHION_MNIST_LABELS,
    DataError,
    ImageTensors,
    decode,
    load_images,
    load_split,
    save_tensors,
    stream_images,
    to_model_input,
    to_uint8,
)


IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def idx_folder(fashion_mnist_folder, tmp_path):
    """A writable copy of the fixture with plain files."""
    folder = tmp_path / "idx"
    folder.mkdir()
    for path in fashion_mnist_folder.glob("*.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.fixture(scope="module")
def fixture_images(fashion_mnist_folder):
    return load_images(train_data_dir=str(fashion_mnist_folder))


def save_pictures(folder, images, labels, names=FASHION_MNIST_LABELS):
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / names[label].replace("/", "-") / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image.numpy()).save(path)


def write_parquet(path, images, features=None, **columns):
    pictures = [PIL.Image.fromarray(image.numpy()) for image in images]
    features = datasets.Features(image=datasets.Image(), **(features or {}))
    datasets.Dataset.from_dict({"image": pictures, **columns}, features=features).to_parquet(path)
    return str(path)


def error_of(path, **kwargs):
    """The message of the DataError, checked to be one sentence that names the path and says what to do."""
    with pytest.raises(DataError) as caught:
        load_images(train_data_dir=str(path), **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert ";" in message
    return message


# IDX


def test_idx_split_is_a_dataset(fashion_mnist_folder):
    dataset = load_split(train_data_dir=str(fashion_mnist_folder))
    assert isinstance(dataset, datasets.Dataset)
    assert dataset.column_names == ["image", "label"]
    assert dataset.features["label"].names == list(FASHION_MNIST_LABELS)
    assert len(dataset) == 512
    assert np.shape(dataset[0]["image"]) == (28, 28)
    assert FASHION_MNIST_LABELS[dataset[0]["label"]] == "Ankle boot"


@pytest.mark.parametrize(("split", "count"), [("train", 512), ("test", 128)])
def test_idx_images(fashion_mnist_folder, split, count):
    tensors = load_images(split=split, train_data_dir=str(fashion_mnist_folder))
    assert len(tensors) == count
    assert tensors.images.shape == (count, 1, 28, 28)
    assert tensors.images.dtype == torch.uint8
    assert tensors.labels.shape == (count,)
    assert tensors.labels.dtype == torch.int64
    assert tensors.label_names == FASHION_MNIST_LABELS
    assert tensors.labels.unique().tolist() == list(range(10))


def test_idx_pixels_are_those_of_the_file(fashion_mnist_folder, fixture_images):
    raw = gzip.decompress((fashion_mnist_folder / f"{IMAGES}.gz").read_bytes())[16:]
    assert fixture_images.images.numpy().tobytes() == raw


def test_idx_plain_equals_gz(idx_folder, fixture_images):
    plain = load_images(train_data_dir=str(idx_folder))
    assert torch.equal(plain.images, fixture_images.images)
    assert torch.equal(plain.labels, fixture_images.labels)


def test_decode_follows_a_selection(fashion_mnist_folder, fixture_images):
    dataset = load_split(train_data_dir=str(fashion_mnist_folder))
    for indices in ([7, 3, 500], range(100, 105)):
        tensors = decode(dataset.select(indices), resolution=28, channels=1)
        assert torch.equal(tensors.images, fixture_images.images[list(indices)])
        assert torch.equal(tensors.labels, fixture_images.labels[list(indices)])


def test_max_samples(fashion_mnist_folder, fixture_images):
    tensors = load_images(train_data_dir=str(fashion_mnist_folder), max_samples=20)
    assert torch.equal(tensors.images, fixture_images.images[:20])
    assert len(load_images(train_data_dir=str(fashion_mnist_folder), max_samples=10_000)) == 512
    with pytest.raises(DataError, match="max_samples is 0; give"):
        load_images(train_data_dir=str(fashion_mnist_folder), max_samples=0)


@pytest.mark.parametrize(("name", "kind"), [(IMAGES, "images"), (LABELS, "labels")])
def test_idx_wrong_magic(idx_folder, name, kind):
    path = idx_folder / name
    path.write_bytes(b"\x00\x00\x0d\x03" + path.read_bytes()[4:])
    assert f"magic number of IDX {kind}" in error_of(path.parent)


def test_idx_swapped_files(idx_folder):
    shutil.copy(idx_folder / LABELS, idx_folder / IMAGES)
    assert "2051" in error_of(idx_folder)


@pytest.mark.parametrize("contents", [b"", b"\x00\x00", b"\x00\x00\x08\x03", b"\x00\x00\x08\x03\x00\x00\x02\x00"])
def test_idx_header_cut_off(idx_folder, contents):
    (idx_folder / IMAGES).write_bytes(contents)
    assert IMAGES in error_of(idx_folder)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: raw + b"\x00"], ids=["short", "long"])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_idx_size_mismatch(idx_folder, name, change):
    path = idx_folder / name
    path.write_bytes(change(path.read_bytes()))
    assert "bytes where its header asks for" in error_of(idx_folder)


def test_idx_without_images(idx_folder):
    (idx_folder / IMAGES).write_bytes(b"\x00\x00\x08\x03" + bytes(4) + b"\x00\x00\x00\x1c" * 2)
    assert f"{IMAGES} holds no images" in error_of(idx_folder)


def damage_truncate(raw):
    return raw[: len(raw) // 2]


def damage_payload(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes(64) + raw[middle + 64 :]


def damage_checksum(raw):
    return raw[:-8] + bytes([raw[-8] ^ 255]) + raw[-7:]


def damage_not_gzip(raw):
    return b"not a gzip file"


@pytest.mark.parametrize("damage", [damage_truncate, damage_payload, damage_checksum, damage_not_gzip])
def test_idx_damaged_gz(fashion_mnist_folder, tmp_path, damage):
    folder = shutil.copytree(fashion_mnist_folder, tmp_path / "gz")
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} is unreadable, truncated or corrupt" in error_of(folder)


def test_idx_count_mismatch(idx_folder):
    shutil.copy(idx_folder / "t10k-labels-idx1-ubyte", idx_folder / LABELS)
    assert "holds 512 images" in (message := error_of(idx_folder))
    assert "holds 128 labels" in message


def test_idx_label_out_of_range(idx_folder):
    path = idx_folder / LABELS
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    assert "the label 10 outside 0 to 9" in error_of(idx_folder)


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_idx_missing_file(idx_folder, name):
    (idx_folder / name).unlink()
    assert f"lacks {name} or {name}.gz" in error_of(idx_folder)


def test_idx_missing_split(idx_folder):
    assert "no split 'validation'; choose one of: train, test" in error_of(idx_folder, split="validation")


# Paths


def test_path_does_not_exist(tmp_path):
    for name in ("nowhere", "nowhere.parquet", "nowhere.safetensors"):
        assert "does not exist" in error_of(tmp_path / name)


def test_empty_folder(tmp_path):
    assert "holds no IDX, picture or parquet files" in error_of(tmp_path)


def test_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("no pictures here")
    assert "holds no IDX, picture or parquet files" in error_of(tmp_path)


def test_file_of_another_kind(tmp_path):
    path = tmp_path / "images.npz"
    path.touch()
    assert "is not a folder, a .parquet file" in error_of(path)


def test_load_split_refuses_decoded_split(tmp_path, fixture_images):
    path = tmp_path / "split.safetensors"
    save_tensors(fixture_images, path)
    with pytest.raises(DataError, match="read it with load_images"):
        load_split(train_data_dir=str(path))


# Folders of pictures


def test_image_folder_grey(tmp_path, fixture_images):
    save_pictures(tmp_path, fixture_images.images[:40, 0], fixture_images.labels[:40])
    tensors = load_images(train_data_dir=str(tmp_path))
    names = sorted(name.replace("/", "-") for name in FASHION_MNIST_LABELS)
    assert list(tensors.label_names) == names
    both = fixture_images.images, fixture_images.labels
    expected = {image.numpy().tobytes(): label for image, label in zip(*both, strict=True)}
    assert len(tensors) == 40
    for image, label in zip(tensors.images, tensors.labels, strict=True):
        assert names[label] == FASHION_MNIST_LABELS[expected[image.numpy().tobytes()]].replace("/", "-")


def test_image_folder_rgb_and_splits(tmp_path, fixture_images):
    colour = torch.stack([fixture_images.images[:8, 0], *2 * [torch.zeros(8, 28, 28, dtype=torch.uint8)]], dim=-1)
    save_pictures(tmp_path / "train", colour, [0, 1] * 4, names=("red", "scarlet"))
    save_pictures(tmp_path / "test", colour[:2], [1, 1], names=("red", "scarlet"))
    tensors = load_images(train_data_dir=str(tmp_path), channels=3)
    assert tensors.images.shape == (8, 3, 28, 28)
    assert tensors.images[:, 0].any()
    assert not tensors.images[:, 1:].any()
    test = load_images(train_data_dir=str(tmp_path), split="test", channels=3)
    assert test.labels.tolist() == [1, 1]
    assert test.label_names == ("red", "scarlet")
    assert "has no split 'dev'; choose one of: train, test" in error_of(tmp_path, split="dev")


def test_image_folder_without_classes(tmp_path, fixture_images):
    for index in range(3):
        PIL.Image.fromarray(fixture_images.images[index, 0].numpy()).save(tmp_path / f"{index}.png")
    tensors = load_images(train_data_dir=str(tmp_path))
    assert torch.equal(tensors.images, fixture_images.images[:3])
    assert tensors.labels is None
    assert tensors.label_names is None


@pytest.mark.parametrize("damage", [lambda raw: raw[:200], lambda raw: b"no picture"], ids=["truncated", "not one"])
def test_image_folder_unreadable_picture(tmp_path, fixture_images, damage):
    save_pictures(tmp_path, fixture_images.images[:4, 0], fixture_images.labels[:4])
    path = sorted(tmp_path.rglob("*.png"))[1]
    path.write_bytes(damage(path.read_bytes()))
    message = error_of(tmp_path)
    assert message == f"{path} is not a readable picture; replace it or remove it"


def test_picture_of_16_bits(tmp_path):
    PIL.Image.fromarray(np.full((28, 28), 30_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert "deep.png has more than 8 bits per channel" in error_of(tmp_path)


# Parquet and columns


def test_parquet_file_and_folder(tmp_path, fixture_images):
    images, labels = fixture_images.images[:16, 0], fixture_images.labels[:16]
    features = {"label": datasets.ClassLabel(names=list(FASHION_MNIST_LABELS))}
    path = write_parquet(tmp_path / "train-00000.parquet", images, features, label=labels.tolist())
    write_parquet(tmp_path / "test-00000.parquet", images[:4], features, label=labels[:4].tolist())
    for source in (path, tmp_path):
        tensors = load_images(train_data_dir=str(source))
        assert torch.equal(tensors.images, fixture_images.images[:16])
        assert torch.equal(tensors.labels, labels)
        assert tensors.label_names == FASHION_MNIST_LABELS
    assert len(load_images(train_data_dir=str(tmp_path), split="test")) == 4
    assert "no split 'dev'" in error_of(tmp_path, split="dev")


def test_corrupt_parquet(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 and nothing more")
    assert "cannot be read as parquet data" in error_of(path)


def test_integer_labels_are_their_names(tmp_path, fixture_images):
    path = write_parquet(
        tmp_path / "a.parquet", fixture_images.images[:3, 0], {"label": datasets.Value("int32")}, label=[4, 0, 2]
    )
    tensors = load_images(train_data_dir=path)
    assert tensors.labels.tolist() == [4, 0, 2]
    assert tensors.labels.dtype == torch.int64
    assert tensors.label_names == ("0", "1", "2", "3", "4")


def test_string_labels_become_sorted_classes_of_all_splits(tmp_path, fixture_images):
    features = {"label": datasets.Value("string")}
    images = fixture_images.images[:3, 0]
    write_parquet(tmp_path / "train.parquet", images, features, label=["shoe", "bag", "coat"])
    write_parquet(tmp_path / "test.parquet", images, features, label=["shoe", "shoe", "coat"])
    train = load_images(train_data_dir=str(tmp_path))
    test = load_images(train_data_dir=str(tmp_path), split="test")
    assert train.label_names == test.label_names == ("bag", "coat", "shoe")
    assert train.labels.tolist() == [2, 0, 1]
    assert test.labels.tolist() == [2, 2, 1]


def test_named_columns(tmp_path, fixture_images):
    two = fixture_images.images[:2, 0]
    pictures = [PIL.Image.fromarray(image.numpy()) for image in two]
    names = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features(
        front=datasets.Image(), back=datasets.Image(), fine=names, coarse=names, note=datasets.Value("float32")
    )
    columns = {"front": pictures, "back": pictures[::-1], "fine": [0, 1], "coarse": [1, 1], "note": [0.5, 1.5]}
    columns["box"] = [[0, 1], [2, 3]]
    path = tmp_path / "columns.parquet"
    features["box"] = datasets.List(datasets.Value("int64"))
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)

    tensors = load_images(train_data_dir=str(path), image_column="back", label_column="coarse")
    assert torch.equal(tensors.images, fixture_images.images[:2].flip(0))
    assert tensors.labels.tolist() == [1, 1]
    assert "several columns for image_column; set it to one of: front, back" in error_of(path)
    assert "label_column; set it to one of: fine, coarse" in error_of(path, image_column="front")
    assert "no column 'nope'; set image_column to one of: front" in error_of(path, image_column="nope")
    assert "no column 'nope'; set label_column to one of: front" in error_of(path, label_column="nope")
    assert "holds no pictures" in error_of(path, image_column="note", label_column="fine")
    assert "holds float32, not class labels" in error_of(path, image_column="front", label_column="note")
    assert "holds List, not class labels" in error_of(path, image_column="front", label_column="box")


def test_no_image_column(tmp_path):
    path = tmp_path / "table.parquet"
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(path)
    assert "no column of pictures (it has text); set image_column" in error_of(path)


def test_plain_bytes_column_by_name(tmp_path, fixture_images):
    pictures = tmp_path / "pictures"
    save_pictures(pictures, fixture_images.images[:1, 0], fixture_images.labels[:1])
    encoded = next(pictures.rglob("*.png")).read_bytes()
    path = tmp_path / "bytes.parquet"
    datasets.Dataset.from_dict({"png": [encoded]}).to_parquet(path)
    assert torch.equal(load_images(train_data_dir=str(path), image_column="png").images, fixture_images.images[:1])


def test_bad_labels_and_pictures_of_a_table(tmp_path, fixture_images):
    two = fixture_images.images[:2, 0]
    features = {"label": datasets.Value("int64")}
    missing = write_parquet(tmp_path / "missing.parquet", two, features, label=[1, None])
    assert "has 1 rows without label" in error_of(missing)
    negative = write_parquet(tmp_path / "negative.parquet", two, features, label=[1, -1])
    assert "the label -1" in error_of(negative)
    path = tmp_path / "no_picture.parquet"
    datasets.Dataset.from_dict({"image": [None]}, features=datasets.Features(image=datasets.Image())).to_parquet(path)
    assert "has 1 rows without image" in error_of(path)


def test_empty_split(tmp_path):
    path = tmp_path / "empty.parquet"
    datasets.Dataset.from_dict({"image": []}, features=datasets.Features(image=datasets.Image())).to_parquet(path)
    assert "corresponds to no data" in error_of(path)


# Decoding


@pytest.mark.parametrize(("resolution", "channels"), [(28, 3), (32, 1), (14, 3), ((20, 40), 1)])
def test_resolution_and_channels(fashion_mnist_folder, fixture_images, resolution, channels):
    tensors = load_images(
        train_data_dir=str(fashion_mnist_folder), resolution=resolution, channels=channels, max_samples=8
    )
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert tensors.images.shape == (8, channels, height, width)
    assert (tensors.images == tensors.images[:, :1]).all()
    if resolution in (14, 32):
        mean = fixture_images.images[:8].float().mean((1, 2, 3))
        torch.testing.assert_close(tensors.images.float().mean((1, 2, 3)), mean, atol=2.0, rtol=0)


def test_rgb_to_grey_is_luma(tmp_path):
    PIL.Image.new("RGB", (28, 28), (200, 100, 50)).save(tmp_path / "a.png")
    grey = load_images(train_data_dir=str(tmp_path)).images
    assert grey.unique().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]


def test_resize_keeps_the_aspect_ratio(tmp_path):
    pixels = np.zeros((20, 60), dtype=np.uint8)
    pixels[:, 20:40] = 255
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    assert load_images(train_data_dir=str(tmp_path), resolution=10).images.float().mean() > 240


@pytest.mark.parametrize("kwargs", [{"resolution": 0}, {"resolution": (28, -1)}, {"channels": 2}, {"channels": 0}])
def test_impossible_resolution_or_channels(fashion_mnist_folder, kwargs):
    with pytest.raises(DataError, match=f"{next(iter(kwargs))} is .*; (give|choose)|channels is"):
        load_images(train_data_dir=str(fashion_mnist_folder), **kwargs)


@pytest.mark.parametrize("source", ["idx", "pictures"])
def test_stream_equals_decode(fashion_mnist_folder, fixture_images, tmp_path, source):
    if source == "pictures":
        save_pictures(tmp_path, fixture_images.images[:20, 0], fixture_images.labels[:20])
        dataset = load_split(train_data_dir=str(tmp_path))
    else:
        dataset = load_split(train_data_dir=str(fashion_mnist_folder)).select(range(20))
    expected = decode(dataset, resolution=32, channels=3)
    loader = torch.utils.data.DataLoader(stream_images(dataset, resolution=32, channels=3), batch_size=8)
    batches = list(loader)
    assert torch.equal(torch.cat([batch["images"] for batch in batches]), expected.images)
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), expected.labels)


def test_stream_reaches_worker_processes_that_are_not_forked(fashion_mnist_folder):
    stream = stream_images(load_split(train_data_dir=str(fashion_mnist_folder)), resolution=28, channels=1)
    assert torch.equal(pickle.loads(pickle.dumps(stream))[3]["images"], stream[3]["images"])


def test_stream_names_an_unreadable_picture(tmp_path, fixture_images):
    PIL.Image.fromarray(fixture_images.images[0, 0].numpy()).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    stream = stream_images(load_split(train_data_dir=str(tmp_path)), resolution=28, channels=1)
    assert set(stream[0]) == {"images"}
    with pytest.raises(DataError, match=r"b\.png is not a readable picture"):
        stream[1]


# Pixel range


def test_pixel_range_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8)
    sample = to_model_input(pixels)
    assert sample.dtype == torch.float32
    assert (sample.min(), sample.max()) == (-1, 1)
    assert torch.equal(to_uint8(sample), pixels)


def test_to_uint8_clamps_and_rounds():
    sample = torch.tensor([-1.5, -1.0, 0.0, 1.0, 7.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1])
    assert to_uint8(sample).tolist() == [0, 0, 128, 255, 255, 0, 1]
    assert to_uint8(sample[:5].bfloat16()).tolist() == [0, 0, 128, 255, 255]


# Decoded splits


def test_tensors_round_trip(tmp_path, fixture_images, monkeypatch):
    path = tmp_path / "split.safetensors"
    save_tensors(fixture_images, path)
    monkeypatch.setattr(data, "_import_datasets", lambda: pytest.fail("needs datasets"))
    tensors = load_images(train_data_dir=str(path), split="anything")
    assert torch.equal(tensors.images, fixture_images.images)
    assert torch.equal(tensors.labels, fixture_images.labels)
    assert tensors.label_names == FASHION_MNIST_LABELS
    assert len(load_images(train_data_dir=str(path), max_samples=5)) == 5


def test_tensors_may_have_the_null_label(tmp_path, fixture_images):
    path = tmp_path / "split.safetensors"
    labels = fixture_images.labels.clone()
    labels[0] = len(FASHION_MNIST_LABELS)
    save_tensors(ImageTensors(fixture_images.images, labels, FASHION_MNIST_LABELS), path)
    assert torch.equal(load_images(train_data_dir=str(path)).labels, labels)


def test_tensors_without_labels(tmp_path, fixture_images):
    path = tmp_path / "split.safetensors"
    save_tensors(ImageTensors(fixture_images.images[:4]), path)
    tensors = load_images(train_data_dir=str(path))
    assert tensors.labels is None
    assert tensors.label_names is None


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_are_resized_as_pictures_are(fashion_mnist_folder, tmp_path, channels):
    source = str(fashion_mnist_folder)
    path = tmp_path / "split.safetensors"
    save_tensors(load_images(train_data_dir=source, max_samples=6, channels=channels), path)
    tensors = load_images(train_data_dir=str(path), resolution=20, channels=3)
    expected = load_images(train_data_dir=source, max_samples=6, resolution=20, channels=3)
    assert torch.equal(tensors.images, expected.images)


def test_bad_tensor_files(tmp_path):
    path = tmp_path / "split.safetensors"
    path.write_bytes(b"no tensors")
    assert "cannot be read" in error_of(path)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    for wrong in (images.float(), images[0], images.expand(2, 2, 8, 8)):
        save_tensors(ImageTensors(wrong), path)
        assert "no uint8 tensor `images`" in error_of(path)
    save_tensors(ImageTensors(images[:0]), path)
    assert "holds no images" in error_of(path)
    save_tensors(ImageTensors(images, torch.tensor([1])), path)
    assert "one label for each of its 2 images" in error_of(path)
    save_tensors(ImageTensors(images, torch.tensor([0, 3]), ("a", "b")), path)
    assert "the label 3 outside 0 to 2" in error_of(path)
    with pytest.raises(DataError, match=r"must end in \.safetensors"):
        save_tensors(ImageTensors(images), tmp_path / "split.pt")


# The Hub


def test_unreachable_hub_falls_back_fast(fashion_mnist_folder, monkeypatch, caplog):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(data, "DEBIAN_FOLDER", fashion_mnist_folder)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger=data.__name__):
        assert len(load_images()) == 512
        assert len(load_images(split="test")) == 128
    assert time.monotonic() - start < 2 * data.HUB_TIMEOUT + 2
    assert f"reading {fashion_mnist_folder} instead" in caplog.text
    assert not datasets.config.HF_HUB_OFFLINE


def test_silent_hub_is_given_up_in_time(monkeypatch):
    def silence(*args, **kwargs):
        time.sleep(1.5)
        raise TimeoutError

    monkeypatch.setattr(data, "HUB_TIMEOUT", 0.2)
    monkeypatch.setattr(data.urllib.request, "urlopen", silence)
    start = time.monotonic()
    assert not data._hub_answers("http://127.0.0.1:9")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("status", [200, 404])
def test_any_status_is_an_answer(status):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    assert data._hub_answers(f"http://127.0.0.1:{server.server_port}")
    thread.join()
    server.server_close()


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_hub_answers", lambda endpoint: False)
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "not-installed")


def test_no_fallback(no_hub, tmp_path):
    with pytest.raises(DataError) as caught:
        load_split()
    message = str(caught.value)
    assert DEFAULT_DATASET in message
    assert str(tmp_path / "not-installed") in message
    assert "install Debian's package dataset-fashion-mnist, or pass a local copy as train_data_dir" in message
    assert "\n" not in message


def test_only_the_default_falls_back(no_hub, monkeypatch, fashion_mnist_folder):
    monkeypatch.setattr(data, "DEBIAN_FOLDER", fashion_mnist_folder)
    with pytest.raises(DataError, match=r"someone/other cannot be loaded .*; check its name and the network"):
        load_split("someone/other")


def test_cached_hub_data_set_offline(no_hub, tmp_path, fixture_images):
    source = tmp_path / "other"
    source.mkdir()
    features = {"label": datasets.ClassLabel(names=list(FASHION_MNIST_LABELS))}
    labels = fixture_images.labels[:6].tolist()
    write_parquet(source / "train.parquet", fixture_images.images[:6, 0], features, label=labels)
    datasets.load_dataset(str(source))
    # The place where load_dataset("someone/other") would have kept it.
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    prepared = next(cache.glob("other/*/*/*/dataset_info.json")).parent
    shutil.copytree(prepared, cache / "someone___other" / "default" / "0.0.0" / prepared.name)
    tensors = load_images("someone/other")
    assert torch.equal(tensors.images, fixture_images.images[:6])
    assert tensors.labels.tolist() == labels
    with pytest.raises(DataError, match="someone/other has no split 'test'; choose one of: train"):
        load_images("someone/other", "test")
    with pytest.raises(DataError, match=r"someone/other cannot be loaded .*; check dataset_config_name"):
        load_images("someone/other", dataset_config_name="nope")


def test_datasets_not_installed(monkeypatch, fashion_mnist_folder):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"install it with pip install 'fmnist-diffusion\[train\]'"):
        load_images(train_data_dir=str(fashion_mnist_folder))


# The whole set


@pytest.mark.full_data
@pytest.mark.skipif(
    os.environ.get("FMNIST_DIFFUSION_FULL_DATA") is None, reason="FMNIST_DIFFUSION_FULL_DATA=1 asks for the whole set"
)
def test_whole_set():
    if not DEBIAN_FOLDER.is_dir():
        pytest.fail(
            f"FMNIST_DIFFUSION_FULL_DATA promises the whole data set but {DEBIAN_FOLDER} does not exist; "
            "install Debian's package dataset-fashion-mnist"
        )
    train = load_images(train_data_dir=str(DEBIAN_FOLDER))
    test = load_images(split="test", train_data_dir=str(DEBIAN_FOLDER))
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [6_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert train.images.sum().item() / train.images.numel() == pytest.approx(72.94, abs=0.005)
