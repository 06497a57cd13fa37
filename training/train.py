"""Trains a diffusion model: `accelerate launch training/train.py --config training/configs/spec.yaml`."""

import importlib.util
import itertools
import logging
import math
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from huggingface_hub import get_token
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm


# A script's modules are looked for in its own folder, and ours are beside that.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fmnist_diffusion import (
    FashionMNISTPipeline,
    FashionMNISTUNet2DModel,
    SDEDPMSolverScheduler,
    export_pipeline,
    load_pipeline,
)
from fmnist_diffusion.data import (
    DataError,
    ImageTensors,
    load_images,
    load_split,
    stream_images,
    to_model_input,
)
from fmnist_diffusion.objectives import (
    TimestepSampler,
    drop_labels,
    min_snr_weights,
    per_image_loss,
)
from fmnist_diffusion.pictures import enlarge, image_grid
from fmnist_diffusion.publish import flatten
from training.batches import Batches, augment
from training.checkpoint import Progress, find_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from training.config import TrainingConfig, is_first_process, parse_config
from training.losses import LossRecord
from training.model import make_model
from training.pictures import draw_strip
from training.push import BackgroundPush


OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
GRID_COLUMNS, GRID_UPSCALE = 10, 2
# Batches on which the batch normalization of averaged weights is measured anew.
RECALIBRATION_BATCHES = 50


class Trainer:
    """One training run in `config.output_dir`; see `TrainingConfig` for what it does.

    Raises:
        `ValueError`, `OSError`: the configuration, the data or the pipeline to begin with is not usable.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
            raise ValueError(
                f"{config.report_to} is not installed; run pip install {config.report_to}, or give --report_to=none."
            )
        checkpoint = None
        if config.resume is not None:
            checkpoint = find_checkpoint(config.resume, self.folder / "checkpoints")
            config.check_resumable(checkpoint.parents[1] / "config.yaml")
        begins_here = checkpoint is None or checkpoint.parent.resolve() != (self.folder / "checkpoints").resolve()
        if begins_here and self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} holds files already; give another --output_dir, or --resume=latest to continue a run."
            )
        self.accelerator = Accelerator(
            # Else Accelerate takes the processes of torchrun for unrelated ones where there is no GPU.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(str(self.folder), logging_dir=str(self.folder / "logs")),
            # The other processes wait while one measures samples, which may take longer than is usually waited.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
        )
        self.device = self.accelerator.device

        # 1. data and model, the same in every process
        set_seed(config.seed)
        pretrained = load_pipeline(config.init_from, scheduler=None) if config.init_from else None
        channels = config.data.channels or (pretrained.unet.config["in_channels"] if pretrained else 1)
        resolution = config.data.resolution or (pretrained.unet.config["sample_size"] if pretrained else 28)
        images, label_names = load_training_images(config, resolution, channels)
        self.batches = Batches(
            images,
            config.train_batch_size,
            config.seed,
            self.device,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            config.data.dataloader_num_workers,
        )
        if config.gradient_accumulation_steps > len(self.batches):
            raise ValueError(
                f"an epoch has {len(self.batches)} batches; give --gradient_accumulation_steps={len(self.batches)} or"
                " less."
            )
        unet, self.scheduler = make_model(config, resolution, channels, label_names, pretrained)
        self.sampler = SDEDPMSolverScheduler.from_config(self.scheduler.config)
        self.unet_config = unet.config
        self.num_class_embeds = unet.config["num_class_embeds"]
        self.evaluator = None
        if config.eval.every_n_epochs is not None:
            if (channels, resolution) != (1, 28) or self.num_class_embeds not in (None, 10):
                raise ValueError(
                    "the images are not those of Fashion-MNIST, which samples would be measured against; leave out"
                    " eval.every_n_epochs."
                )
            if self.accelerator.is_main_process:
                # Its packages are needed by no other run.
                try:
                    from training.evaluation import SampleEvaluator
                except ImportError as error:
                    raise ValueError(
                        f"eval.every_n_epochs needs {error.name}; run pip install 'fmnist-diffusion[eval]'."
                    ) from error

                self.evaluator = SampleEvaluator(config.eval, self.device)
        self.publisher = None
        if config.push_to_hub and self.accelerator.is_main_process:
            if get_token() is None:
                raise ValueError(
                    "push_to_hub needs a token of the Hub; run hf auth login, or set HF_TOKEN, or leave it out."
                )
            repo_id = config.hub_model_id or self.folder.resolve().name
            self.publisher = BackgroundPush(repo_id, config.hub_private_repo, config.hub_license, tqdm.write)
        if config.compile and self.device.type == "cpu" and not can_compile():
            raise ValueError(
                "compile needs g++ and Python's headers; install g++ and python3-dev, or give --compile=false."
            )
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        unet.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if config.compile:
            unet.compile()

        # 2. optimizer, learning rate, moving average
        total_steps = config.num_epochs * len(self.batches) // config.gradient_accumulation_steps
        self.total_steps = min(total_steps, config.max_train_steps or total_steps)
        optimizer = OPTIMIZERS[config.optimizer.name](
            unet.parameters(),
            lr=config.optimizer.learning_rate,
            betas=(config.optimizer.adam_beta1, config.optimizer.adam_beta2),
            eps=config.optimizer.adam_epsilon,
            weight_decay=config.optimizer.adam_weight_decay,
            fused=True,
        )
        # Counts optimizer steps; prepared, it would count them once for each process.
        self.lr_scheduler = get_scheduler(
            config.optimizer.lr_scheduler,
            optimizer,
            num_warmup_steps=config.optimizer.lr_warmup_steps,
            num_training_steps=self.total_steps,
        )
        if self.accelerator.state.deepspeed_plugin is not None:
            # DeepSpeed would read the first off a prepared DataLoader, and would clip by a default of its own.
            self.accelerator.state.deepspeed_plugin.deepspeed_config |= {
                "train_micro_batch_size_per_gpu": config.train_batch_size // self.accelerator.num_processes,
                "gradient_clipping": config.optimizer.max_grad_norm or 0.0,
            }
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        self.ema = None
        if config.ema.enabled:
            self.ema = EMAModel(
                self.unet.parameters(),
                decay=config.ema.max_decay,
                use_ema_warmup=True,
                inv_gamma=config.ema.inv_gamma,
                power=config.ema.power,
                # Sharded tensors have no such operations.
                foreach=not self.accelerator.is_fsdp2,
            )

        # 3. place in the run
        self.timestep_sampler = TimestepSampler(
            config.objective.timestep_sampling,
            config.scheduler.num_train_timesteps,
            self.device,
            config.objective.logit_mean,
            config.objective.logit_std,
        )
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress, self.lr_scheduler, self.timestep_sampler)
        # From here on each process draws noise of its own.
        set_seed(config.seed, device_specific=True)
        if checkpoint is not None:
            # The settings are those of this command, not of the checkpoint.
            groups = [dict(group) for group in self.optimizer.param_groups]
            load_checkpoint(self.accelerator, self.ema, checkpoint)
            if self.progress.global_step > self.total_steps:
                option = "--max_train_steps" if config.max_train_steps == self.total_steps else "--num_epochs"
                raise ValueError(
                    f"the run to resume is at step {self.progress.global_step} and would end at {self.total_steps};"
                    f" give more {option}."
                )
            highest = config.optimizer.learning_rate
            rate = highest * self.lr_scheduler.lr_lambdas[0](self.progress.global_step)
            self.lr_scheduler.base_lrs, self.lr_scheduler._last_lr = [highest], [rate]
            for group, settings in zip(self.optimizer.param_groups, groups, strict=True):
                group.update(settings, lr=rate)
            if self.ema is not None:
                self.ema.decay, self.ema.inv_gamma = config.ema.max_decay, config.ema.inv_gamma
                self.ema.power = config.ema.power

        # 4. records
        self.micro_losses: list[torch.Tensor] = []
        self.pending: list[tuple[int, int, torch.Tensor, float]] = []
        if self.accelerator.is_main_process:
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
            config.save(self.folder / "config.yaml")
            resumed = None if checkpoint is None else checkpoint.parents[1]
            step = self.progress.global_step
            self.losses = LossRecord(self.folder / "loss.csv", resumed and resumed / "loss.csv", step)
            if self.evaluator is not None:
                self.evaluator.keep(self.folder / "eval.csv", step)
        if config.report_to != "none":
            # In the types that trackers take.
            tracked = {
                name: value if isinstance(value, str | int | float | bool) else str(value)
                for name, value in flatten(config.to_dict())
            }
            self.accelerator.init_trackers("fmnist-diffusion", tracked, {"wandb": {"dir": str(self.folder)}})

    def train(self) -> None:
        """Trains to the end of the run and exports the pipeline.

        Raises:
            `FloatingPointError`: the loss or the weights are not finite; the last checkpoint is from before that.
            `KeyboardInterrupt`: Ctrl-C; in a single process a checkpoint has been written first.
        """
        config, progress = self.config, self.progress
        self.bar = tqdm(
            total=self.total_steps,
            initial=progress.global_step,
            unit="step",
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
        )
        self.logged_at = time.perf_counter()
        with self._stop_between_steps():
            if progress.global_step == self.total_steps:
                # The checkpoint may be from before the end of its epoch, or be resumed elsewhere or to publish.
                self._end_epoch()
            while progress.global_step < self.total_steps:
                for images, labels in self.batches.epoch(progress.epoch, start=progress.batch):
                    progress.batch += 1
                    self._train_batch(images, labels)
                    if not self.accelerator.sync_gradients:
                        continue
                    if progress.global_step % config.logging_steps == 0:
                        self._log()
                    if progress.global_step % config.checkpointing_steps == 0 or self.stopped:
                        self._save_checkpoint()
                    if self.stopped:
                        raise KeyboardInterrupt
                    if progress.global_step == self.total_steps:
                        break
                self._end_epoch()
        self._save_checkpoint()
        self.bar.close()
        if self.device.type == "cuda":
            self.accelerator.print(f"peak memory on the device: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
        self.accelerator.print(f"the pipeline is in {self.folder / 'pipeline'}")
        if self.publisher is not None:
            self.publisher.finish()
        self.accelerator.end_training()

    @contextmanager
    def _stop_between_steps(self) -> Iterator[None]:
        """Turns Ctrl-C into a stop behind the current step, where a checkpoint can be written.

        Not with several processes: they would have to agree on the step.
        """
        self.stopped = False
        if self.accelerator.num_processes > 1:
            yield
            return

        def stop(*_):
            # A second Ctrl-C stops at once.
            self.stopped = True
            signal.signal(signal.SIGINT, previous)

        previous = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _make_inputs(
        self, images: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Noises a batch; returns the noisy images, timesteps, class labels, the target and the loss weights."""
        config, objective = self.config, self.config.objective
        prediction_type = config.scheduler.prediction_type
        sample = augment(to_model_input(images), config.data.augmentation).to(memory_format=self.memory_format)
        class_labels = None
        if self.num_class_embeds is not None and labels is not None:
            class_labels = drop_labels(labels, objective.label_dropout, self.num_class_embeds)
        timesteps, weights = self.timestep_sampler.sample(len(sample))
        noise = torch.randn_like(sample)
        noisy = self.scheduler.add_noise(sample, noise, timesteps)
        if prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(sample, noise, timesteps)
        else:
            target = noise if prediction_type == "epsilon" else sample
        if objective.snr_gamma is not None:
            snr = compute_snr(self.scheduler, timesteps)
            weights = weights * min_snr_weights(snr, objective.snr_gamma, prediction_type)
        return noisy, timesteps, class_labels, target, weights

    def _train_batch(self, images: torch.Tensor, labels: torch.Tensor | None) -> None:
        config = self.config
        noisy, timesteps, class_labels, target, weights = self._make_inputs(images, labels)
        with self.accelerator.accumulate(self.unet):
            prediction = self.unet(noisy, timesteps, class_labels).sample
            losses = per_image_loss(prediction.float(), target, config.objective.loss_type)
            loss = (losses * weights).mean()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and config.optimizer.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(self.unet.parameters(), config.optimizer.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if config.objective.timestep_sampling == "importance":
            self.timestep_sampler.update(*self.accelerator.gather((timesteps, losses.detach())))
        self.micro_losses.append(loss.detach())
        if self.accelerator.sync_gradients:
            self.progress.global_step += 1
            # The loss stays a tensor until it is logged, so that a step does not wait for the device.
            mean_loss = torch.stack(self.micro_losses).mean()
            self.pending.append(
                (self.progress.global_step, self.progress.epoch + 1, mean_loss, self.lr_scheduler.get_last_lr()[0])
            )
            self.micro_losses = []
            self.lr_scheduler.step()
            if self.ema is not None:
                self.ema.step(self.unet.parameters())
            self.bar.update()

    def _log(self) -> None:
        """Reports the losses since the last call, and stops the run if one of them, or a weight, is not finite."""
        if not self.pending:
            return
        losses = self.accelerator.reduce(
            torch.stack([loss for _, _, loss, _ in self.pending]), reduction="mean"
        ).tolist()
        rows = [(step, epoch, loss, rate) for (step, epoch, _, rate), loss in zip(self.pending, losses, strict=True)]
        self.pending = []
        seconds = time.perf_counter() - self.logged_at
        self.logged_at += seconds
        images_per_second = (
            len(rows) * self.config.train_batch_size * self.config.gradient_accumulation_steps / seconds
        )
        if self.accelerator.is_main_process:
            self.losses.append(rows)
        step, epoch, _, learning_rate = rows[-1]
        loss = float(np.mean(losses))
        self.bar.set_postfix(epoch=epoch, loss=f"{loss:.4f}", images_per_s=f"{images_per_second:.0f}")
        values = {"loss": loss, "learning_rate": learning_rate, "images_per_second": images_per_second}
        self.accelerator.log(values, step=step)
        for step, _, loss, _ in rows:
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {step}")
        if not all(bool(weight.isfinite().all()) for weight in self.unet.parameters()):
            raise FloatingPointError(f"the weights are not finite at step {self.progress.global_step}")

    def _save_checkpoint(self) -> None:
        self._log()
        save_checkpoint(
            self.accelerator,
            self.ema,
            self.folder / "checkpoints",
            self.progress.global_step,
            self.config.checkpoints_total_limit,
        )
        self.logged_at = time.perf_counter()

    def _end_epoch(self) -> None:
        """Closes an epoch, also one that max_train_steps cut short: losses, sample grid, exported pipeline."""
        self._log()
        config, progress = self.config, self.progress
        # At the end of a run that is resumed there, the epoch has been counted.
        epoch = progress.epoch + (progress.batch > 0)
        finished = progress.global_step == self.total_steps
        if progress.batch == len(self.batches):
            progress.epoch, progress.batch = epoch, 0
        if self.accelerator.is_main_process:
            epoch_loss = self.losses.epoch_mean(epoch)
            self.accelerator.log({"epoch_loss": epoch_loss}, step=progress.global_step)
            self.bar.write(f"epoch {epoch}: loss {epoch_loss:.5f}")
            self.losses.plot(self.folder / "loss.png")
        draw = finished or epoch % config.save_images_epochs == 0
        export = finished or epoch % config.save_model_epochs == 0
        publish = config.push_to_hub and (finished or epoch % (config.push_to_hub_epochs or epoch + 1) == 0)
        measure = config.eval.every_n_epochs and (finished or epoch % config.eval.every_n_epochs == 0)
        if draw or export or publish or measure:
            # Sampling leaves no trace in the random numbers that training draws.
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                unet = self._sampling_unet()
                if unet is not None and draw:
                    self._draw_samples(unet, epoch)
                if unet is not None and (export or publish):
                    self._export(unet, self.folder / "pipeline", epoch)
                if self.publisher is not None and publish:
                    self.publisher.push(self.folder / "pipeline")
                if unet is not None and measure:
                    self._measure(unet, epoch)
            self.accelerator.wait_for_everyone()
        self.logged_at = time.perf_counter()

    def _sampling_unet(self) -> FashionMNISTUNet2DModel | None:
        """A copy, on the main process, of the weights to sample from: the averaged ones where they are kept."""
        if self.ema is not None:
            self.ema.store(self.unet.parameters())
            self.ema.copy_to(self.unet.parameters())
        state_dict = self.accelerator.get_state_dict(self.unet)
        unet = None
        if self.accelerator.is_main_process:
            unet = FashionMNISTUNet2DModel.from_config(self.unet_config).to(self.device)
            unet.load_state_dict(state_dict)
        if self.ema is not None:
            self.ema.restore(self.unet.parameters())
            if unet is not None:
                self._recalibrate_batch_norm(unet)
        return None if unet is None else unet.eval()

    @torch.no_grad()
    def _recalibrate_batch_norm(self, unet: FashionMNISTUNet2DModel) -> None:
        """Measures the running statistics of averaged weights, which the EMA does not average (arXiv 1803.05407,
        section 3.2)."""
        norms = [module for module in unet.eval().modules() if isinstance(module, torch.nn.BatchNorm2d)]
        if not norms:
            return
        momentum = norms[0].momentum
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for images, labels in itertools.islice(self.batches.epoch(0), RECALIBRATION_BATCHES):
            noisy, timesteps, class_labels, *_ = self._make_inputs(images, labels)
            with self.accelerator.autocast():
                unet(noisy, timesteps, class_labels)
        for norm in norms:
            norm.momentum = momentum

    def _draw_samples(self, unet: FashionMNISTUNet2DModel, epoch: int) -> None:
        samples = self.config.samples
        pipeline = FashionMNISTPipeline(unet, self.sampler)
        pipeline.set_progress_bar_config(leave=False)
        settings = {"num_images_per_prompt": samples.num_images}
        columns = GRID_COLUMNS
        if self.num_class_embeds is not None:
            # Columns are classes, so that the first rows, which make the strip, show them all.
            columns = self.num_class_embeds
            labels = [i % columns for i in range(samples.num_images)]
            settings = {"class_labels": labels, "guidance_scale": samples.guidance_scale}
        try:
            images = pipeline(
                num_inference_steps=samples.num_inference_steps,
                generator=torch.Generator().manual_seed(samples.seed),
                **settings,
            ).images
        except ValueError as error:
            self.bar.write(f"epoch {epoch}: no samples: {error}")
            return
        grid = enlarge(image_grid(images, columns), GRID_UPSCALE)
        grid.save(self.grid_path(epoch))
        self._report_samples(grid)
        grids = {int(path.stem.removeprefix("epoch-")): path for path in self.sample_grids()}
        draw_strip(grids, images[0].height * GRID_UPSCALE, self.folder / "progress.png")

    def _report_samples(self, grid: Image.Image) -> None:
        grid = grid.convert("RGB")
        step, report_to = self.progress.global_step, self.config.report_to
        if report_to == "trackio":
            import trackio

            self.accelerator.log({"samples": trackio.Image(grid)}, step=step)
        elif report_to != "none":
            layout = {"dataformats": "NHWC"} if report_to == "tensorboard" else {}
            tracker = self.accelerator.get_tracker(report_to)
            tracker.log_images({"samples": np.asarray(grid)[None]}, step=step, **layout)

    def grid_path(self, epoch: int) -> Path:
        return self.folder / "samples" / f"epoch-{epoch:04d}.png"

    def sample_grids(self) -> list[Path]:
        return sorted((self.folder / "samples").glob("epoch-*.png"))

    def _measure(self, unet: FashionMNISTUNet2DModel, epoch: int) -> None:
        """Measures samples, and exports the pipeline to `best` where they are the best so far."""
        assert self.evaluator is not None
        unet = unet.to(memory_format=self.memory_format)
        try:
            metrics = self.evaluator.measure(unet, self.sampler, self.accelerator.autocast())
        except ValueError as error:
            self.bar.write(f"epoch {epoch}: not measured: {error}")
            return
        self.accelerator.log({f"eval/{name}": value for name, value in metrics.items()}, self.progress.global_step)
        self.bar.write(f"epoch {epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        best = self.evaluator.record(self.progress.global_step, epoch, metrics)
        if best or not (self.folder / "best").exists():
            self._export(unet, self.folder / "best", epoch)

    def _export(self, unet: FashionMNISTUNet2DModel, folder: Path, epoch: int) -> None:
        train_config = self.config.to_dict() | {"progress": asdict(self.progress)}
        # Where things lie on this machine is nobody else's business.
        published = ("push_to_hub", "push_to_hub_epochs", "hub_model_id", "hub_private_repo", "hub_license")
        for name in ("output_dir", "resume", *published):
            del train_config[name]
        data = train_config["data"]
        for settings, name in ((train_config, "init_from"), (data, "dataset_name"), (data, "train_data_dir")):
            if settings[name] is not None:
                settings[name] = public_name(settings[name])
        export_pipeline(unet, self.scheduler, folder, train_config=train_config)
        # They would be of other weights.
        shown = folder / "images" / "samples.png"
        for stale in (folder / "metrics.json", shown):
            stale.unlink(missing_ok=True)
        grid = self.grid_path(epoch)
        if grid.exists():
            shown.parent.mkdir(exist_ok=True)
            shutil.copyfile(grid, shown)


def public_name(source: str) -> str:
    """The name of a data set or pipeline as others may see it: of a path on this machine, the last part."""
    path = Path(source)
    local = source.startswith((".", "~")) or source.count("/") > 1 or path.is_absolute() or path.exists()
    return path.name if local else source


def can_compile() -> bool:
    """Whether there is what `torch.compile` builds with on a CPU."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.is_file() and shutil.which(os.environ.get("CXX", "g++")) is not None


def load_training_images(
    config: TrainingConfig, resolution: int | tuple[int, int], channels: int
) -> tuple[ImageTensors | Dataset, tuple[str, ...] | None]:
    """Returns the images, decoded or as a data set that decodes when read, and the names of their labels."""
    data = config.data
    source = {
        "dataset_name": data.dataset_name,
        "split": data.split,
        "dataset_config_name": data.dataset_config_name,
        "train_data_dir": data.train_data_dir,
        "image_column": data.image_column,
        "label_column": data.label_column,
    }
    if not data.streaming:
        images = load_images(**source, resolution=resolution, channels=channels, max_samples=data.max_train_samples)
        return images, images.label_names
    dataset = load_split(**source)
    label_names = tuple(dataset.features["label"].names) if "label" in dataset.features else None
    if data.max_train_samples is not None:
        dataset = dataset.select(range(min(data.max_train_samples, len(dataset))))
    return stream_images(dataset, resolution=resolution, channels=channels), label_names


def main(args: list[str] | None = None) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO if is_first_process() else logging.ERROR)
    config = parse_config(args)

    def how_to_go_on() -> str:
        folder = Path(config.output_dir)
        if list_checkpoints(folder / "checkpoints"):
            return f"continue from the last checkpoint with --config={folder / 'config.yaml'} --resume=latest"
        return "there is no checkpoint yet; begin anew with another --output_dir"

    def stop(message: str, code: int) -> NoReturn:
        if is_first_process():
            print(f"train.py: {message}", file=sys.stderr)
        raise SystemExit(code)

    try:
        trainer = Trainer(config)
    except (ValueError, OSError) as error:
        stop(f"error: {error}", 2)
    except KeyboardInterrupt:
        stop("stopped before training began.", 130)
    try:
        trainer.train()
    except DataError as error:
        # One from a DataLoader's process comes wrapped in its traceback.
        stop(f"error: {str(error).strip().rpartition('DataError: ')[2]}", 2)
    except FloatingPointError as error:
        stop(
            f"stopped, {error}; {how_to_go_on()} and a lower --optimizer.learning_rate or"
            " --optimizer.max_grad_norm=1.",
            1,
        )
    except KeyboardInterrupt:
        stop(f"stopped at step {trainer.progress.global_step}; {how_to_go_on()}.", 130)


if __name__ == "__main__":
    main()
