"""State of a run: tensors of the model, the optimizer and the EMA, and random states."""

import base64
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import save
from torch.distributed.tensor import DTensor, distribute_tensor


Tensors = dict[str, torch.Tensor]


def gather_tensors(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Returns complete, contiguous tensors on the CPU. All processes must call this function, because FSDP shards
    tensors over the processes."""
    complete = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        complete[name] = tensor.cpu().contiguous()
    return complete


@torch.no_grad()
def copy_tensors(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    """Copies complete tensors into existing ones, which keep their device, memory format and sharding.

    Raises:
        `ValueError`: If the names or the shapes differ.
    """
    if source.keys() != target.keys():
        raise ValueError(f"the tensor {min(source.keys() ^ target.keys())} is missing or unexpected")
    for name, tensor in target.items():
        value = source[name]
        if value.shape != tensor.shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)} instead of {tuple(tensor.shape)}")
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
        tensor.copy_(value)


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Returns whether no tensor, or no local shard of it, contains NaN or infinity."""
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    finite = [tensor.isfinite().all() for tensor in local if tensor.is_floating_point()]
    return bool(torch.stack(finite).all())


def get_optimizer_tensors(optimizer: AcceleratedOptimizer, unet: torch.nn.Module) -> Tensors:
    """Returns the state of `optimizer` for each parameter of `unet`, such as `"conv_in.weight/exp_avg"`."""
    return {
        f"{name}/{key}": value
        for name, parameter in unet.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def set_optimizer_tensors(optimizer: AcceleratedOptimizer, unet: torch.nn.Module, tensors: Tensors) -> None:
    """Replaces the state of `optimizer` with the `tensors` of `get_optimizer_tensors`.

    Raises:
        `ValueError`: If a parameter does not exist or has a different shape.
    """
    parameters = dict(unet.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise ValueError(f"the model has no parameter {name}")
        parameter = parameters[name]
        # `step` is a scalar; the running means have the shape of the parameter.
        state = torch.zeros_like(parameter) if value.ndim else torch.zeros_like(value, device=parameter.device)
        copy_tensors({full_name: value}, {full_name: state})
        optimizer.state[parameter][key] = state


def get_random_states(device: torch.device) -> dict[str, Any]:
    """Returns the random states of this process as JSON values."""
    numpy_name, numpy_keys, *numpy_rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": [numpy_name, np.asarray(numpy_keys).tolist(), *numpy_rest],
        "cpu": encode_tensor(torch.get_rng_state()),
    }
    if device.type != "cpu":
        states[device.type] = encode_tensor(torch.get_device_module(device).get_rng_state())
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Restores the result of `get_random_states`, as far as it applies to the type of `device`."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(decode_tensor(states["cpu"]))
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(decode_tensor(states[device.type]))


def encode_tensor(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def decode_tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)


def write_tensors(path: Path, tensors: Tensors) -> None:
    # `save_file` does not report a full disk as an OSError.
    path.write_bytes(save(tensors))
