r"""Functions for consistency distillation, which express noise levels as angles.

A noisy image is $x_\theta = \cos(\theta)x_0 + \sin(\theta)\epsilon$, where $\cos^2(\theta)$ is `alphas_cumprod`. The
angle $\theta$ is between 0 (clean image) and $\pi/2$ (pure noise). Angles and timesteps have the shape `(B,)`, and
images have the shape `(B, C, H, W)`.
"""

import math

import torch

from fmnist_diffusion.objectives import PredictionType
from fmnist_diffusion.pipelines import predict_x0
from fmnist_diffusion.schedulers import compute_angles


# The constant c of the pseudo-Huber loss is this number times the square root of the number of values in an image
# (arXiv 2310.14189, section 3.3).
HUBER_SCALE = 0.00054
# This fraction of the sampled segments is replaced by the last segment, where sampling starts.
LAST_SEGMENT_SHARE = 1 / 4


def get_angles(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Returns the angles of the clean image and of all timesteps, float32 `(T + 1,)`."""
    angles = compute_angles(alphas_cumprod)
    return torch.cat([angles.new_zeros(1), angles]).float()


def rotate(images: torch.Tensor, noise: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    r"""Returns the noisy images $\cos(\theta)\,x_0 + \sin(\theta)\,\epsilon$."""
    angles = angles.view(-1, 1, 1, 1)
    return angles.cos() * images + angles.sin() * noise


def predict_images(
    noisy_images: torch.Tensor, prediction: torch.Tensor, angles: torch.Tensor, prediction_type: PredictionType
) -> torch.Tensor:
    r"""Converts the output of a model to the predicted clean images $f(x_\theta, \theta)$.

    For every prediction type, $f(x, 0) = x$, as a consistency function requires (arXiv 2303.01469, section 3).
    """
    angles = angles.view(-1, 1, 1, 1)
    if prediction_type == "sample":
        return torch.where(angles > 0, prediction, noisy_images)
    return predict_x0(prediction, noisy_images, angles.cos(), angles.sin(), prediction_type)


def ddim_step(
    noisy_images: torch.Tensor, predicted_images: torch.Tensor, angles: torch.Tensor, next_angles: torch.Tensor
) -> torch.Tensor:
    """Returns the noisy images after a deterministic DDIM step (arXiv 2010.02502, equation 12).

    Args:
        noisy_images: Noisy images at `angles`, which must be positive.
        predicted_images: The predicted clean images.
        angles, next_angles: Angles before and after the step.
    """
    angles = angles.view(-1, 1, 1, 1)
    noise = (noisy_images - angles.cos() * predicted_images) / angles.sin()
    return rotate(predicted_images, noise, next_angles)


def pseudo_huber_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    r"""Returns $\sqrt{\|x - y\|^2 + c^2} - c$ for each image, `(B,)` (arXiv 2310.14189, section 3.3)."""
    difference = (prediction - target).flatten(1)
    c = HUBER_SCALE * math.sqrt(difference.shape[1])
    return (difference.square().sum(1) + c**2).sqrt() - c


def sample_segments(
    count: int, num_segments: int, num_timesteps: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples segments of the noise schedule (arXiv 2303.01469, algorithm 2), and the last segment more often.

    Args:
        count: Number of segments to sample.
        num_segments: Number of segments of equal length that the timesteps are divided into.
        num_timesteps: Number of timesteps.
        generator: Random generator, which determines the device.

    Returns:
        The later and the earlier timestep of each segment, int64 `(count,)`. Timestep -1 is the clean image.
    """
    device = generator.device
    grid = torch.linspace(0, num_timesteps, num_segments + 1, device=device).round().long() - 1
    segments = torch.randint(num_segments, (count,), generator=generator, device=device)
    last = torch.rand(count, generator=generator, device=device) < LAST_SEGMENT_SHARE
    segments = segments.masked_fill(last, num_segments - 1)
    return grid[segments + 1], grid[segments]
