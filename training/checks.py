"""Allowed values of the settings of the training scripts.

The upper bounds reject typos before anything is allocated. They are far above reasonable values.
"""

import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffusers import DDPMScheduler

from config import ObjectiveConfig, SchedulerConfig
from fmnist_diffusion.data import get_height_width
from fmnist_diffusion.models.unet_fmnist import (
    MAX_LEVELS,
    MAX_SIZE,
    MIN_SIZE,
    NORM_TYPES,
    SKIP_CONNECTIONS,
    TIME_CONDITIONINGS,
    TIME_SCALE_SHIFTS,
)
from fmnist_diffusion.sampling import MAX_SEED
from fmnist_diffusion.schedulers import has_unstable_epsilon, make_scheduler


# The Fréchet distance needs more samples than the classifier has features (256).
MIN_EVAL_SAMPLES = 257

MAX_PROBLEMS = 10

# With Adam in float32, the weights, gradients and optimizer states of this many parameters take 4 GB.
MAX_PARAMETERS = 250_000_000

# A batch or a grid has at most this many values (pixels times channels), which take 1 GiB in float32.
MAX_VALUES = 2**28

# Flow matching does not use these settings, so they must have their defaults.
DIFFUSION_DEFAULTS = {
    f"scheduler.{name}": getattr(SchedulerConfig, name)
    for name in ("beta_start", "beta_end", "beta_schedule", "rescale_betas_zero_snr", "timestep_spacing")
} | {"objective.snr_gamma": ObjectiveConfig.snr_gamma}
# Only flow matching uses these settings.
FLOW_DEFAULTS = {
    "scheduler.shift": SchedulerConfig.shift,
    "objective.weighting_scheme": ObjectiveConfig.weighting_scheme,
}

SCHEDULE_NAMES = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")

# Schedules that end below this value have several steps of pure noise, which cause NaN or infinite pixels.
MIN_ALPHAS_CUMPROD = 1e-15


@dataclass(frozen=True)
class Range:
    """Interval of numbers that includes its bounds, unless `above` or `below` excludes the minimum or the maximum."""

    minimum: float
    maximum: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        """Returns False for NaN."""
        above = value > self.minimum if self.above else value >= self.minimum
        return above and (value < self.maximum if self.below else value <= self.maximum)

    def __str__(self) -> str:
        minimum, maximum = (
            f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.minimum, self.maximum)
        )
        if not self.above and not self.below:
            return f"between {minimum} and {maximum}"
        start, end = "greater than" if self.above else "at least", "less than" if self.below else "at most"
        return f"{start} {minimum} and {end} {maximum}"


STEPS = Range(1, 10**9)
EPOCHS = Range(1, 10**6)
BATCHES = Range(1, 65_536)
BETA = Range(1e-6, 1, below=True)
LEARNING_RATE = Range(0, 1, above=True)
ADAM_BETA = Range(0, 1, below=True)
FRACTION = Range(0, 1)
SAMPLING_RANGES = {
    "num_inference_steps": Range(1, 100_000),
    "guidance_scale": Range(-1000, 1000),
    "guidance_interval": FRACTION,
    "seed": Range(0, MAX_SEED),
}

# The range of a list applies to each of its elements.
RANGES = {
    "seed": Range(0, MAX_SEED),
    "num_epochs": EPOCHS,
    "max_train_steps": STEPS,
    "train_batch_size": BATCHES,
    "gradient_accumulation_steps": BATCHES,
    "save_images_epochs": EPOCHS,
    "save_model_epochs": EPOCHS,
    "checkpointing_steps": STEPS,
    "checkpoints_total_limit": Range(1, 10_000),
    "logging_steps": STEPS,
    "push_to_hub_epochs": EPOCHS,
    "model.block_out_channels": Range(1, 4096),
    "model.layers_per_block": Range(1, 16),
    "model.norm_num_groups": Range(1, 4096),
    "model.time_embedding_dim": Range(2, 4096),
    "model.attention_levels": Range(0, MAX_LEVELS - 1),
    "model.attention_head_dim": Range(1, 4096),
    "model.dropout": Range(0, 1, below=True),
    "model.num_class_embeds": Range(1, 10_000),
    "data.resolution": Range(MIN_SIZE, MAX_SIZE),
    "data.dataloader_num_workers": Range(0, 256),
    "data.max_train_samples": Range(1, 10**9),
    "scheduler.num_train_timesteps": Range(1, 100_000),
    "scheduler.beta_start": BETA,
    "scheduler.beta_end": BETA,
    "scheduler.shift": Range(0.01, 100),
    "objective.snr_gamma": Range(0, 1000, above=True),
    "objective.logit_mean": Range(-20, 20),
    "objective.logit_std": Range(0, 20, above=True),
    # For other scales, the timestep is not a monotonic function of the uniform number (arXiv 2403.03206, section 3.1).
    "objective.mode_scale": Range(-1, 2 / (math.pi - 2)),
    "objective.label_dropout": FRACTION,
    "distillation.num_segments": Range(1, 100_000),
    "distillation.adversarial_weight": Range(0, 1000),
    "distillation.discriminator_learning_rate": LEARNING_RATE,
    "text_encoder.num_hidden_layers": Range(1, 64),
    "text_encoder.num_attention_heads": Range(1, 256),
    "text_encoder.intermediate_size": Range(1, 65_536),
    "optimizer.learning_rate": LEARNING_RATE,
    "optimizer.adam_beta1": ADAM_BETA,
    "optimizer.adam_beta2": ADAM_BETA,
    "optimizer.adam_epsilon": Range(1e-16, 1),
    "optimizer.adam_weight_decay": FRACTION,
    "optimizer.lr_warmup_steps": Range(0, 10**9),
    "optimizer.max_grad_norm": Range(0, 10**6, above=True),
    "ema.max_decay": FRACTION,
    "ema.inv_gamma": Range(1e-6, 10**6),
    "ema.power": Range(0, 10, above=True),
    "samples.num_images": Range(1, 1000),
    "num_validation_images": Range(1, 10**6),
    "save_minutes": Range(0, 10**6, above=True),
    "block_out_channels": Range(1, 4096),
    "layers_per_block": Range(1, 16),
    "latent_channels": Range(1, 4096),
    "kl_weight": Range(0, 1000),
    "eval.every_n_epochs": EPOCHS,
    "eval.num_samples": Range(MIN_EVAL_SAMPLES, 100_000),
    **{f"{section}.{name}": value for section in ("samples", "eval") for name, value in SAMPLING_RANGES.items()},
}

# The arguments of FashionMNISTUNet2DModel, except those that the training images determine.
MODEL_TYPES: dict[str, Any] = {
    "block_out_channels": list[int],
    "layers_per_block": int,
    "norm_type": Literal[NORM_TYPES],
    "norm_num_groups": int,
    "act_fn": Literal["relu", "silu", "swish", "gelu", "mish"],
    "time_conditioning": Literal[TIME_CONDITIONINGS],
    "resnet_time_scale_shift": Literal[TIME_SCALE_SHIFTS],
    "time_embedding_dim": int,
    "attention_levels": list[int] | None,
    "attention_head_dim": int,
    "skip_connection": Literal[SKIP_CONNECTIONS],
    "dropout": float,
    "num_class_embeds": int | None,
}


class Formatter(reprlib.Repr):
    """Formats values as in YAML, and shortens long ones."""

    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlevel = 2

    def repr_bool(self, x: bool, level: int) -> str:
        return str(x).lower()

    def repr_NoneType(self, x: None, level: int) -> str:
        return "null"

    def repr_tuple(self, x: tuple, level: int) -> str:
        return self.repr_list(list(x), level)


# This function formats a value for messages, such as 0.5, 'adam', null or [1, 2].
format_value = Formatter().repr


def find_problems(values: Mapping[str, Any], program: str | None) -> list[str]:
    """Returns sentences about settings that are out of range or, with a `program`, contradict it or other settings.

    Args:
        values: Settings by their names, such as optimizer.learning_rate. All values have the right types.
        program: The program that uses the settings, train.py or distill.py; `None` to check each setting separately.
    """
    problems = {name: problem for name, value in values.items() if (problem := find_invalid_value(name, value))}
    valid = {name: value for name, value in values.items() if name not in problems}
    return [*problems.values(), *(find_contradictions(valid, program) if program is not None else [])]


def format_problems(problems: Sequence[str]) -> str:
    """Returns a single problem as it is, and several problems as a list with a title."""
    if len(problems) == 1:
        return problems[0]
    others = len(problems) - MAX_PROBLEMS
    listed = [*problems[:MAX_PROBLEMS], *([f"{others:,} others."] if others > 0 else [])]
    return "\n  - ".join([f"Found {len(problems):,} problems:", *listed])


def find_invalid_value(name: str, value: Any) -> str | None:
    """Returns a sentence about a value that is out of range."""
    if isinstance(value, str) and (not value or re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", value)):
        return f"`--{name}` must be a non-empty string without control characters, got {format_value(value)}."
    if value is None or isinstance(value, str) or name not in RANGES:
        return None
    if name == "model.block_out_channels" and not 1 <= len(value) <= MAX_LEVELS:
        return f"`--{name}` must have between 1 and {MAX_LEVELS} levels, got {len(value)}."
    if not all(number in RANGES[name] for number in (value if isinstance(value, (list, tuple)) else [value])):
        return f"`--{name}` must be {RANGES[name]}, got {format_value(value)}."
    return None


def find_contradictions(values: Mapping[str, Any], program: str) -> Iterator[str]:
    """Yields sentences about combinations of settings.

    Args:
        values: Settings by their names. Contradictions with missing settings are ignored.
        program: The program that uses the settings, train.py or distill.py.
    """
    yield from find_unused_settings(values)
    yield from find_schedule_problems(values)
    yield from find_distillation_problems(values, program)
    yield from find_latent_problems(values, program)
    yield from find_sampling_problems("samples", values)
    if values.get("eval.every_n_epochs") is not None:
        yield from find_sampling_problems("eval", values)
    resolution = values.get("data.resolution")
    if resolution is not None:
        height, width = get_height_width(resolution)
        limit = MAX_VALUES // (height * width * (values.get("data.channels") or 3))
        for name in ("train_batch_size", "samples.num_images"):
            count = values.get(name)
            if isinstance(count, int) and count > limit:
                yield f"`--{name}` must be at most {limit:,} for images of {height}x{width} pixels, got {count}."


def find_unused_settings(values: Mapping[str, Any]) -> Iterator[str]:
    """Yields sentences about settings that the prediction type does not use."""
    prediction_type = values.get("scheduler.prediction_type")
    if prediction_type is None:
        return
    for name, default in (DIFFUSION_DEFAULTS if prediction_type == "flow_prediction" else FLOW_DEFAULTS).items():
        # When a pipeline is fine-tuned, `check_pretrained_settings` compares the schedule with that of the pipeline.
        compared = name.startswith("scheduler.") and values.get("init_from") is not None
        if values.get(name, default) != default and not compared:
            yield (
                f"`--{name}` must be {format_value(default)} for `--scheduler.prediction_type` {prediction_type},"
                f" which does not use it, got {format_value(values[name])}."
            )


def make_ddpm_scheduler(values: Mapping[str, Any]) -> DDPMScheduler | None:
    """Returns the noise schedule of a model with epsilon prediction, or None if a setting is not in `values`."""
    schedule = {name: values[f"scheduler.{name}"] for name in SCHEDULE_NAMES if f"scheduler.{name}" in values}
    return DDPMScheduler(**schedule) if len(schedule) == len(SCHEDULE_NAMES) else None


def find_schedule_problems(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("scheduler.prediction_type") == "flow_prediction":
        return
    start, end = values.get("scheduler.beta_start", 0), values.get("scheduler.beta_end", 1)
    num_timesteps = values.get("scheduler.num_train_timesteps")
    if start > end:
        yield f"`--scheduler.beta_start` must be at most `--scheduler.beta_end` ({end}), got {start}."
    elif (schedule := make_ddpm_scheduler(values)) is not None and schedule.alphas_cumprod[-1] < MIN_ALPHAS_CUMPROD:
        yield (
            f"`--scheduler.beta_end` is too large for `--scheduler.num_train_timesteps={num_timesteps}`, got {end}."
            " Reduce it, because images would be pure noise long before the last timestep."
        )
    if not values.get("scheduler.rescale_betas_zero_snr"):
        return
    if num_timesteps == 1:
        yield "`--scheduler.rescale_betas_zero_snr` requires at least 2 timesteps, got 1."
    if values.get("scheduler.prediction_type") == "epsilon":
        yield (
            "`--scheduler.rescale_betas_zero_snr` requires `--scheduler.prediction_type` v_prediction or sample, got"
            " epsilon: the noise alone does not determine the image at a signal-to-noise ratio of zero."
        )


def find_distillation_problems(values: Mapping[str, Any], program: str) -> Iterator[str]:
    num_segments = values.get("distillation.num_segments")
    if program == "train.py":
        if num_segments is not None:
            yield f"`--distillation.num_segments` must be null in train.py, got {num_segments}. Run distill.py."
        weight = values.get("distillation.adversarial_weight", 0)
        if weight != 0:
            yield f"`--distillation.adversarial_weight` must be 0 in train.py, got {weight:g}. Run distill.py."
        return
    if num_segments is None:
        if "distillation.num_segments" in values:
            yield (
                "`--distillation.num_segments` must be an integer in distill.py, got null. Pass"
                " --config=training/configs/distill.yaml, for example, or run train.py."
            )
        return
    limit = values.get("scheduler.num_train_timesteps")
    if limit is not None and num_segments > limit:
        yield (
            f"`--distillation.num_segments` must be at most `--scheduler.num_train_timesteps` ({limit}), got"
            f" {num_segments}."
        )
    if values.get("scheduler.prediction_type") == "flow_prediction":
        yield (
            "`--init_from` must be a diffusion model, because distill.py does not support flow matching. Pass a"
            " pipeline that predicts epsilon, v_prediction or sample."
        )
    precision = values.get("mixed_precision")
    if values.get("scheduler.prediction_type") == "epsilon" and precision in ("bf16", "fp16"):
        yield f"`--mixed_precision` must be 'no' to distill a pipeline with epsilon prediction, got {precision!r}."
    if values.get("init_from", "") is None:
        yield "`--init_from` must be the pipeline to distill, got null."
    if values.get("ema.enabled") is False:
        yield "`--ema.enabled` must be true in distill.py, got false: the EMA weights predict the target."


def find_latent_problems(values: Mapping[str, Any], program: str) -> Iterator[str]:
    if values.get("vae") is None:
        return
    for name, value in (("data.streaming", False), ("data.augmentation", "none")):
        if values.get(name, value) != value:
            yield (
                f"`--{name}` must be {format_value(value)} with an autoencoder, got {format_value(values[name])}. The"
                " latents of the images are computed only once."
            )
    schedule = make_ddpm_scheduler(values) if values.get("scheduler.prediction_type") == "epsilon" else None
    if schedule is not None and has_unstable_epsilon(schedule):
        yield (
            "`--scheduler.prediction_type` must be v_prediction or sample for latents if the noise schedule ends with"
            " almost pure noise, got epsilon."
        )
    if program == "distill.py":
        yield (
            "distill.py does not support latent diffusion. Pass an `--init_from` without an autoencoder, and omit"
            " `--vae`."
        )


def find_sampling_problems(section: str, values: Mapping[str, Any]) -> Iterator[str]:
    steps, limit = values.get(f"{section}.num_inference_steps"), values.get("scheduler.num_train_timesteps")
    if steps is not None and limit is not None and steps > limit:
        yield (
            f"`--{section}.num_inference_steps` must be at most `--scheduler.num_train_timesteps` ({limit}), got"
            f" {steps}."
        )
    interval = values.get(f"{section}.guidance_interval", (0, 1))
    if interval[0] > interval[1]:
        yield f"`--{section}.guidance_interval` must not end before it starts, got {format_value(interval)}."
    scheduler = values.get(f"{section}.scheduler")
    if scheduler is not None:
        try:
            make_scheduler(scheduler, {"prediction_type": values.get("scheduler.prediction_type", "epsilon")})
        except ValueError as error:
            yield f"`--{section}.scheduler` is not supported: {error}"


def check_model_size(num_parameters: int) -> None:
    """Raises `ValueError` if training the model takes too much memory."""
    if num_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"The model must have at most {MAX_PARAMETERS:,} parameters, got {num_parameters:,}. Reduce"
            " `--model.block_out_channels`, `--model.layers_per_block` or the size of the text encoder."
        )
