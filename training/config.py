"""Configuration of a training run. The annotations and docstrings define the options of the command line."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from fmnist_diffusion.data import DEFAULT_DATASET, DataSource, get_height_width
from fmnist_diffusion.metadata import flatten
from fmnist_diffusion.objectives import LossType, PredictionType, TimestepSampling, WeightingScheme
from fmnist_diffusion.sampling import SamplingConfig
from yaml_files import add_defaults, convert_tuples, read_yaml, write_yaml


@dataclass
class DataConfig:
    """Training images.

    Args:
        dataset_name: dataset id on the Hub; if the Hub is not reachable, the local cache is used or, for the default
            dataset, the Debian package dataset-fashion-mnist
        dataset_config_name: configuration of the Hub dataset
        train_data_dir: local images to use instead of dataset_name: an IDX folder, an image folder, parquet files or a
            .safetensors file
        split: split of the dataset
        image_column: column with the images; detected from its type if null
        label_column: column with the labels; if null, the only column of class labels, otherwise the column label; the
            string none ignores the labels
        caption_column: column with the captions for a text encoder; if the default column text does not exist,
            captions are generated from the labels and pixels of Fashion-MNIST
        resolution: side length, or height and width, that images are resized to, in pixels; if null, chosen from the
            sizes of the images (see training/README.md)
        channels: number of channels that images are converted to, 1 (grayscale) or 3 (RGB); if null, 3 if any image
            has colors
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
    caption_column: str = "text"
    resolution: int | tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    augmentation: Literal["none", "flip", "shift"] = "none"
    streaming: bool = False
    dataloader_num_workers: int = 2
    max_train_samples: int | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Number of channels, height and width. `resolution` and `channels` must not be `None`."""
        assert self.resolution is not None and self.channels is not None
        return (self.channels, *get_height_width(self.resolution))

    def get_source(self) -> dict[str, Any]:
        """Returns the arguments that [`load_images`], [`inspect_images`] and [`load_split`] have in common."""
        names = {field.name for field in fields(DataSource)} & {field.name for field in fields(self)}
        return {name: getattr(self, name) for name in names} | {"max_samples": self.max_train_samples}


@dataclass
class SchedulerConfig:
    """Noise schedule, with the argument names of diffusers' DDPMScheduler and FlowMatchEulerDiscreteScheduler.

    The defaults are those of init_from, if set.

    Args:
        num_train_timesteps: number of timesteps, T
        beta_start: variance of the first noising step
        beta_end: variance of the last noising step
        beta_schedule: schedule of the variances: linear, scaled_linear, squaredcos_cap_v2 (cosine) or sigmoid
        prediction_type: output of the model: epsilon (the noise), v_prediction, sample (x0) or
            flow_prediction (noise - x0, for flow matching; only num_train_timesteps and shift apply to it)
        rescale_betas_zero_snr: rescale the betas to a terminal signal-to-noise ratio of zero; not supported with
            epsilon
        timestep_spacing: timestep spacing of schedulers without power-law spacing, such as DDIM: leading, linspace or
            trailing
        shift: shift of the noise levels of flow matching; values above 1 use higher noise levels more often
    """

    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    prediction_type: PredictionType = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    shift: float = 1.0


@dataclass
class ObjectiveConfig:
    """Training objective. The defaults are those of init_from, if set.

    Args:
        loss_type: loss function: mse, l1 or huber
        snr_gamma: gamma of Min-SNR loss weighting, usually 5; no weighting if null
        weighting_scheme: loss weighting of flow matching: none, sigma_sqrt or cosmap
        timestep_sampling: distribution of the training timesteps: uniform, logit_normal, mode, or importance, which
            samples timesteps with a high loss more often (arXiv 2102.09672, section 3.3)
        logit_mean: mean of the normal distribution of logit_normal
        logit_std: standard deviation of the normal distribution of logit_normal
        mode_scale: scale of the timestep sampling mode; positive values sample intermediate timesteps more often
        label_dropout: probability of replacing a label or caption with the null label or the empty prompt, for
            unconditional sampling and classifier-free guidance
    """

    loss_type: LossType = "mse"
    snr_gamma: float | None = None
    weighting_scheme: WeightingScheme = "none"
    timestep_sampling: TimestepSampling = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    label_dropout: float = 0.1


@dataclass
class DistillationConfig:
    """Distillation into a model that generates images in one to four steps (distill.py).

    Of the training objective, it only uses label_dropout.

    Args:
        num_segments: number of segments that the noise schedule is divided into; required by distill.py, must be null
            in train.py
        adversarial_weight: weight of the generator loss against a discriminator; 0 disables the discriminator; must be
            0 in train.py
        discriminator_learning_rate: peak learning rate of the discriminator
    """

    num_segments: int | None = None
    adversarial_weight: float = 0.0
    discriminator_learning_rate: float = 1e-3

    @property
    def enabled(self) -> bool:
        return self.num_segments is not None


@dataclass
class TextEncoderConfig:
    """Text encoder (CLIPTextModel) that is trained together with the U-Net on captions of the images.

    The width of the text encoder is that of the time embedding. The defaults are those of init_from, if set.

    Args:
        num_hidden_layers: number of transformer layers; no text encoder if null
        num_attention_heads: number of attention heads per layer
        intermediate_size: width of the hidden layer of each MLP
    """

    num_hidden_layers: int | None = None
    num_attention_heads: int = 4
    intermediate_size: int = 256

    @property
    def enabled(self) -> bool:
        return self.num_hidden_layers is not None


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
        max_grad_norm: maximum norm for clipping the gradients of the model; no clipping if null
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
    """Exponential moving average (EMA) of the weights, which replaces the weights in sampling and export.

    Args:
        enabled: average the weights during training
        max_decay: maximum decay per optimizer step
        inv_gamma: inv_gamma in the decay warm-up, 1 - (1 + step / inv_gamma) ** -power; larger values slow it down
        power: exponent of the decay warm-up
    """

    enabled: bool = False
    max_decay: float = 0.9999
    inv_gamma: float = 1.0
    power: float = 0.75


@dataclass(frozen=True)
class SamplesConfig(SamplingConfig):
    """Sample grids during training.

    Args:
        num_images: number of images in a grid, which cycles through the classes or the captions of training images
    """

    num_images: int = 40


@dataclass(frozen=True)
class EvalConfig(SamplingConfig):
    """Evaluation of samples during training on Fashion-MNIST; the best pipeline so far is saved in the folder best.

    Args:
        every_n_epochs: number of epochs between evaluations; the last epoch is always evaluated; no evaluation if null
        num_samples: number of samples; with at least 2,049 samples, FID is also computed if the Inception network is
            available
    """

    every_n_epochs: int | None = None
    num_samples: int = 1000


@dataclass(frozen=True)
class TrainingConfig:
    """Training run. The value auto chooses a setting that suits the images and the machine.

    Args:
        output_dir: folder for everything that the run writes; must be new or empty unless the run is resumed
        init_from: pipeline to fine-tune: a folder, the name of a bundled checkpoint or a Hub repository
        vae: autoencoder of a latent diffusion model: a folder that train_autoencoder.py wrote, or a latent diffusion
            pipeline; the autoencoder of init_from by default
        resume: checkpoint to resume from: latest (in output_dir) or a path, which may belong to a different run
        seed: random seed of the initial weights, the order of the data, and the noise
        num_epochs: number of passes over the images; auto trains on 40,000 images from scratch, 60,000 in distillation
            and 160,000 in fine-tuning
        max_train_steps: maximum number of optimizer steps; if the run reaches it before num_epochs, the run and the
            learning rate schedule end earlier
        train_batch_size: total number of images per batch, across all processes; auto depends on the device and on the
            number and size of the images
        gradient_accumulation_steps: number of batches whose gradients are averaged for an optimizer step
        mixed_precision: mixed-precision dtype: no, bf16 or fp16; null uses the setting of accelerate launch; auto
            uses that setting if it is bf16 or fp16, and otherwise bf16 if the CUDA GPU or CPU supports it natively;
            null and auto use no to distill a model with epsilon prediction
        gradient_checkpointing: recompute activations in the backward pass to save memory
        compile: use torch.compile for the model; auto enables it if a compiler is installed and the run has at least
            3,000 steps, on a CPU or a CUDA GPU
        channels_last: use the channels_last memory format for weights and images
        save_images_epochs: number of epochs between sample grids; the last epoch always has one; auto saves about ten
        save_model_epochs: number of epochs between exports of the pipeline; the last epoch always has one; auto
            exports about ten times
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
        model: arguments of FashionMNISTUNet2DModel, such as norm_type; the defaults are those of init_from, if set
        data: training images
        scheduler: noise schedule
        objective: training objective
        distillation: distillation into a model that needs few steps
        text_encoder: text encoder of a text-conditional model
        optimizer: optimizer and learning rate
        ema: exponential moving average of the weights
        samples: sample grids during training
        eval: evaluation of samples during training
    """

    output_dir: str = "output/run"
    init_from: str | None = None
    vae: str | None = None
    resume: str | None = None
    seed: int = 0
    num_epochs: int | Literal["auto"] = 50
    max_train_steps: int | None = None
    train_batch_size: int | Literal["auto"] = 32
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] | None = None
    gradient_checkpointing: bool = False
    compile: bool | Literal["auto"] = False
    channels_last: bool = False
    save_images_epochs: int | Literal["auto"] = 10
    save_model_epochs: int | Literal["auto"] = 10
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
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def save(self, path: Path) -> None:
        """Writes a YAML file for `--config`. `resume` is reset, because it only applies to one command."""
        write_yaml(path, asdict(self) | {"resume": None})

    def check_resumable(self, path: Path) -> None:
        """Raises `ValueError` if the run whose config was saved at `path` cannot continue with this config."""
        if not path.exists():
            return
        saved = read_saved_settings(path)
        current = convert_tuples(asdict(self))
        for settings in (saved, current):
            settings["data"].pop("dataloader_num_workers")
            settings["ema.enabled"] = settings["ema"]["enabled"]
        steps = ("train_batch_size", "gradient_accumulation_steps")
        sections = ("model", "data", "scheduler", "distillation", "text_encoder", "ema.enabled")
        # The teacher and the tokenizer are not part of a checkpoint.
        needs_pretrained = self.distillation.enabled or self.text_encoder.enabled
        names = ("seed", "vae", *(("init_from",) if needs_pretrained else ()), *steps, *sections)
        saved, current = (dict(flatten({name: settings[name] for name in names})) for settings in (saved, current))
        # The images may have moved. Loading a checkpoint compares the number of batches, the classes and the words.
        has_moved = all(settings.get("data.train_data_dir") for settings in (saved, current))
        for name in dict.fromkeys([*saved, *current]):
            if current.get(name) != saved.get(name) and not (has_moved and name == "data.train_data_dir"):
                raise ValueError(
                    f"`--{name}` must be the same as in the run to resume ({saved.get(name)}), got"
                    f" {current.get(name)}. Pass --config={path} together with --resume, and omit this setting."
                )


def count_steps(config: TrainingConfig, num_epochs: int, batches_per_epoch: int) -> int:
    """Returns the number of optimizer steps in `num_epochs`, or `config.max_train_steps` if that is smaller."""
    steps = num_epochs * (batches_per_epoch // config.gradient_accumulation_steps)
    return min(steps, config.max_train_steps or steps)


def get_saved_settings_path(resume: str, output_dir: str) -> Path:
    """Returns the path of the settings of the run to resume."""
    folder = Path(output_dir) if resume == "latest" else Path(resume).resolve().parent.parent
    return folder / "config.yaml"


def read_saved_settings(path: Path) -> dict[str, Any]:
    """Reads a `config.yaml` that [`TrainingConfig.save`] wrote.

    Settings that the file does not contain get their default values.

    Raises:
        `ValueError`: If the file is damaged.
    """
    try:
        saved = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error} Restore the file, or start a new run.") from error
    return add_defaults(saved, convert_tuples(asdict(TrainingConfig())))


@dataclass(frozen=True)
class ResolvedConfig(TrainingConfig):
    """Configuration of a run without auto values. `data.resolution` and `data.channels` are not `None`."""

    num_epochs: int = 50
    train_batch_size: int = 32
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    compile: bool = False
    save_images_epochs: int = 10
    save_model_epochs: int = 10

    @property
    def images_per_step(self) -> int:
        """Number of images per optimizer step, across all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps

    def get_total_steps(self, batches_per_epoch: int) -> int:
        """Returns the number of optimizer steps of the whole run."""
        return count_steps(self, self.num_epochs, batches_per_epoch)
