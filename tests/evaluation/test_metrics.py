"""The distances against other implementations of them, and against what must come out."""

import numpy as np
import prdc
import pytest
import scipy.linalg
import torch

from fmnist_diffusion.evaluation.metrics import (
    Moments,
    class_shares,
    distance_from_uniform,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    nearest_neighbours,
)


def normal(count: int, num_features: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, num_features, generator=generator) * torch.linspace(0.5, 2, num_features) + shift


def test_frechet_distance_of_gaussians_is_the_formula():
    features = normal(4000, 8, shift=3.0)
    real = Moments(torch.zeros(8).double(), torch.eye(8).double() * 4, 1000)
    fake = Moments.of(features)
    # With a multiple of the identity the root of the product is that of the eigenvalues.
    roots = (4 * torch.linalg.eigvalsh(fake.covariance)).sqrt()
    expected = fake.mean.square().sum() + fake.covariance.trace() + 32 - 2 * roots.sum()
    assert frechet_distance(features, real) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_distance_agrees_with_scipys_matrix_root(test_features: torch.Tensor):
    """pytorch-fid's computation: `scipy.linalg.sqrtm` of the product of NumPy's covariances."""
    one, other = test_features[:5000], test_features[5000:]
    mean1, mean2 = (np.mean(x.double().numpy(), axis=0) for x in (one, other))
    cov1, cov2 = (np.cov(x.double().numpy(), rowvar=False) for x in (one, other))
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * root)
    assert frechet_distance(one, Moments.of(other)) == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_to_itself_is_zero():
    features = normal(500, 16)
    assert frechet_distance(features, Moments.of(features)) == pytest.approx(0, abs=1e-8)


def test_too_few_images_are_refused_in_words():
    few = normal(50, 64)
    with pytest.raises(ValueError, match="needs more than 64 images, not 50: take more samples"):
        frechet_distance(few, Moments.of(normal(500, 64)))
    with pytest.raises(ValueError, match="needs 1000 images, not 50"):
        kernel_distance(few, normal(2000, 64))
    with pytest.raises(ValueError, match="more than 5 images, not 3"):
        manifold_metrics(few[:3], few)


def test_kernel_distance_is_the_unbiased_estimate():
    """Equation 4 of arXiv 1801.01401 on one pair of sets, of which every subset is the whole."""
    one, other = normal(1000, 4), normal(1000, 4, seed=1, shift=0.5)
    k = [((a.double() @ b.double().T / 4 + 1) ** 3) for a, b in ((one, one), (other, other), (one, other))]
    within = sum((m.sum() - m.trace()) / (1000 * 999) for m in k[:2])
    assert kernel_distance(one, other) == pytest.approx(float(within - 2 * k[2].mean()), rel=1e-3)


def test_kernel_distance_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = kernel_distance(normal(1500, 4), normal(1500, 4, seed=1))
    assert torch.equal(torch.rand(3), expected)
    assert kernel_distance(normal(1500, 4), normal(1500, 4, seed=1)) == first


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_manifold_metrics_agree_with_prdc(shift: float):
    real, fake = normal(1203, 16), normal(950, 16, seed=1, shift=shift)
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    assert manifold_metrics(fake, real) == pytest.approx(expected, abs=2e-3)


def test_nearest_neighbours_are_the_nearest_and_copies_are_at_zero():
    points = normal(1300, 32)
    queries = torch.cat([points[[7, 1200]], normal(3, 32, seed=1)])
    distances, indices = nearest_neighbours(queries, points, k=3)
    exact = (queries[:, None].double() - points.double()).norm(dim=2)
    assert torch.equal(indices, exact.argsort(1)[:, :3])
    assert distances[:2, 0].tolist() == [0, 0]
    assert torch.allclose(distances.double(), exact.sort(1).values[:, :3])


def test_shares_and_their_distance_from_uniform():
    assert distance_from_uniform(class_shares(torch.arange(10).repeat(5))) == pytest.approx(0, abs=1e-6)
    assert distance_from_uniform(class_shares(torch.zeros(50, dtype=torch.int64))) == pytest.approx(0.9)
    assert class_shares(torch.tensor([1, 1, 9, 0]))[:2] == [0.25, 0.5]
