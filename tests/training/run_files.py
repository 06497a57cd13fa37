"""Reads the files of training runs."""

import csv
from pathlib import Path

import torch
from safetensors.torch import load_file


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read_losses(run: Path) -> list[dict[str, str]]:
    return read_csv(run / "loss.csv")


def load_weights(run: Path) -> dict[str, torch.Tensor]:
    """Loads the weights of the exported pipeline."""
    return load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def assert_equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
