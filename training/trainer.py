"""The training loop."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import ProjectConfiguration, set_seed
from tqdm.auto import tqdm

from averaging import copy_model, reestimate_batch_norm
from batches import make_seed
from checkpoint import (
    Progress,
    find_later_checkpoints,
    find_resumed_checkpoint,
    get_step,
    load_checkpoint,
    save_checkpoint,
)
from components import get_memory_format, make_accelerator, make_components, make_lr_scheduler
from config import ResolvedConfig
from fmnist_diffusion.data import DataError
from fmnist_diffusion.files import describe_write_errors, remove_folder, remove_temporary_files
from interrupts import Interrupts
from milestones import describe_run_length
from output_folder import lock_folder
from outputs import RunOutputs, get_due_outputs
from processes import call_on_main_process
from records import LossLogger, LossRecord
from states import check_finite
from tracking import get_log_with, start_tracker


logger = logging.getLogger("training")


class Trainer:
    """One training run in `config.output_dir`, new or resumed.

    Raises:
        `ValueError`, `OSError`: If the configuration, the data, the checkpoint or the pipeline to fine-tune cannot be
            used, or if another run uses `output_dir`.
        `WriteError`: If `output_dir` is not writable.
    """

    def __init__(self, config: ResolvedConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        self.checkpoints = self.folder / "checkpoints"
        checkpoint = find_resumed_checkpoint(config)
        global_step = 0 if checkpoint is None else get_step(checkpoint)

        # 1. components, the same in every process
        self.accelerator = make_accelerator(
            config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            log_with=get_log_with(config.report_to),
            project_config=ProjectConfiguration(config.output_dir, logging_dir=str(self.folder / "logs")),
        )
        set_seed(config.seed)
        self.components = make_components(config, self.accelerator)
        self.total_steps = config.get_total_steps(len(self.components.batches))
        if global_step > self.total_steps:
            option = "max_train_steps" if config.max_train_steps == self.total_steps else "num_epochs"
            raise ValueError(
                f"The checkpoint is at step {global_step}, but the run ends at step {self.total_steps}. Increase"
                f" --{option} to train longer."
            )

        if self.total_steps < (config.max_train_steps or 0):
            logger.warning(
                "The run ends at step %d, before --max_train_steps=%d, because --num_epochs is %d. Increase"
                " --num_epochs to train longer.",
                self.total_steps,
                config.max_train_steps,
                config.num_epochs,
            )

        def prepare_outputs() -> RunOutputs:
            self._prepare_folder(checkpoint, global_step)
            return RunOutputs(config, self.accelerator, self.components, global_step)

        self.outputs = call_on_main_process(self.accelerator, prepare_outputs)

        # 2. state
        self.progress = Progress()
        self.saved_step = None
        if checkpoint is not None:
            self.progress = load_checkpoint(self.accelerator, self.components, checkpoint)
            if checkpoint.parent.resolve() == self.checkpoints.resolve():
                self.saved_step = global_step
        self.lr_scheduler = make_lr_scheduler(
            config.optimizer, self.components.optimizer, self.total_steps, global_step
        )
        self.interrupts = Interrupts(self.accelerator)

        # 3. records
        term_names = self.components.loss.term_names

        def start_record() -> LossRecord:
            config.save(self.folder / "config.yaml")
            resumed = None if checkpoint is None else checkpoint.parents[1] / "loss.csv"
            return LossRecord(self.folder / "loss.csv", resumed, global_step, term_names)

        # The tracker starts first, so that the folder remains empty if it fails.
        start_tracker(self.accelerator, config, global_step)
        record = call_on_main_process(self.accelerator, start_record)
        self.loss_logger = LossLogger(self.accelerator, record, config.images_per_step, term_names)

    def _prepare_folder(self, checkpoint: Path | None, global_step: int) -> None:
        """Locks the folder of the run and removes temporary files and damaged checkpoints of an interrupted run."""
        with describe_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock_folder(self.folder)
        # Loading the data can take minutes. In the meantime, another run may have written to the folder and ended.
        if find_resumed_checkpoint(self.config) != checkpoint:
            raise ValueError(
                f"Another run has written to {self.folder} since this run started. Run the same command again."
            )
        for folder in (self.folder, self.checkpoints, self.folder / "samples"):
            remove_temporary_files(folder)
        # These checkpoints are damaged; otherwise, the run would not continue from an earlier one.
        for damaged in find_later_checkpoints(self.checkpoints, global_step):
            remove_folder(damaged)

    def train(self) -> None:
        """Trains to the end of the run and exports the pipeline.

        Raises:
            `DataError`: If an image of a streamed dataset cannot be decoded. With a single process, a checkpoint is
                written first, unless the error occurs between two batches of the same optimizer step.
            `FloatingPointError`: If the loss or the weights are NaN or infinite. In this case, no weights are saved.
            `KeyboardInterrupt`: After Ctrl-C or, as [`Terminated`], after SIGTERM or SIGHUP. A checkpoint is written
                first, unless a run with a single process receives a second signal.
            `WriteError`: If a file cannot be written.
        """
        config, progress = self.config, self.progress
        with self.interrupts, self.loss_logger.show_progress(progress.global_step, self.total_steps):
            if progress.global_step == self.total_steps:
                # The run stopped after its last step, before it wrote its outputs, or it is resumed in a different
                # folder.
                self._end_epoch()
            while progress.global_step < self.total_steps:
                for images, labels, generator in self._load_batches():
                    self._train_batch(images, labels, generator)
                    if not self.accelerator.sync_gradients:
                        continue
                    if progress.global_step % config.logging_steps == 0:
                        self._report_losses()
                    interrupted = self.interrupts.exchange()
                    if progress.global_step % config.checkpointing_steps == 0 or interrupted:
                        self._save_checkpoint()
                    if interrupted:
                        self.interrupts.stop()
                    if progress.global_step == self.total_steps:
                        break
                self._end_epoch()
        if self.accelerator.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated() / 2**20
            self.accelerator.print(f"Peak GPU memory: {memory:.0f} MiB.")
        self.accelerator.print(f"Saved the pipeline to {self.folder / 'pipeline'}.")
        images_seen = self.total_steps * config.images_per_step
        self.accelerator.print(describe_run_length(images_seen, config))
        if self.outputs is not None:
            self.outputs.finish()
        # `Accelerator.end_training` would also destroy the process groups, before the models that use them are freed.
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _load_batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, torch.Generator]]:
        """Yields the remaining batches of the epoch. On a damaged streamed image, saves a checkpoint if possible."""
        try:
            yield from self.components.batches.epoch(self.progress.epoch, start=self.progress.batch)
        except DataError:
            # Only all processes together can save a checkpoint, and only after an optimizer step.
            alone = self.accelerator.num_processes == 1
            if alone and self.accelerator.sync_gradients and self.progress.global_step > 0:
                self._save_checkpoint()
            raise

    def _train_batch(self, images: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator) -> None:
        config, components, progress = self.config, self.components, self.progress
        images = images.to(memory_format=get_memory_format(config))
        # In distillation, the target model must use the same dropout mask (arXiv 2310.14189, section 3.1).
        self._seed_dropout()
        batch = components.loss.prepare_batch(images, labels, generator)
        self._seed_dropout()
        with self.accelerator.accumulate(*components.get_modules()):
            prediction = components.unet(batch.images, batch.timesteps, batch.class_labels).sample
            loss = components.loss(prediction, batch)
            self.accelerator.backward(loss.total)
            if self.accelerator.sync_gradients and config.optimizer.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(components.unet.parameters(), config.optimizer.max_grad_norm)
            components.optimizer.step()
            components.optimizer.zero_grad()
        if config.objective.timestep_sampling == "importance":
            gathered = self.accelerator.gather((batch.timesteps, loss.per_image.detach()))
            components.loss.update_timestep_sampler(*gathered)
        progress.batch += 1
        self.loss_logger.add_batch(loss.total, *loss.terms)
        if self.accelerator.sync_gradients:
            progress.global_step += 1
            learning_rate = float(self.lr_scheduler.get_last_lr()[0])
            self.loss_logger.add_step(progress.global_step, progress.epoch + 1, learning_rate)
            self.lr_scheduler.step()
            if components.ema is not None:
                components.ema.step(components.unet.parameters())

    def _seed_dropout(self) -> None:
        """Seeds the global generator, which dropout uses. Each process needs a different seed."""
        if self.accelerator.unwrap_model(self.components.unet).config["dropout"]:
            progress, process = self.progress, self.accelerator.process_index + 1
            torch.manual_seed(make_seed(self.config.seed, progress.epoch, progress.batch, process))

    def _report_losses(self) -> None:
        """Raises `FloatingPointError` if a loss or a weight is NaN or infinite."""
        self.loss_logger.report()
        components, step = self.components, self.progress.global_step
        check_finite(components.unet.state_dict().values(), "The weights", step)
        if components.ema is not None:
            check_finite(components.ema.shadow_params, "The EMA weights", step)
        if components.discriminator is not None:
            check_finite(components.discriminator.state_dict().values(), "The weights of the discriminator", step)

    def _save_checkpoint(self) -> None:
        """Writes a checkpoint unless there already is one for this step."""
        self._report_losses()
        if self.saved_step != self.progress.global_step:
            # The losses must be on disk before the checkpoint, so that a run that resumes from it has all of them.
            call_on_main_process(self.accelerator, self._sync_record)
            limit = self.config.checkpoints_total_limit
            save_checkpoint(self.accelerator, self.components, self.progress, self.checkpoints, limit)
            self.saved_step = self.progress.global_step
        self.loss_logger.restart_clock()

    def _sync_record(self) -> None:
        assert self.loss_logger.record is not None
        self.loss_logger.record.sync()

    def _end_epoch(self) -> None:
        """Ends an epoch, which `max_train_steps` may have shortened: reports its loss and writes the outputs."""
        self._report_losses()
        progress = self.progress
        # A finished run that is resumed has already counted its last epoch.
        epoch = progress.epoch + (progress.batch > 0)
        due = get_due_outputs(self.config, epoch, finished=progress.global_step == self.total_steps)
        call_on_main_process(self.accelerator, lambda: self._report_epoch(epoch, plot=bool(due)))
        if due:
            # Writing the outputs can fail or be interrupted, so the checkpoint is saved first. A resumed run writes
            # the outputs again.
            self._save_checkpoint()
            self._write_outputs(epoch, due)
        if progress.batch == len(self.components.batches):
            progress.epoch, progress.batch = epoch, 0
        self.loss_logger.restart_clock()

    def _report_epoch(self, epoch: int, plot: bool) -> None:
        record = self.loss_logger.record
        assert record is not None
        epoch_loss = record.get_epoch_mean(epoch)
        self.accelerator.log({"epoch_loss": epoch_loss}, step=self.progress.global_step)
        tqdm.write(f"Epoch {epoch}: loss {epoch_loss:.5f}, {self.loss_logger.describe_progress()}")
        # Plotting can take longer than a short epoch, so the plot is only updated together with other outputs.
        if plot:
            record.plot(self.folder / "loss.png", self.config.images_per_step)

    def _write_outputs(self, epoch: int, due: set[str]) -> None:
        components, progress = self.components, self.progress
        if progress.batch == len(components.batches):
            progress = Progress(progress.global_step, epoch, 0)

        def write() -> None:
            assert self.outputs is not None
            with self.interrupts.raise_immediately():
                unet = copy_model(self.accelerator.unwrap_model(components.unet), components.ema)
                if components.ema is not None:
                    reestimate_batch_norm(unet, components.batches, components.loss, self.accelerator)
                check_finite(unet.state_dict().values(), "The exported weights", progress.global_step)
                self.outputs.write(unet, progress, epoch, due)

        call_on_main_process(self.accelerator, write)
