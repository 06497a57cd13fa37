"""The command `fmnist-diffusion likelihood`."""

from pathlib import Path
from typing import Annotated

import typer

from fmnist_diffusion.sampling import MAX_SEED

from .command import EVALUATION_PACKAGES, check_packages, import_libraries, report_resumable_interruption
from .options import (
    PIPELINE_HELP,
    BatchSize,
    Device,
    load_for_sampling,
    make_data_dir_option,
    make_output_dir_option,
)


EXAMPLE = "Example: fmnist-diffusion likelihood base --num-images 500"


def likelihood(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help=PIPELINE_HELP)],
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", metavar="N", min=2, help="number of test images to measure")
    ] = 2000,
    num_steps: Annotated[
        int, typer.Option(metavar="N", min=1, help="number of Runge-Kutta steps, with four function evaluations each")
    ] = 20,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="measure the likelihood without labels")
    ] = False,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=MAX_SEED, help="random seed; image i uses seed N + i")
    ] = 0,
    batch_size: BatchSize = 100,
    device: Device = "auto",
    train_data_dir: Annotated[str | None, make_data_dir_option("local dataset, whose test split is measured")] = None,
    output_dir: Annotated[Path | None, make_output_dir_option("likelihood/NAME")] = None,
) -> None:
    """
    Measure the likelihood of test images in bits per dimension.

    The likelihood is computed with the probability-flow ODE, the Skilling-Hutchinson trace estimator and uniform
    dequantization. Class-conditional models use the labels of the images. Run the same command again to resume an
    interrupted run, or with a larger `--num-images` to add images.
    """
    check_packages("The evaluation", EVALUATION_PACKAGES, "eval")
    import_libraries()
    from fmnist_diffusion import evaluation
    from fmnist_diffusion.data import load_images
    from fmnist_diffusion.loading import get_short_name, make_file_name

    name = get_short_name(Path(pipeline))
    folder = output_dir or Path("likelihood", make_file_name(name))
    pipe = load_for_sampling(pipeline, device, "float32")
    evaluation.check_likelihood(pipe)
    channels, height, width = pipe.image_shape
    images = load_images(split="test", train_data_dir=train_data_dir, resolution=(height, width), channels=channels)
    with report_resumable_interruption():
        result = evaluation.measure_likelihood(
            pipe,
            images,
            folder,
            name=name,
            conditional=pipe.unet.config.num_class_embeds is not None and not unconditional,
            num_images=num_images,
            num_steps=num_steps,
            seed=seed,
            batch_size=batch_size,
        )
    typer.echo(f"Bits per dimension  {result['bits_per_dim']:.3f}")
    typer.echo(f"Standard error      {result['standard_error']:.3f}")
    typer.echo(f"Images              {result['num_images']:,}")
    typer.echo(f"NFE per image       {result['num_function_evaluations']}")
    typer.echo(f"Saved likelihood.json to {folder}.")
