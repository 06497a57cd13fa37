"""Chooses the settings of a run that depend on the images, the pipeline to fine-tune and the machine."""

import importlib.util
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, LCMScheduler

from autoencoder import check_image_shape, load_vae
from batches import check_batch_size, count_batches
from captions import MISSING_CAPTIONS, can_be_captioned
from checkpoint import find_resumed_checkpoint
from checks import check_model_size, format_problems, format_value
from config import (
    DataConfig,
    ResolvedConfig,
    TrainingConfig,
    count_steps,
    get_saved_settings_path,
    read_saved_settings,
)
from fmnist_diffusion import FashionMNISTUNet2DModel
from fmnist_diffusion.data import DataSummary, get_height_width
from fmnist_diffusion.metadata import flatten
from fmnist_diffusion.sampling import copy_pipeline
from launch_environment import get_num_processes, is_main_process
from machine import (
    can_compile,
    choose_batch_size,
    choose_compile,
    choose_mixed_precision,
    get_device_type,
)
from milestones import get_num_images_needed
from model import get_sample_shape, make_model_config, make_run_pipeline
from noise_schedule import get_betas, make_noise_scheduler
from pretrained import PretrainedPipeline, load_pretrained
from publishing import check_token
from settings import DATA_OPTIONS
from summary import CLASSES_REMOVED, describe_changes, describe_images, describe_run, find_class_warnings
from text_model import check_num_heads, count_text_encoder_parameters, get_hidden_size
from tracking import get_log_with
from training_images import inspect_training_images


logger = logging.getLogger("training")

# ResolvedConfig redeclares the settings that may be auto.
AUTO_SETTINGS = tuple(ResolvedConfig.__annotations__)
# With the value auto, a run saves about this many sample grids and exports the pipeline about this many times.
NUM_OUTPUTS = 10


@dataclass
class Problems:
    """Errors that are reported together, and warnings about ignored settings and images."""

    errors: list[str]
    warnings: list[str]

    @contextmanager
    def collect(self, section: str | None = None) -> Iterator[None]:
        """Adds a `ValueError` to the errors, with the name of the section of the settings, instead of raising it."""
        try:
            yield
        except ValueError as error:
            self.errors.append(f"{section}: {error}" if section else str(error))

    def raise_errors(self) -> None:
        if self.errors:
            raise ValueError(format_problems(self.errors))


def resolve_config(config: TrainingConfig) -> ResolvedConfig:
    """Chooses the settings that are null or auto, and logs a summary of the images and the run.

    A resumed run keeps the values that were chosen for auto. If `max_train_steps` has changed, the number of epochs
    and the output intervals are chosen again.

    Raises:
        `ValueError`: If settings contradict each other, the images or the pipeline to fine-tune. One message lists
            all contradictions.
        `OSError`: If the pipeline to fine-tune cannot be read.
    """
    # 1. settings that contradict the machine, each other or the pipeline to fine-tune
    problems = Problems([], [])
    distills = config.distillation.enabled
    if distills and config.scheduler.prediction_type == "epsilon" and config.mixed_precision in (None, "auto"):
        # At high noise levels, x0 is the predicted noise divided by almost zero, which amplifies rounding errors.
        config = replace(config, mixed_precision="no")
    check_environment(config, problems)
    if config.resume is not None:
        config = restore_auto_settings(config)
        if is_resolved(config):
            check_evaluation(config, config.data, config.model, problems)
            problems.raise_errors()
            return ResolvedConfig(**vars(config))
    with problems.collect():
        find_resumed_checkpoint(config)
    pretrained = load_pretrained(config.init_from) if config.init_from else None
    vae = load_vae(config.vae)
    if pretrained is not None:
        check_pretrained_settings(config, pretrained, problems)
        if isinstance(pretrained.pipe.scheduler, LCMScheduler):
            effect = "Fine-tuning does not preserve the distillation, so the new pipeline will need more steps."
            advice = f"fine-tune the teacher of {config.init_from}, and distill the result with distill.py."
            if config.distillation.enabled:
                effect = "Its predictions do not follow the probability flow ODE, so it is a poor teacher."
                advice = f"distill the teacher of {config.init_from}."
            problems.warnings.append(f"{config.init_from} is a distilled pipeline. {effect} Instead, {advice}")
        if pretrained.pipe.classifier is not None:
            problems.warnings.append(
                f"The new pipeline does not contain the classifier of {config.init_from}. To train a new one, run"
                " training/train_guidance_classifier.py."
            )

    # 2. images
    summary = None
    # Local images are inspected in any case, so that all problems are reported together.
    if not problems.errors or config.data.train_data_dir is not None:
        with problems.collect():
            summary = inspect_training_images(config, pretrained)
    if summary is None:
        problems.raise_errors()
    assert summary is not None
    data = resolve_data(config.data, summary, problems)
    model = resolve_model(config, pretrained, summary, problems)
    # The labels of a text-conditional model are optional; the captions of Fashion-MNIST are generated from them.
    uses_labels = config.text_encoder.enabled and summary.label_names is not None
    if model.get("num_class_embeds") is None and not uses_labels:
        data = replace(data, label_column="none")
    check_captions(config, data, pretrained, summary, problems)
    parameters = check_model(config, model, data, summary, vae, problems)
    check_evaluation(config, data, model, problems)
    problems.warnings += find_class_warnings(config, model, summary)

    # 3. machine and length of the run
    settings = resolve_length(config, data, summary, vae, problems)
    problems.raise_errors()
    resolved = ResolvedConfig(**(vars(config) | settings | {"data": data, "model": model}))
    changes = None
    if pretrained is not None:
        changes = describe_changes(resolved, pretrained, get_sample_shape(data, vae), summary.label_names)
    # Without its classes, a teacher makes the same predictions as for the null label.
    unknown = [change for change in changes or () if change != CLASSES_REMOVED]
    if unknown and config.distillation.enabled:
        raise ValueError(
            f"{config.init_from} was not trained on such images ({', '.join(unknown)}), so it cannot be the teacher."
            " Fine-tune it on these images with train.py first."
        )
    run_lines = describe_run(resolved, changes, parameters, summary, vae)
    for line in (*describe_images(config.data, summary), *run_lines):
        logger.info(line)
    for warning in problems.warnings:
        logger.warning("Warning: %s", warning)
    return resolved


def restore_auto_settings(config: TrainingConfig) -> TrainingConfig:
    """Replaces auto with the values of the run to resume. If `max_train_steps` has changed, the number of epochs and
    the output intervals stay auto.
    """
    assert config.resume is not None
    path = get_saved_settings_path(config.resume, config.output_dir)
    if not path.is_file():
        return config
    saved = read_saved_settings(path)
    names = [name for name in AUTO_SETTINGS if getattr(config, name) == "auto"]
    if "num_epochs" in names and config.max_train_steps != saved["max_train_steps"]:
        names = [name for name in names if name not in ("num_epochs", "save_images_epochs", "save_model_epochs")]
    return replace(config, **{name: saved[name] for name in names})


def is_resolved(config: TrainingConfig) -> bool:
    data = config.data
    return (
        all(getattr(config, name) != "auto" for name in AUTO_SETTINGS)
        and data.resolution is not None
        and data.channels is not None
    )


def check_environment(config: TrainingConfig, problems: Problems) -> None:
    """Checks the packages, the compiler and the token that settings require."""
    with problems.collect():
        get_log_with(config.report_to)
    # Only the main process pushes.
    if is_main_process():
        with problems.collect():
            check_token(config)
    if config.eval.every_n_epochs is not None:
        try:
            # Only this option requires the packages of the evaluation.
            importlib.import_module("validation")
        except ImportError as error:
            problems.errors.append(
                f"`--eval.every_n_epochs` requires {error.name}. Run `pip install 'fmnist-diffusion[eval]'`."
            )
    if config.text_encoder.enabled and importlib.util.find_spec("transformers") is None:
        problems.errors.append("A text encoder requires transformers. Run `pip install 'fmnist-diffusion[text]'`.")
    if config.compile is True and get_device_type() == "cpu" and not can_compile():
        problems.errors.append(
            "`--compile` requires g++ and Python's headers. Run `apt-get install g++ python3-dev`, or pass"
            " --compile=false."
        )


def check_pretrained_settings(config: TrainingConfig, pretrained: PretrainedPipeline, problems: Problems) -> None:
    """Checks the settings of the model, the text encoder and the noise schedule that fine-tuning cannot change."""
    settings = dict(flatten(asdict(config)))
    expected = pretrained.get_fixed_settings() | {"vae": None if pretrained.pipe.vae is None else config.init_from}
    contradictions = [name for name, value in settings.items() if value != expected.get(name, value)]
    problems.errors += [
        f"`--{name}` must be {format_value(expected[name])} to fine-tune {config.init_from}, got"
        f" {format_value(settings[name])}."
        for name in contradictions
    ]
    if not contradictions and get_betas(make_noise_scheduler(config.scheduler)) != pretrained.betas:
        problems.errors.append(
            f"The noise schedule of {config.init_from} has custom betas, which the trainer does not support. Pass a"
            " different `--init_from`."
        )


def resolve_data(config: DataConfig, summary: DataSummary, problems: Problems) -> DataConfig:
    """Sets the resolution and the number of channels, and warns if images are changed considerably."""
    height, width = get_height_width(config.resolution or summary.resolution)
    channels = summary.channels if config.channels is None else config.channels
    if channels == 1 and summary.channels == 3:
        problems.warnings.append("The colors are dropped, because `--data.channels` is 1.")
    num_cropped = sum(count for (h, w), count in summary.sizes.items() if h * width != w * height)
    if num_cropped:
        problems.warnings.append(
            f"Images whose aspect ratio differs from that of {height}x{width} are center-cropped ({num_cropped:,} of"
            f" {summary.num_images:,}). Set `--data.resolution` to change the size."
        )
    return replace(config, resolution=height if height == width else (height, width), channels=channels)


def resolve_model(
    config: TrainingConfig, pretrained: PretrainedPipeline | None, summary: DataSummary, problems: Problems
) -> dict[str, Any]:
    """Returns the arguments of the model, without those that the images determine."""
    num_classes = None if summary.label_names is None else len(summary.label_names)
    model = dict(config.model)
    if pretrained is not None:
        model = {name: value for name, value in pretrained.model.items() if name not in DATA_OPTIONS}
        if not config.distillation.enabled:
            model["num_class_embeds"] = None if config.text_encoder.enabled else num_classes
        model |= config.model
    num_class_embeds = model.get("num_class_embeds")
    if num_class_embeds is not None and num_classes is None:
        problems.errors.append(
            "A class-conditional model requires images with labels. Set `--data.label_column`, or pass"
            " --model.num_class_embeds=null."
        )
    elif num_class_embeds is not None and num_class_embeds != num_classes:
        problems.errors.append(
            f"`--model.num_class_embeds` must be the number of classes of the images ({num_classes}), got"
            f" {num_class_embeds}. Pass --model.num_class_embeds={num_classes}."
        )
    elif num_class_embeds is None and num_classes is not None and not config.text_encoder.enabled:
        problems.warnings.append(
            f"The labels are ignored, because the model is unconditional. Pass --model.num_class_embeds={num_classes}"
            " to train a class-conditional model."
        )
    return model


def check_model(
    config: TrainingConfig,
    model: dict[str, Any],
    data: DataConfig,
    summary: DataSummary,
    vae: AutoencoderKL | None,
    problems: Problems,
) -> dict[str, int]:
    """Checks the arguments of the model and the sampling settings.

    Returns the number of parameters of `unet` and, if the run has them, of `text_encoder` and `vae`.
    """
    label_names = summary.label_names
    if label_names is None or len(label_names) != model.get("num_class_embeds"):
        # The errors already contain this problem.
        label_names = None
    if vae is not None:
        with problems.collect():
            check_image_shape(data, vae)
    shape = get_sample_shape(data, vae)
    try:
        # The meta device does not allocate the weights.
        with torch.device("meta"):
            unet = FashionMNISTUNet2DModel(**make_model_config(model, shape, label_names, config.text_encoder))
    except (TypeError, ValueError) as error:
        problems.errors.append(f"model: {error}")
        return {}
    parameters = {"unet": unet.num_parameters()}
    if config.text_encoder.enabled:
        parameters["text_encoder"] = count_text_encoder_parameters(config.text_encoder, get_hidden_size(unet))
    with problems.collect():
        check_model_size(sum(parameters.values()))
    if vae is not None:
        parameters["vae"] = vae.num_parameters()
    if config.text_encoder.enabled:
        with problems.collect():
            check_num_heads(config.text_encoder, unet)
        if data.streaming:
            problems.errors.append("`--data.streaming` must be false with a text encoder, got true.")
    pipe = make_run_pipeline(config, unet, make_noise_scheduler(config.scheduler), vae)
    sections = {"samples": config.samples} | ({"eval": config.eval} if config.eval.every_n_epochs else {})
    for section, sampling in sections.items():
        with problems.collect(section):
            copy = copy_pipeline(pipe, sampling.scheduler)
            copy.set_timesteps(sampling.num_inference_steps or copy.config["num_inference_steps"])
    return parameters


def check_captions(
    config: TrainingConfig,
    data: DataConfig,
    pretrained: PretrainedPipeline | None,
    summary: DataSummary,
    problems: Problems,
) -> None:
    """Checks that the images of a text-conditional model have captions, or that captions can be generated.

    Warns if another model ignores captions.
    """
    if not config.text_encoder.enabled:
        if summary.has_captions and not config.distillation.enabled:
            problems.warnings.append(
                "The captions are ignored, because the model has no text encoder. Use training/configs/text.yaml or"
                " --init_from=text to train a text-to-image model."
            )
        return
    if summary.has_captions or can_be_captioned(summary.label_names, data.image_shape):
        return
    # Fine-tuning cannot remove a text encoder.
    is_pretrained = pretrained is not None and pretrained.pipe.text_encoder is not None
    setting = "--init_from=base" if is_pretrained else "--text_encoder.num_hidden_layers=null"
    problems.errors.append(f"{MISSING_CAPTIONS} To train without captions, pass {setting}.")


def check_evaluation(config: TrainingConfig, data: DataConfig, model: dict[str, Any], problems: Problems) -> None:
    """Checks that the metrics of Fashion-MNIST apply to the samples, if evaluation is enabled."""
    if config.eval.every_n_epochs is None:
        return
    if (data.channels, data.resolution) != (1, 28) or model.get("num_class_embeds") not in (None, 10):
        problems.errors.append(
            "`--eval.every_n_epochs` requires grayscale 28x28 images and, for a class-conditional model, the ten"
            " classes of Fashion-MNIST. Pass --eval.every_n_epochs=null."
        )


def resolve_length(
    config: TrainingConfig, data: DataConfig, summary: DataSummary, vae: AutoencoderKL | None, problems: Problems
) -> dict[str, Any]:
    """Returns the settings that depend on the machine and on the number of images."""
    device_type, num_processes = get_device_type(), get_num_processes()
    batch_size = config.train_batch_size
    if batch_size == "auto":
        _, height, width = get_sample_shape(data, vae)
        batch_size = choose_batch_size(summary.num_images, (height, width), device_type, num_processes)
    num_batches = count_batches(summary.num_images, batch_size, config.gradient_accumulation_steps)
    with problems.collect():
        check_batch_size(batch_size, summary.num_images, num_processes)
        if num_batches == 0:
            raise ValueError(
                "`--gradient_accumulation_steps` must be at most the number of batches in an epoch"
                f" ({summary.num_images // batch_size}), got {config.gradient_accumulation_steps}."
            )
    num_epochs = config.num_epochs
    if num_epochs == "auto":
        num_images = get_num_images_needed(config)
        if config.max_train_steps is not None:
            num_images = config.max_train_steps * config.gradient_accumulation_steps * batch_size
        num_epochs = math.ceil(num_images / (max(num_batches, 1) * batch_size))
    total_steps = count_steps(config, num_epochs, num_batches)
    epochs = math.ceil(total_steps * config.gradient_accumulation_steps / max(num_batches, 1))
    interval = max(round(epochs / NUM_OUTPUTS), 1)
    settings: dict[str, Any] = {"train_batch_size": batch_size, "num_epochs": num_epochs}
    if config.mixed_precision == "auto":
        settings["mixed_precision"] = choose_mixed_precision(device_type)
    if config.compile == "auto":
        settings["compile"] = choose_compile(device_type, total_steps)
    for name in ("save_images_epochs", "save_model_epochs"):
        if getattr(config, name) == "auto":
            settings[name] = interval
    return settings
