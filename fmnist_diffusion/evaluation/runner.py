"""Evaluates a pipeline or existing samples and writes `metrics.json` and `report.png`."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.files import write_atomically
from fmnist_diffusion.metadata import weights_hash
from fmnist_diffusion.sampling import Samples, copy_pipeline

from .cas import check_cas, measure_cas
from .config import EvaluationConfig
from .features import cached_features
from .generation import EvaluationSamples, generate_samples
from .processes import Processes
from .provenance import get_device_name, get_versions, tensor_hash
from .reference import Reference
from .report import save_report
from .run_folder import prepare_folder, write_json
from .samples import select_samples
from .verified_tensors import hash_content


DEFAULT_NUM_SAMPLES = 10_000


def evaluate_pipeline(
    pipe: FashionMNISTPipeline,
    folder: Path,
    config: EvaluationConfig,
    *,
    name: str,
    reference: Reference,
    processes: Processes | None = None,
) -> dict[str, Any]:
    r"""
    Generates samples, evaluates them, and writes `metrics.json` and `report.png`.

    Every batch is saved in `folder`. After an interruption, the same call resumes from the saved batches and
    replaces damaged ones.

    Args:
        pipe ([`FashionMNISTPipeline`]): A pipeline for images that `reference` supports; it is not changed.
        folder (`Path`): A new folder, or the folder of an earlier call with the same settings.
        config ([`EvaluationConfig`]): The settings.
        name (`str`): Name of the pipeline in the results.
        reference ([`Reference`]): The real images.
        processes ([`Processes`], *optional*):
            Processes that call this function together to share the work. The results do not depend on their number.

    Returns:
        `dict`: The content of `metrics.json`.

    Raises:
        `ValueError`: If the pipeline does not support the settings or generates images that `reference` does not
            support, if there are too few samples, if a sample has NaN or infinite pixels, if `folder` contains other
            files, or if the real images are not available.
        [`WriteError`]: If a file cannot be written.
    """
    # All arguments are checked before any image is loaded.
    if config.num_samples is not None:
        reference.check_num_samples(config.num_samples)
    config.check_pipeline(pipe)
    reference.check_pipeline(pipe, config.conditional)
    sampling = config.sampling
    pipe = copy_pipeline(pipe, sampling.scheduler)
    pipe.set_progress_bar_config(disable=True)
    num_inference_steps = sampling.num_inference_steps or pipe.config["num_inference_steps"]
    pipe.set_timesteps(num_inference_steps)
    sampling = replace(sampling, scheduler=None, num_inference_steps=num_inference_steps)
    label_names = reference.get_label_names(pipe) if config.conditional else None
    if config.cas:
        check_cas(reference, label_names)
    num_samples = config.num_samples
    if num_samples is None:
        num_samples = len(reference.real_images) if config.cas else DEFAULT_NUM_SAMPLES
        reference.check_num_samples(num_samples)
    config = replace(config, sampling=sampling, num_samples=num_samples)
    conditions = reference.choose_conditions(pipe, num_samples) if config.conditional else {}
    scheduler_config = {key: to_json(value) for key, value in pipe.scheduler.config.items() if key[0] != "_"}
    settings = {
        "source": name,
        "weights_sha256": weights_hash(pipe),
        "num_samples": num_samples,
        "seeds": list(config.seeds),
        "num_inference_steps": num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "guidance_interval": list(sampling.guidance_interval),
        "conditional": config.conditional,
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": scheduler_config,
        "timestep_power": pipe.config["timestep_power"],
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": get_device_name(pipe.unet.device),
        "inception": reference.inception is not None,
        "versions": get_versions(),
        **reference.get_settings(pipe if config.conditional else None),
    }
    if "prompts" in conditions:
        prompts = {name: json.dumps(conditions[name]) for name in ("prompts", "class_labels")}
        settings["prompts_sha256"] = hash_content({}, prompts)
    if config.classifier_guidance_scale != 0:
        settings["classifier_guidance_scale"] = config.classifier_guidance_scale
    processes = processes or Processes()
    runs = (
        generate_samples(pipe, config, seed, conditions, folder / f"seed-{seed}", reference.inception, processes)
        for seed in config.seeds
    )
    return run_evaluation(runs, folder, settings, reference, label_names, config.cas, processes)


def evaluate_samples(
    samples: Samples,
    folder: Path,
    *,
    name: str,
    reference: Reference,
    cas: bool = False,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """
    Evaluates existing samples; see [`evaluate_pipeline`] for the arguments, results and errors.

    The labels of `samples` are indices of the classes of `reference`.
    """
    reference.check_num_samples(len(samples))
    # The samples are shuffled, because some metrics only use the first ones.
    samples = select_samples(samples, len(samples))
    label_names = None if samples.labels is None else reference.label_names
    if cas:
        check_cas(reference, label_names)
    inception = reference.inception
    settings = {
        "source": name,
        "images_sha256": tensor_hash(samples.images),
        "num_samples": len(samples),
        "inception": inception is not None,
        "versions": get_versions(),
        **reference.get_settings(),
    }
    processes = processes or Processes()

    def compute_features() -> Iterator[EvaluationSamples]:
        features = None
        if inception is not None:
            features = cached_features(inception, samples.images, "samples", folder / "features", processes)
        yield EvaluationSamples(samples, features)

    return run_evaluation(compute_features(), folder, settings, reference, label_names, cas, processes)


def run_evaluation(
    runs: Iterable[EvaluationSamples],
    folder: Path,
    settings: dict[str, Any],
    reference: Reference,
    label_names: Sequence[str] | None,
    cas: bool,
    processes: Processes,
) -> dict[str, Any]:
    r"""
    Compares samples with a reference and writes `metrics.json` and, for the first seed, `report.png`.

    Args:
        runs (`Iterable[EvaluationSamples]`):
            The samples of each seed. They are requested after the folder and the reference have been prepared.
        folder (`Path`): Output folder.
        settings (`dict`): Provenance of the samples, which is saved in `settings.json` and `metrics.json`.
        reference ([`Reference`]): The real images.
        label_names (`Sequence[str]`, *optional*): Class names of the samples.
        cas (`bool`): Whether to measure the classification accuracy score for the first seed.
        processes ([`Processes`]): Processes that share the work.

    Returns:
        `dict`: The content of `metrics.json`.

    Raises:
        `ValueError`: If `folder` contains other files, if the real images cannot be used, or if the processes do not
            see the same files.
        [`WriteError`]: If a file cannot be written.
    """
    if processes.is_main_process:
        prepare_folder(folder, settings)
    processes.wait_for_everyone()
    reference.prepare(processes)
    path, metrics, first = folder / "metrics.json", [], None
    # All processes generate samples or compute features. Only the main process measures them.
    for run in runs:
        if processes.is_main_process:
            measurement = reference.measure(run)
            metrics.append(measurement.metrics)
            first = first or measurement
    if first is not None:
        results = {**settings, "metrics": summarize(metrics), **reference.describe()}
        if cas:
            assert label_names is not None
            results["cas"] = measure_cas(first.samples, label_names, reference)
        write_json(path, results)
        with write_atomically(folder / "report.png") as temporary:
            save_report(temporary, results, first, reference.real_images.images, label_names)
    processes.wait_for_everyone()
    return json.loads(path.read_text())


def to_json(value: Any) -> Any:
    """Converts infinite numbers and NaN to strings, because JSON cannot represent them."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """
    Summarizes the results of several seeds.

    Each number is replaced by its mean, its minimum and the values of all seeds. Each list is replaced by its
    element-wise mean. The results of a single seed are not changed.
    """
    if len(results) == 1:
        return results[0]
    summary: dict[str, Any] = {}
    for name, value in results[0].items():
        values = [result[name] for result in results]
        if isinstance(value, dict):
            summary[name] = summarize(values)
        elif isinstance(value, list):
            summary[name] = [sum(column) / len(column) for column in zip(*values, strict=True)]
        else:
            summary[name] = {"mean": sum(values) / len(values), "min": min(values), "seeds": values}
    return summary
