from collections.abc import Callable
from pathlib import Path

import torch
from run_files import load_weights
from safetensors.torch import load_file


def test_ema_weights_are_exported(tmp_path: Path, launch: Callable[..., None]):
    launch("--ema.enabled=true", "--optimizer.learning_rate=1e-2", "--max_train_steps=6")
    weights = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-6" / "model.safetensors")
    exported = load_weights(tmp_path / "run")
    assert not torch.allclose(exported["conv_out.weight"], weights["conv_out.weight"])
    # The statistics of BatchNorm are re-estimated for the EMA weights.
    name = "down_blocks.0.resnets.0.norm1.running_mean"
    assert not torch.allclose(exported[name], weights[name])
