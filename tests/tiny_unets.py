"""Small U-Nets and their inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmnist_diffusion import FashionMNISTUNet2DModel


TINY = {"block_out_channels": (8, 16, 16), "attention_head_dim": 8}
# As many options as possible differ from the defaults.
TINY_CONDITIONAL = {
    "sample_size": (12, 16),
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 2,
    "norm_type": "group",
    "norm_num_groups": 4,
    "act_fn": "silu",
    "time_conditioning": "all",
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_dim": 16,
    "attention_levels": (0, 1),
    "attention_head_dim": 4,
    "skip_connection": "add",
    "num_class_embeds": 10,
    "label_names": tuple("abcdefghij"),
}
CONFIGS = pytest.mark.parametrize("config", [TINY, TINY_CONDITIONAL], ids=["tiny", "conditional"])


def make_model(config, seed=0) -> FashionMNISTUNet2DModel:
    """Creates a model in evaluation mode; the parameters of its normalization layers are not at their defaults."""
    torch.manual_seed(seed)
    model = FashionMNISTUNet2DModel(**config)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def make_inputs(config, batch_size=2, size=(12, 16)):
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "sample": torch.randn(batch_size, config.get("in_channels", 1), *size, generator=generator),
        "timestep": torch.tensor([10, 700])[:batch_size],
    }
    if "num_class_embeds" in config:
        inputs["class_labels"] = torch.tensor([3, 10])[:batch_size]
    return inputs


@torch.no_grad()
def predict(model, **inputs):
    return model(**inputs, return_dict=False)[0]


def compute_loss(model, inputs):
    prediction = model(**inputs).sample
    return F.mse_loss(prediction, torch.linspace(-1, 1, prediction.numel()).view_as(prediction).to(prediction))


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
