"""Image data sets as the trainer and the evaluator see them: splits, labels, pixel range and its inverse.

A split comes from the Hub, from a local folder (IDX, pictures or parquet) or from one `.safetensors` file. It is
either decoded once into memory ([`load_images`]) or decoded while it is read ([`load_split`] and [`stream_images`]).
"""

from __future__ import annotations

import gzip
import http.client
import io
import json
import logging
import math
import ssl
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

logger = logging.getLogger(__name__)

FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEFAULT_DATASET = "zalando-datasets/fashion_mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

HUB_TIMEOUT = 3.0  # seconds
IDX_PREFIXES = {"train": "train", "test": "t10k"}
IDX_MAGIC_NUMBERS = {"images": 2051, "labels": 2049}


class DataError(ValueError):
    """The data cannot be used as asked; the message is one sentence that names the data and says what to do."""


@dataclass(frozen=True)
class ImageTensors:
    """A split decoded into memory.

    Attributes:
        images (`torch.Tensor`):
            Pixels, uint8 in [0, 255], of shape `(num_images, channels, height, width)`.
        labels (`torch.Tensor`, *optional*):
            Class indices, int64, of shape `(num_images,)`; `len(label_names)` is the null label, of no class.
        label_names (`tuple[str, ...]`, *optional*):
            The name of each class index, where there are labels.
    """

    images: torch.Tensor
    labels: torch.Tensor | None = None
    label_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)


def to_model_input(images: torch.Tensor) -> torch.Tensor:
    """Map pixels in [0, 255], uint8 of any shape, to the model's float32 range [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(sample: torch.Tensor) -> torch.Tensor:
    """Map a sample in [-1, 1], of any floating dtype and shape, to uint8 pixels; values outside are clamped.

    The inverse of [`to_model_input`], exact for all 256 pixel values.
    """
    return ((sample.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def load_images(
    dataset_name: str = DEFAULT_DATASET,
    split: str = "train",
    *,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    resolution: int | tuple[int, int] = 28,
    channels: int = 1,
    max_samples: int | None = None,
) -> ImageTensors:
    """Load a split and decode it into memory.

    Args:
        dataset_name, split, dataset_config_name, image_column, label_column:
            As in [`load_split`].
        train_data_dir (`str`, *optional*):
            As in [`load_split`], or a `.safetensors` file written by [`save_tensors`]. Such a file holds one split,
            which is read whatever `split` says, and needs no `datasets` package.
        resolution (`int` or `tuple[int, int]`, defaults to 28), channels (`int`, defaults to 1):
            As in [`decode`].
        max_samples (`int`, *optional*):
            Load only the first `max_samples` images of the split.

    Raises:
        DataError: If the data is missing, broken or not as described.
    """
    if max_samples is not None and max_samples < 1:
        raise DataError(f"max_samples is {max_samples}; give a number from 1 up, or leave it out to load every image")
    if train_data_dir is not None and Path(train_data_dir).suffix == ".safetensors":
        tensors = _load_tensors(Path(train_data_dir))
        images = tensors.images[:max_samples]
        labels = None if tensors.labels is None else tensors.labels[:max_samples]
        height, width = _height_width(resolution, channels)
        if images.shape[1:] != (channels, height, width):
            pictures = images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
            images = torch.from_numpy(_decode_arrays(pictures.numpy(), height, width, channels))
        return ImageTensors(images, labels, tensors.label_names)
    dataset = load_split(
        dataset_name,
        split,
        dataset_config_name=dataset_config_name,
        train_data_dir=train_data_dir,
        image_column=image_column,
        label_column=label_column,
    )
    if max_samples is not None:
        dataset = dataset.select(range(min(max_samples, len(dataset))))
    return decode(dataset, resolution=resolution, channels=channels)


def load_split(
    dataset_name: str = DEFAULT_DATASET,
    split: str = "train",
    *,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> datasets.Dataset:
    """Load a split as a `datasets.Dataset` with the column `image` and, where there are labels, `label`.

    Args:
        dataset_name (`str`, defaults to `"zalando-datasets/fashion_mnist"`):
            A data set on the Hub. When the Hub cannot be reached, the copy in the local Hugging Face cache is used,
            and for the default data set, failing that, the IDX folder of Debian's package `dataset-fashion-mnist`.
        split (`str`, defaults to `"train"`):
            The split's name.
        dataset_config_name (`str`, *optional*):
            The configuration of a Hub data set that has several.
        train_data_dir (`str`, *optional*):
            Local data in place of the Hub's: a folder of the four Fashion-MNIST IDX files (plain or `.gz`; `train` and
            `test`), a folder of pictures (subfolders are classes, `train/` and `test/` above them are splits), a
            folder of parquet files, or one parquet file, which is read whatever `split` says.
        image_column (`str`, *optional*):
            The column of pictures, found by its type when not given.
        label_column (`str`, *optional*):
            The column of labels: class labels, integers (classes named "0", "1", ...) or strings (classes in sorted
            order). When not given, the column of type `ClassLabel`, or else the one called `label`, if there is one.

    Raises:
        DataError: If the data is missing, broken or not as described.
    """
    if train_data_dir is not None:
        source = train_data_dir
        splits = _load_local(Path(train_data_dir), split)
    else:
        source = dataset_name
        splits = _load_hub(dataset_name, dataset_config_name, split)
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}; choose one of: {', '.join(map(str, splits))}")
    dataset = _standard_columns(source, splits, split, image_column, label_column)
    _check_rows(source, dataset)
    return dataset


def decode(dataset: datasets.Dataset, *, resolution: int | tuple[int, int], channels: int) -> ImageTensors:
    """Decode a data set with the columns of [`load_split`] into memory.

    A picture whose size differs from `resolution` is scaled bicubically (anti-aliased when it shrinks) until it covers
    `resolution`, and what sticks out is cropped evenly; one that has the size already keeps its exact pixels.

    Args:
        dataset (`datasets.Dataset`):
            The data set, with a column `image` and optionally a column `label`.
        resolution (`int` or `tuple[int, int]`):
            The side of a square, or `(height, width)`, in pixels.
        channels (`int`):
            1 for grey (ITU-R 601-2 luma of a colour picture) or 3 for RGB.

    Raises:
        DataError: If a picture is broken, or if `resolution` or `channels` is not possible.
    """
    height, width = _height_width(resolution, channels)
    if _is_array(dataset.features["image"]):
        images = _decode_arrays(_array_column(dataset), height, width, channels)
    else:
        images = np.empty((len(dataset), channels, height, width), dtype=np.uint8)
        for index, picture in enumerate(_undecoded(dataset)["image"]):
            images[index] = _decode_picture(picture, height, width, channels)
    if "label" not in dataset.features:
        return ImageTensors(torch.from_numpy(images))
    labels = torch.from_numpy(_arrow_column(dataset, "label").to_numpy().astype(np.int64))
    return ImageTensors(torch.from_numpy(images), labels, tuple(dataset.features["label"].names))


def stream_images(dataset: datasets.Dataset, *, resolution: int | tuple[int, int], channels: int) -> datasets.Dataset:
    """Let a data set that does not fit in memory decode each picture when it is read, for a torch `DataLoader`.

    Args:
        dataset, resolution, channels:
            As in [`decode`], which makes the same pixels.

    Returns:
        `datasets.Dataset`: A view whose items are `{"images": uint8 tensor of shape (channels, height, width)}` and,
        where there are labels, `"labels": int`. Reading an item raises [`DataError`] if its picture is broken.
    """
    height, width = _height_width(resolution, channels)
    return _undecoded(dataset).with_transform(partial(_decode_batch, height=height, width=width, channels=channels))


def _decode_batch(batch: dict[str, list[Any]], height: int, width: int, channels: int) -> dict[str, list[Any]]:
    pictures = (_decode_picture(picture, height, width, channels) for picture in batch["image"])
    decoded: dict[str, list[Any]] = {"images": [torch.from_numpy(picture) for picture in pictures]}
    if "label" in batch:
        decoded["labels"] = batch["label"]
    return decoded


def save_tensors(tensors: ImageTensors, path: str | Path) -> None:
    """Write a decoded split to one `.safetensors` file, which [`load_images`] reads as its `train_data_dir`."""
    from safetensors.torch import save_file

    if Path(path).suffix != ".safetensors":
        raise DataError(f"{path} must end in .safetensors, by which load_images knows the file; rename it")
    contents = {"images": tensors.images.contiguous()}
    if tensors.labels is not None:
        contents["labels"] = tensors.labels.contiguous()
    metadata = {} if tensors.label_names is None else {"label_names": json.dumps(tensors.label_names)}
    save_file(contents, path, metadata=metadata)


def _load_tensors(path: Path) -> ImageTensors:
    from safetensors import SafetensorError, safe_open

    _check_exists(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            contents = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); write it again with save_tensors") from error
    images, labels = contents.get("images"), contents.get("labels")
    if images is None or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"{path} holds no uint8 tensor `images` of shape (num_images, 1 or 3, height, width); "
            "write it again with save_tensors"
        )
    if len(images) == 0:
        raise DataError(f"{path} holds no images; write it again with save_tensors")
    label_names = tuple(json.loads(metadata["label_names"])) if "label_names" in metadata else None
    if labels is not None:
        if labels.shape != (len(images),) or labels.dtype != torch.int64:
            raise DataError(
                f"{path} holds no int64 tensor `labels` with one label for each of its {len(images)} images; "
                "write it again with save_tensors"
            )
        if label_names is None:
            raise DataError(f"{path} has labels but no label_names; write it again with save_tensors")
        _check_label_range(path, labels, len(label_names) + 1)
    return ImageTensors(images, labels, label_names)


# Sources of splits


def _import_datasets():
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "reading this data needs the package datasets; install it with pip install 'fmnist-diffusion[train]'"
        ) from error
    return datasets


def _load_hub(dataset_name: str, dataset_config_name: str | None, split: str) -> dict[str, datasets.Dataset]:
    datasets = _import_datasets()
    try:
        with _offline_unless_hub_answers():
            return datasets.load_dataset(dataset_name, dataset_config_name)  # type: ignore[return-value]
    except ValueError as error:  # an unknown configuration
        raise DataError(
            f"the data set {dataset_name} cannot be loaded ({_first_line(error)}); check dataset_config_name"
        ) from error
    except Exception as error:  # the HTTP library underneath, and so its exceptions, differ by version
        reason = _first_line(error)
        if dataset_name != DEFAULT_DATASET:
            raise DataError(
                f"the data set {dataset_name} cannot be loaded ({reason}); check its name and the network, "
                "or pass a local copy as train_data_dir"
            ) from error
        if not DEBIAN_FOLDER.is_dir():
            raise DataError(
                f"the data set {dataset_name} cannot be loaded ({reason}) and {DEBIAN_FOLDER} does not exist; "
                "install Debian's package dataset-fashion-mnist, or pass a local copy as train_data_dir"
            ) from error
        logger.warning("%s cannot be loaded (%s); reading %s instead", dataset_name, reason, DEBIAN_FOLDER)
    return _load_idx(DEBIAN_FOLDER, split)


@contextmanager
def _offline_unless_hub_answers() -> Iterator[None]:
    """`datasets` retries an unreachable Hub for half a minute and more; its offline mode goes to the cache at once."""
    from datasets import config

    offline = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = offline or not _hub_answers(config.HF_ENDPOINT)
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = offline


def _hub_answers(endpoint: str) -> bool:
    answered = threading.Event()

    def request() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT).close()
        except urllib.error.HTTPError:
            pass  # any status is an answer
        except urllib.error.URLError as error:
            # `datasets` brings its own certificates, so only the system's may be missing.
            if not isinstance(error.reason, ssl.SSLError):
                return
        except (OSError, http.client.HTTPException):
            return
        answered.set()

    # A thread, because the timeout of urlopen does not bound the look-up of the host's name.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    return answered.is_set()


def _load_local(path: Path, split: str) -> dict[str, datasets.Dataset]:
    _check_exists(path)
    datasets = _import_datasets()
    from datasets.exceptions import DatasetsError
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    if path.suffix == ".safetensors":
        raise DataError(f"{path} is decoded already and can't be streamed; read it with load_images")
    if path.is_dir():
        if any(path.glob("*-idx[13]-ubyte*")):
            return _load_idx(path, split)
        suffixes = {file.suffix.lower() for file in path.rglob("*")}
        if ".parquet" in suffixes:
            loader, files = "parquet", {"data_dir": str(path)}
        elif suffixes & set(ImageFolder.EXTENSIONS):
            loader, files = "imagefolder", {"data_dir": str(path)}
        else:
            raise DataError(
                f"the folder {path} holds no IDX, picture or parquet files; pass a folder that does as train_data_dir"
            )
    elif path.suffix == ".parquet":
        loader, files = "parquet", {"data_files": {split: str(path)}}
    else:
        raise DataError(f"{path} is not a folder, a .parquet file or a .safetensors file; pass one as train_data_dir")
    try:
        return datasets.load_dataset(loader, **files)  # type: ignore[return-value,arg-type]
    except (DatasetsError, OSError, ValueError) as error:
        # datasets wraps the reader's own, more telling, error.
        reason = _first_line(error.__cause__ or error)
        raise DataError(f"{path} cannot be read as {loader} data ({reason}); check its files") from error


def _load_idx(folder: Path, split: str) -> dict[str, datasets.Dataset]:
    datasets = _import_datasets()
    if split not in IDX_PREFIXES:
        raise DataError(f"the IDX folder {folder} has no split {split!r}; choose one of: {', '.join(IDX_PREFIXES)}")
    prefix = IDX_PREFIXES[split]
    images_path = _find_idx(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _find_idx(folder, f"{prefix}-labels-idx1-ubyte")
    images = _read_idx(images_path, "images")
    labels = _read_idx(labels_path, "labels")
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images)} images but {labels_path} holds {len(labels)} labels; "
            "replace both by files of one data set"
        )
    _check_label_range(labels_path, labels, len(FASHION_MNIST_LABELS))
    features = datasets.Features(
        image=datasets.Array2D(shape=images.shape[1:], dtype="uint8"),
        label=datasets.ClassLabel(names=list(FASHION_MNIST_LABELS)),
    )
    return {split: _dataset_from_arrays(images, labels, features)}


def _dataset_from_arrays(images: np.ndarray, labels: np.ndarray, features: datasets.Features) -> datasets.Dataset:
    # Dataset.from_dict makes an object of every row of pixels: seconds for 60,000 images. This wraps the one buffer.
    import datasets
    import pyarrow as pa
    from datasets.table import InMemoryTable

    _, height, width = images.shape
    rows = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), width)
    storage_type = features["image"]().storage_type
    pictures = pa.FixedSizeListArray.from_arrays(rows, height).cast(storage_type)
    table = pa.table(
        {
            "image": pa.ExtensionArray.from_storage(features["image"](), pictures),
            "label": pa.array(labels, type=pa.int64()),
        }
    )
    return datasets.Dataset(InMemoryTable(table), info=datasets.DatasetInfo(features=features))


def _find_idx(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"the IDX folder {folder} lacks {name} or {name}.gz; add the file or pass another folder")


def _read_idx(path: Path, kind: str) -> np.ndarray:
    """Read an IDX file of uint8: images as `(num_images, height, width)` or labels as `(num_labels,)`.

    The format is described at http://yann.lecun.com/exdb/mnist/.
    """
    try:
        contents = path.read_bytes()
        if path.suffix == ".gz":
            contents = gzip.decompress(contents)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is unreadable, truncated or corrupt ({_first_line(error)}); replace it by an intact copy"
        ) from error
    magic_number = IDX_MAGIC_NUMBERS[kind]
    if int.from_bytes(contents[:4], "big") != magic_number:
        raise DataError(
            f"{path} does not begin with {magic_number}, the magic number of IDX {kind}; "
            f"replace it by an IDX file of {kind}"
        )
    ndim = magic_number % 256
    header_size = 4 + 4 * ndim
    shape = tuple(int.from_bytes(contents[start : start + 4], "big") for start in range(4, header_size, 4))
    if 0 in shape:
        raise DataError(f"{path} holds no {kind}; replace it by a file that does")
    if len(contents) != header_size + math.prod(shape):
        raise DataError(
            f"{path} has {len(contents)} bytes where its header asks for {header_size + math.prod(shape)}; "
            "replace it by an intact copy"
        )
    return np.frombuffer(contents, dtype=np.uint8, offset=header_size).reshape(shape)


# Columns


def _standard_columns(
    source: str,
    splits: dict[str, datasets.Dataset],
    split: str,
    image_column: str | None,
    label_column: str | None,
) -> datasets.Dataset:
    """The split with its picture and label columns alone, called `image` and `label`."""
    datasets = _import_datasets()
    dataset = splits[split]
    for option, column in (("image_column", image_column), ("label_column", label_column)):
        if column is not None and column not in dataset.features:
            raise DataError(f"{source} has no column {column!r}; set {option} to one of: {_columns(dataset)}")

    if image_column is None:
        image_column = _find_column(source, dataset, _is_image, "image_column")
        if image_column is None:
            raise DataError(f"{source} has no column of pictures (it has {_columns(dataset)}); set image_column")
    elif not _is_image(dataset.features[image_column]):
        try:
            dataset = dataset.cast_column(image_column, datasets.Image())
        except (NotImplementedError, TypeError, ValueError) as error:  # pyarrow's errors are these too
            raise DataError(
                f"the column {image_column!r} of {source} holds no pictures; set image_column to another of: "
                f"{_columns(dataset)}"
            ) from error

    if label_column is None:
        label_column = _find_column(
            source, dataset, lambda feature: isinstance(feature, datasets.ClassLabel), "label_column"
        )
        if label_column is None and "label" in dataset.features and image_column != "label":
            label_column = "label"
    if label_column is None:
        return dataset.select_columns([image_column]).rename_columns({image_column: "image"})

    feature = dataset.features[label_column]
    dtype = feature.dtype if isinstance(feature, (datasets.Value, datasets.ClassLabel)) else type(feature).__name__
    if dtype in ("string", "large_string"):
        names = sorted(_labels_of_all(splits, label_column))
        dataset = dataset.cast_column(label_column, datasets.ClassLabel(names=names))
    elif not dtype.lstrip("u").startswith("int"):
        raise DataError(
            f"the column {label_column!r} of {source} holds {dtype}, not class labels, integers or strings; "
            f"set label_column to another of: {_columns(dataset)}"
        )
    elif not isinstance(feature, datasets.ClassLabel):
        labels = _labels_of_all(splits, label_column)
        lowest, highest = min(labels, default=0), max(labels, default=0)
        if lowest < 0:
            raise DataError(f"{source} has the label {lowest}; replace negative labels by 0 and up")
        dataset = dataset.cast_column(label_column, datasets.ClassLabel(num_classes=highest + 1))
    dataset = dataset.select_columns([image_column, label_column])
    return dataset.rename_columns({image_column: "image", label_column: "label"})


def _labels_of_all(splits: dict[str, datasets.Dataset], label_column: str) -> set[Any]:
    """Over all splits, so that a class which one of them lacks does not move the indices of the others."""
    with_labels = [dataset for dataset in splits.values() if label_column in dataset.features]
    return {label for dataset in with_labels for label in dataset.unique(label_column)} - {None}


def _find_column(source: str, dataset: datasets.Dataset, is_wanted: Callable[[Any], bool], option: str) -> str | None:
    columns = [name for name, feature in dataset.features.items() if is_wanted(feature)]
    default = option.removesuffix("_column")
    if len(columns) > 1 and default not in columns:
        raise DataError(f"{source} has several columns for {option}; set it to one of: {', '.join(columns)}")
    if default in columns:
        return default
    return columns[0] if columns else None


def _columns(dataset: datasets.Dataset) -> str:
    return ", ".join(dataset.features)


def _is_image(feature: Any) -> bool:
    return isinstance(feature, _import_datasets().Image) or _is_array(feature)


def _is_array(feature: Any) -> bool:
    return isinstance(feature, _import_datasets().Array2D) and feature.dtype == "uint8" and None not in feature.shape


# Pictures


def _height_width(resolution: int | tuple[int, int], channels: int) -> tuple[int, int]:
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if height < 1 or width < 1:
        raise DataError(f"resolution is {resolution}; give a number of pixels from 1 up, or (height, width)")
    if channels not in (1, 3):
        raise DataError(f"channels is {channels}; choose 1 (grey) or 3 (RGB)")
    return height, width


def _undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """Leave the encoded picture in its column: decoding it here lets an error name the file."""
    datasets = _import_datasets()
    if _is_array(dataset.features["image"]):
        return dataset
    return dataset.cast_column("image", datasets.Image(decode=False))


def _arrow_column(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def _array_column(dataset: datasets.Dataset) -> np.ndarray:
    """The pixels of an `Array2D` column `(num_images, height, width)`, read from its Arrow buffer."""
    chunks = [chunk.storage.flatten().flatten().to_numpy() for chunk in _arrow_column(dataset, "image").chunks]
    return np.concatenate(chunks).reshape(-1, *dataset.features["image"].shape)


def _decode_arrays(pictures: np.ndarray, height: int, width: int, channels: int) -> np.ndarray:
    """Decode `(num_images, height, width)` or `(num_images, height, width, 3)` pixels as [`_decode_picture`] does."""
    if channels == 1 and pictures.shape[1:] == (height, width):
        return pictures[:, None].copy()
    images = np.empty((len(pictures), channels, height, width), dtype=np.uint8)
    for index, picture in enumerate(pictures):
        images[index] = _decode_picture(picture, height, width, channels)
    return images


def _decode_picture(picture: Any, height: int, width: int, channels: int) -> np.ndarray:
    """Decode `{"bytes", "path"}`, as `datasets` stores a picture, or its pixels, to `(channels, height, width)`."""
    import PIL.Image
    import PIL.ImageOps

    if isinstance(picture, dict):
        name = picture["path"] or "a picture of the data set"
        try:
            with PIL.Image.open(
                picture["path"] if picture["bytes"] is None else io.BytesIO(picture["bytes"])
            ) as image:
                PIL.ImageOps.exif_transpose(image, in_place=True)
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise DataError(f"{name} is not a readable picture; replace it or remove it") from error
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # convert would clip it to white
            raise DataError(f"{name} has more than 8 bits per channel; convert it to 8 bits")
    else:
        image = PIL.Image.fromarray(np.asarray(picture, dtype=np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = PIL.ImageOps.fit(image, (width, height), method=PIL.Image.Resampling.BICUBIC)
    pixels = np.array(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


# Checks


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path} does not exist; pass an existing file or folder as train_data_dir")


def _check_rows(source: str, dataset: datasets.Dataset) -> None:
    for name in dataset.column_names:
        missing = _arrow_column(dataset, name).null_count
        if missing:
            raise DataError(f"{source} has {missing} rows without {name}; fill them in or remove them")
    if "label" in dataset.features:
        _check_label_range(source, _arrow_column(dataset, "label").to_numpy(), len(dataset.features["label"].names))


def _check_label_range(source: str | Path, labels: np.ndarray | torch.Tensor, num_labels: int) -> None:
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_labels:
        wrong = lowest if lowest < 0 else highest
        raise DataError(f"{source} has the label {wrong} outside 0 to {num_labels - 1}; correct or replace the labels")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
