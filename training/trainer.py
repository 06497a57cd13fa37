"""The training loop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from averaging import copy_model, reestimate_batch_norm
from checkpoint import Progress, find_resumed_checkpoint, get_step, load_checkpoint, save_checkpoint
from components import get_memory_format, make_accelerator, make_components, make_lr_scheduler
from config import TrainingConfig
from outputs import DueOutputs, RunOutputs, get_due_outputs
from records import LossLogger, LossRecord
from tracking import start_tracker


class Trainer:
    """One training run in `config.output_dir`, new or resumed.

    Raises:
        `ValueError`, `OSError`: If the configuration, the data, the checkpoint or the pipeline to fine-tune cannot be
            used.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        checkpoint = find_resumed_checkpoint(config)
        global_step = 0 if checkpoint is None else get_step(checkpoint)

        # 1. components, the same in every process
        self.accelerator = make_accelerator(config)
        set_seed(config.seed)
        self.components = make_components(config, self.accelerator)
        self.total_steps = config.get_total_steps(len(self.components.batches))
        if global_step > self.total_steps:
            option = "max_train_steps" if config.max_train_steps == self.total_steps else "num_epochs"
            raise ValueError(
                f"The checkpoint is at step {global_step}, but the run ends at step {self.total_steps}. Increase"
                f" --{option} to train longer."
            )
        self.outputs = None
        if self.accelerator.is_main_process:
            self.outputs = RunOutputs(config, self.accelerator, self.components, global_step)

        # 2. state; the random states differ between processes
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress, self.components.loss.timestep_sampler)
        set_seed(config.seed, device_specific=True)
        optimizer = self.components.optimizer
        if checkpoint is not None:
            load_checkpoint(self.accelerator, optimizer, self.components.ema, checkpoint)
        self.lr_scheduler = make_lr_scheduler(config.optimizer, optimizer, self.total_steps, global_step)

        # 3. records
        record = None
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            config.save(self.folder / "config.yaml")
            resumed = None if checkpoint is None else checkpoint.parents[1] / "loss.csv"
            record = LossRecord(self.folder / "loss.csv", resumed, global_step)
        start_tracker(self.accelerator, config)
        images_per_step = config.train_batch_size * config.gradient_accumulation_steps
        self.loss_logger = LossLogger(self.accelerator, record, images_per_step)

    def train(self) -> None:
        """Trains to the end of the run and exports the pipeline.

        Raises:
            `DataError`: If an image of a streamed dataset cannot be decoded.
            `FloatingPointError`: If the loss or the weights are NaN or infinite. Such weights are not saved.
            `KeyboardInterrupt`: After Ctrl-C. With a single process, a checkpoint is written first.
        """
        config, progress, batches = self.config, self.progress, self.components.batches
        with self._delay_interrupt(), self.loss_logger.show_progress(progress.global_step, self.total_steps):
            if progress.global_step == self.total_steps:
                # The run stopped after its last step but before its outputs, or it continues in a different folder.
                self._end_epoch()
            while progress.global_step < self.total_steps:
                for images, labels in batches.epoch(progress.epoch, start=progress.batch):
                    self._train_batch(images, labels)
                    if not self.accelerator.sync_gradients:
                        continue
                    if progress.global_step % config.logging_steps == 0:
                        self._report_losses()
                    if progress.global_step % config.checkpointing_steps == 0 or self.interrupted:
                        self._save_checkpoint()
                    if self.interrupted:
                        raise KeyboardInterrupt
                    if progress.global_step == self.total_steps:
                        break
                self._end_epoch()
            self._save_checkpoint()
        if self.accelerator.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**20
            self.accelerator.print(f"Peak GPU memory: {memory:.0f} MiB.")
        self.accelerator.print(f"Saved the pipeline to {self.folder / 'pipeline'}.")
        if self.outputs is not None:
            self.outputs.finish()
        self.accelerator.end_training()

    @contextmanager
    def _delay_interrupt(self) -> Iterator[None]:
        """Delays Ctrl-C until the end of the current step, so that a checkpoint can be written.

        A second Ctrl-C stops immediately. With several processes, Ctrl-C always stops immediately, because they would
        have to agree on the step.
        """
        self.interrupted = False
        if self.accelerator.num_processes > 1:
            yield
            return

        def interrupt(*_):
            self.interrupted = True
            signal.signal(signal.SIGINT, previous)

        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _train_batch(self, images: torch.Tensor, labels: torch.Tensor | None) -> None:
        config, components, progress = self.config, self.components, self.progress
        batch = components.loss.add_noise(images.to(memory_format=get_memory_format(config)), labels)
        with self.accelerator.accumulate(components.unet):
            prediction = components.unet(batch.images, batch.timesteps, batch.class_labels).sample
            loss, image_losses = components.loss(prediction, batch)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and config.optimizer.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(components.unet.parameters(), config.optimizer.max_grad_norm)
            components.optimizer.step()
            components.optimizer.zero_grad()
        if config.objective.timestep_sampling == "importance":
            gathered = self.accelerator.gather((batch.timesteps, image_losses.detach()))
            components.loss.timestep_sampler.update(*gathered)
        progress.batch += 1
        self.loss_logger.add_batch(loss)
        if self.accelerator.sync_gradients:
            progress.global_step += 1
            learning_rate = float(self.lr_scheduler.get_last_lr()[0])
            self.loss_logger.add_step(progress.global_step, progress.epoch + 1, learning_rate)
            self.lr_scheduler.step()
            if components.ema is not None:
                components.ema.step(components.unet.parameters())

    def _report_losses(self) -> None:
        """Raises `FloatingPointError` if a loss or a weight is NaN or infinite."""
        self.loss_logger.report()
        if not all(bool(weight.isfinite().all()) for weight in self.components.unet.parameters()):
            raise FloatingPointError(f"The weights are NaN or infinite at step {self.progress.global_step}.")

    def _save_checkpoint(self) -> None:
        self._report_losses()
        save_checkpoint(
            self.accelerator,
            self.components.ema,
            self.folder / "checkpoints",
            self.progress.global_step,
            self.config.checkpoints_total_limit,
        )
        self.loss_logger.restart_clock()

    def _end_epoch(self) -> None:
        """Ends an epoch, which `max_train_steps` may have shortened: reports its loss and writes the outputs."""
        self._report_losses()
        progress = self.progress
        # A finished run that is resumed has already counted its last epoch.
        epoch = progress.epoch + (progress.batch > 0)
        if progress.batch == len(self.components.batches):
            progress.epoch, progress.batch = epoch, 0
        if self.loss_logger.record is not None:
            epoch_loss = self.loss_logger.record.get_epoch_mean(epoch)
            self.accelerator.log({"epoch_loss": epoch_loss}, step=progress.global_step)
            tqdm.write(f"Epoch {epoch}: loss {epoch_loss:.5f}")
            self.loss_logger.record.plot(self.folder / "loss.png")
        due = get_due_outputs(self.config, epoch, finished=progress.global_step == self.total_steps)
        if due:
            self._write_outputs(epoch, due)
        self.loss_logger.restart_clock()

    def _write_outputs(self, epoch: int, due: DueOutputs) -> None:
        components, device = self.components, self.accelerator.device
        # Sampling must not change the random numbers of the training.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            unet = copy_model(components.unet, components.ema, self.accelerator)
            if unet is not None and self.outputs is not None:
                if components.ema is not None:
                    reestimate_batch_norm(unet, components.batches, components.loss, self.accelerator)
                self.outputs.write(unet, self.progress, epoch, due)
        self.accelerator.wait_for_everyone()
