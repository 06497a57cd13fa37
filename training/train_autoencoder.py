"""Trains an autoencoder for latent diffusion (arXiv 2112.10752):

    accelerate launch training/train_autoencoder.py --data.train_data_dir=path/to/images

The output folder contains the autoencoder (`vae`, which is passed to train.py as `--vae`), its metrics on held-out
images (`vae/metrics.json`), some of these images with their reconstructions (`reconstructions.png`), and a checkpoint
for `--resume=true`.
"""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import AutoencoderKL
from jsonargparse import ArgumentParser
from safetensors.torch import load_file
from torch.nn import functional as F

from autoencoder import compute_psnr, reconstruct
from batches import Batches
from checkpoint import Progress, check_progress, describe_load_errors, write_checkpoint
from checks import check_values
from components import make_lr_scheduler, make_optimizer
from config import DataConfig, OptimizerConfig, add_defaults
from fmnist_diffusion.data import ImageTensors, to_pil
from fmnist_diffusion.files import (
    WriteError,
    describe_write_errors,
    remove_temporary_files,
    replace_folder,
    write_atomically,
)
from fmnist_diffusion.images import image_grid, upscale
from fmnist_diffusion.metadata import flatten
from fmnist_diffusion.models.unet_fmnist import MIN_SIZE
from fmnist_diffusion.pipelines import get_vae_scale_factor
from interrupts import Interrupts, Terminated
from lock import check_new_folder, lock_folder
from manifest import find_damage
from processes import call_on_main_process, destroy_process_groups_after
from run import print_and_exit
from states import are_finite, copy_tensors, get_optimizer_tensors, set_optimizer_tensors
from training_images import load_training_images


# Each row of images in the grid is followed by a row of their reconstructions.
GRID_COLUMNS = 16
GRID_ROWS = 4
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
        check_values(self)
        for name in ("num_validation_images", "layers_per_block", "latent_channels", "save_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`--{name}` must be positive, got {getattr(self, name)}.")
        if not self.kl_weight >= 0:
            raise ValueError(f"`--kl_weight` must be at least 0, got {self.kl_weight}.")
        if not self.block_out_channels or any(size < 1 or size % NORM_NUM_GROUPS for size in self.block_out_channels):
            raise ValueError(
                f"`--block_out_channels` must be multiples of {NORM_NUM_GROUPS}, got {list(self.block_out_channels)}."
            )
        if self.data.streaming:
            raise ValueError("`--data.streaming` must be false, because all images are kept in memory.")

    @property
    def checkpoint(self) -> Path:
        return Path(self.output_dir) / "checkpoint"


class Autoencoder(torch.nn.Module):
    """An AutoencoderKL whose forward pass returns the inputs of the loss."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the reconstructions of `images`, `(B, C, H, W)`, and the KL divergence per latent value.

        `noise` has the shape of the latents.
        """
        encoded: Any = self.vae.encode(images)
        posterior = encoded.latent_dist
        decoded: Any = self.vae.decode(posterior.mean + posterior.std * noise)
        return decoded.sample, posterior.kl().mean() / posterior.mean[0].numel()


def split_images(images: ImageTensors, num_validation_images: int, seed: int) -> tuple[ImageTensors, ImageTensors]:
    """Returns the training images and the held-out images, both in random order."""
    if num_validation_images >= len(images):
        raise ValueError(
            f"`--num_validation_images` must be less than the number of images ({len(images)}), got"
            f" {num_validation_images}. Pass --num_validation_images={max(1, len(images) // 10)}, for example."
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.select(order[num_validation_images:]), images.select(order[:num_validation_images])


def make_vae(config: AutoencoderConfig, images: ImageTensors) -> AutoencoderKL:
    """Creates an autoencoder with random weights; raises `ValueError` if it does not match the images."""
    _, channels, height, width = images.images.shape
    num_levels = len(config.block_out_channels)
    factor = 2 ** (num_levels - 1)
    if height % factor or width % factor:
        raise ValueError(
            f"`--data.resolution` must be a multiple of {factor} for {num_levels} levels, got {height}x{width}."
        )
    if min(height, width) < MIN_SIZE * factor:
        raise ValueError(
            f"`--block_out_channels` must have fewer levels for images of {height}x{width} pixels, because the latents"
            f" must have at least {MIN_SIZE}x{MIN_SIZE} values, got {num_levels} levels."
        )
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * num_levels,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * num_levels,  # pyright: ignore[reportArgumentType]
        block_out_channels=config.block_out_channels,  # pyright: ignore[reportArgumentType]
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=NORM_NUM_GROUPS,
        sample_size=max(height, width),
    )


class AutoencoderTrainer:
    """A new or resumed training run in `config.output_dir`.

    Raises:
        `ValueError`, `OSError`: If the configuration, the data or the checkpoint cannot be used.
    """

    def __init__(self, config: AutoencoderConfig):
        self.config, self.folder, self.checkpoint = config, Path(config.output_dir), config.checkpoint
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(), mixed_precision=config.mixed_precision
        )
        call_on_main_process(self.accelerator, self._prepare_folder)
        set_seed(config.seed)
        data = config.data
        images, _ = load_training_images(data)
        assert isinstance(images, ImageTensors)
        train_images, self.validation_images = split_images(images, config.num_validation_images, config.seed)
        self.batches = Batches(
            train_images,
            config.train_batch_size,
            config.seed,
            self.accelerator.device,
            augmentation=data.augmentation,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )
        model = Autoencoder(make_vae(config, images))
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(config.optimizer, model))
        self.total_steps = config.num_epochs * len(self.batches)
        self.progress = Progress()
        if config.resume:
            self._load_checkpoint()
        self.lr_scheduler = make_lr_scheduler(
            config.optimizer, self.optimizer, self.total_steps, self.progress.global_step
        )
        self.interrupts = Interrupts(self.accelerator)

    def _prepare_folder(self) -> None:
        if not self.config.resume:
            check_new_folder(self.folder, resume="true")
        with describe_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock_folder(self.folder)
        remove_temporary_files(self.folder)
        if self.config.resume and not self.checkpoint.is_dir():
            raise ValueError(f"Could not find a checkpoint in {self.folder}. Omit --resume to start a new run.")

    @property
    def vae(self) -> AutoencoderKL:
        return self.accelerator.unwrap_model(self.model).vae

    def train(self) -> None:
        """Trains to the end of the run.

        Raises:
            `FloatingPointError`: If the loss or the weights are NaN or infinite. In this case, no weights are saved.
            `KeyboardInterrupt`: After Ctrl-C or, as [`Terminated`], after SIGTERM. A checkpoint is written first.
            `WriteError`: If a file cannot be written.
        """
        progress, losses, saved = self.progress, [], time.monotonic()
        with self.interrupts:
            while progress.epoch < self.config.num_epochs:
                for images, _, generator in self.batches.epoch(progress.epoch, start=progress.batch):
                    losses.append(self._train_batch(images, generator))
                    interrupted = self.interrupts.exchange()
                    is_due = time.monotonic() - saved > 60 * self.config.save_minutes
                    # All processes must save at the same step, but their clocks differ.
                    if interrupted or self.interrupts.find_maximum(is_due):
                        self._save(losses)
                        losses, saved = [], time.monotonic()
                    if interrupted:
                        self.interrupts.stop()
                progress.epoch, progress.batch = progress.epoch + 1, 0
            self._save(losses)

    def _train_batch(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        factor = get_vae_scale_factor(self.vae)
        height, width = (side // factor for side in images.shape[2:])
        # The generator has the same state in all processes, and each of them uses its own part of the noise.
        shape = (self.accelerator.num_processes, len(images), self.config.latent_channels, height, width)
        noise = torch.randn(shape, generator=generator, device=images.device)[self.accelerator.process_index]
        reconstructions, divergence = self.model(images, noise)
        loss = F.mse_loss(reconstructions.float(), images) + self.config.kl_weight * divergence
        self.accelerator.backward(loss)
        if self.config.optimizer.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        self.progress.global_step += 1
        self.progress.batch += 1
        return loss.detach()

    def _save(self, losses: list[torch.Tensor]) -> None:
        """Writes a checkpoint and the outputs in the main process while the other processes wait."""
        step, loss = self.progress.global_step, None
        if losses:
            means: Any = self.accelerator.gather(torch.stack(losses).mean())
            loss = float(means.mean())
            if not math.isfinite(loss):
                raise FloatingPointError(f"The loss is {loss} at step {step}.")
        # The last loss was computed before the last optimizer step.
        if not are_finite(self.vae.state_dict().values()):
            raise FloatingPointError(f"The weights are NaN or infinite at step {step}.")
        call_on_main_process(self.accelerator, partial(self._write, loss))

    def _write(self, loss: float | None) -> None:
        tensors = {
            "model": self.vae.state_dict(),
            "optimizer": get_optimizer_tensors(self.optimizer, self.vae),
        }
        scaler = self.accelerator.scaler
        state = {
            "config": asdict(self.config),
            "progress": asdict(self.progress),
            "batches_per_epoch": len(self.batches),
            "grad_scaler": None if scaler is None else scaler.state_dict(),
        }
        write_checkpoint(self.checkpoint, tensors, state)
        metrics = self._write_outputs()
        text = f"Step {self.progress.global_step:,} of {self.total_steps:,}: "
        if loss is not None:
            text += f"loss {loss:.5f}, "
        print(f"{text}held-out PSNR {metrics['psnr']:.2f} dB", flush=True)

    def _write_outputs(self) -> dict[str, Any]:
        """Writes the autoencoder, its metrics on the held-out images, and some reconstructions."""
        validation = self.validation_images
        images, labels = validation.images, validation.labels
        latents, reconstructions = reconstruct(self.vae, images)
        psnr = compute_psnr(reconstructions, images)
        metrics: dict[str, Any] = {
            "step": self.progress.global_step,
            "images_seen": self.progress.global_step * self.config.train_batch_size,
            "num_validation_images": len(images),
            "psnr": float(psnr.mean()),
        }
        if labels is not None:
            metrics["psnr_by_class"] = {
                name: float(psnr[labels == label].mean())
                for label, name in enumerate(validation.label_names or ())
                if (labels == label).any()
            }
        # These factors give the latents mean 0 and standard deviation 1 (arXiv 2112.10752, appendix G).
        self.vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
        with replace_folder(self.folder / "vae") as temporary:
            self.vae.save_pretrained(temporary)
            (temporary / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        rows = zip(images.split(GRID_COLUMNS), reconstructions.split(GRID_COLUMNS), strict=True)
        pairs = torch.cat([torch.cat(row) for row in rows][:GRID_ROWS])
        with write_atomically(self.folder / "reconstructions.png") as temporary:
            upscale(image_grid(to_pil(pairs), GRID_COLUMNS), 2).save(temporary)
        return metrics

    def _load_checkpoint(self) -> None:
        """Loads a checkpoint; raises `ValueError` if it does not match the settings or is damaged."""
        if damage := find_damage(self.checkpoint):
            raise ValueError(f"{damage}. Start again with a different --output_dir.")
        with describe_load_errors(self.checkpoint / "trainer.json") as path:
            state = json.loads(path.read_bytes())
            saved = add_defaults(state["config"], asdict(AutoencoderConfig()))
        # JSON turns tuples into lists.
        current, saved = (dict(flatten(item)) for item in json.loads(json.dumps([asdict(self.config), saved])))
        for name, value in current.items():
            if name not in CHANGEABLE_SETTINGS and value != saved[name]:
                raise ValueError(f"`--{name}` must be the same as in the run to resume ({saved[name]}), got {value}.")
        with describe_load_errors(path):
            progress = Progress(**state["progress"])
            check_progress(progress, progress.global_step, state["batches_per_epoch"], len(self.batches))
            if self.accelerator.scaler is not None and state["grad_scaler"]:
                self.accelerator.scaler.load_state_dict(state["grad_scaler"])
        if progress.global_step > self.total_steps:
            raise ValueError(
                f"`--num_epochs` must be at least {progress.epoch + (progress.batch > 0)}, the number of started"
                f" epochs, got {self.config.num_epochs}."
            )
        with describe_load_errors(self.checkpoint / "model.safetensors") as path:
            copy_tensors(load_file(path), self.vae.state_dict())
        with describe_load_errors(self.checkpoint / "optimizer.safetensors") as path:
            set_optimizer_tensors(self.optimizer, self.vae, load_file(path))
        vars(self.progress).update(vars(progress))


def main(args: list[str]) -> None:
    destroy_process_groups_after(partial(run, args))


def run(args: list[str]) -> None:
    parser = ArgumentParser(prog="train_autoencoder.py", description=__doc__)
    parser.add_class_arguments(AutoencoderConfig, None)
    stop = partial(print_and_exit, parser.prog)
    try:
        config = AutoencoderConfig(**vars(parser.instantiate(parser.parse_args(args))))
    except ValueError as error:
        stop(f"error: {error}", 2)
    try:
        trainer = AutoencoderTrainer(config)
        trainer.train()
    except KeyboardInterrupt as interrupt:
        stop(f"Interrupted. {get_advice(config)}", 143 if isinstance(interrupt, Terminated) else 130)
    except FloatingPointError as error:
        stop(f"error: {error} Start again with a lower --optimizer.learning_rate and a different --output_dir.", 1)
    except WriteError as error:
        stop(f"error: {error} {get_advice(config)}", 1)
    except (OSError, ValueError) as error:
        stop(f"error: {error}", 2)
    trainer.accelerator.print(f"Saved the autoencoder to {trainer.folder / 'vae'}.")


def get_advice(config: AutoencoderConfig) -> str:
    """Returns a sentence about how to resume or restart the stopped run."""
    if config.checkpoint.is_dir():
        return "Resume from the last checkpoint with --resume=true."
    return "There is no checkpoint yet. Start again with a different --output_dir."


if __name__ == "__main__":
    main(sys.argv[1:])
