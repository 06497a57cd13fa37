"""A discriminator on the features of a frozen diffusion model, and its adversarial loss."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.func import functional_call

from fmnist_diffusion import FashionMNISTUNet2DModel
from text_model import TextConditionalUNet


class FeatureNetwork(nn.Module):
    """A frozen diffusion model that returns the outputs of its blocks.

    Args:
        unet: The model. Its parameters no longer require gradients.
    """

    def __init__(self, unet: FashionMNISTUNet2DModel | TextConditionalUNet):
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.features: list[torch.Tensor] = []
        backbone = unet.unet if isinstance(unet, TextConditionalUNet) else unet
        for block in [*backbone.down_blocks, *backbone.up_blocks]:
            block.register_forward_hook(self._append_features)

    def forward(
        self, images: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Returns the features of noisy images `(B, C, H, W)` from the first block to the last one."""
        self.features.clear()
        self.unet(images, timesteps, class_labels)
        return list(self.features)

    def _append_features(self, block: nn.Module, args: Any, output: torch.Tensor) -> None:
        self.features.append(output)


class Discriminator(nn.Module):
    """One small convolutional network per block of a [`FeatureNetwork`], which classifies its features as real or
    generated (similar to arXiv 2403.12015).

    The features already depend on the class or the caption, so the discriminator has no other inputs.

    Args:
        num_channels: Number of channels of the features of each block.
        width: Number of channels of the hidden layers.
    """

    def __init__(self, num_channels: list[int], width: int = 128):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, channels, affine=False),
                nn.Conv2d(channels, width, 3, stride=2, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 3, padding=1),
            )
            for channels in num_channels
        )

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns one logit for each patch of each feature map, `(B, 1, ceil(H / 2), ceil(W / 2))`.

        A positive logit classifies the patch as real.
        """
        return [head(x) for head, x in zip(self.heads, features, strict=True)]


def make_discriminator(unet: FashionMNISTUNet2DModel | TextConditionalUNet) -> Discriminator:
    """Creates a discriminator for the features of `unet`."""
    channels = list(unet.config["block_out_channels"])
    return Discriminator([*channels, *channels[-2::-1]])


class AdversarialLoss:
    """Non-saturating GAN loss (arXiv 1406.2661, section 3) of a discriminator on the features of a frozen model.

    The generator loss only has gradients for the generated images. The discriminator loss only has gradients for the
    parameters of the discriminator.

    Args:
        feature_network: The frozen model.
        discriminator: The discriminator, as `Accelerator.prepare` returns it.
        weight: Weight of the generator loss.
        autocast: Function that returns the context in which the networks run.
    """

    def __init__(
        self,
        feature_network: FeatureNetwork,
        discriminator: nn.Module,
        weight: float,
        autocast: Callable[..., AbstractContextManager],
    ):
        self.feature_network, self.discriminator = feature_network, discriminator
        self.weight, self.autocast = weight, autocast

    def __call__(
        self,
        real: torch.Tensor,
        generated: torch.Tensor,
        timesteps: torch.Tensor,
        class_labels: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the generator loss times `weight` and the discriminator loss, both scalars.

        Args:
            real, generated: Noisy images `(B, C, H, W)`.
            timesteps: Timesteps of the noisy images, `(B,)`.
            class_labels: Class labels `(B,)` or token ids `(B, L)`; `None` for an unconditional model.
        """
        with self.autocast():
            with torch.no_grad():
                real_features = self.feature_network(real, timesteps, class_labels)
            features = self.feature_network(generated, timesteps, class_labels)
            module = extract_model_from_parallel(self.discriminator)
            # The parameters are detached, so that they do not receive the gradients of the generator loss.
            constants = {name: parameter.detach() for name, parameter in module.named_parameters()}
            generator_loss = compute_logistic_loss(functional_call(module, constants, (features,)))
            # `DistributedDataParallel` expects one forward pass per backward pass.
            pairs = zip(real_features, features, strict=True)
            logits = self.discriminator([torch.cat([first, second.detach()]) for first, second in pairs])
            size = len(real)
            real_loss = compute_logistic_loss([x[:size] for x in logits])
            generated_loss = compute_logistic_loss([-x[size:] for x in logits])
            return self.weight * generator_loss, real_loss + generated_loss


def compute_logistic_loss(logits: list[torch.Tensor]) -> torch.Tensor:
    """Returns the mean of -log sigmoid(x) over each tensor in `logits`, averaged over the tensors."""
    return torch.stack([F.softplus(-x.float()).mean() for x in logits]).mean()
