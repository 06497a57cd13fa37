"""Consistency functions for Gaussian data, which are known in closed form, and the sampled segments."""

import itertools
import math

import pytest
import torch
from diffusers import DDPMScheduler

from consistency import (
    ddim_step,
    get_angles,
    predict_images,
    pseudo_huber_loss,
    rotate,
    sample_segments,
)
from fmnist_diffusion.objectives import PredictionType


# All images are within [-1, 1], so that clamping has no effect.
MEAN, STD = 0.3, 0.1


def denoise(noisy: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Returns the mean of the clean images given the noisy ones, for data from N(MEAN, STD**2)."""
    cos, sin = angles.cos().view(-1, 1, 1, 1), angles.sin().view(-1, 1, 1, 1)
    return MEAN + STD**2 * cos / (STD**2 * cos**2 + sin**2) * (noisy - cos * MEAN)


def solve(noisy: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Solves the probability flow ODE up to angle 0: the exact consistency function."""
    cos, sin = angles.cos().view(-1, 1, 1, 1), angles.sin().view(-1, 1, 1, 1)
    return MEAN + STD * (noisy - cos * MEAN) / (STD**2 * cos**2 + sin**2).sqrt()


def get_cosine_angles() -> torch.Tensor:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True)
    return get_angles(scheduler.alphas_cumprod)


def sample_noisy_images(angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = MEAN + STD * torch.randn(16, 1, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(16, 1, 4, 4, generator=generator, dtype=torch.float64)
    angles = torch.full((16,), angle, dtype=torch.float64)
    return rotate(images, noise, angles), angles


@pytest.mark.parametrize("angle", [0.4, 1.2, math.pi / 2])
def test_ddim_steps_converge_to_the_consistency_function(angle: float):
    errors = []
    for num_steps in (20, 40, 80):
        noisy, angles = sample_noisy_images(angle)
        exact = solve(noisy, angles)
        for _ in range(num_steps):
            next_angles = angles - angle / num_steps
            noisy = ddim_step(noisy, denoise(noisy, angles), angles, next_angles)
            angles = next_angles
        errors.append(float((noisy - exact).abs().max()))
    # The error of a first-order solver is proportional to the size of a step.
    assert errors[0] < 0.2
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.15)
    assert errors[2] == pytest.approx(errors[1] / 2, rel=0.15)


def test_only_the_consistency_function_is_constant_on_a_trajectory():
    noisy, angles = sample_noisy_images(1.2)
    changes = {solve: [], denoise: []}
    for gap in (0.1, 0.05):
        earlier = ddim_step(noisy, denoise(noisy, angles), angles, angles - gap)
        for function, values in changes.items():
            values.append(float((function(noisy, angles) - function(earlier, angles - gap)).norm()))
    # The consistency function changes by the error of the solver, O(gap**2). Other functions change by O(gap).
    assert changes[solve][1] == pytest.approx(changes[solve][0] / 4, rel=0.2)
    assert changes[denoise][1] == pytest.approx(changes[denoise][0] / 2, rel=0.2)
    assert changes[denoise][1] > 10 * changes[solve][1]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_prediction_determines_the_image(prediction_type: PredictionType):
    images, noise = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64)
    angles = torch.tensor([0.1, 0.8, 1.5], dtype=torch.float64)
    outputs = {"epsilon": noise, "v_prediction": rotate(noise, -images, angles), "sample": images}
    predicted = predict_images(rotate(images, noise, angles), outputs[prediction_type], angles, prediction_type)
    torch.testing.assert_close(predicted, images)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_clean_image_is_a_fixed_point(prediction_type: PredictionType):
    images, output = torch.randn(2, 3, 1, 4, 4)
    assert torch.equal(predict_images(images, output, torch.zeros(3), prediction_type), images)


def test_pseudo_huber_loss_is_the_norm_of_large_differences_and_quadratic_for_small_ones():
    zeros, c = torch.zeros(1, 1, 28, 28), 0.00054 * 28
    large = torch.zeros(1, 1, 28, 28)
    large[0, 0, 0, :2] = torch.tensor([3.0, 4.0])
    assert pseudo_huber_loss(large, zeros).item() == pytest.approx(5 - c, rel=1e-4)
    assert pseudo_huber_loss(large / 5000, zeros).item() == pytest.approx(0.001**2 / 2 / c, rel=0.01)
    assert pseudo_huber_loss(zeros, zeros).item() == pytest.approx(0, abs=1e-8)


def test_angles_are_those_of_the_noise_schedule():
    scheduler = DDPMScheduler()
    angles = get_angles(scheduler.alphas_cumprod)
    assert angles[0] == 0
    torch.testing.assert_close(angles[1:].cos().square(), scheduler.alphas_cumprod)
    assert get_cosine_angles()[-1] == pytest.approx(math.pi / 2, abs=1e-6)


@pytest.mark.parametrize(("num_segments", "num_timesteps"), [(32, 1000), (1, 1000), (10, 10)])
def test_segments_divide_the_timesteps(num_segments: int, num_timesteps: int):
    later, earlier = sample_segments(20_000, num_segments, num_timesteps, torch.Generator().manual_seed(0))
    pairs = sorted({(int(first), int(second)) for first, second in zip(earlier, later, strict=True)})
    assert len(pairs) == num_segments
    assert pairs[0][0] == -1 and pairs[-1][1] == num_timesteps - 1
    for (_, end), (start, _) in itertools.pairwise(pairs):
        assert end == start
    lengths = [end - start for start, end in pairs]
    assert max(lengths) - min(lengths) <= 1
    expected = 1 / 4 + 3 / 4 / num_segments
    assert (later == num_timesteps - 1).float().mean().item() == pytest.approx(expected, abs=0.01)
