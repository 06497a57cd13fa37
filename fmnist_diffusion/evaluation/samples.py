"""Reads samples from folders and `.npz` files, and reads and writes the batches of an evaluation."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.sampling import Samples

from .files import write_atomically


RESOLUTION = 28
# `fmnist-diffusion sample` and `fmnist-diffusion evaluate` write these images next to the samples.
IGNORED_FILES = ("grid.png", "report.png")
EXPECTED_SOURCE = f"Pass a folder of grayscale {RESOLUTION}x{RESOLUTION} PNG images, an .npz file, or a pipeline."


@dataclass
class EvaluationSamples:
    """
    Samples and, optionally, their Inception features.

    Attributes:
        samples ([`Samples`]): The samples.
        inception_features (`torch.Tensor`, *optional*): Inception features, float32 `(num_images, 2048)`.
    """

    samples: Samples
    inception_features: torch.Tensor | None = None

    @staticmethod
    def concatenate(parts: "Sequence[EvaluationSamples]") -> "EvaluationSamples":
        """Concatenates samples. Either all or none of the `parts` must have Inception features."""
        features = [part.inception_features for part in parts if part.inception_features is not None]
        return EvaluationSamples(
            Samples.concatenate([part.samples for part in parts]), torch.cat(features) if features else None
        )


def save_part(part: EvaluationSamples, path: Path) -> None:
    """Writes a batch to a safetensors file atomically, so that interruptions leave no incomplete file at `path`."""
    samples = part.samples
    tensors = {"images": samples.images, "labels": samples.labels, "inception": part.inception_features}
    metadata = {
        "num_function_evaluations": str(samples.num_function_evaluations),
        "seconds": str(samples.seconds),
    }
    path.parent.mkdir(exist_ok=True)
    with write_atomically(path) as temporary:
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, temporary, metadata)


def load_part(path: Path) -> EvaluationSamples:
    """Reads a batch that [`save_part`] wrote."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    samples = Samples(
        tensors["images"],
        tensors.get("labels"),
        int(metadata["num_function_evaluations"]),
        float(metadata["seconds"]),
    )
    return EvaluationSamples(samples, tensors.get("inception"))


def load_parts(folder: Path) -> Iterator[Samples]:
    """
    Yields the batches of samples that [`evaluate_pipeline`] saved in `folder`, ordered by seed and index.

    Raises:
        `ValueError`: If the folder contains no samples.
    """
    paths = sorted(folder.glob("seed-*/*.safetensors"))
    if not paths:
        raise ValueError(
            f"Could not find any samples in {folder}. Pass the output folder of `fmnist-diffusion evaluate`."
        )
    for path in paths:
        yield load_part(path).samples


def load_samples(path: Path, num_samples: int | None = None) -> Samples:
    """
    Reads samples from an `.npz` file, or from all PNG files of a folder in alphabetical order.

    Args:
        path (`Path`):
            A folder of grayscale 28x28 PNG files, which may be in subfolders; or an `.npz` file with the array
            `images` (or only one array of any name) and optionally `labels`. Images are uint8, or floats in [0, 1],
            with shape `(num_images, 28, 28)`, `(num_images, 1, 28, 28)` or `(num_images, 28, 28, 1)`.
        num_samples (`int`, *optional*): Number of samples to read. Defaults to all samples.

    Raises:
        `ValueError`: If the samples are missing or have a different format, or if there are fewer than `num_samples`.
    """
    samples = read_folder(path) if path.is_dir() else read_npz(path)
    if num_samples is None:
        return samples
    if num_samples > len(samples):
        raise ValueError(
            f"`num_samples` must be at most {len(samples)}, the number of images in {path}, got {num_samples}."
        )
    labels = None if samples.labels is None else samples.labels[:num_samples]
    return Samples(samples.images[:num_samples], labels)


def read_folder(path: Path) -> Samples:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".png")
    files = [file for file in files if file.name not in IGNORED_FILES]
    if not files:
        raise ValueError(f"Could not find any PNG images in {path}. {EXPECTED_SOURCE}")
    return Samples(torch.stack([read_image(file) for file in files]))


def read_npz(path: Path) -> Samples:
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"Could not find samples at {path}. {EXPECTED_SOURCE}")
    arrays = read_arrays(path)
    name = "images" if "images" in arrays else next(iter(arrays), "images")
    if name not in arrays or (name != "images" and len(arrays) > 1):
        raise ValueError(f"{path} must contain an array called `images`, got {', '.join(arrays) or 'no arrays'}.")
    images = convert_images(arrays[name], path)
    labels = arrays.get("labels")
    if labels is None:
        return Samples(images)
    num_classes = len(FASHION_MNIST_LABELS)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"The labels in {path} must be {len(images)} integers, one per image, got {labels.dtype} of shape"
            f" {labels.shape}."
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
            raise ValueError("not a zip archive")
        with np.load(path, allow_pickle=False) as file:
            return {name: value for name, value in file.items() if isinstance(value, np.ndarray)}
    # zipfile, zlib and NumPy raise these errors for corrupted, encrypted and pickled files.
    except (EOFError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"Could not read {path} as an .npz file ({error}). Write it with `numpy.savez`.") from error


def read_image(path: Path) -> torch.Tensor:
    """Reads a grayscale PNG file as uint8 `(1, 28, 28)`. RGB images are accepted if their channels are equal."""
    try:
        with Image.open(path) as image:
            image.load()
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"Could not read {path} ({error}). Remove the file or write it again.") from error
    if pixels.ndim == 3 and pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if image.mode not in ("L", "RGB") or pixels.shape != (RESOLUTION, RESOLUTION):
        raise ValueError(
            f"{path} must be a grayscale 8-bit image of {RESOLUTION}x{RESOLUTION} pixels, got mode {image.mode} and"
            f" {image.width}x{image.height} pixels."
        )
    return torch.from_numpy(pixels)[None]


def convert_images(images: np.ndarray, source: Path) -> torch.Tensor:
    """Converts the images of an `.npz` file (see [`load_samples`]) to uint8 `(num_images, 1, 28, 28)`."""
    shape = images.shape
    if images.ndim == 4 and 1 in (shape[1], shape[3]):
        images = images[:, 0] if shape[1] == 1 else images[..., 0]
    if images.ndim != 3 or images.shape[1:] != (RESOLUTION, RESOLUTION) or not len(images):
        raise ValueError(
            f"The images in {source} must have the shape (num_images, {RESOLUTION}, {RESOLUTION}), got {shape}."
        )
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            raise ValueError(f"{source} contains NaN or infinite pixels. Generate these samples again.")
        if images.min() < 0 or images.max() > 1:
            raise ValueError(
                f"Floating-point pixels in {source} must be in [0, 1], got values from {images.min():.3g} to"
                f" {images.max():.3g}. Scale them, or save uint8 pixels."
            )
        images = (images * 255).round().astype(np.uint8)
    if images.dtype != np.uint8:
        raise ValueError(f"The pixels in {source} must be uint8, or floats in [0, 1], got {images.dtype}.")
    return torch.from_numpy(images.copy())[:, None]
