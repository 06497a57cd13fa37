"""Text about the training images and the settings of a run."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusers import AutoencoderKL

from adaptation import find_old_labels
from batches import count_batches
from config import DataConfig, ResolvedConfig, TrainingConfig
from fmnist_diffusion.data import FASHION_MNIST_LABELS, DataSummary, get_height_width, has_fashion_mnist_order
from fmnist_diffusion.data.errors import list_names
from fmnist_diffusion.metadata import format_count
from launch_environment import get_num_processes
from machine import get_device_type
from milestones import describe_run_length
from model import get_sample_shape
from pretrained import PretrainedPipeline


MAX_NAMES = 8
MAX_PATHS = 3
LABEL_WIDTH = 12
CLASSES_REMOVED = "classes removed"


def format_line(label: str, text: str) -> str:
    return f"{label:<{LABEL_WIDTH}} {text}"


def format_size(size: Sequence[int]) -> str:
    """Formats a height and a width."""
    return f"{size[0]}x{size[1]}"


def describe_images(config: DataConfig, summary: DataSummary) -> list[str]:
    """Returns lines about the training images."""
    sizes = [
        format_size(size) if len(summary.sizes) == 1 else f"{format_size(size)} ({count:,})"
        for size, count in sorted(summary.sizes.items(), key=lambda item: -item[1])
    ]
    colors = "RGB" if summary.channels == 3 else "grayscale"
    lines = [
        format_line(
            "images",
            f"{format_count(summary.num_images, f'{colors} image')} from"
            f" {config.train_data_dir or config.dataset_name}",
        ),
        format_line("sizes", f"{list_names(sizes, MAX_NAMES)}, height x width in pixels"),
    ]
    if summary.num_transparent:
        text = f"{format_count(summary.num_transparent, 'image')} with transparent pixels, which become white"
        lines.append(format_line("transparency", text))
    if summary.label_names is None or summary.class_counts is None:
        lines.append(format_line("classes", "none"))
    else:
        counts = zip(summary.label_names, summary.class_counts, strict=True)
        names = list_names([f"{name} ({count:,})" for name, count in counts], MAX_NAMES)
        lines.append(format_line("classes", f"{len(summary.label_names):,}: {names}"))
    if summary.skipped:
        lines.append(format_line("skipped", describe_skipped(config.train_data_dir, summary.skipped)))
    return lines


def find_class_warnings(config: TrainingConfig, model: Mapping[str, Any], summary: DataSummary) -> Iterator[str]:
    """Yields warnings about classes that have no training images or that are not those of Fashion-MNIST.

    Args:
        config: The run.
        model: The arguments of the model.
        summary: The training images.
    """
    if summary.label_names is None or summary.class_counts is None:
        return
    counts = zip(summary.label_names, summary.class_counts, strict=True)
    missing = [name for name, count in counts if count == 0]
    if missing and model.get("num_class_embeds") is not None:
        yield (
            f"There are no training images of {list_names(missing, MAX_NAMES)}, so the model cannot learn these"
            " classes. Remove them from the dataset, or increase `--data.max_train_samples`, which only keeps the"
            " first images."
        )
    # With other classes, a class-conditional model cannot be evaluated at all.
    is_evaluated = model.get("num_class_embeds") is None or has_fashion_mnist_order(summary.label_names)
    if config.eval.every_n_epochs is not None and summary.label_names != FASHION_MNIST_LABELS and is_evaluated:
        yield (
            "`--eval.every_n_epochs` compares the samples with Fashion-MNIST, whose classes have other names. For"
            " other images, pass --eval.every_n_epochs=null."
        )


def describe_skipped(folder: str | None, skipped: Sequence[tuple[str, str]]) -> str:
    """Returns the number of skipped files and, for each reason, the first paths, relative to `folder`."""
    paths: dict[str, list[str]] = {}
    for path, reason in skipped:
        paths.setdefault(reason, []).append(path if folder is None else os.path.relpath(path, folder))
    reasons = "; ".join(f"{list_names(group, MAX_PATHS)} ({reason})" for reason, group in paths.items())
    return f"{format_count(len(skipped), 'file')}: {reasons}"


def describe_run(
    config: ResolvedConfig,
    changes: Sequence[str] | None,
    parameters: Mapping[str, int],
    summary: DataSummary,
    vae: AutoencoderKL | None,
) -> list[str]:
    """Returns lines about the model, the training and the machine.

    `changes` are those of [`describe_changes`], or `None` for a run from scratch.
    """
    channels, *size = config.data.image_shape
    colors = "RGB" if channels == 3 else "grayscale"
    num_classes = config.model.get("num_class_embeds")
    classes = "unconditional" if num_classes is None else format_count(num_classes, "class", "classes")
    num_layers = config.text_encoder.num_hidden_layers
    if num_layers is not None:
        classes = f"text encoder with {format_count(num_layers, 'layer')}"
    source = "from scratch" if config.init_from is None else f"initialized from {config.init_from}"
    num_batches = count_batches(summary.num_images, config.train_batch_size, config.gradient_accumulation_steps)
    steps = config.get_total_steps(num_batches)
    images = steps * config.images_per_step
    scheduler, objective = config.scheduler, config.objective
    loss = f"{objective.timestep_sampling} timesteps, {objective.loss_type} loss"
    if config.distillation.num_segments is not None:
        loss = f"consistency distillation with {format_count(config.distillation.num_segments, 'segment')}"
        if config.distillation.adversarial_weight > 0:
            loss += f", adversarial loss with weight {config.distillation.adversarial_weight:g}"
    schedule = f"{scheduler.beta_schedule} noise schedule"
    if scheduler.prediction_type == "flow_prediction":
        schedule = f"flow matching with shift {scheduler.shift:g}"
    lines = [
        format_line("model", f"{describe_parameters(parameters)}, {source}"),
        format_line("samples", f"{format_size(size)} pixels, {colors}, {classes}"),
    ]
    shape = get_sample_shape(config.data, vae)
    if vae is not None:
        lines.append(format_line("latents", f"{format_size(shape[1:])}, {shape[0]} channels, from {config.vae}"))
    if changes is not None:
        lines.append(format_line("adapted", ", ".join(changes) or "nothing"))
    lines += [
        format_line(
            "objective",
            f"{scheduler.prediction_type}, {schedule} with {format_count(scheduler.num_train_timesteps, 'timestep')},"
            f" {loss}",
        ),
        format_line("machine", describe_machine(config)),
        format_line("length", describe_length(config, num_batches, steps, images)),
        format_line("", describe_run_length(images, config)),
    ]
    return lines


def describe_parameters(parameters: Mapping[str, int]) -> str:
    """Describes the numbers of parameters of the components of a run."""
    # The tokenizer has not been trained yet, so only the maximum size of its vocabulary is known.
    names = {"unet": "U-Net with", "text_encoder": "text encoder with at most", "vae": "autoencoder with"}
    unet, *others = (f"{names[name]} {count / 1e6:.2f} M" for name, count in parameters.items())
    return ", ".join([f"{unet} parameters", *others])


def describe_machine(config: ResolvedConfig) -> str:
    processes = format_count(get_num_processes(), "process", "processes")
    precision = {None: "precision of accelerate launch", "no": "float32"}.get(
        config.mixed_precision, str(config.mixed_precision)
    )
    return f"{get_device_type()}, {processes}, {precision}, {'compiled' if config.compile else 'not compiled'}"


def describe_length(config: ResolvedConfig, num_batches: int, steps: int, images: int) -> str:
    epochs, batches = format_count(config.num_epochs, "epoch"), format_count(num_batches, "batch", "batches")
    batch = format_count(config.train_batch_size, "image")
    return f"{epochs} of {batches} of {batch}: {format_count(steps, 'step')}, {format_count(images, 'image')}"


def describe_changes(
    config: ResolvedConfig,
    pretrained: PretrainedPipeline,
    shape: tuple[int, int, int],
    label_names: tuple[str, ...] | None,
) -> list[str]:
    """Returns the differences between the new model and the pretrained one."""
    old = pretrained.model
    channels, *size = shape
    old_size = list(get_height_width(old["sample_size"]))
    changes = []
    if config.text_encoder.enabled and pretrained.pipe.text_encoder is None:
        changes.append("text encoder added")
    if old_size != size:
        changes.append(f"size {format_size(old_size)} to {format_size(size)}")
    if old["in_channels"] != channels:
        changes.append(f"channels {old['in_channels']} to {channels}")
    if config.model["num_class_embeds"] is None:
        if old["num_class_embeds"] is not None:
            changes.append(CLASSES_REMOVED)
    elif old["num_class_embeds"] is None:
        changes.append("classes added")
    else:
        old_labels = find_old_labels(old["label_names"], old["num_class_embeds"], label_names or ())
        num_new = old_labels.count(None)
        if num_new:
            changes.append(format_count(num_new, "new class", "new classes"))
    return changes
