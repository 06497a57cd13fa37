"""Features of images with a cache on disk."""

from pathlib import Path

import torch
from tqdm.auto import tqdm

from .classifier import Classifier
from .inception import InceptionFeatures, cache_dir
from .processes import Processes
from .provenance import tensor_hash
from .verified_tensors import load_verified, save_verified


CHUNK_SIZE = 1000
FeatureExtractor = InceptionFeatures | Classifier


def cached_features(
    extractor: FeatureExtractor,
    images: torch.Tensor,
    progress: str | None = None,
    folder: Path | None = None,
    processes: Processes | None = None,
) -> torch.Tensor:
    """
    Computes features of images, or loads them from a cache with one file for every 1,000 images.

    A damaged file of the cache is replaced.

    Args:
        extractor ([`InceptionFeatures`] or [`Classifier`]): The feature network.
        images (`torch.Tensor`): uint8 images `(num_images, channels, height, width)`.
        progress (`str`, *optional*): Title of a progress bar, which is only shown in a terminal.
        folder (`Path`, *optional*): Folder of the cache. Defaults to a subfolder of [`cache_dir`] for each network.
        processes ([`Processes`], *optional*): Processes that call this function together to share the work.

    Returns:
        `torch.Tensor`: float32 features `(num_images, num_features)` on the CPU.

    Raises:
        `ValueError`: If the processes do not see the same files.
    """
    processes = processes or Processes()
    folder = folder or cache_dir() / "features" / f"{extractor.name}-{extractor.sha256[:12]}"
    chunks = images.split(CHUNK_SIZE)
    # The shape is part of the name, because the same bytes can be images of different shapes.
    shape = "x".join(map(str, images.shape[1:]))
    paths = [folder / f"{shape}-{tensor_hash(chunk)[:16]}.safetensors" for chunk in chunks]
    features = [load_features(path, len(chunk)) for path, chunk in zip(paths, chunks, strict=True)]
    missing = [index for index, found in enumerate(features) if found is None]
    # `Processes.select` waits until all processes have listed the missing files, so that they share the same list.
    with tqdm(
        total=sum(len(chunks[index]) for index in missing),
        desc=progress,
        unit="image",
        disable=None if progress and processes.is_main_process and missing else True,
    ) as bar:
        for index in processes.select(missing):
            computed = extractor(chunks[index])
            save_verified(paths[index], {"features": computed})
            features[index] = computed
            bar.update(len(chunks[index]) * processes.num_processes)
    processes.wait_for_everyone()
    for index in missing:
        if features[index] is None:
            features[index] = load_features(paths[index], len(chunks[index]))
    return torch.cat(processes.check_results(paths, features))


def load_features(path: Path, num_images: int) -> torch.Tensor | None:
    """Reads the features of `num_images` images; returns `None` if the file does not exist or is damaged."""
    loaded = load_verified(path)
    features = None if loaded is None else loaded[0].get("features")
    return features if features is not None and len(features) == num_images else None
