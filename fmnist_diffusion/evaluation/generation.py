"""Generates the samples of an evaluation. Finished batches are saved, so that an interrupted run can be resumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.sampling import Samples, generate, get_max_batch_size

from .config import IMAGES_PER_SEED, EvaluationConfig
from .inception import InceptionFeatures
from .processes import Processes
from .verified_tensors import load_verified, save_verified


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
    def concatenate(batches: "Sequence[EvaluationSamples]") -> "EvaluationSamples":
        """Concatenates samples. Either all or none of the `batches` must have Inception features."""
        features = [batch.inception_features for batch in batches if batch.inception_features is not None]
        return EvaluationSamples(
            Samples.concatenate([batch.samples for batch in batches]), torch.cat(features) if features else None
        )


def save_batch(batch: EvaluationSamples, path: Path) -> None:
    """Writes a batch to a safetensors file atomically, so that interruptions leave no incomplete file at `path`."""
    samples = batch.samples
    tensors = {"images": samples.images, "labels": samples.labels, "inception": batch.inception_features}
    metadata = {
        "num_function_evaluations": str(samples.num_function_evaluations),
        "seconds": str(samples.seconds),
    }
    save_verified(path, {name: tensor for name, tensor in tensors.items() if tensor is not None}, metadata)


def load_batch(path: Path) -> EvaluationSamples | None:
    """Reads a batch that [`save_batch`] wrote; returns `None` if the file does not exist or is damaged."""
    loaded = load_verified(path)
    if loaded is None:
        return None
    tensors, metadata = loaded
    samples = Samples(
        tensors["images"],
        tensors.get("labels"),
        int(metadata["num_function_evaluations"]),
        float(metadata["seconds"]),
    )
    return EvaluationSamples(samples, tensors.get("inception"))


def load_batches(folder: Path) -> Iterator[Samples]:
    """
    Yields the batches of samples that [`evaluate_pipeline`] saved in `folder`, ordered by seed and index.

    Raises:
        `ValueError`: If the folder contains no samples or a damaged file.
    """
    suffixes = [path.name.removeprefix("seed-") for path in folder.glob("seed-*")]
    seeds = sorted(int(suffix) for suffix in suffixes if suffix.isdecimal())
    paths = [path for seed in seeds for path in sorted(folder.glob(f"seed-{seed}/[0-9]*.safetensors"))]
    if not paths:
        raise ValueError(
            f"Could not find any samples in {folder}. Pass the output folder of `fmnist-diffusion evaluate`."
        )
    for path in paths:
        batch = load_batch(path)
        if batch is None:
            raise ValueError(f"Could not read {path}. Run the command that generated the samples again to replace it.")
        yield batch.samples


def generate_samples(
    pipe: FashionMNISTPipeline,
    config: EvaluationConfig,
    seed: int,
    conditions: dict[str, Any],
    folder: Path,
    inception: InceptionFeatures | None,
    processes: Processes,
) -> EvaluationSamples:
    """
    Generates the samples of one seed and computes their Inception features. All `processes` must call this function.

    `config.num_samples` must not be `None`. `conditions` contains the class labels or prompts as keyword arguments of
    [`generate`]. Every batch is saved in `folder` and named by the index of its first image. Existing batches are
    loaded, and damaged ones are replaced. Raises `ValueError` if the processes do not see the same files.
    """
    num_samples = config.num_samples
    assert num_samples is not None
    sampling = replace(config.sampling, seed=seed * IMAGES_PER_SEED)
    batches = plan_batches(folder, num_samples, min(config.batch_size, get_max_batch_size(pipe)))
    missing = [(start, count) for start, count, is_saved in batches if not is_saved]
    # With several processes, the bar of the main process counts the batches of all of them.
    with tqdm(
        total=num_samples,
        initial=num_samples - sum(count for _, count in missing),
        desc=folder.name,
        unit="image",
        disable=None if processes.is_main_process else True,
    ) as bar:
        for start, count in processes.select(missing):
            (samples,) = generate(
                pipe,
                sampling,
                count,
                **conditions,
                batch_size=count,
                start=start,
                classifier_guidance_scale=config.classifier_guidance_scale,
            )
            batch = EvaluationSamples(samples, inception(samples.images) if inception else None)
            save_batch(batch, get_batch_path(folder, start))
            bar.update(min(count * processes.num_processes, num_samples - bar.n))
    processes.wait_for_everyone()
    paths = [get_batch_path(folder, start) for start, _, _ in batches]
    return EvaluationSamples.concatenate(processes.check_results(paths, [load_batch(path) for path in paths]))


def plan_batches(folder: Path, num_samples: int, batch_size: int) -> list[tuple[int, int, bool]]:
    """
    Divides `num_samples` images into batches.

    Returns:
        `list[tuple[int, int, bool]]`: The index of the first image of each batch, its number of images, and whether it
            is already saved in `folder`. Saved batches can have any size, because a run can be resumed with a
            different `batch_size`.
    """
    paths = {int(path.stem): path for path in folder.glob("[0-9]*.safetensors")}
    batches, start = [], 0
    while start < num_samples:
        batch = load_batch(paths[start]) if start in paths else None
        if batch is not None:
            end = start + len(batch.samples)
        else:
            # The next file starts a new batch even if it is damaged, so that it is replaced.
            end = min([start + batch_size, num_samples, *(first for first in paths if first > start)])
        batches.append((start, end - start, batch is not None))
        start = end
    return batches


def get_batch_path(folder: Path, start: int) -> Path:
    return folder / f"{start:07d}.safetensors"
