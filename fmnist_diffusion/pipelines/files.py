"""Names, formats and limits of the files of a pipeline."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open


INDEX_NAME = "model_index.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
TOKENIZER_FILES = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
MAX_JSON_BYTES = 10_000_000
MAX_WEIGHTS_BYTES = 4_000_000_000
# Larger numbers in a config would only exhaust the memory.
MAX_INTEGER = 1_000_000


def get_weights_name(component: str, variant: str | None) -> str:
    """Returns the name of the weights file of a model whose weights are not sharded."""
    # transformers and diffusers use different names.
    stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
    return f"{component}/{stem}.{variant}.safetensors" if variant else f"{component}/{stem}.safetensors"


def get_weights_index_name(component: str, variant: str | None) -> str:
    """Returns the name of the file that lists the shards of the weights."""
    name = get_weights_name(component, None)
    return f"{name}.index.{variant}.json" if variant else f"{name}.index.json"


def list_weights(folder: Path, component: str, variant: str | None) -> list[Path]:
    """
    Returns the files with the weights of a model, which may be sharded.

    Raises:
        `OSError`: If the file that lists the shards is damaged.
    """
    index_path = folder / get_weights_index_name(component, variant)
    names = get_shard_names(index_path) if index_path.is_file() else [get_weights_name(component, variant)]
    return [folder / name for name in names]


def has_component(index: Mapping[str, Any], name: str) -> bool:
    """Returns whether a pipeline has a component; `index` is the content of its `model_index.json`."""
    return index.get(name) not in (None, [None, None])


def read_json_object(path: Path) -> dict[str, Any]:
    """
    Reads the options of a pipeline or one of its components from a JSON file.

    Raises:
        `OSError`: If the file does not exist, is not a JSON object, or contains NaN or a number that is too large.
    """
    content = _parse_json_object(path)
    for name, value in content.items():
        for number in _list_numbers(value):
            if isinstance(number, int) and abs(number) > MAX_INTEGER:
                raise OSError(f"`{name}` in {path} must be between -{MAX_INTEGER} and {MAX_INTEGER}, got {number}.")
            if math.isnan(number):
                raise OSError(f"`{name}` in {path} must not be NaN.")
    return content


def _parse_json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise OSError(f"Could not find {path}. Download or save the pipeline again.")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise OSError(f"{path} has more than {MAX_JSON_BYTES} bytes. Download or save the pipeline again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise OSError(f"{path} is not valid JSON ({error}). Download or save the pipeline again.") from error
    if not isinstance(content, dict):
        raise OSError(
            f"{path} must contain a JSON object, got {type(content).__name__}. Download or save the pipeline again."
        )
    return content


def _list_numbers(value: Any) -> list[int | float]:
    numbers, values = [], [value]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)
        elif isinstance(value, int | float):
            numbers.append(value)
    return numbers


def get_shard_names(index_path: Path) -> list[str]:
    """
    Returns the names of the files that an index of sharded weights lists.

    Raises:
        `OSError`: If the file is damaged.
    """
    # The metadata contains the size of the weights, which may be larger than `MAX_INTEGER`.
    index = _parse_json_object(index_path)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not isinstance(index.get("metadata"), dict) or not shards:
        raise OSError(f"{index_path} must contain `metadata` and a `weight_map`. Download or save the pipeline again.")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise OSError(
                f"`weight_map` in {index_path} must contain names of safetensors files, got {name!r}. Download or save"
                " the pipeline again."
            )
    return [f"{index_path.parent.name}/{name}" for name in sorted(set(shards.values()))]


def check_weights(folder: Path, component: str, variant: str | None, model: torch.nn.Module) -> list[Path]:
    """
    Checks the names, shapes and dtypes of the weights without loading them.

    Args:
        folder (`Path`): Folder of the pipeline.
        component (`str`): Name of the folder with the model, such as `"unet"`.
        variant (`str`, *optional*): Variant of the weights.
        model (`torch.nn.Module`): A model with the stored config, which may be on the meta device.

    Returns:
        `list[Path]`: The files with the weights.

    Raises:
        `OSError`: If a file does not exist, is damaged, or does not fit the model.
    """
    config_path, paths = folder / component / "config.json", list_weights(folder, component, variant)
    expected = model.state_dict()
    for path in paths:
        for name, (shape, is_floating_point) in read_header(path).items():
            # `fuse_qkv_projections` adds fused copies of the attention projections, which the new model does not need.
            if ".to_qkv." in name:
                continue
            tensor = expected.pop(name, None)
            if tensor is None:
                raise OSError(
                    f"{path} contains {name}, which the model in {config_path} does not have."
                    " Download or save the weights again."
                )
            if shape != tuple(tensor.shape):
                raise OSError(
                    f"{name} in {path} has shape {shape}, but {config_path} requires {tuple(tensor.shape)}."
                    " Download or save the weights again."
                )
            if is_floating_point != tensor.is_floating_point():
                raise OSError(
                    f"{name} in {path} does not have a dtype that fits {tensor.dtype}."
                    " Download or save the weights again."
                )
    if expected:
        raise OSError(
            f"{paths[0]} does not contain {next(iter(expected))}, which the model in {config_path} requires."
            " Download or save the weights again."
        )
    return paths


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
    """
    Returns the shape of each tensor in a weights file and whether it has a floating-point dtype.

    Raises:
        `OSError`: If the file does not exist, is too large or is damaged.
    """
    if not path.is_file():
        raise OSError(
            f"Could not find {path}. Check `variant`, or save the weights again; weights in other formats are not"
            " supported."
        )
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise OSError(f"{path} has more than {MAX_WEIGHTS_BYTES} bytes, the limit for weights.")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(view.get_shape()), "F" in view.get_dtype()) for name, view in slices.items()}
    except SafetensorError as error:
        raise OSError(f"{path} is not a valid safetensors file ({error}). Download or save it again.") from error


def read_class_name(path: Path, index: Mapping[str, Any], component: str) -> str:
    """Returns the class name of a component from `model_index.json`; raises `OSError` if the entry is invalid."""
    entry = index.get(component)
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(name, str) for name in entry):
        raise OSError(f"`{component}` in {path} must be the module and the class of the {component}, got {entry!r}.")
    return entry[1]
