"""What the demo draws: the model and nothing of the page."""

import importlib.util
import math
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from PIL import Image, ImageChops, ImageOps, ImageStat

from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import to_uint8
from fmnist_diffusion.hub import pipeline_folder
from fmnist_diffusion.pictures import image_grid
from fmnist_diffusion.publish import measured_metrics, read_metrics
from fmnist_diffusion.schedulers import scheduler_class


SCHEDULERS = {
    "DDPM": "DDPMScheduler",
    "DDIM": "DDIMScheduler",
    "DPM-Solver++": "DPMSolverMultistepScheduler",
    "SDE-DPM-Solver++": "SDEDPMSolverScheduler",
    "UniPC": "UniPCMultistepScheduler",
    "Euler ancestral": "EulerAncestralDiscreteScheduler",
}
MAX_IMAGES, MAX_STEPS, MAX_FRAMES, MAX_GUIDANCE = 40, 100, 24, 8
MAX_SEED = 2**32 - 1
MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS = 5_000_000, 25_000_000
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
TIME_LIMIT = 60.0
STRIP_COLUMNS = 10
# Of a downloaded animation.
MAX_GIF_FRAMES, MAX_GIF_CELL = 40, 112

# On ZeroGPU a function of the model borrows a GPU; everywhere else there is no such package, or it does nothing.
if importlib.util.find_spec("spaces"):
    import spaces

    on_gpu: Callable = spaces.GPU(duration=int(TIME_LIMIT))
else:

    def on_gpu(function: Callable) -> Callable:
        return function


class RequestError(ValueError):
    """What is wrong with a request, in one sentence for the person who made it."""


@dataclass(frozen=True)
class Settings:
    """How to draw.

    Attributes:
        labels: Names of classes, in turn; empty for all of them, or for a model without classes.
        num_images: Pictures, from 1 to 40.
        num_inference_steps: Denoising steps, from 1 to 100.
        scheduler: One of `SCHEDULERS`.
        guidance_scale: From 1 (none) to 8.
        seed: Picture i starts from the noise of `seed + i`, so that settings can be compared on the same noise.

    Raises:
        [`RequestError`]: one of them is none of its choices.
    """

    labels: tuple[str, ...] = ()
    num_images: int = 10
    num_inference_steps: int = 20
    scheduler: str = "SDE-DPM-Solver++"
    guidance_scale: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, value, low, high in (
            ("number of pictures", self.num_images, 1, MAX_IMAGES),
            ("number of steps", self.num_inference_steps, 1, MAX_STEPS),
            ("guidance", self.guidance_scale, 1, MAX_GUIDANCE),
            ("seed", self.seed, 0, MAX_SEED),
        ):
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise RequestError(f"The {name} must be from {low} to {high:,}.")
        for name in ("num_images", "num_inference_steps", "seed"):
            if getattr(self, name) != int(getattr(self, name)):
                raise RequestError(f"The {name.replace('_', ' ')} must be a whole number.")
            object.__setattr__(self, name, int(getattr(self, name)))
        if self.scheduler not in SCHEDULERS:
            raise RequestError(f"The scheduler must be one of {', '.join(SCHEDULERS)}.")


@dataclass(frozen=True)
class Step:
    """A state of pictures that are being made.

    Attributes:
        number: Steps done.
        total: Steps in all.
        images: The pictures as the model expects them at this step, grey or RGB.
        evaluations: Network evaluations so far, for each picture.
        seconds: Time so far.
    """

    number: int
    total: int
    images: list[Image.Image]
    evaluations: int
    seconds: float


class RequestUNet(torch.nn.Module):
    """The shared model as one request sees it: counted, and with `labels` of its own where the request blends classes.

    Args:
        unet ([`FashionMNISTUNet2DModel`]): The model.
        blend (`tuple`, *optional*): Two labels, int64 `(batch,)` each, and the second's weight, `(batch, 1, 1, 1)`.
    """

    def __init__(self, unet: Any, blend: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None):
        super().__init__()
        # Not a submodule: switching this one to evaluation must not touch what other requests use.
        self.shared, self.blend, self.evaluations = [unet], blend, 0

    @property
    def config(self) -> Any:
        return self.shared[0].config

    @property
    def dtype(self) -> torch.dtype:
        return self.shared[0].dtype

    @property
    def device(self) -> torch.device:
        return self.shared[0].device

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor | None = None):
        unet = self.shared[0]
        if self.blend is None:
            self.evaluations += len(sample)
            return unet(sample, timestep, class_labels)
        first, second, weight = (tensor.to(sample.device) for tensor in self.blend)
        self.evaluations += 2 * len(sample)
        both = unet(torch.cat([sample, sample]), timestep, torch.cat([first, second])).sample
        return UNet2DOutput(sample=torch.lerp(*both.chunk(2), weight))


@cache
def get_studio(model_id: str) -> "Studio":
    """The one studio of a checkpoint."""
    return Studio(model_id)


class Studio:
    """A checkpoint to draw with, for many at a time.

    Args:
        model_id (`str`): A bundled pipeline, a folder or a Hub repository.
        device (`str`, *optional*): A GPU if there is one.
    """

    def __init__(self, model_id: str, device: str | None = None):
        self.model_id = model_id
        pipe = load_pipeline(model_id, scheduler=None)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.unet: Any = pipe.unet.eval().requires_grad_(False).to(self.device)
        self.scheduler_config = pipe.scheduler.config
        self.label_names = pipe.label_names or ()
        size = self.unet.config.sample_size
        self.size = (size, size) if isinstance(size, int) else (size[1], size[0])
        self.mode = "L" if self.unet.config.in_channels == 1 else "RGB"

    def __reduce__(self):
        # ZeroGPU draws in a process that it forks and sends the arguments to: the weights are there already.
        return get_studio, (self.model_id,)

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """What is in the `metrics.json` of the checkpoint, if it has one that can be read."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        folder = pipeline_folder(self.model_id)
        try:
            local = folder.is_dir()
            return read_metrics(
                folder / "metrics.json" if local else Path(hf_hub_download(self.model_id, "metrics.json"))
            )
        except (EntryNotFoundError, OSError, ValueError):
            return None

    def quality(self) -> list[tuple[str, float, float]]:
        """Title, value and value of real test images, of each metric that was measured."""
        if self.metrics is None:
            return []
        try:
            return [(metric.title, metric.value, metric.real) for metric in measured_metrics(self.metrics)]
        except (KeyError, TypeError):
            # A file of that name that another program wrote.
            return []

    def label_ids(self, settings: Settings) -> list[int] | None:
        """The label of each picture; `None` of a model without classes."""
        if not self.label_names:
            if settings.labels:
                raise RequestError("This model knows no classes: choose none.")
            return None
        names = settings.labels or self.label_names
        unknown = [name for name in names if name not in self.label_names]
        if unknown:
            raise RequestError(f"{unknown[0]!r} is none of the classes: choose of {', '.join(self.label_names)}.")
        return [self.label_names.index(names[i % len(names)]) for i in range(settings.num_images)]

    def noise(self, generator: torch.Generator) -> torch.Tensor:
        """The noise that a picture of this generator begins with: `(1, channels, height, width)`."""
        return torch.randn((1, self.unet.config.in_channels, self.size[1], self.size[0]), generator=generator)

    def draw(self, settings: Settings) -> Generator[Step]:
        """Draws pictures, step by step."""
        seeds = [(settings.seed + i) % (MAX_SEED + 1) for i in range(settings.num_images)]
        labels = self.label_ids(settings)
        yield from self._steps(
            settings,
            class_labels=labels,
            num_images_per_prompt=1 if labels else settings.num_images,
            generator=generators(seeds),
        )

    def repaint(self, image: Image.Image, strength: float, settings: Settings) -> Generator[Step]:
        """Noises one picture to `strength`, in (0, 1], and denoises it again as each of the labels of `settings`."""
        if not isinstance(strength, int | float) or not 0 < strength <= 1:
            raise RequestError("The strength must be above 0 and at most 1.")
        # 0.07 * 100 is a little more than 7.
        steps = max(1, math.ceil(round(settings.num_inference_steps * strength, 6)))
        labels = self.label_ids(settings)
        yield from self._steps(
            settings,
            class_labels=labels,
            num_images_per_prompt=1 if labels else settings.num_images,
            image=image.convert(self.mode),
            strength=steps / settings.num_inference_steps,
            # One noise for all, so that the label alone makes the difference.
            generator=generators([settings.seed] * settings.num_images)
            if labels
            else generators([settings.seed + i for i in range(settings.num_images)]),
        )

    def morph(self, start: Settings, stop: Settings) -> Generator[Step]:
        """Draws `start.num_images` pictures on the way from one seed, and one class, to another.

        The noise is interpolated on the sphere, the class by blending the predictions for both.
        """
        count = start.num_images
        weights = torch.linspace(0, 1, count)
        (end,) = generators([stop.seed])
        second = self.noise(end)
        # What a scheduler adds on the way is the same for all, or they would not move smoothly.
        made = generators([start.seed] * count)
        ways = zip(made, weights, strict=True)
        noise = torch.cat([slerp(self.noise(generator), second, float(weight)) for generator, weight in ways])
        blend = None
        if self.label_names:
            labels = [self.label_ids(replace(settings, num_images=count)) for settings in (start, stop)]
            ids = [torch.tensor(label) for label in labels]
            blend = (ids[0], ids[1], weights.view(-1, 1, 1, 1))
        yield from self._steps(
            replace(start, guidance_scale=1.0),
            blend,
            num_images_per_prompt=count,
            latents=noise,
            generator=made,
        )

    def _steps(self, *args: Any, **kwargs: Any) -> Generator[Step]:
        # Here and not in there, for ZeroGPU keeps the text of an error to itself.
        with closing((self._run if self.device.type == "cpu" else self._run_on_gpu)(*args, **kwargs)) as run:
            for step in run:
                if isinstance(step, RequestError):
                    raise step
                yield step

    @on_gpu
    def _run_on_gpu(self, *args: Any, **kwargs: Any) -> Generator[Step | RequestError]:
        yield from self._run(*args, **kwargs)

    def _run(self, settings: Settings, blend: Any = None, **kwargs: Any) -> Generator[Step | RequestError]:
        """Runs a pipeline of its own in a thread of its own, which ends at its next step when this is closed."""
        unet = RequestUNet(self.unet, blend)
        scheduler = scheduler_class(SCHEDULERS[settings.scheduler]).from_config(self.scheduler_config)
        pipe = FashionMNISTPipeline(unet, scheduler)  # pyright: ignore[reportArgumentType]
        pipe.set_progress_bar_config(disable=True)
        queue: Queue[Any] = Queue()
        stopped = threading.Event()
        guided = settings.guidance_scale if kwargs.get("class_labels") else 1.0

        def on_step_end(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
            if stopped.is_set():
                pipe._interrupt = True
            queue.put((step + 1, tensors["pred_original_sample"], unet.evaluations))
            return {}

        def run() -> None:
            try:
                output = pipe(
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=guided,
                    callback_on_step_end=on_step_end,
                    callback_on_step_end_tensor_inputs=["pred_original_sample"],
                    output_type="latent",
                    **kwargs,
                )
                queue.put((None, output.images, unet.evaluations))
            except Exception as error:
                queue.put(error)

        began = time.perf_counter()
        threading.Thread(target=run, daemon=True).start()
        try:
            number: int | None = 0
            while number is not None:
                try:
                    item = queue.get(timeout=max(0.0, TIME_LIMIT - (time.perf_counter() - began)))
                except Empty:
                    yield RequestError(f"This took more than {TIME_LIMIT:.0f} seconds: ask for less.")
                    return
                if isinstance(item, NotImplementedError | ValueError):
                    yield RequestError(str(item))
                    return
                if isinstance(item, Exception):
                    raise item
                number, sample, evaluations = item
                yield Step(
                    pipe.num_timesteps if number is None else number,
                    pipe.num_timesteps,
                    to_images(sample),
                    evaluations // len(sample),
                    time.perf_counter() - began,
                )
        finally:
            stopped.set()


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """On the CPU whatever the device, for the same pictures everywhere."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def random_seed() -> int:
    return random.randint(0, MAX_SEED)


def slerp(first: torch.Tensor, second: torch.Tensor, weight: float) -> torch.Tensor:
    """Spherical interpolation between two tensors of noise of one shape, from `first` at 0 to `second` at 1 (Shoemake,
    "Animating rotation with quaternion curves", 1985)."""
    cosine = (first * second).sum() / (first.norm() * second.norm())
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(first, second, weight)
    return (torch.sin((1 - weight) * angle) * first + torch.sin(weight * angle) * second) / torch.sin(angle)


def to_images(sample: torch.Tensor) -> list[Image.Image]:
    """Pictures of a sample `(batch, channels, height, width)` in [-1, 1]."""
    arrays = to_uint8(sample).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]


def strip(steps: Sequence[Step], num_images: int = 5) -> Image.Image:
    """The denoising of the first pictures, each a row, from noise to picture."""
    last = len(steps) - 1
    columns = min(STRIP_COLUMNS, len(steps))
    chosen = [steps[round(i * last / max(columns - 1, 1))] for i in range(columns)]
    rows = min(num_images, len(steps[-1].images))
    return image_grid([step.images[row] for row in range(rows) for step in chosen], columns, border=1)


def save_gif(frames: Sequence[Image.Image], path: Path, milliseconds: int, hold: int = 0, swing: bool = False) -> Path:
    """An animation without end; the last frame stays for `hold` more, or with `swing` it runs back and forth."""
    frames = [*frames, *frames[-2:0:-1]] if swing else list(frames)
    durations = [milliseconds] * len(frames)
    durations[-1] += hold
    # PIL merges equal frames otherwise, and their durations with them.
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False)
    return path


def open_upload(path: str | os.PathLike) -> Image.Image:
    """Opens a file that somebody sent.

    Raises:
        [`RequestError`]: it is no picture, or too large; its size is read before its pixels are.
    """
    if os.path.getsize(path) > MAX_UPLOAD_BYTES:
        raise RequestError(f"The file is larger than {MAX_UPLOAD_BYTES // 10**6} MB: send a smaller one.")
    try:
        image = Image.open(path, formats=UPLOAD_FORMATS)
        if image.width * image.height > MAX_UPLOAD_PIXELS:
            raise RequestError(
                f"The picture has more than {MAX_UPLOAD_PIXELS // 10**6} megapixels: send a smaller one."
            )
        image.draft("RGB", (512, 512))
        image.load()
        if image.mode.startswith("I"):
            # Sixteen bits a pixel.
            image = image.point(lambda value: value / 256).convert("L")
        # Copies of it shall be small.
        image.thumbnail((1024, 1024))
        return ImageOps.exif_transpose(image)
    except RequestError:
        raise
    # Pillow's decoders raise what they like at a broken file.
    except Exception as error:
        raise RequestError(f"The file is no picture that can be read: send a {', '.join(UPLOAD_FORMATS)}.") from error


def to_fashion_mnist(image: Image.Image, size: tuple[int, int] = (28, 28)) -> Image.Image:
    """Any picture as one of the data set: grey, a light thing on black, filling the frame.

    What is transparent becomes background, and a dark thing on it is inverted; so is a picture of light corners.
    """
    rgba = image.convert("RGBA")
    grey, alpha = rgba.convert("L"), rgba.getchannel("A")
    if alpha.getextrema()[0] < 128:
        opaque = alpha.point(lambda value: 255 * (value > 127))
        dark = opaque.getbbox() is not None and ImageStat.Stat(grey, opaque).mean[0] < 80
        thing = ImageChops.multiply(ImageChops.invert(grey) if dark else grey, alpha)
    else:
        patch = max(1, min(grey.size) // 8)
        corners = Image.new("L", (2 * patch, 2 * patch))
        for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
            left, top = x * (grey.width - patch), y * (grey.height - patch)
            corners.paste(grey.crop((left, top, left + patch, top + patch)), (x * patch, y * patch))
        histogram = corners.histogram()
        light = sum(histogram[128:]) > sum(histogram[:128])
        thing = ImageChops.invert(grey) if light else grey
    if thing.size == size:
        return thing
    box = thing.point(lambda value: 255 * (value > 24)).getbbox() or (0, 0, *thing.size)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(size[0] / width, size[1] / height)
    fitting = (max(1, round(width * scale)), max(1, round(height * scale)))
    thing = thing.resize(fitting, Image.Resampling.LANCZOS, box)
    frame = Image.new("L", size)
    frame.paste(thing, ((size[0] - thing.width) // 2, (size[1] - thing.height) // 2))
    return frame
