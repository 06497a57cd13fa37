"""Configuration of a training run: dataclasses that jsonargparse reads from YAML files and the command line."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser

from fmnist_diffusion.data import DEFAULT_DATASET
from fmnist_diffusion.objectives import LossType, PredictionType, TimestepSampling
from fmnist_diffusion.sampling import SamplingConfig, get_scheduler_class


# The Fréchet distance needs more samples than the classifier has features (256).
MIN_EVAL_SAMPLES = 257


@contextmanager
def error_prefix(section: str) -> Iterator[None]:
    """Adds the name of the section to errors about its fields."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error


def check_at_least(minimum: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")


def check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be a positive number, got {value}.")


@dataclass
class DataConfig:
    """Training images.

    Args:
        dataset_name: dataset id on the Hub; if the Hub is not reachable, Debian's package dataset-fashion-mnist
            replaces the default dataset
        dataset_config_name: configuration of the Hub dataset
        train_data_dir: local images to use instead: an IDX folder, an image folder, parquet files or a .safetensors
            file
        split: split of the dataset
        image_column: column with the images; detected from its type if null
        label_column: column with the labels; detected from its type if null
        resolution: height and width that images are resized to; if null, that of init_from or 28
        channels: number of channels that images are converted to, 1 (grayscale) or 3 (RGB); if null, that of init_from
            or 1
        augmentation: none, flip (mirrors half of the images) or shift (by up to 2 pixels in each direction)
        streaming: decode images on the fly, for datasets that do not fit in memory
        dataloader_num_workers: number of worker processes for streaming
        max_train_samples: maximum number of training images, from the start of the dataset; all if null
    """

    dataset_name: str = DEFAULT_DATASET
    dataset_config_name: str | None = None
    train_data_dir: str | None = None
    split: str = "train"
    image_column: str | None = None
    label_column: str | None = None
    resolution: int | None = None
    channels: Literal[1, 3] | None = None
    augmentation: Literal["none", "flip", "shift"] = "none"
    streaming: bool = False
    dataloader_num_workers: int = 2
    max_train_samples: int | None = None

    def __post_init__(self):
        with error_prefix("data"):
            check_at_least(8, resolution=self.resolution)
            check_at_least(0, dataloader_num_workers=self.dataloader_num_workers)
            check_at_least(1, max_train_samples=self.max_train_samples)


@dataclass
class SchedulerConfig:
    """Noise schedule, with the argument names of diffusers' DDPMScheduler.

    Args:
        num_train_timesteps: number of timesteps, T
        beta_start: variance of the first noising step
        beta_end: variance of the last noising step
        beta_schedule: noise schedule: linear, scaled_linear, squaredcos_cap_v2 (cosine) or sigmoid
        prediction_type: output of the model: epsilon (the noise), v_prediction or sample (the clean image)
        rescale_betas_zero_snr: rescale to a terminal signal-to-noise ratio of zero; not with epsilon
        timestep_spacing: timestep spacing of all schedulers except the default one, which uses power-law timesteps:
            leading, linspace or trailing
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"

    def __post_init__(self):
        with error_prefix("scheduler"):
            check_at_least(1, num_train_timesteps=self.num_train_timesteps)
            if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
                raise ValueError(
                    "`rescale_betas_zero_snr` requires `prediction_type` v_prediction or sample, got epsilon. The"
                    " noise alone does not determine the image at a signal-to-noise ratio of zero."
                )


@dataclass
class ObjectiveConfig:
    """Training objective.

    Args:
        loss_type: loss function: mse, l1 or huber
        snr_gamma: gamma of min-SNR loss weighting, usually 5; no weighting if null
        timestep_sampling: distribution of the training timesteps: uniform, logit_normal or importance
        logit_mean: mean of logit_normal
        logit_std: standard deviation of logit_normal
        label_dropout: fraction of labels that are replaced by the null label, for unconditional sampling and
            classifier-free guidance
    """

    loss_type: LossType = "mse"
    snr_gamma: float | None = None
    timestep_sampling: TimestepSampling = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    label_dropout: float = 0.1

    def __post_init__(self):
        with error_prefix("objective"):
            check_positive(snr_gamma=self.snr_gamma)
            if not 0 <= self.label_dropout <= 1:
                raise ValueError(f"`label_dropout` must be between 0 and 1, got {self.label_dropout}.")


@dataclass
class OptimizerConfig:
    """Optimizer and learning rate.

    Args:
        name: optimizer: adam or adamw
        learning_rate: peak learning rate
        adam_beta1: decay of the running mean of the gradient
        adam_beta2: decay of the running mean of the squared gradient
        adam_epsilon: constant that is added to the denominator of the update
        adam_weight_decay: weight decay (decoupled with adamw)
        lr_scheduler: learning rate schedule: constant_with_warmup, linear, cosine or polynomial
        lr_warmup_steps: number of optimizer steps over which the learning rate increases from zero
        max_grad_norm: maximum norm for gradient clipping; no clipping if null
    """

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    lr_scheduler: Literal["constant_with_warmup", "linear", "cosine", "polynomial"] = "constant_with_warmup"
    lr_warmup_steps: int = 0
    max_grad_norm: float | None = None

    def __post_init__(self):
        with error_prefix("optimizer"):
            check_positive(max_grad_norm=self.max_grad_norm)


@dataclass
class EMAConfig:
    """Exponential moving average (EMA) of the weights, which replaces the weights in sampling and export.

    Args:
        enabled: use EMA
        max_decay: maximum decay per optimizer step
        inv_gamma: inverse multiplicative factor of the decay warm-up, 1 - (1 + step / inv_gamma) ** -power
        power: exponent of the decay warm-up
    """

    enabled: bool = False
    max_decay: float = 0.9999
    inv_gamma: float = 1.0
    power: float = 0.75

    def __post_init__(self):
        with error_prefix("ema"):
            check_positive(inv_gamma=self.inv_gamma)


@dataclass(frozen=True)
class SamplesConfig(SamplingConfig):
    """Sample grids during training.

    Args:
        num_images: number of images in a grid; a class-conditional model generates all classes in turn
    """

    num_images: int = 40

    def __post_init__(self):
        with error_prefix("samples"):
            super().__post_init__()
            check_scheduler(self.scheduler)
            check_at_least(1, num_images=self.num_images)


@dataclass(frozen=True)
class EvalConfig(SamplingConfig):
    """Evaluation of samples during training on Fashion-MNIST; the best pipeline so far is saved in the folder best.

    Args:
        every_n_epochs: number of epochs between evaluations; the last epoch is always evaluated; no evaluation if null
        num_samples: number of samples; with at least 2,049 samples, FID is also computed if the Inception network is
            cached
    """

    every_n_epochs: int | None = None
    num_samples: int = 1000

    def __post_init__(self):
        with error_prefix("eval"):
            super().__post_init__()
            check_scheduler(self.scheduler)
            check_at_least(1, every_n_epochs=self.every_n_epochs)
            check_at_least(MIN_EVAL_SAMPLES, num_samples=self.num_samples)


def check_scheduler(name: str | None) -> None:
    if name is not None:
        get_scheduler_class(name)


@dataclass
class TrainingConfig:
    """Training run.

    Args:
        output_dir: folder for everything that the run writes; must be new or empty unless the run is resumed
        init_from: pipeline to fine-tune: a folder, the name of a bundled checkpoint or a Hub repository
        resume: checkpoint to resume from: latest (in output_dir) or a path, which may belong to a different run
        seed: random seed of the initial weights, the order of the data, and the noise
        num_epochs: number of passes over the images
        max_train_steps: maximum number of optimizer steps; shortens the run and the learning rate schedule if
            num_epochs takes longer
        train_batch_size: number of images per batch, over all processes together
        gradient_accumulation_steps: number of batches whose gradients are averaged for an optimizer step
        mixed_precision: mixed-precision dtype: no, bf16 or fp16; the setting of accelerate launch if null
        gradient_checkpointing: recompute activations in the backward pass to save memory
        compile: use torch.compile for the model
        channels_last: use the channels_last memory format for weights and images
        save_images_epochs: number of epochs between sample grids; the last epoch always has one
        save_model_epochs: number of epochs between exports of the pipeline; the last epoch always has one
        checkpointing_steps: number of optimizer steps between checkpoints
        checkpoints_total_limit: number of checkpoints to keep
        logging_steps: number of optimizer steps between reports of the loss
        report_to: experiment tracker: tensorboard, trackio, wandb or none
        push_to_hub: push the pipeline to the Hub at the end, and during training if push_to_hub_epochs is set
        push_to_hub_epochs: number of epochs between pushes during training; only at the end if null
        hub_model_id: repository to push to, as owner/name or name; the name of output_dir if null
        hub_private_repo: create a private repository
        hub_license: Hub license identifier for the weights, such as cc-by-4.0; if null, mit for models trained
            on the Hub's Fashion-MNIST and none for others
        model: arguments of FashionMNISTUNet2DModel, such as norm_type
        data: training images
        scheduler: noise schedule
        objective: training objective
        optimizer: optimizer and learning rate
        ema: exponential moving average of the weights
        samples: sample grids during training
        eval: evaluation of samples during training
    """

    output_dir: str = "output/run"
    init_from: str | None = None
    resume: str | None = None
    seed: int = 0
    num_epochs: int = 50
    max_train_steps: int | None = None
    train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    save_images_epochs: int = 10
    save_model_epochs: int = 10
    checkpointing_steps: int = 1000
    checkpoints_total_limit: int = 2
    logging_steps: int = 10
    report_to: Literal["tensorboard", "trackio", "wandb", "none"] = "tensorboard"
    push_to_hub: bool = False
    push_to_hub_epochs: int | None = None
    hub_model_id: str | None = None
    hub_private_repo: bool = False
    hub_license: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self):
        names = (
            "num_epochs",
            "max_train_steps",
            "train_batch_size",
            "gradient_accumulation_steps",
            "save_images_epochs",
            "save_model_epochs",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "logging_steps",
            "push_to_hub_epochs",
        )
        check_at_least(1, **{name: getattr(self, name) for name in names})
        sampling = {"samples": self.samples} | ({"eval": self.eval} if self.eval.every_n_epochs else {})
        for section, config in sampling.items():
            if (config.num_inference_steps or 1) > self.scheduler.num_train_timesteps:
                raise ValueError(
                    f"`{section}.num_inference_steps` must be at most `scheduler.num_train_timesteps`"
                    f" ({self.scheduler.num_train_timesteps}), got {config.num_inference_steps}."
                )

    def get_total_steps(self, batches_per_epoch: int) -> int:
        """Returns the number of optimizer steps of the whole run."""
        steps = self.num_epochs * batches_per_epoch // self.gradient_accumulation_steps
        return min(steps, self.max_train_steps or steps)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: Path) -> None:
        """Writes a YAML file for `--config`. `resume` is reset, because it only applies to one command."""
        path.write_text(yaml.safe_dump(self.to_dict() | {"resume": None}, sort_keys=False))

    def check_resumable(self, path: Path) -> None:
        """Raises `ValueError` if the run whose config was saved at `path` cannot continue with this config."""
        if not path.exists():
            return
        saved = yaml.safe_load(path.read_text())
        # YAML turns tuples into lists.
        current = yaml.safe_load(yaml.safe_dump(self.to_dict()))
        for settings in (saved, current):
            settings["data"].pop("dataloader_num_workers")
            settings["ema.enabled"] = settings["ema"]["enabled"]
        steps = ("train_batch_size", "gradient_accumulation_steps")
        for name in ("seed", *steps, "model", "data", "scheduler", "ema.enabled"):
            if current[name] != saved[name]:
                raise ValueError(
                    f"`{name}` must be the same as in the run to resume ({saved[name]}), got {current[name]}. Pass"
                    f" --config={path} together with --resume."
                )


def is_first_process() -> bool:
    """Returns whether this is the main process; also works before Accelerate is initialized."""
    return os.environ.get("RANK", "0") == "0"


class Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n" if is_first_process() else None)


def parse_config(args: list[str] | None = None) -> TrainingConfig:
    """Reads `--config file.yaml` and `--any.field=value`; later arguments win. Errors exit with code 2."""
    parser = Parser(
        prog="train.py",
        allow_abbrev=False,
        description="Trains a FashionMNISTUNet2DModel: accelerate launch training/train.py --config FILE [overrides]",
    )
    parser.add_argument("--config", action="config", help="YAML file, such as training/configs/spec.yaml")
    parser.add_class_arguments(TrainingConfig, None)
    try:
        fields = vars(parser.instantiate(parser.parse_args(args)))
        del fields["config"]
        return TrainingConfig(**fields)
    except ValueError as error:
        parser.error(str(error))
