"""Training of an autoencoder."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import AutoencoderKL
from torch.nn import functional as F
from tqdm.auto import tqdm

from autoencoder import compute_psnr, reconstruct
from autoencoder_config import CHANGEABLE_SETTINGS, NORM_NUM_GROUPS, AutoencoderConfig
from batches import Batches
from checkpoint import (
    Progress,
    describe_load_errors,
    describe_missing_checkpoint,
    get_loop_state,
    load_loop_state,
    load_weights,
    write_checkpoint,
)
from components import make_accelerator, make_lr_scheduler, make_optimizer
from fmnist_diffusion.data import ImageTensors, to_pil
from fmnist_diffusion.files import (
    PREVIOUS,
    describe_write_errors,
    remove_temporary_files,
    replace_folder,
    write_atomically,
)
from fmnist_diffusion.images import image_grid, upscale
from fmnist_diffusion.metadata import flatten
from fmnist_diffusion.models.unet_fmnist import MIN_SIZE
from fmnist_diffusion.pipelines import get_vae_scale_factor
from interrupts import Interrupts
from manifest import find_damage
from output_folder import check_new_folder, lock_folder
from processes import call_on_main_process
from records import LossLogger, LossRecord
from states import check_finite, get_optimizer_tensors
from training_images import load_training_images
from yaml_files import add_defaults, convert_tuples, write_yaml


# Each row of images in the grid is followed by a row of their reconstructions.
GRID_COLUMNS = 16
GRID_ROWS = 4
LOGGING_STEPS = 10
LOSS_TERMS = ("reconstruction_loss", "kl_loss")


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
    """Returns the training images and the held-out images, both in random order.

    Raises:
        `ValueError`: If no training images would remain.
    """
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
        `WriteError`: If `output_dir` is not writable.
    """

    def __init__(self, config: AutoencoderConfig):
        self.config, self.folder, self.checkpoint = config, Path(config.output_dir), config.checkpoint
        self.accelerator = make_accelerator(config.mixed_precision)
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
        record = call_on_main_process(self.accelerator, self._start_record)
        self.loss_logger = LossLogger(self.accelerator, record, config.train_batch_size, LOSS_TERMS)

    def _prepare_folder(self) -> None:
        # A killed process may have left the checkpoint under its previous name.
        previous = self.checkpoint.with_name(f"{PREVIOUS}{self.checkpoint.name}")
        has_checkpoint = self.checkpoint.is_dir() or previous.is_dir()
        if not self.config.resume:
            check_new_folder(self.folder, resume="true" if has_checkpoint else None)
        elif not has_checkpoint:
            raise ValueError(describe_missing_checkpoint(self.folder))
        with describe_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock_folder(self.folder)
        remove_temporary_files(self.folder)

    def _start_record(self) -> LossRecord:
        write_yaml(self.folder / "config.yaml", asdict(self.config) | {"resume": False})
        path = self.folder / "loss.csv"
        return LossRecord(path, path if self.config.resume else None, self.progress.global_step, LOSS_TERMS)

    @property
    def vae(self) -> AutoencoderKL:
        return self.accelerator.unwrap_model(self.model).vae

    def train(self) -> None:
        """Trains to the end of the run.

        Raises:
            `FloatingPointError`: If the loss or the weights are NaN or infinite. In this case, no weights are saved.
            `KeyboardInterrupt`: After Ctrl-C or, as [`Terminated`], after SIGTERM or SIGHUP. A checkpoint is written
                first, unless a run with a single process receives a second signal.
            `WriteError`: If a file cannot be written.
        """
        progress, saved = self.progress, time.monotonic()
        with self.interrupts, self.loss_logger.show_progress(progress.global_step, self.total_steps):
            while progress.epoch < self.config.num_epochs:
                for images, _, generator in self.batches.epoch(progress.epoch, start=progress.batch):
                    self._train_batch(images, generator)
                    if progress.global_step % LOGGING_STEPS == 0:
                        self.loss_logger.report()
                    interrupted = self.interrupts.exchange()
                    is_due = time.monotonic() - saved > 60 * self.config.save_minutes
                    # All processes must save at the same step, but their clocks differ.
                    if interrupted or self.interrupts.find_maximum(is_due):
                        self._save()
                        saved = time.monotonic()
                    if interrupted:
                        self.interrupts.stop()
                progress.epoch, progress.batch = progress.epoch + 1, 0
            self._save()

    def _train_batch(self, images: torch.Tensor, generator: torch.Generator) -> None:
        factor = get_vae_scale_factor(self.vae)
        height, width = (side // factor for side in images.shape[2:])
        # The generator has the same state in all processes, and each of them uses its own part of the noise.
        shape = (self.accelerator.num_processes, len(images), self.config.latent_channels, height, width)
        noise = torch.randn(shape, generator=generator, device=images.device)[self.accelerator.process_index]
        reconstructions, divergence = self.model(images, noise)
        reconstruction_loss = F.mse_loss(reconstructions.float(), images)
        kl_loss = self.config.kl_weight * divergence
        loss = reconstruction_loss + kl_loss
        self.accelerator.backward(loss)
        if self.config.optimizer.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress = self.progress
        progress.global_step += 1
        progress.batch += 1
        self.loss_logger.add_batch(loss, reconstruction_loss, kl_loss)
        self.loss_logger.add_step(progress.global_step, progress.epoch + 1, float(self.lr_scheduler.get_last_lr()[0]))
        self.lr_scheduler.step()

    def _save(self) -> None:
        """Writes a checkpoint and the outputs in the main process while the other processes wait."""
        self.loss_logger.report()
        # The last loss was computed before the last optimizer step.
        check_finite(self.vae.state_dict().values(), "The weights", self.progress.global_step)
        call_on_main_process(self.accelerator, self._write)
        self.loss_logger.restart_clock()

    def _write(self) -> None:
        record = self.loss_logger.record
        assert record is not None
        # The losses must be on disk before the checkpoint, so that a run that resumes from it has all of them.
        record.sync()
        tensors = {
            "model": self.vae.state_dict(),
            "optimizer": get_optimizer_tensors(self.optimizer, self.vae),
        }
        state = get_loop_state(self.accelerator, self.progress, self.batches)
        write_checkpoint(self.checkpoint, tensors, state | {"config": asdict(self.config)})
        metrics = self._write_outputs()
        record.plot(self.folder / "loss.png", self.config.train_batch_size)
        step = f"Step {self.progress.global_step:,} of {self.total_steps:,}"
        tqdm.write(f"{step}: held-out PSNR {metrics['psnr']:.2f} dB")

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
        current, saved = (dict(flatten(convert_tuples(item))) for item in (asdict(self.config), saved))
        for name, value in current.items():
            if name not in CHANGEABLE_SETTINGS and value != saved[name]:
                raise ValueError(
                    f"`--{name}` must be the same as in the run to resume ({saved[name]}), got {value}. Pass"
                    f" --config={self.folder / 'config.yaml'}, and omit this setting."
                )
        with describe_load_errors(path):
            progress = load_loop_state(self.accelerator, state, self.batches)
        if progress.global_step > self.total_steps:
            raise ValueError(
                f"`--num_epochs` must be at least {progress.epoch + (progress.batch > 0)}, the number of started"
                f" epochs, got {self.config.num_epochs}."
            )
        load_weights(self.checkpoint, ("model", "optimizer"), self.vae, self.optimizer)
        self.progress = progress
