"""Event handlers of the page, and endpoints for API and MCP clients."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

import markup
from downloads import GRID_COLUMNS, make_denoising_strip, save_denoising_gif, save_grid, save_interpolation_gif
from engine import (
    MAX_FRAMES,
    MAX_IMAGES,
    MAX_SHOWN_NAMES,
    MIN_FRAMES,
    Engine,
    GenerationRequest,
    RequestError,
    Step,
    check_whole_number,
    get_engine,
)
from fmnist_diffusion import bundled_pipelines
from fmnist_diffusion.data.errors import list_names
from fmnist_diffusion.loading import get_short_name
from fmnist_diffusion.metadata import measured_metrics
from runs import (
    FRAME_COLUMNS,
    Run,
    Update,
    disable_download,
    enable_download,
    get_positions,
    show_live,
    show_steps,
    show_warnings,
    yield_final_grid,
)
from server import make_error
from uploads import EXAMPLES, open_upload, parse_mask, to_fashion_mnist, to_model_size


DEFAULT_SCHEDULER = "default"
SCHEDULER_CHOICES = (DEFAULT_SCHEDULER, "ddim", "dpmsolver++", "unipc", "deis", "ddpm")
ALL_CLASSES = "all classes"
# With this seed, the ten images of the first screen are easy to recognize.
FIRST_SEED = 25
FIRST_INTERPOLATION_SEEDS = (3, 4)
# Runs with at most this number of steps start when a setting changes.
MAX_LIVE_STEPS = 4


@contextmanager
def show_errors() -> Iterator[None]:
    """Shows the message of a [`RequestError`] on the page. Gradio hides the messages of other exceptions."""
    try:
        yield
    except RequestError as error:
        raise make_error(str(error)) from error


def make_request(
    labels: Any,
    num_images: Any,
    num_inference_steps: Any,
    scheduler: Any,
    guidance_scale: Any,
    seed: Any,
    prompt: Any = "",
) -> GenerationRequest:
    """Checks the inputs of an event, which can have any JSON type."""
    labels = [] if labels is None else labels
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise RequestError("The classes must be a list of class names.")
    if scheduler not in SCHEDULER_CHOICES:
        raise RequestError(f"The scheduler must be one of {', '.join(SCHEDULER_CHOICES)}.")
    return GenerationRequest(
        labels=tuple(labels),
        num_images=num_images,
        num_inference_steps=num_inference_steps,
        scheduler=None if scheduler == DEFAULT_SCHEDULER else scheduler,
        guidance_scale=guidance_scale,
        seed=seed,
        prompt="" if prompt is None else prompt,
    )


class Handlers:
    """
    Event handlers and endpoints for a checkpoint, which can be compared with the bundled ones.

    Args:
        model_id (`str`): Name of a bundled checkpoint, a local folder or a Hub repository id.
    """

    def __init__(self, model_id: str):
        # The page shows the name of a local folder, but not its path.
        self.name = get_short_name(Path(model_id)) if Path(model_id).is_dir() else model_id
        self.engine = get_engine(model_id)
        self.engines = {self.name: self.engine} | {
            name: get_engine(name) for name in bundled_pipelines() if name != self.name
        }
        self.label_names = list(self.engine.label_names)
        # The tabs with a choice of checkpoints offer the classes of the first checkpoint that has any.
        self.offered_names = next((names for e in self.engines.values() if (names := e.label_names)), ())
        self.first_request = GenerationRequest(
            num_inference_steps=self.engine.num_inference_steps,
            seed=FIRST_SEED,
        )
        # These are the classes of the first and the last image of the first interpolation.
        self.first_ends = tuple(self.label_names[i] for i in (len(self.label_names) * 3 // 4, -1) if self.label_names)
        # ZeroGPU only provides a GPU during a request, so the first images are generated on the CPU.
        engine = self.engine if self.engine.device.type == "cpu" else Engine(model_id, device="cpu")
        *_, self.first_step = engine.generate(self.first_request, max_seconds=None)
        self.first_interpolation: Step | None = None
        if self.engine.num_inference_steps <= MAX_LIVE_STEPS:
            request = replace(self.first_request, labels=self.first_ends, num_images=MAX_FRAMES)
            # The scheduler of the checkpoint can add noise that cannot be interpolated.
            with suppress(RequestError):
                *_, self.first_interpolation = engine.interpolate(request, FIRST_INTERPOLATION_SEEDS, max_seconds=None)
        self.examples = self.make_examples()

    def make_examples(self) -> dict[str, Image.Image]:
        """Returns the example images for image-to-image: images of the dataset, or the first generated images."""
        if self.engine.is_fashion_mnist:
            return {name: self.convert(Image.open(path)) for name, path in EXAMPLES.items()}
        examples: dict[str, Image.Image] = {}
        for caption, image in zip(self.engine.get_captions(self.first_request), self.first_step.images, strict=True):
            examples.setdefault(caption, image)
        return examples

    def convert(self, image: Image.Image) -> Image.Image:
        """Converts an image to the size and channels of the model."""
        return to_model_size(image, self.engine.height, self.engine.width, self.engine.channels)

    def get_checkpoint(self, name: Any) -> Engine:
        if not isinstance(name, str) or name not in self.engines:
            raise RequestError(f"The checkpoint must be one of {', '.join(self.engines)}.")
        return self.engines[name]

    def has_offered_classes(self, engine: Engine) -> bool:
        """Returns whether a checkpoint has the classes that the page offers."""
        return bool(self.offered_names) and engine.label_names == self.offered_names

    def get_image(self, upload: dict[str, Any] | None, example: Any) -> Image.Image:
        """Returns the image-to-image input: the upload (Gradio file data), or the example if there is no upload."""
        if upload is not None:
            image = open_upload(upload["path"])
            size = self.engine.width, self.engine.height
            return to_fashion_mnist(image, size) if self.engine.is_fashion_mnist else self.convert(image)
        if not isinstance(example, str) or example not in self.examples:
            names = list_names(list(self.examples), MAX_SHOWN_NAMES)
            raise RequestError(f"Upload an image, or choose one of {names}.")
        return self.examples[example]

    def start_generate(self, checkpoint: Any, labels: Any, *settings: Any) -> Run:
        engine = self.get_checkpoint(checkpoint)
        request = make_request(labels if self.has_offered_classes(engine) else [], *settings)
        run_settings = {"checkpoint": checkpoint} | asdict(request)
        warnings = engine.get_prompt_warnings(request.prompt)
        return Run(run_settings, warnings, engine.get_captions(request), engine.generate(request))

    def start_interpolate(
        self,
        first_label: Any,
        last_label: Any,
        first_seed: Any,
        last_seed: Any,
        num_images: Any,
        num_inference_steps: Any,
        scheduler: Any,
        first_prompt: Any = "",
        last_prompt: Any = "",
    ) -> Run:
        labels = [label for label in (first_label, last_label) if label]
        if self.label_names and len(labels) < 2:
            raise RequestError("Choose the first and the last class.")
        num_images = check_whole_number("number of images", num_images, MIN_FRAMES, MAX_FRAMES)
        settings = num_images, num_inference_steps, scheduler, 1.0
        first = make_request(labels, *settings, first_seed, first_prompt)
        last = make_request(labels, *settings, last_seed, last_prompt)
        steps = self.engine.interpolate(first, (first.seed, last.seed), last.prompt)
        ends = {"last_seed": last.seed, "last_prompt": last.prompt}
        warnings = self.engine.get_prompt_warnings(first.prompt, last.prompt)
        return Run(asdict(first) | ends, warnings, get_positions(first.num_images), steps)

    def start_image_to_image(self, image: Image.Image, mask: Any, label: Any, strength: Any, *settings: Any) -> Run:
        labels = [label] if label and label != ALL_CLASSES else []
        num_images = 1 if labels else min(len(self.label_names) or 5, MAX_IMAGES)
        request = make_request(labels, num_images, *settings)
        steps = self.engine.generate(request, image, strength, parse_mask(mask, image.size))
        run_settings = asdict(request) | {"strength": strength, "mask": mask}
        warnings = self.engine.get_prompt_warnings(request.prompt)
        if not labels and len(self.label_names) > MAX_IMAGES:
            warnings.append(f"Only the first {MAX_IMAGES} of {len(self.label_names)} classes are shown.")
        return Run(run_settings, warnings, self.engine.get_captions(request), steps)

    # The following event handlers show every step. For `gr.skip()`, Gradio would keep copies of components.

    def on_generate(self, *inputs: Any) -> Iterator[tuple[Update, ...]]:
        with show_errors():
            run, steps, shown = self.start_generate(*inputs), [], ()
            show_warnings(run)
            for step, shown in show_steps(run):
                steps.append(step)
                yield *shown, "", disable_download(), disable_download()
            strip = markup.denoising_strip(make_denoising_strip(steps))
            with tempfile.TemporaryDirectory() as folder:
                png = save_grid(steps[-1].images, GRID_COLUMNS, run.settings, Path(folder, "images.png"))
                gif = save_denoising_gif(steps, Path(folder, "denoising.gif"))
                yield *shown, strip, enable_download(png), enable_download(gif)

    def on_interpolate(self, *inputs: Any) -> Iterator[tuple[Update, ...]]:
        with show_errors():
            run, images, shown = self.start_interpolate(*inputs), [], ()
            show_warnings(run)
            for step, shown in show_steps(run, FRAME_COLUMNS):
                images = step.images
                yield "", *shown, disable_download(), disable_download()
            with tempfile.TemporaryDirectory() as folder:
                png = save_grid(images, GRID_COLUMNS, run.settings, Path(folder, "interpolation.png"))
                gif = save_interpolation_gif(images, Path(folder, "interpolation.gif"))
                yield markup.animation(gif.read_bytes()), *shown, enable_download(png), enable_download(gif)

    def on_image_to_image(self, example: Any, *inputs: Any) -> Iterator[tuple[Update, ...]]:
        with show_errors():
            *settings, upload, mask = inputs
            image = self.get_image(upload, example)
            run, images, shown = self.start_image_to_image(image, mask, *settings), [], ()
            show_warnings(run)
            for step, shown in show_steps(run):
                images = step.images
                yield *shown, disable_download()
            with tempfile.TemporaryDirectory() as folder:
                row = [image, *images]
                png = save_grid(row, len(row), run.settings, Path(folder, "image-to-image.png"))
                yield *shown, enable_download(png)

    def on_compare(
        self, labels: Any, prompt: Any, num_images: Any, seed: Any, *sides: Any
    ) -> Iterator[tuple[Update, ...]]:
        """Generates images with the settings of both sides, one after the other, from the same seeds."""
        with show_errors():
            runs = []
            for name, *settings in (sides[:4], sides[4:]):
                runs.append(self.start_generate(name, labels, num_images, *settings, seed, prompt))
            show_warnings(*runs)
            shown = [("", ""), ("", "")]
            for side, run in enumerate(runs):
                for _, updates in show_steps(run):
                    shown[side] = updates
                    yield *shown[0], *shown[1]

    # The following event handlers run when a setting changes and there are few steps. They write no files and show no
    # warnings, because dragging a slider or typing a prompt starts many runs.

    def on_generate_change(self, *inputs: Any) -> Iterator[tuple[Update, ...]]:
        with show_errors():
            for shown in show_live(self.start_generate(*inputs)):
                yield *shown, "", disable_download(), disable_download()

    def on_interpolate_change(self, *inputs: Any) -> Iterator[tuple[Update, ...]]:
        with show_errors():
            for shown in show_live(self.start_interpolate(*inputs), FRAME_COLUMNS):
                yield "", *shown, disable_download(), disable_download()

    def show_conditions(self, *checkpoints: Any) -> tuple[Update, Update]:
        """Shows the classes only if a checkpoint uses classes, and the prompt only if a checkpoint uses prompts."""
        with show_errors():
            engines = [self.get_checkpoint(checkpoint) for checkpoint in checkpoints]
            return (
                gr.update(visible=any(self.has_offered_classes(engine) for engine in engines)),
                gr.update(visible=any(engine.has_prompts for engine in engines)),
            )

    def preview(self, upload: dict[str, Any] | None, example: Any) -> str:
        with show_errors():
            return markup.preview(self.get_image(upload, example))

    def choose_example(self, example: Any) -> tuple[str, None]:
        """Previews an example, which replaces an upload."""
        return self.preview(None, example), None

    # The following endpoints yield after every step so that a client can cancel. They return one image, because MCP
    # clients only receive the content of an image if it is the only output.

    def generate(
        self,
        labels: list[str],
        num_images: int,
        num_inference_steps: int,
        scheduler: str,
        guidance_scale: float,
        seed: int,
        prompt: str = "",
    ) -> Iterator[Update]:
        """
        Generates images and returns them in one PNG, in rows of 10.

        Args:
            labels: Class names, cycled through; all classes if empty.
            num_images: Number of images, from 1 to 40.
            num_inference_steps: Number of denoising steps, from 1 to 100.
            scheduler: Name of the scheduler; "default" uses the scheduler stored with the checkpoint.
            guidance_scale: Classifier-free guidance, from 1 (off) to 8.
            seed: Random seed, a whole number from 0 to 4294967295; image i uses seed + i.
            prompt: Prompt for all images; only used by text-conditional checkpoints.
        """
        with show_errors():
            if labels and not self.label_names:
                raise RequestError("`labels` must be empty, because this model is not class-conditional.")
            settings = num_images, num_inference_steps, scheduler, guidance_scale, seed, prompt
            yield from yield_final_grid(self.start_generate(self.name, labels, *settings))

    def interpolate(
        self,
        first_label: str | None,
        last_label: str | None,
        first_seed: int,
        last_seed: int,
        num_images: int,
        num_inference_steps: int,
        scheduler: str,
        first_prompt: str = "",
        last_prompt: str = "",
    ) -> Iterator[Update]:
        """
        Interpolates between two seeds and two classes or prompts. Returns one PNG with rows of 10 images.

        Args:
            first_label: Class name of the first image; null for a model without classes.
            last_label: Class name of the last image; null for a model without classes.
            first_seed: Random seed of the first image, a whole number from 0 to 4294967295.
            last_seed: Random seed of the last image, a whole number from 0 to 4294967295.
            num_images: Number of images, from 3 to 24.
            num_inference_steps: Number of denoising steps, from 1 to 100.
            scheduler: Name of the scheduler; "default" uses the scheduler stored with the checkpoint.
            first_prompt: Prompt of the first image; only used by text-conditional checkpoints.
            last_prompt: Prompt of the last image; only used by text-conditional checkpoints.
        """
        with show_errors():
            ends, prompts = (first_label, last_label, first_seed, last_seed), (first_prompt, last_prompt)
            settings = num_images, num_inference_steps, scheduler
            yield from yield_final_grid(self.start_interpolate(*ends, *settings, *prompts))

    def image_to_image(
        self,
        example: str,
        label: str,
        strength: float,
        num_inference_steps: int,
        scheduler: str,
        guidance_scale: float,
        seed: int,
        upload: dict[str, Any] | None = None,
        mask: str = "",
        prompt: str = "",
    ) -> Iterator[Update]:
        """
        Transforms an image or a region of it to match a class or prompt. Returns one PNG with rows of 10 images.

        Args:
            example: Name of an example image, which is used if there is no `upload`.
            label: Class name, "all classes" for one image per class (at most 40), or "" for a model without classes.
            strength: Fraction of the denoising steps to run, starting from the noisy image, greater than 0 and
                at most 1; higher values change the image more.
            num_inference_steps: Number of denoising steps at strength 1, from 1 to 100.
            scheduler: Name of the scheduler; "default" uses the scheduler stored with the checkpoint.
            guidance_scale: Classifier-free guidance, from 1 (off) to 8.
            seed: Random seed, a whole number from 0 to 4294967295; image i uses seed + i.
            upload: An image to use instead of an example, as a file of at most 5 MB (MCP: a data URI of at most
                4 MB). URLs are not downloaded.
            mask: Region to inpaint, as a string with one character for each pixel of the model input (28x28 for
                Fashion-MNIST), row by row. 1 changes the pixel and 0 keeps it. If empty, all pixels change.
            prompt: Prompt for all results; only used by text-conditional checkpoints.
        """
        with show_errors():
            image = self.get_image(upload, example)
            settings = num_inference_steps, scheduler, guidance_scale, seed, prompt
            yield from yield_final_grid(self.start_image_to_image(image, mask, label, strength, *settings))

    def quality(self) -> dict[str, Any]:
        """
        Returns the metrics of the checkpoint.

        Each metric has a value for the generated images and a value for real images. The real images are the test
        images of Fashion-MNIST. If the checkpoint was evaluated with other reference images, the value for real
        images compares two halves of these images.
        """
        metrics = self.engine.metrics
        if metrics is None:
            return {"model": self.name, "num_samples": None}
        return {"model": self.name, "num_samples": metrics["num_samples"]} | {
            metric.title: {"generated": metric.value, "real": metric.real_value}
            for metric in measured_metrics(metrics)
        }
