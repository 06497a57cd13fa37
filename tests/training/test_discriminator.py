"""The discriminator and its adversarial loss."""

import contextlib
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from averaging import copy_model
from discriminator import (
    AdversarialLoss,
    Discriminator,
    FeatureNetwork,
    make_discriminator,
)
from fmnist_diffusion import FashionMNISTUNet2DModel


def make_unet(**options: Any) -> FashionMNISTUNet2DModel:
    torch.manual_seed(0)
    arguments = {"block_out_channels": (8, 16, 24), "attention_head_dim": 8, "num_class_embeds": 3} | options
    return FashionMNISTUNet2DModel(**arguments).eval()


class Scale(nn.Module):
    """A discriminator whose logits are the features times a parameter."""

    def __init__(self, value: float):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value))

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.scale * x for x in features]


def identity(images: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> list[torch.Tensor]:
    return [images]


def make_loss(discriminator: nn.Module, weight: float, feature_network: Any = identity) -> AdversarialLoss:
    return AdversarialLoss(feature_network, discriminator, weight, contextlib.nullcontext)


def test_features_are_the_outputs_of_all_blocks():
    unet = make_unet()
    network = FeatureNetwork(copy_model(unet, None))
    images, timesteps, labels = torch.randn(2, 1, 28, 28), torch.tensor([5, 900]), torch.tensor([0, 2])
    features = network(images, timesteps, labels)
    assert [tuple(x.shape[1:]) for x in features] == [(8, 28, 28), (16, 14, 14), (24, 7, 7), (16, 14, 14), (8, 28, 28)]
    # The last convolution turns the features of the last block into the prediction.
    torch.testing.assert_close(unet.conv_out(features[-1]), unet(images, timesteps, labels).sample)
    # A second call only returns the features of that call.
    assert len(network(images, timesteps, labels)) == 5
    logits = make_discriminator(unet)(features)
    assert [tuple(x.shape[1:]) for x in logits] == [(1, 14, 14), (1, 7, 7), (1, 4, 4), (1, 7, 7), (1, 14, 14)]


def test_loss_of_zero_logits():
    loss = make_loss(Scale(0.0), 3.0)
    generator_loss, discriminator_loss = loss(torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4), torch.zeros(4), None)
    assert generator_loss.item() == pytest.approx(3 * math.log(2))
    assert discriminator_loss.item() == pytest.approx(2 * math.log(2))


def test_images_and_discriminator_only_receive_their_own_gradients():
    real, generated = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4, requires_grad=True)
    discriminator = Scale(0.7)
    sum(make_loss(discriminator, 3.0)(real, generated, torch.zeros(6), None)).backward()

    images = generated.detach().requires_grad_()
    (3.0 * F.softplus(-0.7 * images).mean()).backward()
    torch.testing.assert_close(generated.grad, images.grad)
    scale = torch.tensor(0.7, requires_grad=True)
    (F.softplus(-scale * real).mean() + F.softplus(scale * generated.detach()).mean()).backward()
    torch.testing.assert_close(discriminator.scale.grad, scale.grad)


def test_gradients_reach_the_images_through_the_frozen_model():
    unet = make_unet(norm_type="group", norm_num_groups=4)
    loss = make_loss(make_discriminator(unet), 1.0, FeatureNetwork(unet))
    generated = torch.randn(2, 1, 28, 28, requires_grad=True)
    sum(loss(torch.randn(2, 1, 28, 28), generated, torch.tensor([5, 10]), torch.tensor([0, 1]))).backward()
    assert generated.grad is not None and (generated.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_trained_discriminator_separates_distributions_and_its_gradient_points_to_real_images():
    torch.manual_seed(0)
    discriminator = Discriminator([2], width=8)
    loss = make_loss(discriminator, 1.0)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)

    def sample(sign: float) -> torch.Tensor:
        # The normalization of the features removes a common offset, but not the difference between the channels.
        return sign * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1) + torch.randn(32, 2, 8, 8)

    for _ in range(60):
        optimizer.zero_grad()
        sum(loss(sample(1), sample(-1), torch.zeros(32), None)).backward()
        optimizer.step()
    [real], [generated] = discriminator([sample(1)]), discriminator([sample(-1)])
    assert (real > 0).float().mean() > 0.95 and (generated < 0).float().mean() > 0.95
    images = sample(-1).requires_grad_()
    sum(loss(sample(1), images, torch.zeros(32), None)).backward()
    assert images.grad is not None
    step = -images.grad.mean(dim=(0, 2, 3))
    assert step[0] > 0 > step[1]
