"""Reads and writes safetensors files with a hash, so that damaged files are detected and recomputed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fmnist_diffusion.files import write_atomically, write_tensors


def save_verified(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors and metadata with their hash atomically; see [`load_verified`]."""
    metadata = dict(metadata or {})
    with write_atomically(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(temporary, tensors, metadata | {"sha256": hash_content(tensors, metadata)})


def load_verified(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """
    Reads a file that [`save_verified`] wrote.

    Returns:
        `tuple[dict[str, torch.Tensor], dict[str, str]]`, *optional*: The tensors and the metadata; `None` if the file
            does not exist or is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return None
    digest = metadata.pop("sha256", None)
    return (tensors, metadata) if digest == hash_content(tensors, metadata) else None


def hash_content(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Returns the SHA-256 of the names, dtypes, shapes and values of `tensors` and of `metadata`."""
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
