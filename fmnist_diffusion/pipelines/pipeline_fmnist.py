"""A pipeline for Fashion-MNIST diffusion models in pixel space or latent space.

This file only imports the standard library, torch, diffusers and Pillow, because `save_pretrained` copies it into
every saved pipeline. `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` runs that copy where the package
is not installed.
"""

import difflib
import inspect
import itertools
import json
import math
import re
import shutil
import struct
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    ImagePipelineOutput,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    SchedulerMixin,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils import logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor


# `diffusers.logging.set_verbosity` only affects the logger `diffusers` and its child loggers.
logger = logging.get_logger(f"diffusers.{__name__}")

FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# A schedule has a near-zero terminal SNR if its last `alphas_cumprod` is below this threshold. With 1,000 timesteps
# and diffusers' default betas, the last value is 4e-5 for linear and 2e-9 for cosine schedules.
NEAR_ZERO_SNR = 1e-6
# Classifier guidance has no effect below this SNR. For flow matching, DPM-Solver starts at an SNR of 1e-6, not 0.
MIN_GUIDED_SNR = 4e-6
# The `alphas_cumprod` of two schedulers of the same model differ by at most this value. Only some schedulers support
# `rescale_betas_zero_snr`, which changes linear schedules with 1,000 timesteps by 0.003.
MAX_ALPHAS_DIFFERENCE = 0.01
# Sampling must cover at least this fraction of the training timesteps.
MIN_TIMESTEP_COVERAGE = 0.7
MAX_TIMESTEP_POWER = 100
MODELS = ("unet", "text_encoder", "classifier", "vae")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# This table maps the number of image channels of a model to the mode that PIL images are converted to.
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SUPPORTED_PIL_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "PA", "La", "RGBA", "RGBa")
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2
# This table maps an EXIF orientation to the transposition that makes the image upright.
TRANSPOSITIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# Pillow raises these errors if it cannot parse the metadata or decode the pixels of an image.
PILLOW_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)
# Each of these scheduler options replaces the timestep spacing.
SPACING_OPTIONS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
# These schedulers have no `prediction_type`, because they only support flow matching.
FLOW_MATCH_SCHEDULERS = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)
# These schedulers support flow matching with `use_flow_sigmas`. DEIS and SASolver would not remove all noise.
FLOW_SOLVERS = (DPMSolverMultistepScheduler, UniPCMultistepScheduler)
# These schedulers raise NotImplementedError in the first step if the model predicts the sample.
NO_SAMPLE_PREDICTION = (
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)
# These schedulers can use the power-law spacing of the option `timestep_power`.
POWER_LAW_SCHEDULERS = (DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from fmnist_diffusion import load_pipeline

        >>> pipe = load_pipeline("base")
        >>> images = pipe(["Ankle boot", "Bag"], num_images_per_prompt=4, generator=torch.manual_seed(0)).images
        >>> images[0].save("ankle_boot.png")
        ```
"""


def is_positive_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def is_finite_number(value: Any) -> bool:
    try:
        return math.isfinite(value)
    # Large integers raise OverflowError; tensors with several values raise RuntimeError or ValueError.
    except (TypeError, OverflowError, RuntimeError, ValueError):
        return False


def check_settings(num_inference_steps: Any, timestep_power: Any) -> None:
    """Checks the settings that `model_index.json` contains; raises `ValueError` if one is out of range."""
    if not is_positive_integer(num_inference_steps):
        raise ValueError(f"`num_inference_steps` must be a positive integer, got {num_inference_steps!r}.")
    if timestep_power is not None and not (
        isinstance(timestep_power, (int, float)) and 1 <= timestep_power <= MAX_TIMESTEP_POWER
    ):
        raise ValueError(f"`timestep_power` must be a number from 1 to {MAX_TIMESTEP_POWER}, got {timestep_power!r}.")


def scale_num_steps(num_steps: int, fraction: float) -> float:
    # Without rounding, 0.29 * 100 is slightly less than 29.
    return round(num_steps * fraction, 6)


def power_law_timesteps(num_inference_steps: int, num_train_timesteps: int, power: float) -> list[int]:
    """
    Returns the decreasing timesteps `T * (k / n) ** power - 1` for `k` from `n` to 1, rounded to distinct integers,
    where `T` is `num_train_timesteps` and `n` is `num_inference_steps`.

    Powers above 1 space the timesteps more densely at low noise levels.
    """
    timesteps = []
    for k in range(num_inference_steps, 0, -1):
        spaced = math.floor(num_train_timesteps * (k / num_inference_steps) ** power - 0.5)
        # The maximum keeps the timesteps distinct if there are many steps.
        timesteps.append(max(spaced, k - 1))
    return timesteps


def uses_flow_matching(scheduler: Any) -> bool:
    """Returns whether the noisy images of a scheduler are `(1 - sigma) * x0 + sigma * noise` (arXiv 2209.03003)."""
    return isinstance(scheduler, FLOW_MATCH_SCHEDULERS) or bool(scheduler.config.get("use_flow_sigmas", False))


def has_same_noise_schedule(scheduler: Any, original: Any) -> bool:
    """Returns whether two schedulers have the same `alphas_cumprod`, up to `rescale_betas_zero_snr`, or none."""
    values, expected = (getattr(item, "alphas_cumprod", None) for item in (scheduler, original))
    if values is None or expected is None or uses_flow_matching(scheduler):
        return True
    return values.shape == expected.shape and bool((values.cpu() - expected.cpu()).abs().max() < MAX_ALPHAS_DIFFERENCE)


def predict_x0(
    prediction: torch.Tensor,
    model_input: torch.Tensor,
    alpha: torch.Tensor,
    sigma: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """
    Computes the predicted x0 from the output of a model and its input, `alpha * x0 + sigma * noise`.

    The equations are those of arXiv 2006.11239 (equation 15) for epsilon prediction, arXiv 2202.00512 (appendix D) for
    v-prediction, and arXiv 2209.03003 (equation 1) for flow matching.

    Args:
        prediction (`torch.Tensor`): Output of the model.
        model_input (`torch.Tensor` of the same shape): The noisy images.
        alpha, sigma (`torch.Tensor`): Scales of x0 and of the noise, which must be broadcastable to the images.
        prediction_type (`str`): `"epsilon"`, `"v_prediction"`, `"flow_prediction"` or `"sample"`.

    Returns:
        `torch.Tensor` of the shape of `model_input`: The predicted x0.
    """
    if prediction_type == "epsilon":
        return (model_input - sigma * prediction) / alpha
    if prediction_type == "v_prediction":
        return alpha * model_input - sigma * prediction
    if prediction_type == "flow_prediction":
        return model_input - sigma * prediction
    return prediction


def get_orientation(image: PIL.Image.Image) -> int:
    """Returns the EXIF orientation, from 1 to 8; 1 (upright) if it is missing or the metadata is broken."""
    try:
        orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except PILLOW_ERRORS:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def convert_pil_image(
    image: PIL.Image.Image, height: int, width: int, channels: int, name: str = "image"
) -> torch.Tensor:
    """
    Converts an image to the size and channels of a model.

    The EXIF orientation is applied. Transparent pixels are composited over white, unless the model has 4 channels. An
    image of a different size is resized with an antialiased bicubic filter to cover the target size and then
    center-cropped. The result has the shape `(C, H, W)` and values in [0, 1].

    Raises:
        `ValueError`: If the image cannot be decoded or converted, or has more than 8 bits per channel.
    """
    if channels not in PIL_MODES:
        raise ValueError(f"`{name}` must be an array or a tensor with {channels} channels, got a PIL image.")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(f"`{name}` must have 8 bits per channel, got mode {image.mode!r}. Convert it to L or RGB.")
    if image.mode not in SUPPORTED_PIL_MODES:
        raise ValueError(f"`{name}` must have one of the modes {', '.join(SUPPORTED_PIL_MODES)}, got {image.mode!r}.")
    try:
        image.load()
    except PILLOW_ERRORS as error:
        # Pillow raises an AssertionError without a message if the image was closed.
        reason = str(error) or type(error).__name__
        raise ValueError(f"`{name}` could not be decoded ({reason}). Pass a different image.") from error
    orientation = get_orientation(image)
    if orientation in TRANSPOSITIONS:
        image = image.transpose(TRANSPOSITIONS[orientation])
    if channels == 4 or image.has_transparency_data:
        # Pillow cannot convert these modes to RGBA directly.
        if image.mode in ("La", "RGBa"):
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        image = image.convert("RGBA")
    if channels != 4:
        if image.mode == "RGBA":
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
        if image.mode not in ("1", "L"):
            # Pillow does not convert all modes to grayscale directly.
            image = image.convert("RGB")
        image = image.convert(PIL_MODES[channels])
    if image.size != (width, height):
        image = PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(height, width, channels).permute(2, 0, 1) / 255


def convert_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """Converts images `(B, C, H, W)` in [0, 1] to 1, 3 or 4 channels, and composites transparent pixels over white."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 4:
        color, alpha = images.split([3, 1], dim=1)
        images = color * alpha + 1 - alpha
    if channels == 1:
        return (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    images = images.expand(-1, 3, -1, -1)
    return images if channels == 3 else torch.cat([images, torch.ones_like(images[:, :1])], dim=1)


def resize_and_crop(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resizes images `(B, C, H, W)` in [0, 1] to cover a size and crops them, like [`convert_pil_image`]."""
    if images.shape[2:] == (height, width):
        return images
    has_alpha = images.shape[1] == 4
    if has_alpha:
        # The colors of transparent pixels must not affect their neighbors.
        color, alpha = images.split([3, 1], dim=1)
        images = torch.cat([color * alpha, alpha], dim=1)
    resized = []
    for channel in images.flatten(0, 1).contiguous():
        image = PIL.Image.frombytes("F", (channel.shape[1], channel.shape[0]), channel.numpy().tobytes())
        image = PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.BICUBIC)
        resized.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32).reshape(height, width))
    images = torch.stack(resized).reshape(*images.shape[:2], height, width).clamp(0, 1)
    if has_alpha:
        color, alpha = images.split([3, 1], dim=1)
        images = torch.cat([torch.where(alpha > 0, color / alpha, 0.0).clamp(0, 1), alpha], dim=1)
    return images


def convert_array(image: Any, height: int, width: int, channels: int, name: str) -> torch.Tensor:
    """
    Converts an array `(..., H, W, C)` or a tensor `(..., C, H, W)` to a tensor `(B, C, H, W)` in [0, 1].

    Raises:
        `ValueError`: If the shape, the dtype or a value is not supported.
    """
    shape = getattr(image, "shape", ())
    if not hasattr(image, "dtype") or len(shape) not in (2, 3, 4) or 0 in shape:
        raise ValueError(
            f"`{name}` must be a PIL image, a non-empty array or tensor with 2 to 4 dimensions, or a list of these,"
            f" got {type(image).__name__}{f' of shape {tuple(shape)}' if shape else ''}."
        )
    try:
        # torch does not support negative strides or read-only arrays, such as np.asarray(pil_image).
        tensor = image.cpu() if torch.is_tensor(image) else torch.as_tensor(image.copy())
    except TypeError as error:
        raise ValueError(f"`{name}` must be uint8, bool or floating point, got {image.dtype}.") from error
    if tensor.ndim == 2:
        tensor = tensor[None]
    elif not torch.is_tensor(image):
        tensor = tensor.movedim(-1, -3)
    tensor = tensor.reshape(-1, *tensor.shape[-3:])
    if tensor.shape[1] != channels and (tensor.shape[1] not in PIL_MODES or channels not in PIL_MODES):
        raise ValueError(f"`{name}` must have {channels} channels, got {tensor.shape[1]}.")
    if tensor.dtype == torch.bool:
        tensor = tensor.float()
    if tensor.dtype == torch.uint8 and channels in PIL_MODES:
        arrays = tensor.permute(0, 2, 3, 1).numpy()
        pil_images = [PIL.Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]
        return torch.stack([convert_pil_image(item, height, width, channels, name) for item in pil_images])
    if tensor.dtype == torch.uint8:
        tensor = tensor / 255
    if not tensor.is_floating_point():
        raise ValueError(f"`{name}` must be uint8, bool or floating point, got {tensor.dtype}.")
    if not tensor.isfinite().all() or tensor.min() < 0 or tensor.max() > 1:
        raise ValueError(
            f"`{name}` must contain finite values in [0, 1], got values from {tensor.min():g} to {tensor.max():g}."
            " Scale them to this range."
        )
    return resize_and_crop(convert_channels(tensor.float(), channels), height, width)


def convert_images(image: Any, height: int, width: int, channels: int, name: str = "image") -> torch.Tensor:
    """Converts one image or a list of images to a tensor `(B, C, H, W)` in [0, 1]. Errors name the argument `name`."""
    images: Any = list(image) if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise ValueError(f"`{name}` must contain at least one image, got an empty list.")
    tensors = []
    for item in images:
        if isinstance(item, PIL.Image.Image):
            tensors.append(convert_pil_image(item, height, width, channels, name)[None])
        else:
            tensors.append(convert_array(item, height, width, channels, name))
    return torch.cat(tensors)


def get_size(image: Any) -> tuple[int, int]:
    """Returns the height and the width of an upright PIL image, an array or a tensor."""
    if isinstance(image, PIL.Image.Image):
        # The orientations 5 to 8 swap the height and the width.
        return (image.width, image.height) if get_orientation(image) > 4 else (image.height, image.width)
    height, width = image.shape[-2:] if torch.is_tensor(image) or image.ndim == 2 else image.shape[-3:-1]
    return height, width


def copy_generator(
    generator: torch.Generator | list[torch.Generator] | None,
) -> torch.Generator | list[torch.Generator] | None:
    """Copies a generator or a list of generators, including the state."""
    if generator is None:
        return None
    if isinstance(generator, list):
        return [copy_generator(item) for item in generator]  # pyright: ignore[reportReturnType]
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    return copy


def get_step_indices(num_timesteps: int, order: int, num_resampling_steps: int) -> list[int]:
    """
    Returns the index of the timestep of each scheduler step.

    A denoising step has `order` timesteps and runs `num_resampling_steps` times. The last one has one timestep and
    runs once.
    """
    steps = [list(range(start, min(start + order, num_timesteps))) for start in range(0, num_timesteps, order)]
    repeated = [index for step in steps[:-1] for index in num_resampling_steps * step]
    return repeated + steps[-1]


def slerp(first: torch.Tensor, last: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """
    Interpolates spherically from the noise `first` to `last`, both `(1, C, H, W)`, with weights `(N, 1, 1, 1)` in
    [0, 1] (Shoemake, "Animating rotation with quaternion curves", 1985).
    """
    angle = torch.arccos(((first * last).sum() / (first.norm() * last.norm())).clamp(-1, 1))
    if angle < 1e-4:
        return torch.lerp(first, last, weights)
    return (torch.sin((1 - weights) * angle) * first + torch.sin(weights * angle) * last) / torch.sin(angle)


def get_prompt_embeds_dim(unet: Any) -> int | None:
    """Returns the number of channels of the prompt embeddings; `None` if the model is not text-conditional."""
    return unet.time_embedding.linear_2.out_features if unet.config.get("class_embed_type") == "identity" else None


def get_vae_scale_factor(vae: AutoencoderKL | None) -> int:
    """Returns the factor by which `vae` downsamples images; 1 without an autoencoder."""
    return 1 if vae is None else 2 ** (len(vae.config["block_out_channels"]) - 1)


def encode_images(vae: AutoencoderKL | None, images: torch.Tensor) -> torch.Tensor:
    """
    Encodes images as the means of their posteriors, shifted and scaled to about zero mean and unit variance
    (arXiv 2112.10752, appendix G). Without an autoencoder, the latents are the images themselves.

    Args:
        vae ([`AutoencoderKL`] or [`AutoencoderTiny`], *optional*): The autoencoder.
        images (`torch.Tensor` of shape `(batch, channels, height, width)`): Images in [-1, 1].

    Returns:
        `torch.Tensor` of shape `(batch, latent_channels, height / factor, width / factor)`: float32 latents.
    """
    if vae is None:
        return images
    output: Any = vae.encode(images.to(vae.dtype))
    # The encoder of AutoencoderTiny has no posterior.
    latents = output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latents
    return (latents.float() - (vae.config["shift_factor"] or 0.0)) * vae.config["scaling_factor"]


def tokenize(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """Returns the token ids of prompts, int64 `(N, L)`. Prompts are padded or truncated to the same length."""
    # With the options `padding` and `truncation`, the tokenizer would change its state, and prompts could not be
    # encoded concurrently.
    max_length = tokenizer.model_max_length
    token_ids = torch.full((len(prompts), max_length), tokenizer.pad_token_id)
    for row, ids in zip(token_ids, tokenizer(prompts, verbose=False).input_ids, strict=True):
        if len(ids) > max_length:
            ids = [*ids[: max_length - 1], ids[-1]]
        row[: len(ids)] = torch.tensor(ids)
    return token_ids


def get_scheduler_options(scheduler: Any) -> dict[str, Any]:
    """Returns the options of a scheduler, without the options of other schedulers that its config can contain."""
    options = {name: scheduler.config.get(name) for name in inspect.signature(type(scheduler)).parameters}
    # `==` compares arrays elementwise, so arrays are converted to lists.
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in options.items()}


def unwrap_compiled(model: Any) -> Any:
    """Returns the original model if `torch.compile` has wrapped it, and otherwise `model` itself."""
    return getattr(model, "_orig_mod", model)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Sets `model` to evaluation mode, and restores the mode of each of its modules at the end."""
    # In training mode, BatchNorm would mix the images of a batch and sampling would change its running statistics.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def remove_defaults(signature: inspect.Signature, names: Sequence[str]) -> inspect.Signature:
    """Returns a copy of the signature without the default values of the parameters in `names`."""
    parameters = [
        parameter.replace(default=parameter.empty) if parameter.name in names else parameter
        for parameter in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)


class FashionMNISTPipeline(DiffusionPipeline):
    r"""
    Pipeline for image generation with a text-conditional, class-conditional or unconditional model and any compatible
    scheduler.

    A saved pipeline contains the source code of this class and of the model. [`DiffusionPipeline.from_pretrained`]
    with `trust_remote_code=True` loads it without the `fmnist_diffusion` package. Pin `revision` to a commit hash in
    this case, so that the code cannot change later. With the package, [`FashionMNISTPipeline.from_pretrained`] loads
    it without remote code.

    Parameters:
        unet ([`~fmnist_diffusion.FashionMNISTUNet2DModel`]): The denoising model.
        scheduler ([`SchedulerMixin`]):
            The scheduler, with the noise schedule and `prediction_type` that the model was trained with.
        num_inference_steps (`int`, defaults to 20): Default number of denoising steps.
        timestep_power (`float`, *optional*):
            Power of the timestep spacing, from 1 to 100. With a [`DPMSolverMultistepScheduler`] or an
            [`LCMScheduler`], step `k` from `n` to 1 uses the timestep `T * (k / n) ** timestep_power - 1`, where `n`
            is the number of steps and `T` is `num_train_timesteps`. With a [`FlowMatchEulerDiscreteScheduler`], it
            uses the sigma `(k / n) ** timestep_power`, to which the scheduler applies its `shift`. All other
            schedulers ignore this option, and so do an [`LCMScheduler`] whose `original_inference_steps` is less than
            `T` and a scheduler with Karras, exponential, beta, Lu or flow sigmas. A scheduler that is assigned to the
            pipeline later only uses this option if it has the same class and options as the original scheduler.
        text_encoder ([`~transformers.CLIPTextModel`], *optional*):
            Text encoder of a text-conditional model. `unet` receives its pooled output as `class_labels`. Without a
            text encoder, a text-conditional pipeline requires `prompt_embeds`.
        tokenizer ([`~transformers.CLIPTokenizer`], *optional*): Tokenizer of the text encoder.
        classifier ([`~fmnist_diffusion.FashionMNISTGuidanceClassifier`], *optional*):
            Classifier for noisy images, used for classifier guidance.
        vae ([`AutoencoderKL`] or [`AutoencoderTiny`], *optional*):
            Autoencoder of a latent diffusion model (arXiv 2112.10752). `unet` denoises its latents, which are decoded
            after the last step.

    Raises:
        `ValueError`: If `num_inference_steps` or `timestep_power` is out of range.
    """

    config: Any
    unet: Any
    scheduler: Any
    text_encoder: Any
    tokenizer: Any
    classifier: Any
    vae: Any
    model_cpu_offload_seq = "text_encoder->unet->vae"
    # The classifier is small, and every guided step uses it together with the U-Net.
    _exclude_from_cpu_offload = ["classifier"]
    _optional_components = ["text_encoder", "tokenizer", "classifier", "vae"]
    _callback_tensor_inputs = ["latents", "model_input", "pred_original_sample"]
    # The installed package sets this function, so that its `from_pretrained` needs no remote code.
    _load_components: Callable[..., tuple[Any, Any, dict[str, Any]]] | None = None
    # These are the names of the modules that `extract_init_dict` adds to `sys.modules`.
    _stubs: list[str] = []

    def __init__(
        self,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        num_inference_steps: int = 20,
        timestep_power: float | None = None,
        *,
        text_encoder: torch.nn.Module | None = None,
        tokenizer: Any = None,
        classifier: ModelMixin | None = None,
        vae: AutoencoderKL | None = None,
    ):
        super().__init__()
        while self._stubs:
            sys.modules.pop(self._stubs.pop(), None)
        check_settings(num_inference_steps, timestep_power)
        self.register_modules(
            unet=unet,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            classifier=classifier,
            vae=vae,
        )
        # NumPy integers cannot be saved as JSON.
        self.register_to_config(num_inference_steps=int(num_inference_steps), timestep_power=timestep_power)
        self._original_scheduler, self._timestep_power = scheduler, timestep_power
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0)

    # `DiffusionPipeline.from_pretrained` replaces a passed component with the stored one if its parameter has a
    # default value.
    vars(__init__)["__signature__"] = remove_defaults(inspect.signature(__init__), _optional_components)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "scheduler" and hasattr(self, "_original_scheduler"):
            original = self._original_scheduler
            unchanged = value is original or (
                isinstance(original, POWER_LAW_SCHEDULERS)
                and type(value) is type(original)
                and get_scheduler_options(value) == get_scheduler_options(original)
            )
            self.register_to_config(timestep_power=self._timestep_power if unchanged else None)
            if not has_same_noise_schedule(value, original):
                logger.warning(
                    f"{type(value).__name__} does not have the noise schedule of this model, so the images can be"
                    " wrong. Pass `beta_start`, `beta_end` and `beta_schedule` of the original scheduler to"
                    " `from_config`. If it does not support this schedule, use DDIMScheduler."
                )
        elif name in self._optional_components and value is not None and self.config[name] == (None, None):
            # If the previous component is None, diffusers does not update the config and would not save the new one.
            self.register_modules(**{name: value})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        r"""
        Loads a pipeline from a local folder or a Hub repository without remote code.

        A passed `scheduler` replaces the stored one, as if it were assigned later, and must support the model. It
        only uses the stored `timestep_power` if its class and options are those of the stored scheduler. If `unet` or
        `timestep_power` is also passed, the scheduler is treated as the original one.

        The weights must be safetensors files, and the stored models must have the classes of this package. For other
        models, pass the model, or use [`DiffusionPipeline.from_pretrained`].

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder, or a repository id such as `owner/name`.
            kwargs:
                The arguments of [`DiffusionPipeline.from_pretrained`], such as `dtype`, `variant`, `revision`,
                `token`, `cache_dir`, `local_files_only`, `force_download` and `device_map`; and `unet`, `scheduler`,
                `text_encoder`, `tokenizer`, `classifier`, `vae`, `num_inference_steps` and `timestep_power`, which
                override the stored values. A subclass also accepts its additional settings. Other arguments are
                ignored with a warning.

        Returns:
            [`FashionMNISTPipeline`]: The pipeline, with its models in evaluation mode.

        Raises:
            `OSError`: If the pipeline, revision or variant does not exist, if the Hub cannot be reached and there is
                no cached copy, if a file is damaged, or if a stored component is not supported.
            `ValueError`: If an argument is out of range or has the wrong type.
        """
        if cls._load_components is None:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # pyright: ignore[reportReturnType]
        path = str(pretrained_model_name_or_path)
        device_map = kwargs.get("device_map")
        unet, scheduler, settings = cls._load_components(cls, path, **kwargs)
        pipe: Any = cls(unet, scheduler, **settings)
        if kwargs.get("scheduler") is not None:
            pipe.scheduler = kwargs["scheduler"]
        pipe.register_to_config(_name_or_path=path)
        if device_map is not None:
            pipe.hf_device_map = device_map
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """
        Creates a pipeline from the components of another pipeline; see [`DiffusionPipeline.from_pipe`].

        Unlike `FashionMNISTPipeline(**pipeline.components)`, this method keeps `num_inference_steps` and
        `timestep_power`. A passed `scheduler` is treated as in [`~FashionMNISTPipeline.from_pretrained`].
        """
        scheduler = None if kwargs.keys() & {"unet", "timestep_power"} else kwargs.pop("scheduler", None)
        # diffusers only reuses a model whose class is exactly the annotated class.
        components = {**dict.fromkeys(cls._optional_components), **pipeline.components}
        models = {name: components[name] for name in ("unet", *cls._optional_components) if name in components}
        pipe: Any = super().from_pipe(pipeline, **{**models, **kwargs})
        if scheduler is not None:
            pipe.scheduler = scheduler
        return pipe

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # `auto_map` is only for `diffusers.AutoModel`. diffusers would log a warning about it.
        config_dict = {name: value for name, value in config_dict.items() if name != "auto_map"}
        # diffusers checks the type of a model that is passed to `DiffusionPipeline.from_pretrained`, using the module
        # that model_index.json names for this component. If it is not imported, a stub that accepts any `ModelMixin`
        # takes its place until the pipeline is created.
        for name in ("unet", "classifier"):
            library, class_name = config_dict.get(name, (None, ""))
            # The stub of an earlier call that failed has no specification either.
            if library is not None and getattr(sys.modules.get(library), "__spec__", None) is None:
                cls._stubs.append(library)
                sys.modules[library] = ModuleType(library)
                vars(sys.modules[library]).update({"ModelMixin": ModelMixin, class_name: ModelMixin})
        return super().extract_init_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """
        Saves the pipeline with the source code of its classes; see [`DiffusionPipeline.save_pretrained`].

        Raises:
            `ValueError`: If a model cannot be saved, such as a `PeftModel`. In this case, no file is written.
        """
        for name in MODELS:
            model = unwrap_compiled(getattr(self, name))
            # The pipeline can be imported without transformers.
            bases = {base.__name__ for base in type(model).__mro__}
            if model is not None and not bases & {"ModelMixin", "PreTrainedModel"}:
                raise ValueError(
                    f"`{name}` must be a diffusers or transformers model to be saved, got {type(model).__name__}."
                    f" Assign the unwrapped model or, for a PeftModel, the result of `pipe.{name}.merge_and_unload()`."
                )
        super().save_pretrained(save_directory, *args, **kwargs)

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes `model_index.json` and copies the source files. [`save_pretrained`] calls this method last."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        folder = Path(save_directory)
        index_path = folder / self.config_name
        index = json.loads(index_path.read_text(encoding="utf-8"))
        index.pop("_name_or_path", None)
        for name in self._optional_components:
            if index[name] == [None, None]:
                del index[name]
        index["_class_name"] = self._copy_source(self, folder)
        for name in sorted(index.keys() & {"unet", "classifier", "vae"}):
            index[name] = self._copy_source(unwrap_compiled(getattr(self, name)), folder / name)
            # Do not publish the local path that from_pretrained stores in the config.
            model_config_path = folder / name / "config.json"
            if model_config_path.is_file():
                model_config = json.loads(model_config_path.read_text(encoding="utf-8"))
                model_config.pop("_name_or_path", None)
                config_text = json.dumps(model_config, indent=2, sort_keys=True) + "\n"
                model_config_path.write_text(config_text, encoding="utf-8")
        # This entry allows `AutoModel.from_pretrained(..., subfolder="unet", trust_remote_code=True)`. AutoModel would
        # use it for all other models as well.
        if index["unet"][0] != "diffusers" and not index.keys() & {"classifier", "text_encoder", "vae"}:
            index["auto_map"] = {"AutoModel": ".".join(index["unet"])}
        index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self._remove_stale_weights(folder)

    def _remove_stale_weights(self, folder: Path) -> None:
        """Removes weights of an earlier save: an index whose shards are missing, or a file that shards replaced."""
        for name in MODELS:
            for index_path in folder.glob(f"{name}/*.safetensors.index*.json"):
                shards = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()
                stem, _, variant = index_path.name.removesuffix(".json").partition(".safetensors.index")
                single_file = index_path.with_name(f"{stem}{variant}.safetensors")
                if not all((index_path.parent / shard).is_file() for shard in shards):
                    index_path.unlink()
                elif single_file.name not in shards:
                    single_file.unlink(missing_ok=True)

    @staticmethod
    def _copy_source(component: Any, folder: Path) -> list[str]:
        """
        Copies the file that defines the class of `component`, or its base class if the class is defined in `__main__`.
        Files of diffusers are not copied.

        Returns:
            The names of the module and of the saved class.
        """
        # A notebook has no source file, and a script would run when the pipeline is loaded.
        saved = next(base for base in type(component).__mro__ if base.__module__ != "__main__")
        if saved is not type(component):
            logger.warning(
                f"The saved pipeline contains {saved.__name__} instead of {type(component).__name__}, which is defined"
                f" in a notebook or a script. To save {type(component).__name__}, define it in a module."
            )
        if saved.__module__.startswith("diffusers."):
            return ["diffusers", saved.__name__]
        source = Path(inspect.getsourcefile(saved))  # pyright: ignore[reportArgumentType]
        folder.mkdir(parents=True, exist_ok=True)
        if source.resolve() != (folder / source.name).resolve():
            shutil.copyfile(source, folder / source.name)
        return [source.stem, saved.__name__]

    def enable_group_offload(self, *args: Any, exclude_modules: str | list[str] | None = None, **kwargs: Any) -> None:
        """Offloads the models except the classifier; see [`DiffusionPipeline.enable_group_offload`]."""
        excluded = [exclude_modules] if isinstance(exclude_modules, str) else exclude_modules or []
        # The gradient of the classifier requires all of its weights.
        super().enable_group_offload(*args, exclude_modules=[*excluded, *self._exclude_from_cpu_offload], **kwargs)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the model or, if it is unconditional, of the classifier; `None` without classes."""
        if self._only_classifier_has_classes:
            return self.classifier.config.num_classes
        return self.unet.config.num_class_embeds

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Class names, indexed by label; `None` if there are no classes or no class names."""
        config = self.classifier.config if self._only_classifier_has_classes else self.unet.config
        if config.get("label_names") is not None:
            return tuple(config.label_names)
        if self.num_classes == len(FASHION_MNIST_LABELS):
            return FASHION_MNIST_LABELS
        return None

    @property
    def _only_classifier_has_classes(self) -> bool:
        return self.classifier is not None and not self.is_conditional

    @property
    def vae_scale_factor(self) -> int:
        """Factor by which the autoencoder downsamples images; 1 without an autoencoder."""
        return get_vae_scale_factor(self.vae)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Number of channels, height and width of the generated images."""
        _, height, width = self.latent_shape
        if self.vae is None:
            return self.unet.config.out_channels, height, width
        return self.vae.config.out_channels, height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Number of channels, height and width of the latents; without an autoencoder, those of the images."""
        sample_size = self.unet.config.sample_size
        height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        return self.unet.config.in_channels, height, width

    @property
    def prediction_type(self) -> str:
        """
        Output of the model: `"epsilon"`, `"v_prediction"`, `"sample"`, or `"flow_prediction"`, which is `noise - x0`.
        """
        if isinstance(self.scheduler, FLOW_MATCH_SCHEDULERS):
            return "flow_prediction"
        return self.scheduler.config["prediction_type"]

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the noise that sampling starts from."""
        return 1.0 if isinstance(self.scheduler, FLOW_MATCH_SCHEDULERS) else self.scheduler.init_noise_sigma

    @property
    def is_conditional(self) -> bool:
        """Whether the model is class-conditional or text-conditional."""
        return self.unet.config.num_class_embeds is not None or self.prompt_embeds_dim is not None

    @property
    def _null_label(self) -> int | None:
        """Label for unconditional predictions; `None` if the model has no classes or is a [`UNet2DModel`]."""
        return None if isinstance(unwrap_compiled(self.unet), UNet2DModel) else self.unet.config.num_class_embeds

    @property
    def prompt_embeds_dim(self) -> int | None:
        """Number of channels of the prompt embeddings; `None` if the model is not text-conditional."""
        return get_prompt_embeds_dim(self.unet)

    @property
    def _has_text_encoder(self) -> bool:
        return self.text_encoder is not None and self.tokenizer is not None

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance in the current or last call."""
        return self._guidance_scale

    @property
    def classifier_guidance_scale(self) -> float:
        """Scale of classifier guidance in the current or last call."""
        return self._classifier_guidance_scale

    @property
    def num_timesteps(self) -> int:
        """
        Number of scheduler steps in the current or last call. With a second-order scheduler, each denoising step
        except the last one counts as two. Repetitions of a step are counted.
        """
        return self._num_timesteps

    @property
    def num_function_evaluations(self) -> int:
        """
        Number of function evaluations (NFE) per image in the current or last call.

        A step with classifier-free guidance counts as two. Evaluations of the classifier are not counted.
        """
        return self._num_function_evaluations

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `_interrupt` to stop sampling."""
        return self._interrupt

    def get_label_ids(self, class_labels: Any) -> list[int]:
        r"""
        Converts class labels to indices.

        Args:
            class_labels (`int`, `str`, `list`, `np.ndarray` or `torch.Tensor`):
                One or more labels: indices in `[0, num_classes)` or case-insensitive names from `label_names`. A
                string may also contain an index.

        Returns:
            `list[int]`: The index of each label.

        Raises:
            `ValueError`: If there are no classes, `class_labels` is empty, or a label is unknown.
        """
        num_classes = self.num_classes
        if num_classes is None:
            if self.prompt_embeds_dim is not None:
                raise ValueError("`class_labels` is not supported by a text-conditional model. Pass `prompt` instead.")
            raise ValueError("`class_labels` is not supported by an unconditional model. Omit it.")
        if hasattr(class_labels, "tolist"):
            class_labels = class_labels.tolist()
        if isinstance(class_labels, str) or not isinstance(class_labels, Iterable):
            class_labels = [class_labels]
        label_ids = [self._get_label_id(label, num_classes) for label in class_labels]
        if not label_ids:
            raise ValueError("`class_labels` must contain at least one label, got an empty list.")
        return label_ids

    def _get_label_id(self, label: Any, num_classes: int) -> int:
        names = self.label_names or ()
        if hasattr(label, "tolist"):
            label = label.tolist()
        label_id = label
        if isinstance(label, str):
            # Names may differ only in case, surrounding spaces or Unicode normalization, so an exact match takes
            # precedence.
            for normalize in (str, str.strip, lambda name: unicodedata.normalize("NFC", name.strip().lower())):
                normalized = [normalize(name) for name in names]
                if normalize(label) in normalized:
                    return normalized.index(normalize(label))
            text = label.strip()
            label_id = int(text) if text.isdecimal() else None
        if isinstance(label_id, Integral) and not isinstance(label_id, bool) and int(label_id) in range(num_classes):
            return int(label_id)
        choices = f"an index from 0 to {num_classes - 1}" + (f" or one of {', '.join(names)}" if names else "")
        raise ValueError(f"`class_labels` must be {choices}, got {label!r}.{self._suggest_label(label, names)}")

    @staticmethod
    def _suggest_label(label: Any, names: Sequence[str]) -> str:
        if not isinstance(label, str) or not label.strip():
            return ""
        text = label.strip().lower()
        similar = difflib.get_close_matches(text, [name.lower() for name in names], n=1)
        matches = [name for name in names if text in name.lower()]
        matches += [name for name in names if name.lower() in similar]
        return f" Did you mean {matches[0]!r}?" if matches else ""

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""
        Encodes prompts. Prompts that exceed the maximum length of the tokenizer are truncated. Logs
        warnings that list the truncated parts and the words that the tokenizer does not know, because the images may
        not show them.

        Args:
            prompt (`str` or `list[str]`, *optional*):
                One or more prompts. Defaults to the empty prompt if `prompt_embeds` is not passed.
            device (`torch.device`, *optional*): Device of the embeddings. Defaults to the device of the pipeline.
            num_images_per_prompt (`int`, defaults to 1): Number of embeddings for each prompt.
            do_classifier_free_guidance (`bool`, defaults to `True`):
                Whether to return embeddings of the negative prompts.
            negative_prompt (`str` or `list[str]`, *optional*):
                One negative prompt, or one for each prompt. Defaults to the empty prompt if `negative_prompt_embeds`
                is not passed.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `(num_prompts, channels)`, *optional*):
                Precomputed embeddings, used instead of `prompt` and `negative_prompt`. One negative embedding applies
                to all prompts.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: The embeddings of the prompts and of the negative prompts, both
            of shape `(num_prompts * num_images_per_prompt, channels)`. The second element is `None` if
            `do_classifier_free_guidance` is `False`.

        Raises:
            `ValueError`: If an argument is invalid, if the model is not text-conditional, or if a text must be encoded
                and the pipeline has no text encoder.
        """
        if self.prompt_embeds_dim is None:
            raise ValueError("`encode_prompt` requires a text-conditional model. Load one, such as `text`.")
        self._check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, has_guidance=do_classifier_free_guidance
        )
        device = device or self._execution_device
        texts, negative_texts = (
            text if isinstance(text, list) else [text or ""] for text in (prompt, negative_prompt)
        )
        texts = texts if prompt_embeds is None else []
        negative_texts = negative_texts if do_classifier_free_guidance and negative_prompt_embeds is None else []
        embeds: Any = prompt_embeds
        negative_embeds: Any = negative_prompt_embeds
        if texts or negative_texts:
            for problem in self.find_prompt_problems([*texts, *negative_texts]):
                logger.warning(problem)
            token_ids = tokenize(self.tokenizer, [*texts, *negative_texts])
            encoded = self.text_encoder(token_ids.to(device)).pooler_output
            encoded_texts, encoded_negative_texts = encoded.split([len(texts), len(negative_texts)])
            embeds = encoded_texts if texts else embeds
            negative_embeds = encoded_negative_texts if negative_texts else negative_embeds

        def repeat_embeds(values: torch.Tensor) -> torch.Tensor:
            # One negative prompt applies to all prompts.
            values = values.to(device, self.unet.dtype).expand(len(embeds), -1)
            return values.repeat_interleave(num_images_per_prompt, dim=0)

        return repeat_embeds(embeds), repeat_embeds(negative_embeds) if do_classifier_free_guidance else None

    def find_prompt_problems(self, prompts: Sequence[str]) -> list[str]:
        """
        Returns warnings about parts of the prompts that the images may not show: one for words that the tokenizer does
        not know, and one for truncated text. Without such parts, the list is empty.
        """
        problems = []
        words = dict.fromkeys(word for prompt in prompts for word in re.findall(r"[^\W\d_]+", prompt))
        # The tokenizer has one token for each word of its training captions.
        unknown = [word for word in words if len(self.tokenizer.tokenize(word)) > 1]
        if unknown:
            problems.append(
                f"The vocabulary of the tokenizer does not contain these words: {', '.join(unknown)}. Unless the model"
                " was fine-tuned on them, use other words."
            )
        max_length = self.tokenizer.model_max_length
        token_ids = self.tokenizer(list(dict.fromkeys(prompts)), verbose=False).input_ids
        # A truncated sequence keeps its first `max_length - 1` tokens and the end token.
        removed = [ids[max_length - 1 : -1] for ids in token_ids if len(ids) > max_length]
        if removed:
            parts = ", ".join(repr(text.strip()) for text in self.tokenizer.batch_decode(removed))
            problems.append(
                "The following part of the prompt was truncated because the text encoder can only handle sequences of"
                f" up to {max_length} tokens: {parts}. Use a shorter prompt."
            )
        return problems

    def check_inputs(
        self,
        *,
        class_labels: Any,
        num_images_per_prompt: int,
        num_inference_steps: int,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str] | None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: Any = None,
        latents: torch.Tensor | None = None,
        image: PipelineImageInput | None = None,
        strength: float | None = None,
        mask_image: PipelineImageInput | None = None,
        num_resampling_steps: int = 1,
        prompt: Any = None,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        classifier_guidance_scale: float = 0.0,
        eta: float | None = None,
    ) -> None:
        """Raises `ValueError` if an argument of [`~FashionMNISTPipeline.__call__`] is invalid."""
        self._check_unet()
        for name, value in (
            ("num_images_per_prompt", num_images_per_prompt),
            ("num_inference_steps", num_inference_steps),
            ("num_resampling_steps", num_resampling_steps),
        ):
            if not is_positive_integer(value):
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
        for value in generator if isinstance(generator, list) else [generator]:
            if generator is not None and not isinstance(value, torch.Generator):
                raise ValueError(f"`generator` must be a `torch.Generator` or a list of them, got {value!r}.")
        for name, value in (
            ("guidance_scale", guidance_scale),
            ("classifier_guidance_scale", classifier_guidance_scale),
        ):
            if not is_finite_number(value):
                raise ValueError(f"`{name}` must be a finite number, got {value!r}.")
        if eta is not None:
            if "eta" not in inspect.signature(self.scheduler.step).parameters:
                raise ValueError(
                    f"`eta` is not supported by {type(self.scheduler).__name__}. Omit it, or use DDIMScheduler."
                )
            if not is_finite_number(eta) or not 0 <= eta <= 1:
                raise ValueError(f"`eta` must be between 0 and 1, got {eta!r}.")
        self._check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, has_guidance=guidance_scale != 1
        )
        if self.unet.config.num_class_embeds is not None and self._null_label is None:
            if class_labels is None:
                raise ValueError(
                    "`class_labels` is required for a UNet2DModel, which has no null label. Pass labels, or use a"
                    " FashionMNISTUNet2DModel for unconditional sampling."
                )
            if guidance_scale != 1:
                raise ValueError(
                    f"`guidance_scale` must be 1.0 for a UNet2DModel, which has no null label, got {guidance_scale}."
                    " Omit it, or use a FashionMNISTUNet2DModel."
                )
        if class_labels is None and prompt is None and prompt_embeds is None:
            self.check_unconditional_guidance(guidance_scale)
        if classifier_guidance_scale != 0:
            self._check_classifier(class_labels, classifier_guidance_scale)
        if class_labels is not None and self._only_classifier_has_classes:
            if classifier_guidance_scale == 0:
                raise ValueError(
                    "An unconditional model only supports `class_labels` with classifier guidance. Pass"
                    " `classifier_guidance_scale`, or omit `class_labels`."
                )
            if guidance_scale != 1:
                raise ValueError(
                    f"`guidance_scale` must be 1.0 for an unconditional model, got {guidance_scale}. Use"
                    " `classifier_guidance_scale` instead."
                )
        interval = tuple(guidance_interval) if isinstance(guidance_interval, Iterable) else ()
        if not (len(interval) == 2 and all(map(is_finite_number, interval)) and 0 <= interval[0] <= interval[1] <= 1):
            raise ValueError(
                f"`guidance_interval` must be (start, stop) with 0 <= start <= stop <= 1, got {guidance_interval!r}."
            )
        if image is not None:
            if latents is not None:
                raise ValueError("Cannot start from both `latents` and `image`. Pass only one of them.")
            if strength is not None and not (is_finite_number(strength) and 0 < strength <= 1):
                raise ValueError(f"`strength` must be in (0, 1], got {strength!r}.")
            # LMS and PNDM assume that sampling starts at the first timestep, from pure noise.
            if isinstance(self.scheduler, (LMSDiscreteScheduler, PNDMScheduler)):
                name = type(self.scheduler).__name__
                if mask_image is None or strength not in (None, 1):
                    raise ValueError(
                        f"{name} cannot start from an `image`. Use a different scheduler, such as"
                        " DPMSolverMultistepScheduler."
                    )
                if num_resampling_steps > 1:
                    raise ValueError(
                        f"{name} cannot repeat a step. Use a different scheduler, such as"
                        " DPMSolverMultistepScheduler, or set `num_resampling_steps` to 1."
                    )
        elif mask_image is not None:
            raise ValueError("`mask_image` requires an `image`. Pass the image to inpaint.")
        elif strength is not None:
            raise ValueError(f"`strength` requires an `image`, got {strength}. Pass an image, or omit `strength`.")
        if num_resampling_steps > 1 and mask_image is None:
            raise ValueError(
                f"`num_resampling_steps` must be 1 without a `mask_image`, got {num_resampling_steps}. Pass a"
                " `mask_image`, or omit `num_resampling_steps`."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        channels = self.image_shape[0]
        if output_type == "pil" and channels not in (1, 3):
            raise ValueError(
                f"`output_type` must be 'np', 'pt' or 'latent' for images with {channels} channels, got 'pil'."
            )
        if isinstance(callback_on_step_end_tensor_inputs, str):
            raise ValueError(
                "`callback_on_step_end_tensor_inputs` must be a list of names, got"
                f" {callback_on_step_end_tensor_inputs!r}. Pass a list of names."
            )
        unknown = set(callback_on_step_end_tensor_inputs or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                "`callback_on_step_end_tensor_inputs` must only contain names from"
                f" {', '.join(self._callback_tensor_inputs)}, got {', '.join(sorted(unknown))}."
            )

    def _get_tensor_inputs(self, callback: PipelineCallback | MultiPipelineCallbacks) -> list[str]:
        unknown = sorted(set(callback.tensor_inputs) - set(self._callback_tensor_inputs))
        if unknown:
            raise ValueError(
                f"`callback_on_step_end` can only use the tensors {', '.join(self._callback_tensor_inputs)}, but"
                f" {type(callback).__name__} requires {', '.join(unknown)}. Remove these names from its"
                " `tensor_inputs`. To use guidance in only some of the steps, pass `guidance_interval`."
            )
        return callback.tensor_inputs

    def _check_unet(self) -> None:
        if not hasattr(self.unet, "config"):
            raise ValueError(
                f"`unet` must be a diffusers model, got {type(self.unet).__name__}. Assign the unwrapped model:"
                " `pipe.unet = accelerator.unwrap_model(pipe.unet)`."
            )
        if self.unet.config.sample_size is None:
            raise ValueError("`unet.config.sample_size` must be set, got None. Create the model with `sample_size`.")

    def check_unconditional_guidance(self, guidance_scale: float) -> None:
        """Raises `ValueError` if `guidance_scale` is not 1, which unconditional sampling does not support."""
        if guidance_scale != 1:
            argument = "class_labels" if self.prompt_embeds_dim is None else "prompt"
            hint = f"Pass `{argument}` to use guidance." if self.is_conditional else "Omit it."
            raise ValueError(f"`guidance_scale` must be 1.0 for unconditional sampling, got {guidance_scale}. {hint}")

    def _check_prompts(
        self, prompt: Any, negative_prompt: Any, prompt_embeds: Any, negative_prompt_embeds: Any, *, has_guidance: bool
    ) -> None:
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        embeds = {"prompt_embeds": prompt_embeds, "negative_prompt_embeds": negative_prompt_embeds}
        dim = self.prompt_embeds_dim
        passed = [name for name, value in (texts | embeds).items() if value is not None]
        if dim is None:
            if passed:
                has_label = self.num_classes is not None and not passed[0].startswith("negative")
                hint = "Pass `class_labels` instead." if has_label else "Omit it."
                raise ValueError(f"`{passed[0]}` requires a text-conditional model. {hint}")
            return
        for name, value in texts.items():
            items = value if isinstance(value, list) and value else [value]
            if value is not None and not all(isinstance(text, str) for text in items):
                raise ValueError(f"`{name}` must be a string or a non-empty list of strings, got {value!r}.")
            if value is not None and f"{name}_embeds" in passed:
                raise ValueError(f"Cannot use both `{name}` and `{name}_embeds`. Pass only one of them.")
            is_missing = (name == "prompt" or has_guidance) and f"{name}_embeds" not in passed
            if not self._has_text_encoder and (value is not None or is_missing):
                raise ValueError(
                    f"`{name}` requires a text encoder and a tokenizer, but the pipeline does not have both. Pass"
                    f" `{name}_embeds`, or load the pipeline with both."
                )
        for name, value in embeds.items():
            shape = value.shape if torch.is_tensor(value) else ()
            if value is not None and not (len(shape) == 2 and shape[0] > 0 and shape[1] == dim):
                got = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
                raise ValueError(f"`{name}` must be a tensor of shape (num_prompts, {dim}), got {got}.")
        num_prompts, num_negative_prompts = (
            len(value) if isinstance(value, (list, torch.Tensor)) else 1
            for value in (
                prompt_embeds if prompt is None else prompt,
                negative_prompt_embeds if negative_prompt is None else negative_prompt,
            )
        )
        if num_negative_prompts not in (1, num_prompts):
            name = "negative_prompt" if negative_prompt is not None else "negative_prompt_embeds"
            kind = "embedding" if negative_prompt is None else "prompt"
            raise ValueError(
                f"`{name}` must be one {kind}, or one for each prompt ({num_prompts}), got {num_negative_prompts}."
            )

    def _check_classifier(self, class_labels: Any, classifier_guidance_scale: float) -> None:
        if self.classifier is None:
            raise ValueError(
                "`classifier_guidance_scale` must be 0.0 for a pipeline without a classifier, got"
                f" {classifier_guidance_scale}. Omit it, or load a pipeline with a classifier"
                " (`training/train_guidance_classifier.py`)."
            )
        if self.num_classes is None:
            raise ValueError(
                "`classifier_guidance_scale` must be 0.0 for a text-conditional model, got"
                f" {classifier_guidance_scale}. Use `prompt` and `guidance_scale` instead."
            )
        if class_labels is None:
            raise ValueError(
                "`classifier_guidance_scale` must be 0.0 without `class_labels`, got"
                f" {classifier_guidance_scale}. Pass `class_labels` to use guidance."
            )
        num_classes, in_channels = self.classifier.config.num_classes, self.classifier.config.in_channels
        for name, value, expected in (
            ("classes", num_classes, self.num_classes),
            ("input channels", in_channels, self.unet.config.in_channels),
        ):
            if value != expected:
                raise ValueError(
                    f"The classifier must have as many {name} as the model ({expected}), got {value}. Use a different"
                    " classifier."
                )
        names = self.classifier.config.label_names
        if names is not None and self.label_names is not None and tuple(names) != self.label_names:
            raise ValueError(
                f"The classifier must have the classes of the model ({', '.join(self.label_names)}), got"
                f" {', '.join(names)}. Use a different classifier."
            )

    def set_timesteps(
        self,
        num_inference_steps: int,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """
        Sets the timesteps of the scheduler, with power-law spacing if `timestep_power` applies to the scheduler.

        Args:
            num_inference_steps (`int`): Number of denoising steps; ignored if `timesteps` or `sigmas` are passed.
            timesteps, sigmas: See [`~FashionMNISTPipeline.__call__`].
            device (`torch.device`, *optional*): Device of the timesteps.

        Returns:
            `torch.Tensor` of shape `(num_timesteps,)`: The timesteps, from high to low noise levels.

        Raises:
            `ValueError`: If the scheduler does not support the arguments or the model.
        """
        self._check_scheduler()
        if timesteps is not None and sigmas is not None:
            raise ValueError("Cannot use both `timesteps` and `sigmas`. Pass only one of them.")
        if timesteps is not None:
            self._set_custom_spacing("timesteps", timesteps, device)
        elif sigmas is not None:
            self._set_custom_spacing("sigmas", sigmas, device)
        else:
            self._set_num_inference_steps(num_inference_steps, device)
        all_timesteps = self.scheduler.timesteps
        lowest, highest = float(all_timesteps.min()), float(all_timesteps.max())
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        # In flow matching, timesteps are `num_train_timesteps` times sigma. The shift can cause rounding errors.
        limit = num_train_timesteps if uses_flow_matching(self.scheduler) else num_train_timesteps - 1
        if lowest < 0 or highest > limit + 0.01:
            raise ValueError(
                f"{type(self.scheduler).__name__} uses timesteps from {lowest:g} to {highest:g}, but they must be"
                f" between 0 and {limit}. Use a different number of steps, `steps_offset` or `timestep_spacing`."
            )
        return all_timesteps

    def _set_num_inference_steps(self, num_inference_steps: int, device: torch.device | None) -> None:
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        if num_inference_steps > num_train_timesteps:
            raise ValueError(
                f"`num_inference_steps` must be between 1 and {num_train_timesteps}, the scheduler's"
                f" `num_train_timesteps`, got {num_inference_steps}."
            )
        if isinstance(self.scheduler, LCMScheduler):
            max_steps = self.scheduler.config["original_inference_steps"]
            if num_inference_steps > max_steps:
                raise ValueError(
                    f"`num_inference_steps` must be between 1 and {max_steps}, the `original_inference_steps` of"
                    f" LCMScheduler, got {num_inference_steps}."
                )
        if isinstance(self.scheduler, PNDMScheduler) and num_inference_steps < self.scheduler.pndm_order:
            raise ValueError(
                f"`num_inference_steps` must be at least {self.scheduler.pndm_order} with PNDMScheduler, got"
                f" {num_inference_steps}."
            )
        set_timesteps: Any = self.scheduler.set_timesteps
        power = self.config.timestep_power
        if not self._uses_power_law():
            set_timesteps(num_inference_steps, device=device)
            self._check_coverage(num_inference_steps)
        elif isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            spaced = [(k / num_inference_steps) ** power for k in range(num_inference_steps, 0, -1)]
            set_timesteps(sigmas=spaced, device=device)
        else:
            spaced = power_law_timesteps(num_inference_steps, num_train_timesteps, power)
            set_timesteps(timesteps=spaced, device=device)

    def _set_custom_spacing(self, option: str, values: Any, device: torch.device | None) -> None:
        """Sets custom timesteps or sigmas; `option` is `"timesteps"` or `"sigmas"`."""
        name, num_train_timesteps = type(self.scheduler).__name__, self.scheduler.config.num_train_timesteps
        flow_matching = uses_flow_matching(self.scheduler)
        values = self._convert_spacing(option, values)
        if flow_matching:
            # Custom timesteps would not have the matching noise levels.
            supported = option == "sigmas"
        else:
            # Without flow matching, UniPCMultistepScheduler does not support sigmas.
            supported = option == "timesteps" or not isinstance(self.scheduler, FLOW_SOLVERS)
        if not supported or option not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(f"{name} does not support custom `{option}`. Pass `num_inference_steps` instead.")
        if option == "timesteps":
            if not 0 <= values[-1] <= values[0] < num_train_timesteps:
                raise ValueError(f"`timesteps` must be between 0 and {num_train_timesteps - 1}, got {values}.")
        elif flow_matching:
            if not 0 < values[-1] <= values[0] <= 1:
                raise ValueError(f"`sigmas` must be greater than 0 and at most 1 with {name}, got {values}.")
        # EulerDiscreteScheduler would otherwise leave the noise of the last sigma in the images.
        elif len(values) < 2 or values[-1] != 0:
            raise ValueError(
                f"For {name}, `sigmas` must have two or more values and end with 0, got {values}. Append 0."
            )
        # UniPCMultistepScheduler requires a NumPy array.
        spacing = torch.tensor(values).numpy() if option == "sigmas" else values
        set_timesteps: Any = self.scheduler.set_timesteps
        set_timesteps(**{option: spacing}, device=device)

    @staticmethod
    def _convert_spacing(option: str, values: Any) -> list[float]:
        """Converts custom timesteps or sigmas to a list of decreasing numbers."""
        try:
            numbers = torch.as_tensor(values).tolist()
            if numbers and all(map(math.isfinite, numbers)) and all(a > b for a, b in itertools.pairwise(numbers)):
                return numbers
        # These errors occur if the values are not a one-dimensional list of numbers.
        except (TypeError, ValueError, RuntimeError):
            pass
        raise ValueError(f"`{option}` must be one or more finite, decreasing numbers, got {values!r}.")

    def prepare_extra_step_kwargs(self, generator: Any, eta: float | None = None) -> dict[str, Any]:
        """Returns the arguments of `scheduler.step` that only some schedulers have."""
        parameters = inspect.signature(self.scheduler.step).parameters
        kwargs = {"generator": generator} if "generator" in parameters else {}
        if eta is not None:
            kwargs["eta"] = eta
        return kwargs

    def _set_begin_index(self, index: int | None) -> None:
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(index)

    def _check_scheduler(self) -> None:
        scheduler, name = self.scheduler, type(self.scheduler).__name__
        if not isinstance(self.scheduler, SchedulerMixin):
            raise ValueError(
                f"`scheduler` must be a scheduler object, got {scheduler!r}. Create one with `from_config`."
            )
        step_parameters = inspect.signature(scheduler.step).parameters.values() if hasattr(scheduler, "step") else ()
        required = [p.name for p in step_parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        flow_matching = uses_flow_matching(scheduler)
        if uses_flow_matching(self._original_scheduler) and not (
            flow_matching
            and isinstance(scheduler, FLOW_MATCH_SCHEDULERS + FLOW_SOLVERS)
            and self.prediction_type == "flow_prediction"
        ):
            hint = "Use a different scheduler, such as FlowMatchEulerDiscreteScheduler."
            if isinstance(scheduler, FLOW_SOLVERS):
                hint = 'Create it with `prediction_type="flow_prediction"` and `use_flow_sigmas=True`.'
            raise ValueError(f"{name} does not support this flow-matching model. {hint}")
        if (
            not (flow_matching or hasattr(scheduler, "alphas_cumprod"))
            or flow_matching != uses_flow_matching(self._original_scheduler)
            or required != ["model_output", "timestep", "sample"]
            or "Inverse" in name
            # CogVideoXDDIMScheduler changes the noise schedule with this option.
            or scheduler.config.get("snr_shift_scale", 1.0) != 1.0
        ):
            if scheduler.config.get("use_flow_sigmas", False):
                raise ValueError(
                    f"`use_flow_sigmas` must be False for this model, got True. Create {name} with"
                    " `use_flow_sigmas=False`."
                )
            raise ValueError(
                f"{name} does not support this model. Use a different scheduler, such as DPMSolverMultistepScheduler"
                " or DDIMScheduler."
            )
        if self.prediction_type == "sample" and name in NO_SAMPLE_PREDICTION:
            raise ValueError(
                f"{name} does not support this model, whose `prediction_type` is sample. Use a different scheduler,"
                " such as DPMSolverMultistepScheduler."
            )
        options = {} if self.vae is None else get_scheduler_options(scheduler)
        if options.get("clip_sample") or options.get("thresholding"):
            raise ValueError(
                f"{name} must not clip the latents of this model to [-1, 1]. Create it with `clip_sample=False` and"
                " `thresholding=False`."
            )
        if (
            isinstance(scheduler, (HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler))
            and scheduler.alphas_cumprod[-1] < NEAR_ZERO_SNR
        ):
            raise ValueError(
                f"{name} does not support this model, whose noise schedule ends with almost pure noise."
                " Use a different scheduler, such as UniPCMultistepScheduler."
            )

    def _check_coverage(self, num_inference_steps: int) -> None:
        num_train_timesteps = self.scheduler.config.num_train_timesteps
        first = float(self.scheduler.timesteps.max())
        if first + num_train_timesteps / num_inference_steps < MIN_TIMESTEP_COVERAGE * num_train_timesteps:
            # "leading" spacing can start halfway if the number of steps does not divide `num_train_timesteps`.
            raise ValueError(
                f"{type(self.scheduler).__name__} starts at timestep {first:g} of {num_train_timesteps} with"
                f" `num_inference_steps`={num_inference_steps}, which skips the high noise levels. Use fewer steps, or"
                " a different `timestep_spacing`."
            )

    def _uses_power_law(self) -> bool:
        if self.config.timestep_power is None or not isinstance(self.scheduler, POWER_LAW_SCHEDULERS):
            return False
        options = get_scheduler_options(self.scheduler)
        # LCMScheduler only supports the timesteps of its training schedule.
        supports_spacing = options.get("original_inference_steps", math.inf) >= options["num_train_timesteps"]
        return supports_spacing and not any(options.get(name) for name in SPACING_OPTIONS)

    def _preprocess_image(self, image: Any, height: int, width: int) -> torch.Tensor:
        """Converts `image` to a float32 tensor `(batch, channels, height, width)` in [-1, 1]."""
        return 2 * convert_images(image, height, width, self.image_shape[0]) - 1

    def _preprocess_mask(self, mask_image: Any, image: Any, height: int, width: int) -> torch.Tensor:
        """Converts `mask_image` to a Boolean tensor `(batch, 1, height, width)`, which is true in the white region."""
        masks = convert_images(mask_image, height, width, 1, "mask_image")
        # Images and masks of different sizes would be cropped differently.
        items = [
            item for value in (image, mask_image) for item in (value if isinstance(value, list | tuple) else [value])
        ]
        sizes = sorted({get_size(item) for item in items})
        if len(sizes) > 1:
            names = " and ".join(f"{height}x{width}" for height, width in sizes)
            raise ValueError(f"`image` and `mask_image` must have the same size, got {names} pixels. Resize them.")
        return masks >= 0.5

    def prepare_noise(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor:
        """
        Returns `latents` or, if it is `None`, standard normal noise of shape `(batch, channels, height, width)`.

        Raises:
            `ValueError`: If the shape of `latents` or the number of generators is wrong.
        """
        shape = (batch_size, *self.latent_shape)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` must have one generator for each image ({batch_size}), got {len(generator)}."
            )
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if not isinstance(latents, torch.Tensor):
            raise ValueError(f"`latents` must be a tensor of shape {shape}, got {type(latents).__name__}.")
        if latents.shape != shape:
            raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
        return latents.to(device, torch.float32)

    def prepare_image(
        self,
        image: PipelineImageInput,
        mask_image: PipelineImageInput | None,
        noise: torch.Tensor,
        num_images_per_prompt: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Converts the arguments `image` and `mask_image` of [`~FashionMNISTPipeline.__call__`] to tensors. If one image
        is passed for each label or prompt, each image is repeated `num_images_per_prompt` times.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: One image or `len(noise)` images of shape
            `(batch, channels, height, width)` in [-1, 1], and the Boolean masks of shape `(batch, 1, height, width)`,
            which are true in the region to inpaint. The second element is `None` without a `mask_image`.

        Raises:
            `ValueError`: If an image cannot be converted, or if the number or the size of the images and masks does
                not match.
        """
        batch_size = len(noise)
        _, height, width = self.image_shape
        images = self._preprocess_image(image, height, width)
        mask = None if mask_image is None else self._preprocess_mask(mask_image, image, height, width)
        num_prompts = batch_size // num_images_per_prompt

        def repeat_images(name: str, tensor: torch.Tensor) -> torch.Tensor:
            if len(tensor) in (1, batch_size):
                return tensor
            if len(tensor) == num_prompts:
                return tensor.repeat_interleave(num_images_per_prompt, dim=0)
            counts = f"one for each label or prompt ({num_prompts}), or " if 1 < num_prompts < batch_size else "or "
            hint = f" Pass `num_images_per_prompt={len(tensor)}` to use all of them." if batch_size == 1 else ""
            raise ValueError(
                f"`{name}` must be one image, {counts}one for each generated image ({batch_size}), got"
                f" {len(tensor)}.{hint}"
            )

        images = repeat_images("image", images).to(noise)
        return images, None if mask is None else repeat_images("mask_image", mask).to(noise.device)

    def _add_noise(self, images: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Adds noise to images of shape `(batch, channels, height, width)` at one timestep of shape `()`."""
        scheduler: Any = self.scheduler
        timesteps: Any = timestep.expand(len(images))
        if isinstance(scheduler, FLOW_MATCH_SCHEDULERS):
            return scheduler.scale_noise(images, timesteps, noise)  # pyright: ignore[reportArgumentType]
        return scheduler.add_noise(images, noise, timesteps)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Converts the state of the scheduler to the noisy images that the model receives."""
        if isinstance(self.scheduler, FLOW_MATCH_SCHEDULERS):
            return sample
        return self.scheduler.scale_model_input(sample, timestep)

    def _get_noise_level(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns `alpha` and `sigma` of the current state `alpha * x0 + sigma * noise` of the scheduler."""
        zero = torch.zeros(1, 1, 1, 1, device=timestep.device)
        return self._add_noise(zero + 1, zero, timestep), self._add_noise(zero, zero + 1, timestep)

    def pred_original_sample(
        self, prediction: torch.Tensor, model_input: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """
        Computes the predicted x0; see [`predict_x0`]. Images are clamped to [-1, 1]; latents are not.

        Args:
            prediction (`torch.Tensor`): Output of the model.
            model_input (`torch.Tensor` of the same shape): The noisy images that the model received.
            timestep (`torch.Tensor` of shape `()`): The timestep of all images, one of `scheduler.timesteps`.

        Returns:
            `torch.Tensor` of the shape of `model_input`: The predicted x0.
        """
        noise_level = self._get_input_noise_level(timestep)
        pred_original_sample = predict_x0(prediction, model_input, *noise_level, self.prediction_type)
        return pred_original_sample.clamp(-1, 1) if self.vae is None else pred_original_sample

    def _get_input_noise_level(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns `alpha` and `sigma` of a model input, which is `alpha * x0 + sigma * noise`."""
        if uses_flow_matching(self.scheduler):
            # Solvers round the timesteps, but not the noise levels.
            index = int((self.scheduler.timesteps == timestep).nonzero()[0])
            sigma = self.scheduler.sigmas[index].to(timestep.device)
            return 1 - sigma, sigma
        alphas_cumprod = self.scheduler.alphas_cumprod.to(timestep.device)
        sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
        # Some schedulers use fractional timesteps.
        lower, fraction = divmod(float(timestep), 1)
        sigma = sigmas[int(lower)]
        if fraction:
            sigma = torch.lerp(sigma, sigmas[int(lower) + 1], fraction)
        # The model input has unit variance.
        alpha = (1 + sigma**2).rsqrt()
        return alpha, (1 - alpha**2).sqrt()

    def _guide_with_classifier(
        self, prediction: torch.Tensor, model_input: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """
        Adds classifier guidance to a prediction.

        The predicted noise becomes `epsilon - s * sigma * grad`, where `s` is the scale, `sigma` the noise level and
        `grad` the gradient of `log p(label | x)` with respect to the model input `x` (arXiv 2105.05233, equation 14).
        With `x = alpha * x0 + sigma * epsilon` fixed, x0 changes by `s * sigma**2 / alpha * grad`. Both
        `v = alpha * epsilon - sigma * x0`, where `alpha**2 + sigma**2 = 1`, and the flow `epsilon - x0`, where
        `alpha + sigma = 1`, change by `-s * sigma / alpha * grad`.

        Args:
            prediction, model_input (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Output and input of the model.
            timestep (`torch.Tensor` of shape `()`): The timestep of all images.
            labels (`torch.Tensor` of shape `(batch,)`): The class labels.
        """
        alpha, sigma = self._get_input_noise_level(timestep)
        # Pure noise contains no information about the class, so the exact gradient is zero. Without this check, the
        # division by alpha would amplify the errors of the classifier.
        if alpha**2 < MIN_GUIDED_SNR * sigma**2:
            return prediction
        # Inference tensors cannot be saved for the backward pass, but their clones can.
        with torch.inference_mode(False), torch.enable_grad():
            noisy_images = model_input.to(self.classifier.dtype).clone().requires_grad_()
            logits = self.classifier(noisy_images, timestep.clone())
            negative_log_prob = F.cross_entropy(logits.float(), labels.clone(), reduction="sum")
            (gradient,) = torch.autograd.grad(negative_log_prob, noisy_images)
        shifts = {
            "epsilon": sigma,
            "v_prediction": sigma / alpha,
            "flow_prediction": sigma / alpha,
            "sample": -(sigma**2) / alpha,
        }
        return prediction + self.classifier_guidance_scale * shifts[self.prediction_type] * gradient.float()

    def _denoise(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        predict: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
        step: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor],
        callback_on_step_end: Callable[..., dict | None] | None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None,
    ) -> torch.Tensor:
        """
        Runs the denoising loop.

        Args:
            sample (`torch.Tensor` of shape `(batch, channels, height, width)`): The noisy images to start from.
            timesteps (`torch.Tensor` of shape `(num_timesteps,)`): The timesteps.
            predict (`Callable`): Returns the float32 prediction for a model input, a timestep and a step index.
            step (`Callable`): Returns the next sample for a prediction, a timestep, a sample and a step index.
        """
        callback_on_step_end_tensor_inputs = callback_on_step_end_tensor_inputs or ()
        self._interrupt = False
        self._num_timesteps = len(timesteps)
        self._num_function_evaluations = 0
        progress_bar = self.progress_bar(total=self.num_timesteps)  # pyright: ignore[reportCallIssue]
        try:
            with evaluation_mode(self.unet), progress_bar:
                for i, t in enumerate(timesteps):
                    if self.interrupt:
                        break
                    scaled_sample = self.scale_model_input(sample, t)
                    prediction = predict(scaled_sample.to(self.unet.dtype), t, i)
                    # The scheduler computes in float32, even if the model uses a different dtype.
                    sample = step(prediction, t, sample, i)
                    if callback_on_step_end is not None:
                        tensors = {"latents": sample, "model_input": scaled_sample}
                        if "pred_original_sample" in callback_on_step_end_tensor_inputs:
                            tensors["pred_original_sample"] = self.pred_original_sample(prediction, scaled_sample, t)
                        tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                        callback_outputs = callback_on_step_end(self, i, t, tensors) or {}
                        sample = callback_outputs.pop("latents", sample)
                    progress_bar.update()
        finally:
            # With a begin index, `scheduler.add_noise` ignores its `timesteps`.
            self._set_begin_index(None)
        return sample

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Decodes the latents of [`encode_images`], such as the output with `output_type="latent"`.

        Args:
            latents (`torch.Tensor` of shape `(batch, channels, height, width)`): The latents.

        Returns:
            `torch.Tensor` of shape `(batch, *image_shape)`: float32 images in about [-1, 1]; without an autoencoder,
            the latents themselves.
        """
        if self.vae is None:
            return latents
        latents = latents / self.vae.config["scaling_factor"] + (self.vae.config["shift_factor"] or 0.0)
        return self.vae.decode(latents.to(self.vae.dtype)).sample.float()

    def _postprocess(
        self,
        sample: torch.Tensor,
        output_type: str,
        return_dict: bool,
        image: Any = None,
        mask: torch.Tensor | None = None,
    ) -> ImagePipelineOutput | tuple:
        if output_type != "latent":
            sample = self.decode_latents(sample)
            if mask is not None:
                # The autoencoder does not reproduce the known pixels exactly.
                sample = torch.where(mask, sample, image)
        if not sample.isfinite().all():
            raise ValueError(
                "Sampling produced NaN or infinite pixels. Try float32 or a different scheduler, or check the weights."
            )
        images: Any = self.image_processor.postprocess(sample, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: Any = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        image: PipelineImageInput | None = None,
        mask_image: PipelineImageInput | None = None,
        strength: float | None = None,
        num_resampling_steps: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["FashionMNISTPipeline", int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        *,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        classifier_guidance_scale: float = 0.0,
        eta: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generates `num_images_per_prompt` images for each label or prompt, or this number of unconditional images.

        Args:
            class_labels (`int`, `str`, `list`, `np.ndarray` or `torch.Tensor`, *optional*):
                Labels in `[0, num_classes)` or case-insensitive names from `label_names`. `None` samples
                unconditionally.
            num_images_per_prompt (`int`, defaults to 1):
                Number of images to generate for each label or prompt. The images of a label or prompt are consecutive.
            num_inference_steps (`int`, *optional*):
                Number of denoising steps, from 1 to the scheduler's `num_train_timesteps`. Defaults to the value in
                the pipeline's config. Ignored if `timesteps` or `sigmas` is passed. With a scheduler of `order` 2,
                such as [`HeunDiscreteScheduler`], every step except the last requires two function evaluations.
            timesteps (`Sequence[int]`, *optional*):
                Custom decreasing timesteps in `[0, num_train_timesteps)`, for schedulers whose `set_timesteps`
                supports them. Flow matching does not support them. Cannot be combined with `sigmas`.
            sigmas (`Sequence[float]`, *optional*):
                Custom decreasing sigmas, for schedulers whose `set_timesteps` supports them. Without flow matching,
                there must be at least two, and the last one must be 0. In flow matching, they must be in (0, 1]; the
                scheduler applies its `shift` to them and appends 0.
            guidance_scale (`float`, defaults to 1.0):
                Scale `s` of classifier-free guidance (`1 + w` in arXiv 2207.12598, equation 6). The prediction is
                `uncond + s * (cond - uncond)`, where `uncond` and `cond` are the predictions without and with the
                label or prompt. 1 disables guidance, and 0 only uses the prediction without the label or prompt.
                Higher values follow the label or prompt more closely. Must be 1 for unconditional sampling.
            guidance_interval (`tuple[float, float]`, defaults to `(0.0, 1.0)`):
                Range of sampling steps that use guidance, as fractions from 0 (noise) to 1 (image) (arXiv 2404.07724).
                The other steps use `guidance_scale=1` and `classifier_guidance_scale=0`.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                One generator for all images, or a list with one generator for each image. With a list, an image
                does not depend on the rest of the batch, except for rounding errors.
            latents (`torch.Tensor` of shape `(batch, in_channels, height, width)`, *optional*):
                Standard normal noise to start from. A stochastic scheduler also adds noise from `generator` at every
                step, so the images depend only weakly on `latents`. The bundled checkpoints store such a scheduler;
                use a deterministic one or [`~FashionMNISTPipeline.interpolate`] for interpolation. Cannot be combined
                with `image`.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                Image to start from (image-to-image, arXiv 2108.01073): one image, one for each label or prompt, or one
                for each generated image. The pipeline adds noise to it and denoises it. Arrays have the shape
                `(height, width)` or `(height, width, channels)`, and tensors `(height, width)` or `(channels, height,
                width)`. With channels, they may also have a batch dimension. They contain uint8 values, Booleans, or
                floats in [0, 1]. The EXIF orientation of PIL images is applied. The channels are converted to
                those of the model, and transparent pixels are composited over white unless the model has 4 channels.
                Images of a different size are resized to cover the size of the model and center-cropped.
            mask_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                Region of `image` to inpaint: one mask, one for each label or prompt, or one for each generated image.
                White pixels are generated and black pixels keep their exact values; the threshold is 0.5. All images
                and masks must have the same size. A mask is converted to grayscale, and resized and cropped like
                `image`. Before every step, the black pixels are replaced with those of `image`, to which new noise of
                the current timestep is added (arXiv 2201.09865, equation 8). With an autoencoder, this applies to
                latents that cover only black pixels, and the black pixels of the decoded images are replaced as well.
            strength (`float`, *optional*):
                Fraction of the denoising steps to run if an `image` is passed, in (0, 1]. With 1, little of `image`
                remains, and a masked region starts from pure noise. Defaults to 0.8, or to 1 with a `mask_image`.
            num_resampling_steps (`int`, defaults to 1):
                Number of times to run each denoising step of inpainting, except the last one (`U` in arXiv 2201.09865,
                algorithm 1; `jump_n_sample` in diffusers' RePaintScheduler). Before each repetition, noise is added to
                return the images to the timestep of the repeated step. With more repetitions, the generated pixels
                match the known pixels better. A multistep scheduler starts each repetition with a first-order step.
            output_type (`str`, defaults to `"pil"`):
                `"pil"` (mode "L" or "RGB"), `"np"` of shape `(batch, height, width, channels)` in [0, 1], `"pt"` of
                shape `(batch, channels, height, width)` in [0, 1], or `"latent"`: the latents of a model with an
                autoencoder, otherwise images with the shape of `"pt"` and values in about [-1, 1].
            return_dict (`bool`, defaults to `True`): Whether to return an [`ImagePipelineOutput`] or a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, tensors)` after each of the `pipe.num_timesteps` scheduler
                steps. If it returns a `dict` with `latents`, sampling continues with them. It may set
                `pipe._guidance_scale` or `pipe._classifier_guidance_scale`, or set `pipe._interrupt = True` to stop
                sampling. The `tensor_inputs` of a [`PipelineCallback`] or [`MultiPipelineCallbacks`] replace
                `callback_on_step_end_tensor_inputs`.
            callback_on_step_end_tensor_inputs (`Sequence[str]`, defaults to `("latents",)`):
                The tensors that the callback receives: `"latents"`, the state of the scheduler after the step;
                `"model_input"`, the noisy images that the model received in this step; and
                `"pred_original_sample"`, the predicted x0 of this step, in [-1, 1]. With an autoencoder, all of them
                are latents; [`~FashionMNISTPipeline.decode_latents`] decodes them. With `None`, the callback receives
                no tensors.
            prompt (`str` or `list[str]`, *optional*):
                One or more prompts for a text-conditional model. If neither `prompt` nor `prompt_embeds` is passed,
                sampling is unconditional, which is the same as an empty prompt without guidance. Without a text
                encoder, `prompt_embeds` is required.
            negative_prompt (`str` or `list[str]`, *optional*):
                One negative prompt, or one for each prompt. Guidance uses the prediction for the negative prompt as
                `uncond`. Defaults to the empty prompt. Ignored without guidance.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape `(num_prompts, channels)`, *optional*):
                Precomputed embeddings, used instead of `prompt` and `negative_prompt`; see
                [`~FashionMNISTPipeline.encode_prompt`]. One negative embedding applies to all prompts. Without a text
                encoder, guidance requires `negative_prompt_embeds`.
            classifier_guidance_scale (`float`, defaults to 0.0):
                Scale of classifier guidance, which adds the gradient of the classifier to the prediction of the model
                (arXiv 2105.05233, equation 14) within `guidance_interval`. It requires a pipeline with a classifier
                and `class_labels`. A class-conditional model also receives the labels; with `guidance_scale=0`, only
                the classifier receives them within `guidance_interval`. 0 disables classifier guidance.
            eta (`float`, *optional*):
                Amount of noise to add in each step, in [0, 1], for schedulers whose `step` has this argument, such as
                [`DDIMScheduler`] (arXiv 2010.02502, equation 16; 0 by default) and [`TCDScheduler`] (0.3 by default).

        Examples:

        Returns:
            [`ImagePipelineOutput`] or `tuple`: The images, in float32 unless they are PIL images.

        Raises:
            `ValueError`: If an argument is out of range, if the model or the scheduler does not support it, or if a
                generated image has NaN or infinite pixels.
        """
        # 1. Check inputs
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = self._get_tensor_inputs(callback_on_step_end)
        num_steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        self.check_inputs(
            class_labels=class_labels,
            num_images_per_prompt=num_images_per_prompt,
            num_inference_steps=num_steps,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            generator=generator,
            latents=latents,
            image=image,
            strength=strength,
            mask_image=mask_image,
            num_resampling_steps=num_resampling_steps,
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            classifier_guidance_scale=classifier_guidance_scale,
            eta=eta,
        )
        if strength is None:
            strength = 0.8 if mask_image is None else 1.0
        self._guidance_scale, self._classifier_guidance_scale = guidance_scale, classifier_guidance_scale
        device = self._execution_device

        # 2. Class labels or prompts
        batch_size = num_images_per_prompt
        # The model receives the embeddings of prompts as class labels.
        labels: Any = None
        model_labels: Any = None
        null_labels: Any = None
        if class_labels is not None:
            labels = torch.tensor(self.get_label_ids(class_labels), device=device)
            labels = labels.repeat_interleave(num_images_per_prompt)  # (B,)
            batch_size = len(labels)
        if class_labels is not None and self.is_conditional:
            model_labels = labels
            if self._null_label is not None:
                null_labels = torch.full_like(labels, self._null_label)
        elif self.prompt_embeds_dim is not None:
            # A callback can enable guidance later, so the negative prompt is encoded whenever there is a text encoder.
            has_negative_prompt = self._has_text_encoder or negative_prompt_embeds is not None
            model_labels, null_labels = self.encode_prompt(
                prompt,
                device,
                num_images_per_prompt,
                has_negative_prompt,
                negative_prompt,
                prompt_embeds,
                negative_prompt_embeds,
            )
            batch_size = len(model_labels)
        guidance_labels = None if null_labels is None else torch.cat([null_labels, model_labels])

        # 3. Timesteps
        all_timesteps = self.set_timesteps(num_steps, timesteps, sigmas, device)
        # UnCLIPScheduler has no order.
        order, num_skipped = getattr(self.scheduler, "order", 1), 0
        if image is not None:
            # Second-order schedulers have two timesteps for every step except one.
            total = math.ceil(len(all_timesteps) / order)
            num_remaining = int(scale_num_steps(total, strength))
            if num_remaining < 1:
                raise ValueError(
                    f"`strength` must be at least 1/{total}, because sampling has {total} steps, got {strength}."
                )
            num_skipped = (total - num_remaining) * order
        remaining = all_timesteps[num_skipped:]
        indices = get_step_indices(len(remaining), order, num_resampling_steps)

        # 4. Noise and images
        # The noise of the known pixels is sampled from a copy of the generator, so that the other pixels have the same
        # noise as without a mask.
        known_generator = copy_generator(generator)
        noise = self.prepare_noise(batch_size, generator, latents, device)
        image_latents: Any = None
        mask: Any = None
        image_tensor: Any = None
        pixel_mask: Any = None
        if image is not None:
            image_tensor, pixel_mask = self.prepare_image(image, mask_image, noise, num_images_per_prompt)
            image_latents = encode_images(self.vae, image_tensor).expand_as(noise)
            if pixel_mask is not None:
                # A latent is generated if it covers at least one pixel to inpaint.
                mask = F.max_pool2d(pixel_mask.float(), self.vae_scale_factor) > 0

        # 5. Denoising loop
        step_kwargs = self.prepare_extra_step_kwargs(generator, eta)
        # Without a begin index, a scheduler skips the first step if the first two timesteps are equal.
        self._set_begin_index(num_skipped)
        sample = noise * self.init_noise_sigma

        def replace_known_pixels(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            known_noise = self.prepare_noise(batch_size, known_generator, None, device)
            return torch.where(mask, sample, self._add_noise(image_latents, known_noise, timestep))

        if image is not None:
            if mask is None or strength < 1:
                sample = self._add_noise(image_latents, noise, remaining[0])
            if mask is not None:
                sample = replace_known_pixels(sample, remaining[0])
        start, stop = (scale_num_steps(len(remaining), fraction) for fraction in guidance_interval)

        def predict(model_input: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
            is_guided = start <= indices[i] < stop
            guidance_scale = self.guidance_scale if is_guided and guidance_labels is not None else 1.0
            if guidance_scale not in (0, 1):
                self._num_function_evaluations += 2
                inputs = torch.cat([model_input, model_input])
                uncond, cond = self.unet(inputs, t, class_labels=guidance_labels).sample.float().chunk(2)
                prediction = uncond + guidance_scale * (cond - uncond)
            else:
                self._num_function_evaluations += 1
                input_labels = null_labels if guidance_scale == 0 else model_labels
                prediction = self.unet(model_input, t, class_labels=input_labels).sample.float()
            if is_guided and self.classifier_guidance_scale != 0:
                prediction = self._guide_with_classifier(prediction, model_input, t, labels)
            return prediction

        def step(prediction: torch.Tensor, t: torch.Tensor, sample: torch.Tensor, i: int) -> torch.Tensor:
            sample = self.scheduler.step(prediction, t, sample, **step_kwargs).prev_sample
            next_index = indices[i] + 1
            if mask is None:
                return sample
            if next_index == len(remaining):
                return torch.where(mask, sample, image_latents)
            if next_index % order:
                # A second-order scheduler has not completed the step yet.
                return sample
            if indices[i + 1] != next_index:
                # Equation 1 of arXiv 2201.09865 returns the sample to the noise level of the repeated step. The
                # scheduler restarts, because its previous predictions belong to different noise.
                alpha, sigma = self._get_noise_level(remaining[next_index])
                next_index = indices[i + 1]
                self.set_timesteps(num_steps, timesteps, sigmas, device)
                self._set_begin_index(num_skipped + next_index)
                next_alpha, next_sigma = self._get_noise_level(remaining[next_index])
                scale = next_alpha / alpha
                noise = self.prepare_noise(batch_size, generator, None, device)
                sample = scale * sample + (next_sigma**2 - (scale * sigma) ** 2).clamp(min=0).sqrt() * noise
            return replace_known_pixels(sample, remaining[next_index])

        sample = self._denoise(
            sample,
            remaining[indices],
            predict,
            step,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )

        # 6. Images
        return self._postprocess(sample, output_type, return_dict, image_tensor, pixel_mask)

    @torch.no_grad()
    def interpolate(
        self,
        class_labels: Any = None,
        seeds: tuple[int, int] = (0, 1),
        num_images: int = 8,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["FashionMNISTPipeline", int, int, dict], dict | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        *,
        prompt: str | list[str] | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""
        Generates images that interpolate between two seeds and, optionally, between two classes or prompts.

        The noise of the two seeds is interpolated spherically, both at the start and at every step of a stochastic
        scheduler. A stochastic scheduler must have the argument `variance_noise` in `step` or be an [`LCMScheduler`].
        The predictions for two classes or prompts are interpolated linearly. Up to rounding, the first image equals
        `pipe(first_label, generator=torch.Generator().manual_seed(seeds[0]))`, and the last image is that of the last
        label and `seeds[1]`.

        Args:
            class_labels (`int`, `str`, `list`, `np.ndarray` or `torch.Tensor`, *optional*):
                One label, or the labels of the first and the last image; see [`~FashionMNISTPipeline.__call__`].
                `None` samples unconditionally. Two different labels require two function evaluations per step.
            seeds (`tuple[int, int]`, defaults to `(0, 1)`): Seeds of the first and the last image.
            num_images (`int`, defaults to 8): Number of images, at least 2.
            num_inference_steps, output_type, return_dict, callback_on_step_end, callback_on_step_end_tensor_inputs:
                See [`~FashionMNISTPipeline.__call__`].
            prompt (`str` or `list[str]`, *optional*):
                One prompt, or the prompts of the first and the last image, for a text-conditional model. The pipeline
                must have its text encoder.

        Returns:
            [`ImagePipelineOutput`] or `tuple`: The images in order.

        Raises:
            `ValueError`: If an argument is out of range, or if the scheduler, such as [`DDPMScheduler`], adds noise
                that cannot be interpolated.

        Examples:
            ```py
            >>> from fmnist_diffusion import load_pipeline

            >>> pipe = load_pipeline("base")
            >>> images = pipe.interpolate(["Sneaker", "Ankle boot"], seeds=(3, 4), num_images=12).images
            ```
        """
        # 1. Check inputs
        self._check_unet()
        if not self._has_text_encoder and self.prompt_embeds_dim is not None:
            raise ValueError(
                "`interpolate` requires the text encoder and the tokenizer of a text-conditional model. Load the"
                " pipeline with both."
            )
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = self._get_tensor_inputs(callback_on_step_end)
        if class_labels is not None and self._only_classifier_has_classes:
            raise ValueError("`interpolate` does not support `class_labels` for an unconditional model. Omit it.")
        num_steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        if not isinstance(num_images, Integral) or num_images < 2:
            raise ValueError(f"`num_images` must be an integer of at least 2, got {num_images!r}.")
        if not isinstance(seeds, Sequence) or [isinstance(seed, Integral) for seed in seeds] != [True, True]:
            raise ValueError(
                f"`seeds` must be a sequence of two integers, the seeds of the first and last image, got {seeds!r}."
            )
        self.check_inputs(
            class_labels=class_labels,
            num_images_per_prompt=num_images,
            num_inference_steps=num_steps,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            prompt=prompt,
        )
        self._guidance_scale, self._classifier_guidance_scale = 1.0, 0.0
        device = self._execution_device
        weights = torch.linspace(0, 1, num_images, dtype=torch.float32, device=device)
        weights = weights.view(-1, 1, 1, 1)  # (B, 1, 1, 1)

        # 2. Class labels or prompts
        # Two equal labels or prompts require only one prediction.
        num_predictions, labels = 1, None
        if class_labels is not None:
            label_ids = self.get_label_ids(class_labels)
            if len(label_ids) > 2:
                raise ValueError(f"`class_labels` must contain one or two labels, got {len(label_ids)}.")
            num_predictions = len(set(label_ids))
            labels = torch.tensor(label_ids[:num_predictions], device=device).repeat_interleave(num_images)
        elif self.prompt_embeds_dim is not None:
            prompts = prompt if isinstance(prompt, list) else [prompt or ""]
            if len(prompts) > 2:
                raise ValueError(f"`prompt` must contain one or two prompts, got {len(prompts)}.")
            num_predictions = len(set(prompts))
            labels, _ = self.encode_prompt(
                prompts[:num_predictions], device, num_images, do_classifier_free_guidance=False
            )

        # 3. Timesteps and noise
        timesteps = self.set_timesteps(num_steps, device=device)
        shape = (1, *self.latent_shape)
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

        def sample_noise() -> torch.Tensor:
            first, last = (randn_tensor(shape, generator=g, device=device, dtype=torch.float32) for g in generators)
            return slerp(first, last, weights)

        sample = sample_noise() * self.init_noise_sigma
        accepts_noise = "variance_noise" in inspect.signature(self.scheduler.step).parameters
        # A scheduler that samples noise itself changes the state of this generator.
        unused_generator = torch.Generator(device)
        initial_state = unused_generator.get_state()
        step_kwargs = self.prepare_extra_step_kwargs(unused_generator)

        def step(prediction: torch.Tensor, t: torch.Tensor, sample: torch.Tensor, i: int) -> torch.Tensor:
            if accepts_noise:
                return self.scheduler.step(prediction, t, sample, variance_noise=sample_noise()).prev_sample
            output = self.scheduler.step(prediction, t, sample, **step_kwargs)
            if torch.equal(unused_generator.get_state(), initial_state):
                return output.prev_sample
            if isinstance(self.scheduler, LCMScheduler):
                unused_generator.set_state(initial_state)
                next_timestep = timesteps[self.scheduler.step_index]
                return self._add_noise(output.denoised, sample_noise(), next_timestep)
            raise ValueError(
                f"{type(self.scheduler).__name__} adds noise that cannot be interpolated. Use a deterministic"
                " scheduler, such as DDIMScheduler, or use DPMSolverMultistepScheduler."
            )

        # 4. Denoising loop
        def predict(model_input: torch.Tensor, t: torch.Tensor, i: int) -> torch.Tensor:
            self._num_function_evaluations += num_predictions
            inputs = torch.cat([model_input] * num_predictions)
            predictions = self.unet(inputs, t, class_labels=labels).sample.float().chunk(num_predictions)
            return torch.lerp(predictions[0], predictions[-1], weights)

        self._set_begin_index(0)
        sample = self._denoise(
            sample, timesteps, predict, step, callback_on_step_end, callback_on_step_end_tensor_inputs
        )

        # 5. Images
        return self._postprocess(sample, output_type, return_dict)

    def trajectory(
        self, class_labels: Any = None, *, tensor_name: str = "model_input", **kwargs: Any
    ) -> list[list[PIL.Image.Image]]:
        r"""
        Generates images and returns the intermediate images of every step.

        Args:
            class_labels (`int`, `str`, `list`, `np.ndarray` or `torch.Tensor`, *optional*):
                See [`~FashionMNISTPipeline.__call__`].
            tensor_name (`str`, defaults to `"model_input"`):
                Tensor that the frames show: `"model_input"`, the noisy images before each step, or
                `"pred_original_sample"`, the predicted x0 of each step.
            kwargs:
                Other arguments of [`~FashionMNISTPipeline.__call__`], such as `generator`. `output_type`,
                `return_dict`, `callback_on_step_end` and `callback_on_step_end_tensor_inputs` are not supported.

        Returns:
            `list[list[PIL.Image.Image]]`: For each scheduler step, the image of each sample, followed by the final
                images: `num_timesteps + 1` lists.

        Raises:
            `ValueError`: If an argument is out of range, or if the images have neither 1 nor 3 channels.

        Examples:
            ```py
            >>> import torch
            >>> from fmnist_diffusion import load_pipeline
            >>> from fmnist_diffusion.images import image_grid, save_gif

            >>> pipe = load_pipeline("base")
            >>> frames = pipe.trajectory(["Bag", "Coat"], generator=torch.manual_seed(0))
            >>> save_gif([image_grid(images, columns=2) for images in frames], "denoising.gif", hold=1000)
            ```
        """
        if tensor_name not in ("model_input", "pred_original_sample"):
            raise ValueError(f"`tensor_name` must be 'model_input' or 'pred_original_sample', got {tensor_name!r}.")
        for name in ("output_type", "return_dict", "callback_on_step_end", "callback_on_step_end_tensor_inputs"):
            if name in kwargs:
                raise ValueError(
                    f"`{name}` cannot be used with `trajectory`. Omit it, or call the pipeline with"
                    " `callback_on_step_end` to process the intermediate images yourself."
                )
        self._check_unet()
        channels = self.image_shape[0]
        if channels not in (1, 3):
            raise ValueError(
                f"`trajectory` only supports images with 1 or 3 channels, got {channels}. Call the pipeline with"
                " `callback_on_step_end` instead."
            )
        frames = []

        def save_frame(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> None:
            frames.append(self.image_processor.postprocess(self.decode_latents(tensors[tensor_name]), "pil"))

        (images,) = self(
            class_labels,
            output_type="pil",
            return_dict=False,
            callback_on_step_end=save_frame,
            callback_on_step_end_tensor_inputs=[tensor_name],
            **kwargs,
        )
        return [*frames, images]
