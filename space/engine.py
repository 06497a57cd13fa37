"""Runs a pipeline in a thread and yields its steps, with a time limit and support for ZeroGPU."""

import importlib.util
import reprlib
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from queue import Empty, Queue
from types import NoneType
from typing import Any

import torch
from PIL import Image

from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import DEFAULT_DATASET, FASHION_MNIST_LABELS, to_pil, to_uint8
from fmnist_diffusion.data.errors import list_names
from fmnist_diffusion.loading import find_pipeline_file, get_device
from fmnist_diffusion.metadata import get_dataset, read_metrics, read_train_config
from fmnist_diffusion.sampling import MAX_SEED, SamplingConfig, copy_pipeline, generate_pixels, make_generators


MAX_IMAGES, MAX_STEPS, MAX_GUIDANCE = 40, 100, 8
MIN_FRAMES, MAX_FRAMES = 3, 24
MAX_RUN_SECONDS = 60.0
# A call on ZeroGPU takes at most this time. It only starts if the visitor's remaining quota is at least as long.
GPU_SECONDS = 20
MAX_PROMPT_LENGTH = 200  # characters
MAX_SHOWN_NAMES = 12
TENSOR_NAMES = ("model_input", "pred_original_sample")
JSON_TYPES = {str: "text", list: "a list", dict: "an object", bool: "a Boolean", NoneType: "null"}


def on_gpu(function: Callable) -> Callable:
    """Decorator that requests a GPU for each call on ZeroGPU. The package `spaces` is only installed in a Space."""
    if importlib.util.find_spec("spaces") is None:
        return function
    import spaces  # pyright: ignore[reportMissingImports]

    return spaces.GPU(duration=GPU_SECONDS)(function)


class RequestError(ValueError):
    """An invalid request. The message is shown to the user."""


@dataclass(frozen=True)
class GenerationRequest(SamplingConfig):
    """
    Sampling settings within the limits of the demo.

    Args:
        labels: Class names, cycled through; all classes if empty.
        num_images: Number of images, from 1 to 40.
        prompt: Prompt for all images; only used by text-conditional models.

    Raises:
        [`RequestError`]: If a value is out of range.
    """

    labels: tuple[str, ...] = ()
    num_images: int = 10
    prompt: str = ""

    def __post_init__(self):
        for title, name, low, high in (
            ("number of images", "num_images", 1, MAX_IMAGES),
            ("number of steps", "num_inference_steps", 1, MAX_STEPS),
            ("seed", "seed", 0, MAX_SEED),
        ):
            value = getattr(self, name)
            object.__setattr__(self, name, check_whole_number(title, value, low, high))
        if not is_number(self.guidance_scale) or not 1 <= self.guidance_scale <= MAX_GUIDANCE:
            got = describe(self.guidance_scale)
            raise RequestError(f"The guidance scale must be a number from 1 to {MAX_GUIDANCE}, got {got}.")
        if not isinstance(self.prompt, str) or len(self.prompt) > MAX_PROMPT_LENGTH:
            raise RequestError(f"The prompt must be a string of at most {MAX_PROMPT_LENGTH} characters.")
        super().__post_init__()


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_whole_number(title: str, value: Any, low: int, high: int) -> int:
    """Returns `value` as an integer, or raises a [`RequestError`] if it is not a whole number in the range."""
    if not is_number(value) or not low <= value <= high or value != int(value):
        raise RequestError(f"The {title} must be a whole number from {low} to {high}, got {describe(value)}.")
    # JSON has only one number type, so 20 can arrive as 20.0.
    return int(value)


def describe(value: Any) -> str:
    """Describes an invalid value without repeating text of the request."""
    return reprlib.repr(value) if is_number(value) else JSON_TYPES.get(type(value), "a file")


@dataclass(frozen=True)
class Step:
    """
    The state of a generation between two denoising steps.

    Attributes:
        number: Number of completed steps.
        total: Total number of steps.
        images: The noisy images, from pure noise at step 0 to the generated images at the last step.
        predicted: The predicted x0 (`pred_original_sample`).
        num_function_evaluations: Number of function evaluations (NFE) per image so far.
        seconds: Time since the start, in seconds.
    """

    number: int
    total: int
    images: list[Image.Image]
    predicted: list[Image.Image]
    num_function_evaluations: int
    seconds: float


@cache
def get_engine(model_id: str) -> "Engine":
    return Engine(model_id)


class Engine:
    """
    Generates images with one checkpoint. Several requests can run at the same time.

    Args:
        model_id (`str`): Name of a bundled checkpoint, a local folder or a Hub repository id.
        device (`str`, defaults to `"auto"`): Name of a torch device; see [`get_device`].
    """

    def __init__(self, model_id: str, device: str = "auto"):
        self.model_id = model_id
        self.device = get_device(device)
        self.pipe: FashionMNISTPipeline = load_pipeline(model_id).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        # The demo does not use classifier guidance, so it ignores the class names of a classifier.
        self.label_names = tuple(self.pipe.label_names or ()) if self.pipe.is_conditional else ()
        self.has_prompts = self.pipe.text_encoder is not None
        self.num_inference_steps = min(self.pipe.config["num_inference_steps"], MAX_STEPS)
        self.channels, self.height, self.width = self.pipe.image_shape

    def __reduce__(self):
        # ZeroGPU pickles the arguments for a forked process, which already has the weights in memory.
        return get_engine, (self.model_id,)

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """Content of the checkpoint's `metrics.json`, if there is one."""
        return self._read_file("metrics.json", read_metrics)

    @cached_property
    def is_fashion_mnist(self) -> bool:
        """Whether the model generates grayscale images of Fashion-MNIST."""
        dataset = get_dataset(self._read_file("train_config.json", read_train_config))
        return self.channels == 1 and (self.label_names == FASHION_MNIST_LABELS or dataset == DEFAULT_DATASET)

    def _read_file(self, name: str, read: Callable[[Path], dict[str, Any] | None]) -> dict[str, Any] | None:
        """Reads a file of the pipeline. Returns `None` if it is missing or invalid, or if it cannot be downloaded."""
        try:
            path = find_pipeline_file(self.model_id, name)
            return None if path is None else read(path)
        except (OSError, ValueError):
            return None

    def supports(self, scheduler: str) -> bool:
        """Returns whether the model supports this scheduler, such as `"ddim"`."""
        try:
            copy_pipeline(self.pipe, scheduler).set_timesteps(self.num_inference_steps)
        except ValueError:
            return False
        return True

    def get_labels(self, request: GenerationRequest) -> list[str]:
        """Returns the class name of each image, or an empty list for a model without classes."""
        if request.labels and not self.label_names:
            raise RequestError("This model is not class-conditional. Leave the classes empty.")
        if not set(request.labels) <= set(self.label_names):
            raise RequestError(f"The classes must be among {list_names(self.label_names, MAX_SHOWN_NAMES)}.")
        names = request.labels or self.label_names
        return [names[i % len(names)] for i in range(request.num_images)] if names else []

    def get_prompt_warnings(self, *prompts: str) -> list[str]:
        """Returns warnings about words that the tokenizer does not know, and about truncated prompts."""
        return self.pipe.find_prompt_problems(prompts) if self.has_prompts else []

    def get_captions(self, request: GenerationRequest) -> list[str]:
        seeds = [(request.seed + i) % (MAX_SEED + 1) for i in range(request.num_images)]
        return self.get_labels(request) or [f"seed {seed}" for seed in seeds]

    def generate(
        self,
        request: GenerationRequest,
        image: Image.Image | None = None,
        strength: float = 1.0,
        mask_image: Image.Image | None = None,
        max_seconds: float | None = MAX_RUN_SECONDS,
    ) -> Generator[Step]:
        """
        Generates images, or transforms `image` (image-to-image) or its masked region (inpainting) if it is given.

        Args:
            request ([`GenerationRequest`]): The settings.
            image (`PIL.Image.Image`, *optional*): Image for image-to-image, in the size and mode of the model.
            strength (`float`, defaults to 1.0): Fraction of the denoising steps to run, starting from the noisy
                `image`, in (0, 1].
            mask_image (`PIL.Image.Image`, *optional*): Mask of the same size as `image`; white pixels are
                inpainted.
            max_seconds (`float`, *optional*, defaults to 60): Maximum duration of the run; `None` for no limit.
        """
        if not is_number(strength) or not 0 < strength <= 1:
            raise RequestError(f"The strength must be greater than 0 and at most 1, got {describe(strength)}.")
        labels = self.get_labels(request)
        kwargs: dict[str, Any] = {"generator": make_generators(request.seed, request.num_images)}
        if labels:
            kwargs |= {"class_labels": labels, "guidance_scale": request.guidance_scale}
        elif self.has_prompts and request.prompt:
            guidance_scale, count = request.guidance_scale, request.num_images
            kwargs |= {"prompt": request.prompt, "guidance_scale": guidance_scale, "num_images_per_prompt": count}
        else:
            kwargs |= {"num_images_per_prompt": request.num_images}
        if image is not None:
            kwargs |= {"image": image, "strength": strength, "mask_image": mask_image}
        yield from self._steps("__call__", request, kwargs, max_seconds)

    def interpolate(
        self,
        request: GenerationRequest,
        seeds: tuple[int, int],
        last_prompt: str = "",
        max_seconds: float | None = MAX_RUN_SECONDS,
    ) -> Generator[Step]:
        """
        Interpolates from the first seed and class or prompt to the last ones.

        Args:
            request ([`GenerationRequest`]):
                The settings. The labels are the first and the last class, and the prompt is the first prompt.
            seeds (`tuple[int, int]`): Seeds of the first and the last image.
            last_prompt (`str`, defaults to `""`): Prompt of the last image; only used by text-conditional models.
            max_seconds (`float`, *optional*, defaults to 60): Maximum duration of the run; `None` for no limit.
        """
        self.get_labels(request)
        kwargs: dict[str, Any] = {"seeds": seeds, "num_images": request.num_images}
        if self.has_prompts:
            kwargs["prompt"] = [request.prompt, last_prompt]
        elif request.labels:
            kwargs["class_labels"] = request.labels
        yield from self._steps("interpolate", request, kwargs, max_seconds)

    def _steps(self, *args: Any) -> Generator[Step]:
        run = self._run_on_gpu if self.device.type == "cuda" else self._run
        with closing(run(*args)) as steps:
            for step in steps:
                # ZeroGPU hides the message of an exception, so errors are yielded and raised here.
                if isinstance(step, RequestError):
                    raise step
                yield step

    @on_gpu
    def _run_on_gpu(self, *args: Any) -> Generator[Step | RequestError]:
        yield from self._run(*args)

    def _run(
        self, method: str, request: GenerationRequest, kwargs: dict[str, Any], max_seconds: float | None
    ) -> Generator[Step | RequestError]:
        """Runs a pipeline in a thread. The thread ends at its next step when this generator is closed."""
        try:
            pipe = copy_pipeline(self.pipe, request.scheduler)
        except ValueError as error:
            yield RequestError(str(error))
            return
        queue: Queue[Step | Exception | None] = Queue()
        stopped = threading.Event()
        start_time = time.perf_counter()

        def put_step(number: int, *tensors: torch.Tensor) -> None:
            images, predicted = (to_pil(tensor) for tensor in tensors)
            seconds = time.perf_counter() - start_time
            queue.put(Step(number, pipe.num_timesteps, images, predicted, pipe.num_function_evaluations, seconds))

        def on_step_end(pipe: Any, i: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict:
            pipe._interrupt = stopped.is_set()
            put_step(i, *(to_uint8(pipe.decode_latents(tensors[name])) for name in TENSOR_NAMES))
            return {}

        def run() -> None:
            try:
                pixels = generate_pixels(
                    pipe,
                    method,
                    num_inference_steps=request.num_inference_steps,
                    callback_on_step_end=on_step_end,
                    callback_on_step_end_tensor_inputs=TENSOR_NAMES,
                    **kwargs,
                )
                put_step(pipe.num_timesteps, pixels, pixels)
                queue.put(None)
            # An exception would be lost in this thread, so the consumer of the queue raises it.
            except Exception as error:
                queue.put(error)

        threading.Thread(target=run, name="generation", daemon=True).start()
        try:
            while True:
                elapsed = time.perf_counter() - start_time
                item = queue.get(timeout=None if max_seconds is None else max(0.0, max_seconds - elapsed))
                if item is None:
                    return
                if isinstance(item, NotImplementedError | ValueError):
                    yield RequestError(str(item))
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
        except Empty:
            yield RequestError(f"The request took more than {max_seconds:.0f} seconds. Use fewer images or steps.")
        finally:
            stopped.set()
