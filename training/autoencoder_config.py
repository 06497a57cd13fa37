"""Configuration of the training of an autoencoder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from config import DataConfig, OptimizerConfig


NORM_NUM_GROUPS = 8
# A resumed run may change these settings.
CHANGEABLE_SETTINGS = {
    *("output_dir", "resume", "num_epochs", "mixed_precision", "save_minutes"),
    *("data.train_data_dir", "data.dataloader_num_workers"),
}


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings for training an AutoencoderKL.

    Args:
        output_dir: folder for everything that the run writes; must be new or empty unless the run is resumed
        resume: resume the run in output_dir
        seed: random seed of the initial weights, the held-out images, the order of the data, and the noise
        num_epochs: number of passes over the training images
        train_batch_size: total number of images per batch, across all processes
        mixed_precision: mixed-precision dtype: no, bf16 or fp16; the setting of accelerate launch if null
        num_validation_images: number of images that are held out for the metrics
        save_minutes: number of minutes between checkpoints
        block_out_channels: number of channels of each level; every level except the last one halves the resolution
        layers_per_block: number of residual blocks per level of the encoder; the decoder has one more
        latent_channels: number of channels of the latents
        kl_weight: weight of the KL divergence per latent value, relative to the squared error per pixel value
        data: training images
        optimizer: optimizer and learning rate
    """

    output_dir: str = "output/autoencoder"
    resume: bool = False
    seed: int = 0
    num_epochs: int = 10
    train_batch_size: int = 8
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    num_validation_images: int = 256
    save_minutes: float = 5.0
    block_out_channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = 1
    latent_channels: int = 4
    kl_weight: float = 1e-3
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=100, max_grad_norm=1.0
        )
    )

    def __post_init__(self):
        if not self.block_out_channels or any(size % NORM_NUM_GROUPS for size in self.block_out_channels):
            raise ValueError(
                f"`--block_out_channels` must be one or more multiples of {NORM_NUM_GROUPS}, got"
                f" {list(self.block_out_channels)}."
            )
        if self.data.streaming:
            raise ValueError("`--data.streaming` must be false, because all images are kept in memory.")

    @property
    def checkpoint(self) -> Path:
        return Path(self.output_dir) / "checkpoint"
