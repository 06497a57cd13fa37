"""Loads the components of a pipeline without remote code, and checks all files before anything large is allocated."""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging
from safetensors import SafetensorError

from ..hub_client import is_repo_id
from ..models import FashionMNISTGuidanceClassifier, FashionMNISTUNet2DModel
from .download import download_pipeline
from .files import (
    INDEX_NAME,
    SCHEDULER_CONFIG,
    TOKENIZER_FILES,
    check_weights,
    has_component,
    list_weights,
    read_class_name,
    read_header,
    read_json_object,
)
from .pipeline_fmnist import MODELS, FashionMNISTPipeline, check_settings, get_prompt_embeds_dim


logger = logging.get_logger(f"diffusers.{__name__}")

MODEL_CLASSES: dict[str, Any] = {
    "unet": FashionMNISTUNet2DModel,
    "classifier": FashionMNISTGuidanceClassifier,
    "vae": diffusers.AutoencoderKL,
}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
MODEL_OPTIONS = (
    "disable_mmap",
    "dtype",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_folder",
    "offload_state_dict",
    "use_safetensors",
)
# diffusers only checks these options of a scheduler when it generates images.
CHOICES = {
    "final_sigmas_type": ("zero", "sigma_min"),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
}
POSITIVE_OPTIONS = ("num_train_timesteps", "solver_order", "shift", "flow_shift")
# `from_config` copies a null `variance_type` from the config of other schedulers.
NULLABLE_OPTIONS = {"trained_betas": (list, "null or a list of numbers"), "variance_type": (str, "null or a string")}
MAX_REASON_LENGTH = 300
# Models and schedulers raise these errors if an option has an invalid value. `SafetensorError` indicates a damaged
# file.
CONSTRUCTION_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


def load_components(
    pipeline_class: type[Any], path: str, *, variant: str | None = None, device_map: Any = None, **kwargs: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """
    Loads the components of a pipeline, except those that are passed.

    Args:
        pipeline_class (`type`): [`FashionMNISTPipeline`] or a subclass, which may have additional settings.
        path (`str`): A folder, or a repository id such as `owner/name`.
        variant, device_map, kwargs: See [`FashionMNISTPipeline.from_pretrained`].

    Returns:
        `tuple`: The model, the original scheduler and the other arguments of `pipeline_class`. The original scheduler
            is the passed one if `unet` or `timestep_power` is also passed, or if the stored one is damaged.

    Raises:
        `OSError`: If a file does not exist, cannot be downloaded, or is damaged.
        `ValueError`: If an option is invalid, or if a passed component has the wrong type.
    """
    optional = FashionMNISTPipeline._optional_components
    names = ("unet", "scheduler", *optional)
    passed = {name: kwargs.pop(name) for name in names if name in kwargs}
    components = {name: item for name, item in passed.items() if item is not None or name in optional}
    hub_options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
    parameters = inspect.signature(pipeline_class).parameters
    setting_names = {"num_inference_steps", "timestep_power", *parameters}.difference(names)
    options = {name: kwargs.pop(name) for name in setting_names if name in kwargs}
    passed_scheduler = components.get("scheduler")
    if passed_scheduler is not None and not isinstance(passed_scheduler, diffusers.SchedulerMixin):
        raise ValueError(
            f"`scheduler` must be a scheduler object, got {passed_scheduler!r}. Create one with `from_config`, or load"
            " the pipeline with `load_pipeline`, which also accepts a name or a class."
        )
    if "unet" not in components and "timestep_power" not in options:
        components.pop("scheduler", None)
    for name in MODELS:
        if components.get(name) is not None and not hasattr(components[name], "config"):
            raise ValueError(
                f"`{name}` must be a model with a `config`, got {type(components[name]).__name__}. Pass the"
                " unwrapped diffusers or transformers model."
            )
    torch_dtype = kwargs.pop("torch_dtype", None)
    if torch_dtype is not None and kwargs.get("dtype") is not None:
        raise ValueError("Cannot use both `dtype` and `torch_dtype`. Pass only `dtype`.")
    kwargs["dtype"] = kwargs.get("dtype") if torch_dtype is None else torch_dtype
    unknown_names = set(device_map if isinstance(device_map, dict) else ()).difference(names)
    if unknown_names:
        raise ValueError(f"`device_map` must map component names, such as 'unet', got {sorted(unknown_names)}.")
    omits_text_encoder = components.get("text_encoder", True) is None
    if omits_text_encoder:
        # The tokenizer is only used with a text encoder.
        components.setdefault("tokenizer", None)
    unknown = [name for name in kwargs if name not in (*MODEL_OPTIONS, "trust_remote_code")]
    if unknown:
        message = "Keyword arguments %s are not expected by %s and will be ignored."
        logger.warning(message, ", ".join(unknown), pipeline_class.__name__)
    kwargs = {name: value for name, value in kwargs.items() if name in MODEL_OPTIONS}
    folder = Path(path)
    if not folder.is_dir():
        if not is_repo_id(path):
            raise OSError(
                f"Could not find a pipeline at {path!r}: pass a local folder with {INDEX_NAME}, or a Hub repository id"
                " (`owner/name`). To load a bundled checkpoint, use `load_pipeline`."
            )
        folder = download_pipeline(path, exclude=components, variant=variant, **hub_options)
    index = read_json_object(folder / INDEX_NAME)
    settings = {name: index[name] for name in setting_names if name in index}
    with _named_errors(folder / INDEX_NAME):
        check_settings(index.get("num_inference_steps", 20), index.get("timestep_power"))
    settings |= options
    for name in ("scheduler", *optional, "unet"):
        if name not in components and (name not in optional or has_component(index, name)):
            try:
                components[name] = _load_component(folder, index, name, variant, device_map, **kwargs)
            except OSError:
                if name != "scheduler" or passed_scheduler is None:
                    raise
                components["scheduler"], settings["timestep_power"] = passed_scheduler, None
    unet, scheduler = components.pop("unet"), components.pop("scheduler")
    # A pipeline that is loaded with `text_encoder=None` generates images from `prompt_embeds`.
    if not omits_text_encoder:
        check_text_encoder(folder, unet, components.get("text_encoder"), components.get("tokenizer"))
    check_vae(folder, unet, components.get("vae"))
    return unet, scheduler, settings | components


def _load_component(
    folder: Path, index: Mapping[str, Any], name: str, variant: str | None, device_map: Any, dtype: Any, **kwargs: Any
) -> Any:
    class_name = read_class_name(folder / INDEX_NAME, index, name)
    if isinstance(dtype, dict):
        dtype = dtype.get(name, dtype.get("default", torch.float32))
    if not isinstance(dtype, (torch.dtype, type(None))):
        raise ValueError(
            f"`dtype` must be a `torch.dtype` or a dictionary of dtypes, got {dtype!r}. Pass a dtype such as"
            " `torch.float16`."
        )
    if isinstance(device_map, dict):
        device_map = {"": device_map[name]} if name in device_map else None
    if name == "scheduler":
        return load_scheduler(folder, class_name)
    if name == "text_encoder":
        return load_text_encoder(folder, variant, device_map, dtype)
    if name == "tokenizer":
        return load_tokenizer(folder)
    model_class = MODEL_CLASSES[name]
    if class_name != model_class.__name__:
        raise OSError(
            f"`{name}` in {folder / INDEX_NAME} must be {model_class.__name__}, got {class_name!r}. Pass the model as"
            f" `{name}`, or use `DiffusionPipeline.from_pretrained`."
        )
    return load_model(folder, name, model_class, variant, device_map, dtype=dtype, **kwargs)


def load_scheduler(folder: Path, class_name: str) -> Any:
    """Loads the scheduler of a pipeline; raises `OSError` if a file is damaged."""
    path = folder / SCHEDULER_CONFIG
    scheduler_class: Any = getattr(diffusers, class_name, None)
    bases = (diffusers.SchedulerMixin, diffusers.ConfigMixin)
    if not (isinstance(scheduler_class, type) and all(issubclass(scheduler_class, base) for base in bases)):
        raise OSError(
            f"`scheduler` in {folder / INDEX_NAME} must be a diffusers scheduler, got {class_name!r}. Pass a"
            " `scheduler`, or save the pipeline again."
        )
    config = read_json_object(path)
    for name, parameter in inspect.signature(scheduler_class).parameters.items():
        if name in config:
            _check_option(path, name, config[name], parameter.default)
    with _named_errors(path):
        scheduler: Any = scheduler_class.from_config(config)  # pyright: ignore[reportAttributeAccessIssue]
    # Flow-matching schedulers have no betas.
    if hasattr(scheduler, "betas"):
        _check_noise_schedule(path, scheduler)
    return scheduler


def _check_option(path: Path, name: str, value: Any, default: Any) -> None:
    """Checks the type of an option of a scheduler, which diffusers does not check."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in NULLABLE_OPTIONS:
        kind, expected = NULLABLE_OPTIONS[name]
        valid = isinstance(value, (kind, type(None)))
    elif isinstance(default, bool):
        valid, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        valid, expected = isinstance(value, int) and is_number, "an integer"
    elif isinstance(default, float):
        valid, expected = is_number and (math.isfinite(value) or value == default), "a finite number"
    elif isinstance(default, str):
        valid, expected = isinstance(value, str), "a string"
    else:
        valid, expected = True, ""
    if name in POSITIVE_OPTIONS:
        valid, expected = valid and value > 0, f"a positive {'integer' if isinstance(default, int) else 'number'}"
    elif name in CHOICES:
        valid, expected = valid and value in CHOICES[name], f"one of {', '.join(CHOICES[name])}"
    if not valid:
        raise OSError(f"`{name}` in {path} must be {expected}, got {str(value)[:100]!r}.")


def _check_noise_schedule(path: Path, scheduler: Any) -> None:
    betas, num_train_timesteps = scheduler.betas, scheduler.config["num_train_timesteps"]
    if len(betas) != num_train_timesteps:
        raise OSError(
            f"`trained_betas` in {path} must have one value for each timestep ({num_train_timesteps}), got"
            f" {len(betas)}."
        )
    # These comparisons are false for NaN.
    if not (betas.min() >= 0 and 0 < betas.max() <= 1):
        raise OSError(f"The noise schedule in {path} must have betas in [0, 1] that are not all 0.")


def load_model(
    folder: Path, component: str, model_class: Any, variant: str | None = None, device_map: Any = None, **kwargs: Any
) -> Any:
    """
    Loads a model of diffusers or of this package, and checks its weights.

    Args:
        folder (`Path`): Folder of the pipeline.
        component (`str`): Name of the folder with the model, such as `"unet"`.
        model_class (`type`): Class of the model.
        variant, device_map, kwargs: See [`FashionMNISTPipeline.from_pretrained`]. They apply to this model, so they
            are not dictionaries of components.

    Raises:
        `OSError`: If a file is damaged or does not exist.
        `ValueError`: If `use_safetensors` is `False`.
    """
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError("`use_safetensors` must be True, got False. Omit it, because other formats can run code.")
    path = folder / component / "config.json"
    config = read_json_object(path)
    if "quantization_config" in config:
        raise OSError(f"`quantization_config` in {path} is not supported. Remove it.")
    # The meta device allocates no memory, so the files can be checked before a large model is created.
    with _named_errors(path), torch.device("meta"):
        meta_model: Any = model_class.from_config(config)
    weights = check_weights(folder, component, variant, meta_model)
    model: Any = model_class.from_pretrained(
        str(folder),
        subfolder=component,
        variant=variant,
        device_map=device_map,
        use_safetensors=True,
        **kwargs,
    )
    check_finite(model, weights[0])
    return model


def load_text_encoder(folder: Path, variant: str | None, device_map: Any, dtype: torch.dtype | None) -> Any:
    """Loads the text encoder of a pipeline; raises `OSError` if a file is damaged or missing."""
    with _required_transformers(folder):
        from transformers import CLIPTextConfig, CLIPTextModel

    encoder_folder = folder / "text_encoder"
    read_json_object(encoder_folder / "config.json")
    with _named_errors(encoder_folder), torch.device("meta"):
        CLIPTextModel(CLIPTextConfig.from_pretrained(encoder_folder))
    weights = list_weights(folder, "text_encoder", variant)
    for path in weights:
        read_header(path)
    loaded: Any = CLIPTextModel.from_pretrained(
        encoder_folder,
        variant=variant,
        dtype=dtype or torch.float32,
        device_map=device_map,
        use_safetensors=True,
        # The weights with a wrong shape are checked below, with the other problems in the report.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    text_encoder, report = loaded
    problems = [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]
    if problems:
        raise OSError(f"{problems[0]} in {encoder_folder} does not match config.json. Save or download it again.")
    check_finite(text_encoder, weights[0])
    return text_encoder


def load_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a pipeline; raises `OSError` if a file is damaged or missing."""
    with _required_transformers(folder):
        from transformers import CLIPTokenizer

    for name in TOKENIZER_FILES:
        if not (folder / name).is_file():
            raise OSError(f"Could not find {folder / name}. Download or save the pipeline again.")
    with _named_errors(folder / "tokenizer"):
        return CLIPTokenizer.from_pretrained(folder / "tokenizer")


@contextmanager
def _required_transformers(folder: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise OSError(
            f"The text encoder in {folder} requires transformers. Run `pip install 'fmnist-diffusion[text]'`."
        ) from error


def check_text_encoder(folder: Path, unet: Any, text_encoder: Any, tokenizer: Any) -> None:
    """Raises `OSError` if the model requires a different text encoder or none, or if the tokenizer is missing."""
    expected = get_prompt_embeds_dim(unet)
    hidden_size = None if text_encoder is None else text_encoder.config.hidden_size
    if text_encoder is None and expected is not None:
        raise OSError(
            f"The model in {folder} requires a text encoder with a `hidden_size` of {expected}. Pass one as"
            " `text_encoder`, or pass `text_encoder=None` to use `prompt_embeds`. If the files are incomplete, save or"
            " download the pipeline again."
        )
    if hidden_size != expected:
        raise OSError(
            f"The text encoder in {folder} does not match the model: `hidden_size` must be {expected}, got"
            f" {hidden_size}. Save or download the pipeline again."
        )
    if text_encoder is not None and tokenizer is None:
        raise OSError(
            f"The text encoder in {folder} requires a tokenizer. Pass one as `tokenizer`, or save or download the"
            " pipeline again."
        )


def check_vae(folder: Path, unet: Any, vae: Any) -> None:
    """Raises `OSError` if the latents of the autoencoder do not match the model or cannot be scaled."""
    if vae is None:
        return
    check_scaling(folder / "vae", vae)
    channels, expected = vae.config.latent_channels, unet.config.in_channels
    if channels != expected:
        raise OSError(
            f"The autoencoder in {folder} does not match the model: `latent_channels` must be {expected}, got"
            f" {channels}. Save or download the pipeline again."
        )


def check_scaling(folder: Path, vae: Any) -> None:
    """Raises `OSError` if the latents of the autoencoder in `folder` cannot be scaled."""
    for name, value, minimum, kind in (
        ("scaling_factor", vae.config.scaling_factor, 0, "positive"),
        ("shift_factor", vae.config.shift_factor or 0, -math.inf, "finite"),
    ):
        if not isinstance(value, int | float) or not math.isfinite(value) or value <= minimum:
            path = folder / "config.json"
            raise OSError(f"`{name}` in {path} must be a {kind} number, got {str(value)[:100]!r}.")


def check_finite(model: torch.nn.Module, path: Path | str) -> None:
    """Raises `OSError` if a weight of `model`, which was loaded from `path`, is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise OSError(f"{name} in {path} contains NaN or infinite values. Save or download the weights again.")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Raises errors about invalid values in a config as an `OSError` that names the file."""
    try:
        yield
    except CONSTRUCTION_ERRORS as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if len(reason) > MAX_REASON_LENGTH:
            reason = f"{reason[:MAX_REASON_LENGTH]}..."
        raise OSError(f"{path} contains an invalid value: {reason}. Fix it, or save the pipeline again.") from error
