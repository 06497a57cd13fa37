r"""Consistency functions and their training, as functions of the angle of a noise level.

A noisy image is $x_\theta = \cos(\theta)x_0 + \sin(\theta)\epsilon$. Its angle, $\theta = \arctan(\sigma / \alpha)$,
is between 0 (clean image) and $\pi/2$ (pure noise). Angles and timesteps have the shape `(B,)`, and images have the
shape `(B, C, H, W)`.
"""

import math

import torch

from fmnist_diffusion.objectives import PredictionType


# The constant c of the pseudo-Huber loss is this number times the square root of the number of values of an image
# (arXiv 2310.14189, section 3.3).
HUBER_SCALE = 0.00054
# This fraction of a batch of consistency distillation starts at the last timestep, where sampling starts.
DISTILLATION_LAST_SHARE = 1 / 8
# A batch of consistency tuning has these fractions of the last timestep and of uniform angles. The other angles are
# log-normally distributed in sigma / alpha.
TUNING_LAST_SHARE = 0.1
TUNING_UNIFORM_SHARE = 0.25
TUNING_LOG_MEAN, TUNING_LOG_STD = -0.6, 1.6
# At high noise levels, the gaps of consistency tuning have the same length. Below 1 / GAP_GROWTH of the largest angle,
# they are proportional to the angle.
GAP_GROWTH = 5


def compute_angles(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Returns the angle of the clean image and those of all timesteps, float32 `(T + 1,)`."""
    alphas_cumprod = alphas_cumprod.double()
    angles = torch.atan2((1 - alphas_cumprod).sqrt(), alphas_cumprod.sqrt())
    return torch.cat([angles.new_zeros(1), angles]).float()


def rotate(images: torch.Tensor, noise: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    r"""Returns the noisy images $\cos(\theta)\,x_0 + \sin(\theta)\,\epsilon$."""
    angles = angles.view(-1, 1, 1, 1)
    return angles.cos() * images + angles.sin() * noise


def predict_images(
    noisy_images: torch.Tensor, prediction: torch.Tensor, angles: torch.Tensor, prediction_type: PredictionType
) -> torch.Tensor:
    r"""Returns the clean images $f(x_\theta, \theta)$ that the output of a model implies.

    This is $\cos(\theta)\,x_\theta - \sin(\theta)\,v$ for v-prediction (arXiv 2202.00512, appendix D), so that
    $f(x, 0) = x$, as a consistency function requires (arXiv 2303.01469, section 3).
    """
    angles = angles.view(-1, 1, 1, 1)
    if prediction_type == "v_prediction":
        return angles.cos() * noisy_images - angles.sin() * prediction
    if prediction_type == "epsilon":
        return (noisy_images - angles.sin() * prediction) / angles.cos()
    return prediction


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
    r"""Returns $\sqrt{\|x - y\|^2 + c^2} - c$ of each image, `(B,)` (arXiv 2310.14189, section 3.3)."""
    difference = (prediction - target).flatten(1)
    c = HUBER_SCALE * math.sqrt(difference.shape[1])
    return (difference.square().sum(1) + c**2).sqrt() - c


def sample_segments(
    count: int, num_segments: int, num_timesteps: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples segments of consistency distillation (arXiv 2303.01469, algorithm 2), with more of the last one.

    Args:
        count: Number of segments to sample.
        num_segments: Number of equal segments that the timesteps are divided into.
        num_timesteps: Number of timesteps.
        generator: Random generator, which determines the device.

    Returns:
        The later and the earlier timestep of each segment, int64 `(count,)`. -1 is the clean image.
    """
    device = generator.device
    grid = torch.linspace(0, num_timesteps, num_segments + 1, device=device).round().long() - 1
    segments = torch.randint(num_segments, (count,), generator=generator, device=device)
    last = torch.rand(count, generator=generator, device=device) < DISTILLATION_LAST_SHARE
    segments = segments.masked_fill(last, num_segments - 1)
    return grid[segments + 1], grid[segments]


def sample_gaps(
    count: int, num_segments: int, angles: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Samples pairs of timesteps of consistency tuning (arXiv 2406.14548, section 3, with gaps in angles).

    The gap between the angles of a pair is $\min(5\theta, \theta_T) / N$, rounded to at least one timestep, where
    $\theta_T$ is the largest angle and $N$ is `num_segments`.

    Args:
        count: Number of pairs.
        num_segments: Number of gaps that the range of angles would be divided into if all had the maximum length.
        angles: The angles that `compute_angles` returns, `(T + 1,)`.
        generator: Random generator on the device of `angles`.

    Returns:
        The later and the earlier timestep of each pair, int64 `(count,)`. -1 is the clean image.
    """
    normal = torch.randn(count, generator=generator, device=angles.device)
    share, uniform = torch.rand(2, count, generator=generator, device=angles.device)
    sampled = torch.where(
        share < TUNING_LAST_SHARE + TUNING_UNIFORM_SHARE,
        uniform * angles[-1],
        (normal * TUNING_LOG_STD + TUNING_LOG_MEAN).exp().atan(),
    )
    sampled = torch.where(share < TUNING_LAST_SHARE, angles[-1], sampled)
    later = find_timesteps(sampled, angles).clamp(min=0)
    later_angles = angles[later + 1]
    gaps = (GAP_GROWTH * later_angles).clamp(max=angles[-1]) / num_segments
    return later, torch.minimum(find_timesteps(later_angles - gaps, angles), later - 1)


def find_timesteps(values: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Returns the timesteps whose `angles`, as returned by `compute_angles`, are closest to `values`."""
    return torch.bucketize(values, (angles[1:] + angles[:-1]) / 2) - 1
