"""Tensors of the model, the optimizer and the EMA."""

from collections.abc import Iterable, Mapping

import torch
from accelerate.optimizer import AcceleratedOptimizer


Tensors = dict[str, torch.Tensor]


@torch.no_grad()
def copy_tensors(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors into existing ones, which keep their device and memory format.

    Raises:
        `ValueError`: If the names or the shapes differ.
    """
    if source.keys() != target.keys():
        raise ValueError(f"the tensor {min(source.keys() ^ target.keys())} is missing or unexpected")
    for name, tensor in target.items():
        value = source[name]
        if value.shape != tensor.shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)} instead of {tuple(tensor.shape)}")
        tensor.copy_(value)


def are_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Returns whether no tensor contains NaN or infinity."""
    finite = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.stack(finite).all())


def check_finite(tensors: Iterable[torch.Tensor], name: str, global_step: int) -> None:
    """Raises `FloatingPointError` if a tensor contains NaN or infinity."""
    if not are_finite(tensors):
        raise FloatingPointError(f"{name} are NaN or infinite at step {global_step}.")


def get_optimizer_tensors(optimizer: AcceleratedOptimizer, model: torch.nn.Module) -> Tensors:
    """Returns the state of `optimizer` for each parameter of `model`, such as `"conv_out.weight/exp_avg"`."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def set_optimizer_tensors(optimizer: AcceleratedOptimizer, model: torch.nn.Module, tensors: Tensors) -> None:
    """Replaces the state of `optimizer` with the `tensors` of `get_optimizer_tensors`.

    Raises:
        `ValueError`: If a parameter does not exist or has a different shape.
    """
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        if name not in parameters:
            raise ValueError(f"the model has no parameter {name}")
        parameter = parameters[name]
        # `step` is a scalar; the running means have the shape of the parameter.
        state = torch.zeros_like(parameter) if value.ndim else torch.zeros_like(value, device=parameter.device)
        copy_tensors({full_name: value}, {full_name: state})
        optimizer.state[parameter][key] = state
