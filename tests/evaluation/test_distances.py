import numpy as np
import prdc
import pytest
import scipy.linalg
import torch

from fmnist_diffusion.evaluation import distances
from fmnist_diffusion.evaluation.distances import (
    Moments,
    class_shares,
    compute_moments,
    distance_from_uniform,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    nearest_neighbors,
)


def sample_normal(count: int, num_features: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, num_features, generator=generator) * torch.linspace(0.5, 2, num_features) + shift


@pytest.fixture
def few_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduces the number of subsets of the kernel distance, which take most of its time."""
    monkeypatch.setattr(distances, "KID_SUBSETS", 3)


def test_frechet_distance_equals_the_formula():
    features = sample_normal(4000, 8, shift=3.0)
    real = Moments(torch.zeros(8).double(), torch.eye(8).double() * 4, 1000)
    fake = compute_moments(features)
    # If one covariance is a multiple of the identity, the matrix square root is that of the eigenvalues.
    roots = (4 * torch.linalg.eigvalsh(fake.covariance)).sqrt()
    expected = fake.mean.square().sum() + fake.covariance.trace() + 32 - 2 * roots.sum()
    assert frechet_distance(features, real) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_distance_equals_the_computation_of_pytorch_fid():
    """pytorch-fid uses `scipy.linalg.sqrtm` of the product of NumPy's covariances."""
    features, other = sample_normal(1000, 128), sample_normal(1000, 128, seed=1, shift=0.3)
    mean1, mean2 = (np.mean(x.double().numpy(), axis=0) for x in (features, other))
    cov1, cov2 = (np.cov(x.double().numpy(), rowvar=False) for x in (features, other))
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * root)
    assert frechet_distance(features, compute_moments(other)) == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_of_equal_features_is_zero():
    features = sample_normal(500, 16)
    assert frechet_distance(features, compute_moments(features)) == pytest.approx(0, abs=1e-8)


def test_too_few_images_raise_an_error():
    few = sample_normal(50, 64)
    with pytest.raises(ValueError, match=r"at least 65 images, got 50\."):
        frechet_distance(few, compute_moments(sample_normal(500, 64)))
    with pytest.raises(ValueError, match=r"at least 4 images, got 3\."):
        kernel_distance(few[:3], sample_normal(2000, 64))
    with pytest.raises(ValueError, match=r"at least 6 images, got 3\."):
        manifold_metrics(few[:3], few)


def compute_kernel_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The unbiased estimate with all images (arXiv 1801.01401, equation 4)."""
    one, other = one.double(), other.double()
    n = len(one)
    k = [((a @ b.T / a.shape[1] + 1) ** 3) for a, b in ((one, one), (other, other), (one, other))]
    return float(sum((m.sum() - m.trace()) / (n * (n - 1)) for m in k[:2]) - 2 * k[2].mean())


def test_kernel_distance_of_few_images_is_unbiased():
    one, other = sample_normal(60, 4), sample_normal(60, 4, seed=1, shift=1.0)
    mean, std = kernel_distance(one, other)
    assert std > 0
    # The mean of 100 pairs of random subsets differs from the estimate with all images by a few standard errors.
    assert mean == pytest.approx(compute_kernel_distance(one, other), abs=std * 4 / 10)


def test_subsets_of_the_kernel_distance_have_at_most_1000_images(monkeypatch: pytest.MonkeyPatch):
    """If random permutations keep the order, each subset contains the first images."""
    monkeypatch.setattr(distances, "KID_SUBSETS", 2)
    monkeypatch.setattr(torch, "randperm", lambda count, generator: torch.arange(count))
    one, other = sample_normal(2500, 4), sample_normal(2500, 4, seed=1, shift=0.5)
    for count, size in ((2500, 1000), (100, 50)):
        mean, std = kernel_distance(one[:count], other[:count])
        assert mean == pytest.approx(compute_kernel_distance(one[:size], other[:size]), rel=1e-3)
        assert std == pytest.approx(0, abs=1e-12)


@pytest.mark.usefixtures("few_subsets")
def test_kernel_distance_keeps_the_global_random_state():
    one, other = sample_normal(1500, 4), sample_normal(1500, 4, seed=1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = kernel_distance(one, other)
    assert torch.equal(torch.rand(3), expected)
    assert kernel_distance(one, other) == first


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_manifold_metrics_equal_those_of_prdc(shift: float):
    real, fake = sample_normal(1203, 16), sample_normal(950, 16, seed=1, shift=shift)
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    assert manifold_metrics(fake, real) == pytest.approx(expected, abs=2e-3)


def test_duplicated_samples_reduce_recall_and_coverage():
    real, fake = sample_normal(1000, 8), sample_normal(1000, 8, seed=1)
    metrics = manifold_metrics(fake, real)
    duplicated = manifold_metrics(torch.cat([fake[:500]] * 2), real)
    assert duplicated["coverage"] < metrics["coverage"]
    assert duplicated["recall"] < metrics["recall"]
    assert duplicated["precision"] == pytest.approx(metrics["precision"], abs=0.05)


def test_nearest_neighbors_are_exact():
    points = sample_normal(1300, 32)
    queries = torch.cat([points[[7, 1200]], sample_normal(3, 32, seed=1)])
    found, indices = nearest_neighbors(queries, points, k=3)
    exact = (queries[:, None].double() - points.double()).norm(dim=2)
    assert torch.equal(indices, exact.argsort(1)[:, :3])
    assert found[:2, 0].tolist() == [0, 0]
    assert torch.allclose(found.double(), exact.sort(1).values[:, :3])


def test_nearest_neighbors_of_near_duplicates_are_sorted():
    points = 100 + 1e-3 * sample_normal(500, 16)
    found, indices = nearest_neighbors(points, points, k=4)
    assert (found.diff(dim=1) >= 0).all()
    assert torch.equal(found, (points[:, None] - points[indices]).norm(dim=2))


def test_nearest_neighbors_are_found_in_blocks(monkeypatch: pytest.MonkeyPatch):
    points = torch.randint(0, 256, (700, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = nearest_neighbors(points[:50], points, k=3)
    assert expected[1][:, 0].tolist() == list(range(50))
    assert expected[0].max() <= 12**0.5
    monkeypatch.setattr(distances, "BLOCK_VALUES", 12 * 100)
    monkeypatch.setattr(distances, "BLOCK_ROWS", 7)
    found = nearest_neighbors(points[:50], points, k=3)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_class_shares_and_distance_from_uniform():
    assert distance_from_uniform(class_shares(torch.arange(10).repeat(5))) == pytest.approx(0, abs=1e-6)
    assert distance_from_uniform(class_shares(torch.zeros(50, dtype=torch.int64))) == pytest.approx(0.9)
    assert class_shares(torch.tensor([1, 1, 9, 0]))[:2] == [0.25, 0.5]
