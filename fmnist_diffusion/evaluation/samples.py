"""Where the samples to measure come from: a pipeline that draws them, a folder of pictures, or an `.npz` file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fmnist_diffusion.data import to_uint8


RESOLUTION = 28
IMAGES_PER_SEED = 2**20
# What `sample` and `evaluate` write beside samples.
NO_SAMPLES = ("grid.png", "report.png")


@dataclass
class Samples:
    """Samples and what they cost.

    Attributes:
        images (`torch.Tensor`): uint8 pixels `(num_images, 1, 28, 28)`.
        labels (`torch.Tensor`, *optional*): The classes that they were asked to be of, int64 `(num_images,)`.
        evaluations (`int`): How often the network was evaluated, one image at a time.
        seconds (`float`): How long drawing took.
        inception (`torch.Tensor`, *optional*): Their Inception features, float32 `(num_images, 2048)`.
    """

    images: torch.Tensor
    labels: torch.Tensor | None = None
    evaluations: int = 0
    seconds: float = 0.0
    inception: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def joined(cls, parts: "Sequence[Samples]") -> "Samples":
        """All of `parts` in a row; what one of them lacks, they lack together."""

        def join(tensors: "list[torch.Tensor | None]") -> torch.Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(present) if len(present) == len(tensors) else None

        return cls(
            torch.cat([part.images for part in parts]),
            join([part.labels for part in parts]),
            sum(part.evaluations for part in parts),
            sum(part.seconds for part in parts),
            join([part.inception for part in parts]),
        )


@dataclass(frozen=True)
class SamplingSettings:
    """How a pipeline draws, in the words of its call.

    Attributes:
        num_inference_steps (`int`): Denoising steps.
        guidance_scale (`float`): Classifier-free guidance; 1 is none.
        guidance_interval (`tuple[float, float]`): The part of the steps that is guided.
        conditional (`bool`): Draw the classes in turn, rather than with no label.
    """

    num_inference_steps: int = 20
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    conditional: bool = False


def draw(pipe: Any, settings: SamplingSettings, start: int, count: int, seed: int = 0) -> Samples:
    """Draws the images `start` to `start + count` of the endless row that `seed` makes, the same in any batches.

    Image i starts from the noise of the generator that is seeded with `seed * 2**20 + i`, and is of class i modulo the
    number of classes. (Of a seed, torch's generator on the CPU heeds the lower 32 bits only.)
    """
    indices = range(start, start + count)
    labels = [i % pipe.unet.config.num_class_embeds for i in indices] if settings.conditional else None
    evaluations = 0

    def count_evaluations(_, args: tuple, kwargs: dict) -> None:
        nonlocal evaluations
        evaluations += len(args[0] if args else kwargs["sample"])

    hook = pipe.unet.register_forward_pre_hook(count_evaluations, with_kwargs=True)
    began = time.perf_counter()
    try:
        images = pipe(
            class_labels=labels,
            num_images_per_prompt=1 if labels else count,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            guidance_interval=settings.guidance_interval,
            generator=[torch.Generator().manual_seed(seed * IMAGES_PER_SEED + i) for i in indices],
            output_type="latent",
        ).images
        pixels = to_uint8(images).cpu()
    finally:
        hook.remove()
    seconds = time.perf_counter() - began
    return Samples(pixels, None if labels is None else torch.tensor(labels), evaluations, seconds)


def draw_all(pipe: Any, settings: SamplingSettings, num_samples: int, batch_size: int, seed: int = 0) -> Samples:
    """[`draw`]s the first `num_samples` images of `seed`, a batch at a time."""
    starts = range(0, num_samples, batch_size)
    return Samples.joined(
        [draw(pipe, settings, start, min(batch_size, num_samples - start), seed) for start in starts]
    )


def load_samples(path: Path, num_samples: int | None = None) -> Samples:
    """Reads samples from an `.npz` file or from all PNGs of a folder, in the order of their names.

    Args:
        path (`Path`):
            A folder of grey 28x28 PNGs, in subfolders or not; or an `.npz` file with `images` (or else its only array)
            and perhaps `labels`. Images are uint8, or floats in [0, 1], of shape `(num_images, 28, 28)`, with one
            channel before or behind or none.
        num_samples (`int`, *optional*): Take the first so many only.

    Raises:
        `ValueError`: there is nothing to read, or not of that kind; the message says what.
    """
    samples = read_folder(path) if path.is_dir() else read_npz(path)
    if num_samples is None:
        return samples
    if num_samples > len(samples):
        raise ValueError(f"{path} has {len(samples)} images, not {num_samples}: give a smaller --num-samples")
    labels = None if samples.labels is None else samples.labels[:num_samples]
    return Samples(samples.images[:num_samples], labels)


def read_folder(path: Path) -> Samples:
    pictures = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".png")
    pictures = [file for file in pictures if file.name not in NO_SAMPLES]
    if not pictures:
        raise ValueError(f"{path} holds no PNG: give a folder of pictures, an .npz file or a pipeline")
    return Samples(torch.stack([read_picture(file) for file in pictures]))


def read_npz(path: Path) -> Samples:
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"{path} is no pipeline, no folder of pictures and no .npz file: give one of these")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    # At a broken file, NumPy and the modules beneath it raise what they like.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}): write it with numpy.savez") from error
    name = "images" if "images" in arrays else next(iter(arrays), "images")
    if name not in arrays or (name != "images" and len(arrays) > 1):
        raise ValueError(f"{path} has no array of the name images: add it")
    images = check_images(arrays[name], str(path))
    labels = arrays.get("labels")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise ValueError(f"the labels of {path} are not one whole number for each of {len(images)} images: mend them")
    if labels is not None and not (labels.min() >= 0 and labels.max() < 10):
        raise ValueError(f"the labels of {path} are not in 0 to 9: give the classes of Fashion-MNIST")
    return Samples(images, None if labels is None else torch.from_numpy(labels.astype(np.int64)))


def read_picture(path: Path) -> torch.Tensor:
    try:
        with Image.open(path) as picture:
            picture.load()
            pixels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it or write it anew") from error
    if pixels.ndim == 3 and pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if picture.mode not in ("L", "RGB") or pixels.shape != (RESOLUTION, RESOLUTION):
        raise ValueError(
            f"{path} is {picture.mode} of {picture.width}x{picture.height}: give grey 8-bit pictures of"
            f" {RESOLUTION}x{RESOLUTION}"
        )
    return torch.from_numpy(pixels.copy())[None]


def check_images(images: np.ndarray, source: str) -> torch.Tensor:
    """Returns `images` as uint8 `(num_images, 1, 28, 28)`; raises `ValueError` where they are not such images."""
    shape = images.shape
    if images.ndim == 4 and 1 in (shape[1], shape[3]):
        images = images[:, 0] if shape[1] == 1 else images[..., 0]
    if images.ndim != 3 or images.shape[1:] != (RESOLUTION, RESOLUTION) or not len(images):
        raise ValueError(f"the images of {source} have the shape {shape}: give (num_images, 28, 28)")
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            raise ValueError(f"{source} has pixels that are not finite: draw these samples again")
        if images.min() < 0 or images.max() > 1:
            raise ValueError(
                f"the pixels of {source} go from {images.min():.3g} to {images.max():.3g}: give floats in [0, 1], or"
                " uint8"
            )
        images = (images * 255).round().astype(np.uint8)
    if images.dtype != np.uint8:
        raise ValueError(f"the pixels of {source} are {images.dtype}: give uint8, or floats in [0, 1]")
    return torch.from_numpy(images.copy())[:, None]
