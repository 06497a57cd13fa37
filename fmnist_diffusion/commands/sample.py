"""The command `fmnist-diffusion sample`."""

import math
import os
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmnist_diffusion.sampling import SamplingConfig

from .options import (
    PIPELINE_HELP,
    BatchSize,
    ClassifierGuidanceScale,
    Device,
    DtypeOrAuto,
    GuidanceInterval,
    GuidanceScale,
    NumInferenceSteps,
    SchedulerName,
    load_for_sampling,
)


if TYPE_CHECKING:
    from PIL.Image import Image

    from fmnist_diffusion import FashionMNISTPipeline

EXAMPLE = "Example: fmnist-diffusion sample --class-labels 'Ankle boot,bag' -n 12"
MAX_GRID_PIXELS = 80_000_000  # An RGB image of this size needs 240 MB of memory.
MAX_LABEL_LENGTH = 40  # characters in a file name
MAX_PATH_LEVELS = 100
MAX_PATH_LENGTH = 200  # characters of a path in a message


def sample(
    pipeline: Annotated[str, typer.Argument(metavar="PIPELINE", help=PIPELINE_HELP)] = "base",
    num_images: Annotated[
        int,
        typer.Option("--num-images", "-n", metavar="N", min=1, max=100_000, help="number of images to generate"),
    ] = 16,
    class_labels: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABELS",
            help="comma-separated class names or indices to generate, cycled through; can be repeated",
            show_default="unconditional samples",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="prompt for a text-conditional pipeline; repeat the option to cycle through prompts"
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="negative prompt for classifier-free guidance; ignored if --guidance-scale is 1",
            show_default="the empty prompt",
        ),
    ] = None,
    num_inference_steps: NumInferenceSteps = SamplingConfig.num_inference_steps,
    scheduler: SchedulerName = SamplingConfig.scheduler,
    guidance_scale: GuidanceScale = SamplingConfig.guidance_scale,
    guidance_interval: GuidanceInterval = SamplingConfig.guidance_interval,
    classifier_guidance_scale: ClassifierGuidanceScale = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="random seed; image i uses seed N + i")] = SamplingConfig.seed,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="image to start from (image-to-image)", show_default="pure noise"),
    ] = None,
    mask_image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="image of the same size as --image: white pixels are inpainted, black pixels are kept",
            show_default="all pixels change",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="fraction of the denoising steps to run; higher values change --image more",
            show_default="0.8, or 1 with --mask-image",
        ),
    ] = None,
    num_resampling_steps: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=100, help="number of times to run each inpainting step (RePaint); higher is slower"
        ),
    ] = 1,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    dtype: DtypeOrAuto = "float32",
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "-o",
            metavar="DIR",
            help="new or empty folder for the images",
            show_default="the next of samples/001, samples/002, ...",
        ),
    ] = None,
    upscale: Annotated[
        int, typer.Option(metavar="N", min=1, max=100, help="integer factor to enlarge the images by")
    ] = 1,
) -> None:
    """Generate images. Each image is saved as a PNG file, and grid.png shows all of them."""
    config = SamplingConfig(scheduler, num_inference_steps, guidance_scale, guidance_interval, seed)
    inputs = {
        "image": read_input(image, "image"),
        "mask_image": read_input(mask_image, "mask_image"),
        "negative_prompt": negative_prompt,
        "strength": strength,
        "num_resampling_steps": num_resampling_steps,
        "classifier_guidance_scale": classifier_guidance_scale,
    }
    # `Path.exists` raises OSError if a name is too long.
    is_new = output_dir is None or not os.path.exists(output_dir)
    folder = make_output_dir(output_dir)
    try:
        pipe = load_for_sampling(pipeline, device, dtype)
        save_images(pipe, config, num_images, class_labels, prompt, inputs, batch_size, upscale, folder)
    finally:
        if is_new:
            # After an error before the first image, this removes the empty folder.
            with suppress(OSError):
                folder.rmdir()
    typer.echo(f"Saved the images and grid.png to {folder}.")


def save_images(
    pipe: "FashionMNISTPipeline",
    config: SamplingConfig,
    num_images: int,
    class_labels: list[str] | None,
    prompts: list[str] | None,
    inputs: dict[str, Any],
    batch_size: int,
    upscale: int,
    folder: Path,
) -> None:
    """
    Generates images and saves each batch as soon as it is complete.

    `inputs` contains the negative prompt, the classifier guidance scale, and the image-to-image and inpainting
    arguments of the pipeline.
    """
    from fmnist_diffusion import images
    from fmnist_diffusion.data import to_pil
    from fmnist_diffusion.sampling import generate

    label_ids = None if class_labels is None else pipe.get_label_ids(split_labels(class_labels, pipe.label_names))
    conditions = label_ids or prompts or []
    if not conditions:
        # Without labels or prompts, `generate` silently ignores the guidance scale, so it is checked here.
        pipe.check_unconditional_guidance(config.guidance_scale)
    check_grid_size(pipe, num_images, upscale)
    columns = len(conditions) if len(conditions) > 1 else math.ceil(math.sqrt(num_images))
    pipe.set_progress_bar_config(disable=None)  # only shown in a terminal
    saved = []
    settings = {"class_labels": label_ids, "prompts": prompts, "batch_size": batch_size, **inputs}
    for samples in generate(pipe, config, num_images, **settings):
        for image in to_pil(samples.images):
            name = f"{len(saved):04d}"
            if conditions:
                name += f"-{get_file_label(pipe.label_names, conditions[len(saved) % len(conditions)])}"
            saved.append(images.upscale(image, upscale))
            save_image(saved[-1], folder / f"{name}.png")
    save_image(images.image_grid(saved, columns), folder / "grid.png")


def normalize(name: str) -> str:
    """Returns a class name in the form in which the pipeline compares names."""
    return unicodedata.normalize("NFC", name.strip().lower())


def split_labels(class_labels: list[str], label_names: Sequence[str] | None) -> list[str]:
    """Splits values of `--class-labels` at commas, unless the whole value is a class name."""
    names = {normalize(name) for name in label_names or ()}
    parts = ([value] if normalize(value) in names else value.split(",") for value in class_labels)
    return [label for values in parts for label in values]


def read_input(path: Path | None, option: str) -> "Image | None":
    if path is None:
        return None

    from fmnist_diffusion.data import read_image
    from fmnist_diffusion.data.errors import ImageError

    try:
        return read_image(path)
    except ImageError as error:
        raise ValueError(f"Could not read {path} ({error.reason}). Pass a different file as `{option}`.") from error


def check_grid_size(pipe: "FashionMNISTPipeline", num_images: int, upscale: int) -> None:
    _, height, width = pipe.image_shape
    maximum = MAX_GRID_PIXELS // (height * width)
    if num_images * upscale**2 > maximum:
        raise ValueError(
            f"`num_images` * `upscale`**2 must be at most {maximum} for images of {height}x{width} pixels, because"
            f" grid.png shows all images, got {num_images} * {upscale}**2. Reduce `num_images` or `upscale`."
        )


def save_image(image: "Image", path: Path) -> None:
    try:
        image.save(path)
    except OSError as error:
        raise ValueError(
            f"Could not write {path} ({error.strerror or error}). Pass a different `output_dir`."
        ) from error


def get_file_label(label_names: Sequence[str] | None, condition: int | str) -> str:
    """Returns the letters and digits of a class name or prompt for use in a file name.

    If there are none, returns the class index or `"prompt"`.
    """
    name = condition if isinstance(condition, str) else label_names[condition] if label_names else ""
    name = unicodedata.normalize("NFC", name.lower())
    # L, M and N are the Unicode categories of letters, marks such as vowel signs, and numbers.
    characters = (character if unicodedata.category(character)[0] in "LMN" else " " for character in name)
    return "-".join("".join(characters).split())[:MAX_LABEL_LENGTH] or (
        "prompt" if isinstance(condition, str) else str(condition)
    )


def make_output_dir(folder: Path | None) -> Path:
    """
    Creates the output folder.

    Args:
        folder (`Path`, *optional*): A new or empty folder. Defaults to the next of samples/001, samples/002, ...

    Raises:
        `ValueError`: If the folder contains files, cannot be created or is not writable.
    """
    # `Path.mkdir` creates parent folders recursively, so too many levels would raise a RecursionError.
    if folder is not None and len(folder.parts) > MAX_PATH_LEVELS:
        raise ValueError(f"`output_dir` must have at most {MAX_PATH_LEVELS} levels, got {len(folder.parts)}.")
    try:
        if folder is None:
            return make_numbered_dir(Path("samples"))
        folder.mkdir(parents=True, exist_ok=True)
        empty = not any(folder.iterdir())
    except OSError as error:
        raise ValueError(
            f"`output_dir` must be a writable folder, got {str(folder or 'samples')[:MAX_PATH_LENGTH]}"
            f" ({error.strerror})."
        ) from error
    if not empty:
        raise ValueError(f"`output_dir` must be a new or empty folder, got {folder}, which contains files.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"`output_dir` must be a writable folder, got {folder}.")
    return folder


def make_numbered_dir(parent: Path) -> Path:
    """Creates the first folder of `parent`/001, `parent`/002, ... that does not exist."""
    parent.mkdir(parents=True, exist_ok=True)
    # An existing folder is skipped even if it is empty, because another run may be using it.
    number = 1
    while True:
        path = parent / f"{number:03d}"
        with suppress(FileExistsError):
            path.mkdir()
            return path
        number += 1
