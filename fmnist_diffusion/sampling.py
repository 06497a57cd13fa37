"""Sampling settings, default pipelines, random generators and batched image generation.

Functions import torch and diffusers locally, so that the command line can read the settings without these slow
imports.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .schedulers import NOISE_SCHEDULE_OPTIONS, has_unstable_epsilon, make_scheduler


if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
    from transformers import CLIPTextModel, CLIPTokenizer

    from .models.unet_fmnist import FashionMNISTUNet2DModel
    from .pipelines.pipeline_fmnist import FashionMNISTPipeline


# torch's CPU generator only uses the lower 32 bits of a seed.
MAX_SEED = 2**32 - 1

# Sampling with guidance needs about this much memory for each feature of the first level (height x width x channels).
BYTES_PER_FEATURE = 80
MAX_BATCH_BYTES = 3_000_000_000


@dataclass(frozen=True)
class SamplingConfig:
    """
    Sampling settings.

    `num_inference_steps` and the guidance settings are those of [`FashionMNISTPipeline.__call__`].

    Args:
        scheduler: name of a scheduler, such as ddim, or of a diffusers scheduler class; the stored scheduler if null
        num_inference_steps: number of denoising steps; the stored number if null
        guidance_scale: scale of classifier-free guidance; 1 disables it
        guidance_interval: range of sampling steps that use guidance, as fractions from 0 (noise) to 1 (image)
        seed: random seed from 0 to 2**32 - 1; image i uses (seed + i) modulo 2**32

    Raises:
        `ValueError`: If a value is out of range.
    """

    scheduler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    seed: int = 0

    def __post_init__(self):
        steps = self.num_inference_steps
        if steps is not None and (not is_integer(steps) or steps < 1):
            raise ValueError(f"`num_inference_steps` must be a positive integer, got {steps!r}.")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"`guidance_scale` must be a finite number, got {self.guidance_scale}.")
        interval = self.guidance_interval
        if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(
                f"`guidance_interval` must be (start, stop) with 0 <= start <= stop <= 1, got {tuple(interval)}."
            )
        if not is_integer(self.seed) or not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"`seed` must be an integer from 0 to 2**32 - 1, got {self.seed!r}.")


@dataclass
class Samples:
    """
    Generated images with their labels, number of function evaluations and sampling time.

    Attributes:
        images (`torch.Tensor` of shape `(num_images, channels, height, width)`): uint8 pixels.
        labels (`torch.Tensor` of shape `(num_images,)`, *optional*): int64 class labels; `None` without labels.
        num_function_evaluations (`int`): Number of function evaluations (NFE), summed over the images.
        seconds (`float`): Wall-clock time of sampling, in seconds.
    """

    images: torch.Tensor
    labels: torch.Tensor | None = None
    num_function_evaluations: int = 0
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.images)

    @staticmethod
    def concatenate(parts: Sequence[Samples]) -> Samples:
        """Concatenates samples. Either all or none of the `parts` must have labels."""
        import torch

        labels = [part.labels for part in parts if part.labels is not None]
        if labels and len(labels) != len(parts):
            raise ValueError("Cannot concatenate samples with labels and samples without labels.")
        return Samples(
            torch.cat([part.images for part in parts]),
            torch.cat(labels) if labels else None,
            sum(part.num_function_evaluations for part in parts),
            sum(part.seconds for part in parts),
        )


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def make_pipeline(
    unet: FashionMNISTUNet2DModel,
    noise_scheduler: DDPMScheduler | FlowMatchEulerDiscreteScheduler,
    num_inference_steps: int = 20,
    text_encoder: CLIPTextModel | None = None,
    tokenizer: CLIPTokenizer | None = None,
    vae: AutoencoderKL | None = None,
) -> FashionMNISTPipeline:
    """
    Creates a pipeline for a trained model with the default scheduler of this package.

    The scheduler is second-order SDE-DPM-Solver++ (arXiv 2211.01095, section 5) with power-law timestep spacing. The
    power is 1.2 for a cosine schedule and 1.5 for other schedules. With 20 steps, the last step then starts at about
    the same noise level for both. The scheduler of a flow-matching model is [`FlowMatchEulerDiscreteScheduler`] with
    equally spaced sigmas from 1 to `1 / num_inference_steps`, to which its `shift` applies.

    Args:
        unet ([`FashionMNISTUNet2DModel`]): The model.
        noise_scheduler ([`DDPMScheduler`] or [`FlowMatchEulerDiscreteScheduler`]):
            The noise schedule and prediction type that the model was trained with.
        num_inference_steps (`int`, defaults to 20):
            Default number of denoising steps, limited to the `num_train_timesteps` of `noise_scheduler`.
        text_encoder, tokenizer, vae (*optional*): See [`FashionMNISTPipeline`].
    """
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    from .pipelines import FashionMNISTPipeline

    num_inference_steps = min(num_inference_steps, noise_scheduler.config["num_train_timesteps"])
    components: dict[str, Any] = {"text_encoder": text_encoder, "tokenizer": tokenizer, "vae": vae}
    if isinstance(noise_scheduler, FlowMatchEulerDiscreteScheduler):
        # Pipelines must not share the state of a scheduler.
        flow_scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(noise_scheduler.config)
        return FashionMNISTPipeline(unet, flow_scheduler, num_inference_steps, 1.0, **components)
    config = {name: noise_scheduler.config[name] for name in NOISE_SCHEDULE_OPTIONS}
    # Near zero SNR, a small error in the predicted noise becomes a huge error in x0, so x0 is clipped. Latents are not
    # clipped, because they are not limited to [-1, 1].
    unstable = has_unstable_epsilon(noise_scheduler)
    thresholding = unstable and vae is None
    scheduler = DPMSolverMultistepScheduler(
        **config, algorithm_type="sde-dpmsolver++", thresholding=thresholding, sample_max_value=1.0
    )
    # This solver does not have the option `clip_sample`, but other schedulers that are created from its config clip x0
    # by default, which is wrong for latents. With epsilon prediction, DDIM combines the clipped x0 with the unclipped
    # predicted noise, which amplifies the errors of the model.
    if vae is not None or (config["prediction_type"] == "epsilon" and not unstable):
        scheduler.register_to_config(clip_sample=False)
    timestep_power = 1.2 if config["beta_schedule"] == "squaredcos_cap_v2" else 1.5
    return FashionMNISTPipeline(unet, scheduler, num_inference_steps, timestep_power, **components)


def make_consistency_pipeline(
    unet: FashionMNISTUNet2DModel,
    noise_scheduler: DDPMScheduler,
    num_inference_steps: int = 4,
    text_encoder: CLIPTextModel | None = None,
    tokenizer: CLIPTokenizer | None = None,
) -> FashionMNISTPipeline:
    """
    Creates a pipeline for a consistency model, which generates images in one to four steps.

    The scheduler is [`LCMScheduler`], which adds new noise after every step except the last one (arXiv 2303.01469,
    algorithm 1). The timesteps have power-law spacing with a power of 2.

    Args:
        unet ([`FashionMNISTUNet2DModel`]): The consistency model.
        noise_scheduler ([`DDPMScheduler`]): The noise schedule and prediction type that the model was trained with.
        num_inference_steps (`int`, defaults to 4):
            Default number of denoising steps, limited to the `num_train_timesteps` of `noise_scheduler`.
        text_encoder, tokenizer (*optional*): See [`FashionMNISTPipeline`].
    """
    from diffusers import LCMScheduler

    from .pipelines import FashionMNISTPipeline

    config = {name: noise_scheduler.config[name] for name in NOISE_SCHEDULE_OPTIONS}
    num_train_timesteps = config["num_train_timesteps"]
    # With this value of `original_inference_steps`, LCMScheduler accepts all custom timesteps without a warning.
    scheduler = LCMScheduler(**config, original_inference_steps=num_train_timesteps, clip_sample=True)
    num_inference_steps = min(num_inference_steps, num_train_timesteps)
    return FashionMNISTPipeline(
        unet, scheduler, num_inference_steps, 2.0, text_encoder=text_encoder, tokenizer=tokenizer
    )


def copy_pipeline(
    pipe: FashionMNISTPipeline, scheduler: str | type[SchedulerMixin] | None = None
) -> FashionMNISTPipeline:
    """
    Creates a pipeline that shares the models of `pipe` but has a separate scheduler.

    Schedulers are stateful, so pipelines that run concurrently require separate schedulers.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline.
        scheduler (`str` or a subclass of [`SchedulerMixin`], *optional*):
            See [`get_scheduler_class`]. Defaults to a copy of the scheduler of `pipe`.

    Raises:
        `ValueError`: See [`make_scheduler`]. Other unsupported schedulers raise an error when the pipeline is called.
    """
    # The original scheduler determines which other schedulers support the model.
    original: Any = pipe._original_scheduler
    settings = {"num_inference_steps": pipe.config.num_inference_steps, "timestep_power": pipe._timestep_power}
    components = {name: getattr(pipe, name) for name in pipe._optional_components}
    scheduler_copy = type(original).from_config(original.config)
    # `parameters` contains the additional settings of a subclass.
    copy = type(pipe)(pipe.unet, scheduler_copy, **pipe.parameters | settings, **components)
    if scheduler is not None:
        copy.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
    elif pipe.scheduler is not original:
        copy.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    copy.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return copy


def convert_dtype(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Converts `model` in place, without the warning of `ModelMixin.to` about modules that should stay in float32."""
    import torch

    return torch.nn.Module.to(model, dtype)


def select_dtype(pipe: FashionMNISTPipeline, batch_size: int = 16) -> torch.dtype:
    """
    Selects the fastest dtype for a pipeline by measuring function evaluations of copies of the U-Net on its device.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline; it is not changed.
        batch_size (`int`, defaults to 16): Number of images per function evaluation.

    Returns:
        `torch.dtype`: The fastest of float32, bfloat16 and, on a GPU, float16. bfloat16 and float16 are only selected
        if they are at least 1.1 times as fast as float32, so that small differences in speed do not change the images.
    """
    import torch

    device = pipe.device
    dtypes = [torch.float32, torch.bfloat16] + ([] if device.type == "cpu" else [torch.float16])
    models = {dtype: convert_dtype(deepcopy(pipe.unet), dtype) for dtype in dtypes}
    images = torch.randn(batch_size, *pipe.latent_shape, device=device)

    # The model of a text-conditional pipeline requires an embedding.
    labels = None
    if pipe.prompt_embeds_dim is not None:
        labels = torch.zeros(batch_size, pipe.prompt_embeds_dim, device=device)

    def measure(dtype: torch.dtype) -> float:
        start = time.perf_counter()
        # The conversion to a number waits for the GPU.
        float(models[dtype](images.to(dtype), 500, labels if labels is None else labels.to(dtype)).sample.sum())
        return time.perf_counter() - start

    with torch.inference_mode():
        # The first round is discarded, because it also allocates memory and selects kernels.
        rounds = [[measure(dtype) for dtype in dtypes] for _ in range(4)][1:]
    seconds = [min(times) for times in zip(*rounds, strict=True)]
    fastest = seconds.index(min(seconds))
    return dtypes[fastest] if seconds[fastest] * 1.1 <= seconds[0] else torch.float32


def use_fastest_dtype(pipe: FashionMNISTPipeline) -> None:
    """Converts the models of a pipeline to the dtype that [`select_dtype`] returns."""
    import torch

    dtype = select_dtype(pipe)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            # `DiffusionPipeline.to` rejects pipelines with a device map.
            convert_dtype(component, dtype)


def make_generators(seed: int, count: int, start: int = 0) -> list[torch.Generator]:
    """
    Creates the random generators for images `start` to `start + count - 1`.

    Image i uses the seed `(seed + i) % 2**32`. The generators are on the CPU, so that a seed produces the same noise
    on every device.
    """
    import torch

    return [torch.Generator().manual_seed((seed + start + i) % (MAX_SEED + 1)) for i in range(count)]


def get_max_batch_size(pipe: FashionMNISTPipeline) -> int:
    """Returns the number of images per batch for which sampling with guidance needs at most about 3 GB of memory."""
    channels, height, width = pipe.latent_shape
    features = height * width * max(pipe.unet.config["block_out_channels"][0], channels)
    if pipe.vae is not None:
        _, height, width = pipe.image_shape
        features = max(features, height * width * pipe.vae.config["block_out_channels"][0])
    return max(1, MAX_BATCH_BYTES // (BYTES_PER_FEATURE * features))


def generate_pixels(pipe: FashionMNISTPipeline, method: str = "__call__", **kwargs: Any) -> torch.Tensor:
    """
    Generates images as uint8 pixels.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline.
        method (`str`, defaults to `"__call__"`): Method to call, `"__call__"` or `"interpolate"`.
        kwargs: Arguments of the method, except `output_type` and `return_dict`.

    Returns:
        `torch.Tensor` of shape `(batch, channels, height, width)`: uint8 pixels.
    """
    from .data import to_uint8

    if pipe.vae is None:
        # Without an autoencoder, "latent" returns the pixels in [-1, 1] without the rounding errors of "pt".
        return to_uint8(getattr(pipe, method)(output_type="latent", **kwargs).images)
    return to_uint8(2 * getattr(pipe, method)(output_type="pt", **kwargs).images - 1)


def generate(
    pipe: FashionMNISTPipeline,
    config: SamplingConfig,
    num_images: int,
    *,
    class_labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    batch_size: int = 64,
    start: int = 0,
    **kwargs: Any,
) -> Iterator[Samples]:
    """
    Generates images in batches.

    For a given pipeline and config, image i only depends on the seed `config.seed + i` and its label or prompt. Up to
    rounding, it does not depend on the batch size.

    Args:
        pipe ([`FashionMNISTPipeline`]): The pipeline; it is not changed.
        config ([`SamplingConfig`]): The settings. Unconditional sampling ignores the guidance settings.
        num_images (`int`): Number of images.
        class_labels (`Sequence[int]`, *optional*):
            Class labels that are cycled through: image i has the label `class_labels[i % len(class_labels)]`. Without
            labels and prompts, sampling is unconditional.
        prompts (`Sequence[str]`, *optional*):
            Prompts for a text-conditional model, which are cycled through. If prompts are passed, `class_labels` are
            only returned with the samples and do not affect the images.
        batch_size (`int`, defaults to 64):
            Number of images per batch, limited by [`get_max_batch_size`].
        start (`int`, defaults to 0): Index of the first image.
        kwargs: `classifier_guidance_scale`, `strength`, `num_resampling_steps`, and a single `image`, `mask_image` and
            `negative_prompt` for all images; see [`~FashionMNISTPipeline.__call__`].

    Yields:
        [`Samples`]: A batch of images.

    Raises:
        `ValueError`: If an argument is out of range, if the model or the scheduler does not support it, or if a
            generated image has NaN or infinite pixels.
    """
    import torch

    for name, values, item in (("class_labels", class_labels, "label"), ("prompts", prompts, "prompt")):
        if values is not None and not len(values):
            raise ValueError(f"`{name}` must contain at least one {item}, or be None for unconditional sampling.")
    pipe = copy_pipeline(pipe, config.scheduler)
    batch_size = min(batch_size, get_max_batch_size(pipe))
    for first in range(start, start + num_images, batch_size):
        count = min(batch_size, start + num_images - first)
        conditions: dict[str, Any] = {"num_images_per_prompt": count}
        labels = None
        if class_labels is not None:
            labels = [class_labels[i % len(class_labels)] for i in range(first, first + count)]
            conditions = {"class_labels": labels}
        if prompts is not None:
            conditions = {"prompt": [prompts[i % len(prompts)] for i in range(first, first + count)]}
        if class_labels is not None or prompts is not None:
            conditions |= {"guidance_scale": config.guidance_scale, "guidance_interval": config.guidance_interval}
        start_time = time.perf_counter()
        images = generate_pixels(
            pipe,
            num_inference_steps=config.num_inference_steps,
            generator=make_generators(config.seed, count, first),
            **conditions,
            **kwargs,
        ).cpu()
        yield Samples(
            images,
            None if labels is None else torch.tensor(labels),
            pipe.num_function_evaluations * count,
            time.perf_counter() - start_time,
        )
