"""Outputs at the end of an epoch: sample grid, exported pipeline, push to the Hub and evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from tqdm.auto import tqdm

from checkpoint import Progress
from components import Components, get_memory_format
from config import ResolvedConfig
from export import make_train_config, save_with_train_config
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.data import to_pil
from fmnist_diffusion.sampling import Samples, generate
from model import make_run_pipeline
from publishing import make_background_push
from records import EvalRecord, SampleGrids
from text_model import TextConditionalUNet
from tracking import log_samples


if TYPE_CHECKING:
    from validation import Validator

GRID_COLUMNS = 10


def get_due_outputs(config: ResolvedConfig, epoch: int, finished: bool) -> set[str]:
    """Returns the outputs that are due after `epoch`, counted from 1: "samples", "pipeline", "push" and "evaluation".

    All enabled ones are due if `finished`.
    """
    intervals: dict[str, int | None] = {"samples": config.save_images_epochs, "pipeline": config.save_model_epochs}
    if config.push_to_hub:
        intervals["push"] = config.push_to_hub_epochs
    if config.eval.every_n_epochs is not None:
        intervals["evaluation"] = config.eval.every_n_epochs
    return {name for name, interval in intervals.items() if finished or (interval and epoch % interval == 0)}


class RunOutputs:
    """Writes the outputs of a run to `config.output_dir`. Only the main process creates this object.

    Args:
        config: The run.
        accelerator: Logs the results.
        components: Data, model and noise schedule of the run.
        global_step: Number of finished optimizer steps; later evaluations are removed from `eval.csv`.

    Raises:
        `ValueError`: If the Inception network cannot be used.
    """

    def __init__(self, config: ResolvedConfig, accelerator: Accelerator, components: Components, global_step: int):
        self.config, self.accelerator, self.components = config, accelerator, components
        self.folder = Path(config.output_dir)
        self.grids = SampleGrids(self.folder)
        self.eval_record = EvalRecord(self.folder / "eval.csv", config.eval, global_step)
        self.validator = make_validator(config, accelerator)
        self.background_push = make_background_push(config, tqdm.write)

    def write(
        self, unet: FashionMNISTUNet2DModel | TextConditionalUNet, progress: Progress, epoch: int, due: set[str]
    ) -> None:
        """Writes the outputs that are `due` for the weights of `unet`."""
        unet.to(memory_format=get_memory_format(self.config))  # pyright: ignore[reportCallIssue]
        pipe = make_run_pipeline(self.config, unet, self.components.noise_scheduler, self.components.vae)
        pipe.set_progress_bar_config(leave=False)
        if "samples" in due:
            self._save_samples(pipe, progress, epoch)
        if due & {"pipeline", "push"}:
            self._export(pipe, self.folder / "pipeline", progress, epoch)
        if self.background_push is not None and "push" in due:
            self.background_push.push()
        if self.validator is not None and "evaluation" in due:
            self._evaluate(self.validator, pipe, progress, epoch)

    def finish(self) -> None:
        """Waits for the last push."""
        if self.background_push is not None:
            self.background_push.finish()

    def _save_samples(self, pipe: FashionMNISTPipeline, progress: Progress, epoch: int) -> None:
        config = self.config.samples
        num_classes = pipe.unet.config["num_class_embeds"]
        conditions = self.components.get_conditions()
        try:
            samples = Samples.concatenate(list(generate(pipe, config, config.num_images, **conditions)))
        except ValueError as error:
            tqdm.write(f"Epoch {epoch}: could not generate samples. {error}")
            return
        # The grid has one column per class, because progress.png only shows the first row, which should contain every
        # class.
        grid = self.grids.save(to_pil(samples.images), num_classes or GRID_COLUMNS, epoch)
        log_samples(self.accelerator, self.config.report_to, grid, progress.global_step)

    def _export(self, pipe: FashionMNISTPipeline, folder: Path, progress: Progress, epoch: int) -> None:
        save_with_train_config(pipe, folder, make_train_config(self.config, progress), self.grids.get_path(epoch))

    def _evaluate(self, validator: "Validator", pipe: FashionMNISTPipeline, progress: Progress, epoch: int) -> None:
        try:
            metrics = validator.evaluate(pipe, self.components.get_conditions(), self.accelerator.autocast())
        except ValueError as error:
            tqdm.write(f"Epoch {epoch}: could not evaluate samples. {error}")
            return
        self.accelerator.log({f"eval/{name}": value for name, value in metrics.items()}, progress.global_step)
        tqdm.write(f"Epoch {epoch}: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        best = self.eval_record.add(progress.global_step, epoch, metrics)
        if best or not (self.folder / "best").exists():
            self._export(pipe, self.folder / "best", progress, epoch)


def make_validator(config: ResolvedConfig, accelerator: Accelerator) -> "Validator | None":
    """Returns `None` if evaluation is disabled; raises `ValueError` if the Inception network cannot be used."""
    if config.eval.every_n_epochs is None:
        return None
    # Only this option requires the packages of the evaluation.
    from validation import Validator

    return Validator(config.eval, accelerator.device)
