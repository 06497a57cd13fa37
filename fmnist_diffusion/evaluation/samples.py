"""Reads existing samples from folders and files."""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fmnist_diffusion.data import ImageTensors, has_fashion_mnist_order, inspect_images, load_images
from fmnist_diffusion.data.errors import get_reason, rename_arguments
from fmnist_diffusion.sampling import Samples


# `fmnist-diffusion sample` and `fmnist-diffusion evaluate` write these images next to the samples.
IGNORED_FILES = ("grid.png", "report.png")
NPZ_SUFFIX = ".npz"
MAX_NPZ_SIZE = 2 * 1024**3  # bytes of all arrays after decompression
MAX_NPY_HEADER_SIZE = 10_000  # bytes, as in NumPy
MAX_REASON_LENGTH = 300
# These are the compression methods of `numpy.savez` and `numpy.savez_compressed`. zipfile decompresses data of other
# methods without a limit on its size.
NPZ_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# zipfile, zlib and NumPy raise these exceptions for damaged, encrypted and malicious files.
NPZ_ERRORS = (
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_samples(
    path: Path,
    num_samples: int | None = None,
    *,
    shape: tuple[int, int, int] | None = None,
    label_names: Sequence[str] | None = None,
) -> Samples:
    """
    Reads samples from a folder or file.

    Args:
        path (`Path`):
            A folder or file that [`load_images`] accepts as `train_data_dir`, or an `.npz` file with the array
            `images` (or only one array of any name) and optionally `labels`. The images in an `.npz` file are uint8,
            or floats in [0, 1], with shape `(num_images, height, width)`, or with 1 or 3 channels before or after
            `height, width`. Images of different sizes follow the rules of [`load_images`].
        num_samples (`int`, *optional*):
            Number of samples to read, which are selected at random with a fixed seed. Defaults to all samples.
        shape (`tuple[int, int, int]`, *optional*):
            Required number of channels, height and width of every image.
        label_names (`Sequence[str]`, *optional*):
            Class names of the reference. The samples only keep their labels if their classes have these names. The
            labels in an `.npz` file are indices of these names.

    Raises:
        `ValueError`: If the samples are missing or have a different format, or if there are fewer than `num_samples`.
    """
    if path.suffix == NPZ_SUFFIX:
        samples = read_npz(path, shape, label_names)
    else:
        samples = read_images(path, shape, label_names)
    if num_samples is None:
        return samples
    if num_samples > len(samples):
        raise ValueError(
            f"`num_samples` must be at most {len(samples)}, the number of images in {path}, got {num_samples}."
        )
    return select_samples(samples, num_samples)


def select_samples(samples: Samples, num_samples: int) -> Samples:
    """Selects random samples with a fixed seed. The first images of a folder often belong to only a few classes."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:num_samples]
    return Samples(samples.images[order], None if samples.labels is None else samples.labels[order])


def read_images(
    path: Path, shape: tuple[int, int, int] | None = None, label_names: Sequence[str] | None = None
) -> Samples:
    arguments = {
        "train_data_dir": str(path),
        "label_column": "none" if label_names is None else None,
        "ignored_files": IGNORED_FILES,
    }
    # Users of an evaluation do not pass `train_data_dir`, so the messages must not mention it.
    with rename_arguments({" as `train_data_dir`": ""}, ValueError):
        summary = inspect_images(**arguments)
        if shape is not None:
            for size in summary.sizes:
                check_shape((summary.channels, *size), shape, path)
        images = load_images(resolution=summary.resolution, channels=summary.channels, **arguments)
    return Samples(images.images, match_labels(images, label_names))


def match_labels(images: ImageTensors, label_names: Sequence[str] | None) -> torch.Tensor | None:
    """Returns the labels of `images` as indices of `label_names`; `None` if they have other classes."""
    if images.labels is None or images.label_names is None or label_names is None:
        return None
    if has_fashion_mnist_order(images.label_names) and has_fashion_mnist_order(label_names):
        label_names = images.label_names
    if not set(images.label_names) <= set(label_names) or int(images.labels.max()) >= len(images.label_names):
        return None
    return torch.tensor([label_names.index(name) for name in images.label_names])[images.labels]


def check_shape(shape: tuple[int, ...], expected: tuple[int, int, int], path: Path) -> None:
    if shape != expected:
        raise ValueError(
            f"The images in {path} must be {describe_shape(expected)} for a comparison with Fashion-MNIST, got"
            f" {describe_shape(shape)}. Pass `reference` to compare them with other images."
        )


def describe_shape(shape: tuple[int, ...]) -> str:
    """Describes `(channels, height, width)`, for example as "grayscale images of 28x28 pixels"."""
    channels, height, width = shape
    kind = {1: "grayscale", 3: "RGB"}.get(channels, f"{channels}-channel")
    return f"{kind} images of {height}x{width} pixels"


def read_npz(path: Path, shape: tuple[int, int, int] | None, label_names: Sequence[str] | None) -> Samples:
    if not path.is_file():
        raise ValueError(
            f"Could not find the file {path}. Pass a folder of images, an {NPZ_SUFFIX} file or a pipeline."
        )
    arrays = read_arrays(path)
    name = "images" if "images" in arrays else next(iter(arrays), "images")
    if name not in arrays or (name != "images" and len(arrays) > 1):
        raise ValueError(f"{path} must contain an array called `images`, got {', '.join(arrays) or 'no arrays'}.")
    images = convert_images(arrays[name], path)
    if shape is not None:
        check_shape(tuple(images.shape[1:]), shape, path)
    labels = arrays.get("labels")
    if labels is None or label_names is None:
        return Samples(images)
    num_classes = len(label_names)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"The labels in {path} must be integers of shape {(len(images),)}, one per image, got {labels.dtype} of"
            f" shape {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"The labels in {path} must be between 0 and {num_classes - 1}, got {labels.min()} to {labels.max()}."
        )
    return Samples(images, torch.from_numpy(labels.astype(np.int64)))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file by name."""
    try:
        # NumPy also reads other formats with this suffix, such as a single array or a pickle.
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip archive")
        size = get_decompressed_size(path)
        if size <= MAX_NPZ_SIZE:
            with np.load(path, allow_pickle=False) as file:
                return dict(file.items())
    except NPZ_ERRORS as error:
        # NumPy repeats the header of the file in its messages.
        reason = get_reason(error)[:MAX_REASON_LENGTH]
        raise ValueError(f"Could not read {path} as an .npz file ({reason}). Write it with `numpy.savez`.") from error
    raise ValueError(
        f"The arrays in {path} require {size:,} bytes, more than the limit of {MAX_NPZ_SIZE:,}. Save uint8 pixels, or"
        " save fewer images."
    )


def get_decompressed_size(path: Path) -> int:
    """
    Returns the number of bytes of all arrays of an `.npz` file without decompressing more than their headers.

    Raises one of `NPZ_ERRORS` if the file is invalid or contains anything other than numeric arrays.
    """
    size = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type not in NPZ_COMPRESSION:
                raise ValueError(f"{member.filename} has an unsupported compression method")
            with archive.open(member) as file:
                # NumPy would read a header of up to 4 GiB before it checks the size.
                header = io.BytesIO(file.read(MAX_NPY_HEADER_SIZE))
            if np.lib.format.read_magic(header) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(header)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(header)
            if dtype.hasobject:
                raise ValueError(f"{member.filename} contains Python objects, which require pickle")
            size += max(member.file_size, math.prod(shape) * dtype.itemsize)
    return size


def convert_images(images: np.ndarray, source: Path) -> torch.Tensor:
    """Converts images of an `.npz` file (see [`load_samples`]) to uint8 `(num_images, channels, height, width)`."""
    shape = images.shape
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"The images in {source} must have the shape (num_images, height, width), optionally with 1 or 3 channels,"
            f" got {shape}."
        )
    if images.dtype.kind == "f":
        images = quantize(images, source)
    if images.dtype != np.uint8:
        raise ValueError(f"The pixels in {source} must be uint8, or floats in [0, 1], got {images.dtype}.")
    return torch.from_numpy(np.ascontiguousarray(images))


def quantize(images: np.ndarray, source: Path) -> np.ndarray:
    """Converts floating-point pixels in [0, 1] to uint8."""
    minimum, maximum = images.min(), images.max()
    if not np.isfinite(minimum) or not np.isfinite(maximum):
        raise ValueError(f"{source} contains NaN or infinite pixels. Generate these samples again.")
    if minimum < 0 or maximum > 1:
        raise ValueError(
            f"Floating-point pixels in {source} must be in [0, 1], got values from {minimum:.3g} to {maximum:.3g}."
            " Scale them, or save uint8 pixels."
        )
    pixels = np.empty(images.shape, np.uint8)
    # Converting one image at a time avoids temporary copies of all pixels.
    for target, image in zip(pixels, images, strict=True):
        target[:] = (image * 255).round()
    return pixels
