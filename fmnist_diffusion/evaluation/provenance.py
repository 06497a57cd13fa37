"""Hashes, package versions and device names for reproducible evaluations."""

import hashlib
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import torch


PACKAGES = ("fmnist-diffusion", "torch", "diffusers", "transformers", "torchmetrics", "openvino", "numpy")


def tensor_hash(tensor: torch.Tensor) -> str:
    """Returns the SHA-256 of the values of a CPU tensor in row-major order. The shape and dtype have no effect."""
    return hashlib.sha256(tensor.contiguous().numpy().data).hexdigest()


def get_versions() -> dict[str, str]:
    """Returns the versions of the installed packages that affect the metrics."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def get_device_name(device: torch.device) -> str:
    """Returns the name of a GPU, or the device type and the machine type, such as "cpu (x86_64)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
