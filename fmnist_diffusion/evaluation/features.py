"""Features of images with a cache on disk."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from .classifier import Classifier
from .files import write_atomically
from .inception import InceptionFeatures, cache_dir
from .provenance import images_hash


CHUNK_SIZE = 1000
FeatureExtractor = InceptionFeatures | Classifier


def cached_features(
    extractor: FeatureExtractor, images: torch.Tensor, progress: str | None = None, folder: Path | None = None
) -> torch.Tensor:
    """
    Computes features of images, or loads them from a cache with one file for every 1,000 images.

    Args:
        extractor ([`InceptionFeatures`] or [`Classifier`]): The feature network.
        images (`torch.Tensor`): uint8 images `(num_images, 1, height, width)`.
        progress (`str`, *optional*): Title of a progress bar, which is only shown in a terminal.
        folder (`Path`, *optional*): Folder of the cache. Defaults to a subfolder of [`cache_dir`] for each network.

    Returns:
        `torch.Tensor`: float32 features `(num_images, num_features)` on the CPU.
    """
    folder = folder or cache_dir() / "features" / f"{extractor.name}-{extractor.sha256[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    features = []
    with tqdm(total=len(images), desc=progress, unit="image", disable=None if progress else True) as bar:
        for chunk in images.split(CHUNK_SIZE):
            path = folder / f"{images_hash(chunk)[:16]}.safetensors"
            if path.is_file():
                features.append(load_file(path)["features"])
            else:
                features.append(extractor(chunk))
                with write_atomically(path) as temporary:
                    save_file({"features": features[-1]}, temporary)
            bar.update(len(chunk))
    return torch.cat(features)


def to_pixel_vectors(images: torch.Tensor) -> torch.Tensor:
    """Converts uint8 images to float32 vectors `(num_images, height * width)` in [0, 1]."""
    return images.flatten(1).float() / 255
