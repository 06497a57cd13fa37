"""What a training run is: dataclasses, read from YAML and the command line by jsonargparse."""

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser

from fmnist_diffusion.data import DEFAULT_DATASET
from fmnist_diffusion.objectives import LossType, PredictionType, TimestepSampling


@dataclass
class DataConfig:
    """Images to train on.

    Args:
        dataset_name: Hub data set; Debian's local copy stands in for the default one when the Hub can't be reached.
        dataset_config_name: Configuration of the Hub data set.
        train_data_dir: Local data instead: an IDX folder, an image folder, parquet, or a decoded .safetensors file.
        split: Split of the data set.
        image_column: Column with the images; found by its type unless named.
        label_column: Column with the labels; found by its type unless named.
        resolution: Height and width that images are resized to; as in init_from, or else 28, if null.
        channels: 1 (grey) or 3 (RGB), to which images are converted; as in init_from, or else 1, if null.
        augmentation: none, flip (left-right, half of the images) or shift (by up to 2 pixels each way).
        streaming: Decode images as they are needed instead of once into memory, for sets that do not fit there.
        dataloader_num_workers: Processes that decode when streaming.
        max_train_samples: Use the first so many images only.
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


@dataclass
class SchedulerConfig:
    """Noise schedule, in the words of diffusers' DDPMScheduler.

    Args:
        num_train_timesteps: Number of noise levels, T.
        beta_start: Variance of the first noising step.
        beta_end: Variance of the last noising step.
        beta_schedule: linear, scaled_linear, squaredcos_cap_v2 (cosine) or sigmoid.
        prediction_type: What the model predicts: epsilon (the noise), v_prediction or sample (the clean image).
        rescale_betas_zero_snr: Rescale to a zero terminal signal-to-noise ratio; not with epsilon.
        timestep_spacing: How other schedulers than SDEDPMSolverScheduler, which has its own way, spread few sampling
            steps over T: leading, linspace or trailing.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"


@dataclass
class ObjectiveConfig:
    """Training objective.

    Args:
        loss_type: mse, l1 or huber, on what prediction_type names.
        snr_gamma: Gamma of min-SNR loss weighting (5 is usual); no weighting if null.
        timestep_sampling: uniform, logit_normal or importance.
        logit_mean: Mean of logit_normal.
        logit_std: Standard deviation of logit_normal.
        label_dropout: Share of labels that are replaced by the null label, for classifier-free guidance.
    """

    loss_type: LossType = "mse"
    snr_gamma: float | None = None
    timestep_sampling: TimestepSampling = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    label_dropout: float = 0.1


@dataclass
class OptimizerConfig:
    """Optimizer and learning rate.

    Args:
        name: adam or adamw.
        learning_rate: Highest learning rate.
        adam_beta1: Decay of the gradient's running mean.
        adam_beta2: Decay of the gradient's running square.
        adam_epsilon: Added to the root of the running square.
        adam_weight_decay: Weight decay (decoupled with adamw).
        lr_scheduler: constant_with_warmup, linear, cosine or polynomial.
        lr_warmup_steps: Optimizer steps from zero to the highest learning rate.
        max_grad_norm: Gradients are clipped to this norm; not at all if null.
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


@dataclass
class EMAConfig:
    """Exponential moving average of the weights; it is what is sampled and exported.

    Args:
        enabled: Whether to keep it.
        max_decay: Highest decay per optimizer step.
        inv_gamma: Of the warm-up of the decay, 1 - (1 + step / inv_gamma) ** -power.
        power: Of the warm-up of the decay.
    """

    enabled: bool = False
    max_decay: float = 0.9999
    inv_gamma: float = 1.0
    power: float = 0.75


@dataclass
class SamplesConfig:
    """Sample grids while training.

    Args:
        num_images: Pictures in a grid; a class-conditional model draws them by class.
        num_inference_steps: Denoising steps of SDEDPMSolverScheduler for each picture.
        guidance_scale: Classifier-free guidance of a class-conditional model; 1 is none.
        seed: Of the starting noise, which is the same in every grid.
    """

    num_images: int = 40
    num_inference_steps: int = 20
    guidance_scale: float = 1.0
    seed: int = 0


@dataclass
class EvalConfig:
    """Measurement of samples of Fashion-MNIST while training; the pipeline that measured best is kept in `best`.

    Args:
        every_n_epochs: Measure every so many epochs, and at the end; never if null.
        num_samples: Samples; from 2049 on FID is measured too, where the Inception network has been downloaded.
        num_inference_steps: Denoising steps of SDEDPMSolverScheduler for each sample.
        guidance_scale: Classifier-free guidance of a class-conditional model; 1 is none.
        seed: Of the starting noise, which is the same in every measurement.
    """

    every_n_epochs: int | None = None
    num_samples: int = 1000
    num_inference_steps: int = 20
    guidance_scale: float = 1.0
    seed: int = 0


@dataclass
class TrainingConfig:
    """Training run.

    Args:
        output_dir: Folder for everything that the run writes; it must be new, unless resume continues the run in it.
        init_from: Fine-tune this pipeline: a folder, a bundled name or a Hub repository.
        resume: Continue a run: latest of this output_dir, or the path of a checkpoint, of another run too.
        seed: Of the weights, the data order and the noise.
        num_epochs: Passes over the images.
        max_train_steps: Stop after so many optimizer steps, if num_epochs has more; the lr_scheduler ends there too.
        train_batch_size: Images in a step, over all processes together.
        gradient_accumulation_steps: Steps whose gradients are averaged into one optimizer step.
        mixed_precision: no, bf16 or fp16; what accelerate launch was told if null.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        compile: Run the model through torch.compile.
        channels_last: Keep weights and images in channels_last memory format.
        save_images_epochs: Draw a sample grid every so many epochs, and at the end.
        save_model_epochs: Export the pipeline every so many epochs, and at the end.
        checkpointing_steps: Write a checkpoint to resume from every so many optimizer steps.
        checkpoints_total_limit: Keep the newest so many checkpoints.
        logging_steps: Report and log the loss every so many optimizer steps.
        report_to: tensorboard, trackio, wandb or none.
        push_to_hub: Publish the pipeline on the Hub at the end, in the background of what is left to do.
        push_to_hub_epochs: Publish it every so many epochs, too.
        hub_model_id: Repository to publish in, owner/name or name; named like output_dir if null.
        hub_private_repo: Make a new repository private.
        hub_license: The Hub's name of the weights' licence, such as cc-by-4.0; if null, mit where the images are
            the Hub's Fashion-MNIST (and no train_data_dir is given), else none.
        model: Arguments of FashionMNISTUNet2DModel, such as norm_type; the defaults are the specification.
        data: Images to train on.
        scheduler: Noise schedule.
        objective: Training objective.
        optimizer: Optimizer and learning rate.
        ema: Moving average of the weights.
        samples: Sample grids.
        eval: Measurement of samples.
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
        for name, value, lowest in (
            ("num_epochs", self.num_epochs, 1),
            ("max_train_steps", self.max_train_steps, 1),
            ("train_batch_size", self.train_batch_size, 1),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps, 1),
            ("save_images_epochs", self.save_images_epochs, 1),
            ("save_model_epochs", self.save_model_epochs, 1),
            ("checkpointing_steps", self.checkpointing_steps, 1),
            ("checkpoints_total_limit", self.checkpoints_total_limit, 1),
            ("logging_steps", self.logging_steps, 1),
            ("push_to_hub_epochs", self.push_to_hub_epochs, 1),
            ("data.resolution", self.data.resolution, 8),
            ("data.dataloader_num_workers", self.data.dataloader_num_workers, 0),
            ("data.max_train_samples", self.data.max_train_samples, 1),
            ("scheduler.num_train_timesteps", self.scheduler.num_train_timesteps, 1),
            ("samples.num_images", self.samples.num_images, 1),
            ("samples.num_inference_steps", self.samples.num_inference_steps, 1),
            ("eval.every_n_epochs", self.eval.every_n_epochs, 1),
            ("eval.num_samples", self.eval.num_samples, 257),
            ("eval.num_inference_steps", self.eval.num_inference_steps, 1),
        ):
            if value is not None and value < lowest:
                raise ValueError(f"{name} is {value}; give a number from {lowest} on.")
        for name, steps in (
            ("samples", self.samples.num_inference_steps),
            ("eval", self.eval.num_inference_steps if self.eval.every_n_epochs else 1),
        ):
            if steps > self.scheduler.num_train_timesteps:
                raise ValueError(
                    f"{name}.num_inference_steps is {steps}; give one up to scheduler.num_train_timesteps,"
                    f" {self.scheduler.num_train_timesteps}."
                )
        for name, value in (
            ("ema.inv_gamma", self.ema.inv_gamma),
            ("objective.snr_gamma", self.objective.snr_gamma),
            ("optimizer.max_grad_norm", self.optimizer.max_grad_norm),
        ):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; give a number above 0, or leave it out.")
        for name, value in (
            ("samples.guidance_scale", self.samples.guidance_scale),
            ("eval.guidance_scale", self.eval.guidance_scale),
        ):
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}; give a finite number.")
        if not 0 <= self.objective.label_dropout <= 1:
            raise ValueError(f"objective.label_dropout is {self.objective.label_dropout}; give a share in [0, 1].")
        if self.scheduler.rescale_betas_zero_snr and self.scheduler.prediction_type == "epsilon":
            raise ValueError(
                "scheduler.rescale_betas_zero_snr leaves no signal at the last timestep, where epsilon says nothing"
                " of the image; give --scheduler.prediction_type=v_prediction or sample."
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def save(self, path: Path) -> None:
        """Writes what `--config` reads; `resume` is left out, for it is about one command and not about the run."""
        path.write_text(yaml.safe_dump(self.to_dict() | {"resume": None}, sort_keys=False))

    def check_resumable(self, path: Path) -> None:
        """Raises `ValueError` where this is another run than that of the config saved at `path`."""
        if not path.exists():
            return
        saved = yaml.safe_load(path.read_text())
        now = self.to_dict()
        for settings in (saved, now):
            settings["data"].pop("dataloader_num_workers")
            settings["ema.enabled"] = settings["ema"]["enabled"]
        steps = ("train_batch_size", "gradient_accumulation_steps")
        for name in ("seed", *steps, "model", "data", "scheduler", "ema.enabled"):
            # YAML has lists for tuples.
            if yaml.safe_load(yaml.safe_dump(now[name])) != saved[name]:
                raise ValueError(f"{name} is not that of the run to resume; give --config={path} with --resume.")


def is_first_process() -> bool:
    """Whether this process is the one that speaks, before Accelerate is asked."""
    return os.environ.get("RANK", "0") == "0"


class Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n" if is_first_process() else None)


def parse_config(args: list[str] | None = None) -> TrainingConfig:
    """Reads `--config file.yaml` and `--any.field=value`, the later one wins; what is wrong ends with exit code 2."""
    parser = Parser(
        prog="train.py",
        allow_abbrev=False,
        description="Trains a FashionMNISTUNet2DModel: accelerate launch training/train.py --config FILE [overrides]",
    )
    parser.add_argument("--config", action="config", help="YAML file, such as training/configs/spec.yaml.")
    parser.add_class_arguments(TrainingConfig, None)
    try:
        namespace = parser.instantiate(parser.parse_args(args))
        del namespace.config
        return TrainingConfig(**vars(namespace))
    except ValueError as error:
        parser.error(str(error))
