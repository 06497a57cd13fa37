"""Metrics of feature vectors (Fréchet distance, kernel distance, manifold metrics, nearest neighbors) and classes."""

from dataclasses import dataclass

import torch
from torchmetrics.image.kid import poly_mmd

from fmnist_diffusion.data import FASHION_MNIST_LABELS


KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
NEAREST_K = 5
# To limit memory usage, distance matrices are computed in blocks of rows, and points are converted in blocks.
BLOCK_ROWS = 500
BLOCK_VALUES = 2**26


@dataclass(frozen=True)
class Moments:
    """
    Mean and covariance of the features of a set of images.

    Attributes:
        mean (`torch.Tensor`): Mean, float64 `(num_features,)`.
        covariance (`torch.Tensor`): Covariance, float64 `(num_features, num_features)`.
        num_images (`int`): Number of images.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    num_images: int


def compute_moments(features: torch.Tensor) -> Moments:
    """Computes the moments of features `(num_images, num_features)` in float64."""
    features = features.double()
    return Moments(features.mean(0), features.T.cov(), len(features))


def frechet_distance(features: torch.Tensor, real: Moments) -> float:
    r"""
    Computes the Fréchet distance between Gaussian fits of two sets of features (arXiv 1706.08500, equation 6).

    In Inception features, this distance is FID.

    Args:
        features (`torch.Tensor`): Features of the samples, `(num_images, num_features)`.
        real ([`Moments`]): Moments of the features of the real images.

    Raises:
        `ValueError`: If there are at most as many images as features, because the covariance would be singular.
    """
    num_images, num_features = features.shape
    if num_images <= num_features:
        raise ValueError(
            f"The Fréchet distance requires more images than features: at least {num_features + 1} images, got"
            f" {num_images}."
        )
    samples = compute_moments(features)
    # The trace of a matrix square root is the sum of the square roots of the eigenvalues of the matrix.
    trace_of_root = torch.linalg.eigvals(real.covariance @ samples.covariance).sqrt().real.sum()
    traces = real.covariance.trace() + samples.covariance.trace() - 2 * trace_of_root
    return float((real.mean - samples.mean).square().sum() + traces)


def kernel_distance(features: torch.Tensor, real: torch.Tensor) -> tuple[float, float]:
    """
    Computes the kernel distance (KID, arXiv 1801.01401) of 100 pairs of random subsets.

    The subsets have 1,000 images, or half of the smaller set if it has fewer than 2,000, so that the subsets differ.
    They are always the same, and the global random state is not changed.

    Args:
        features, real (`torch.Tensor`):
            Features of the samples and of the real images, `(num_images, num_features)`.

    Returns:
        `tuple[float, float]`: Mean and standard deviation over the pairs of subsets. The mean is an unbiased estimate
            for every number of images.

    Raises:
        `ValueError`: If there are fewer than 4 images.
    """
    num_images = min(len(features), len(real))
    if num_images < 4:
        raise ValueError(f"The kernel distance requires at least 4 images, got {num_images}.")
    features, real = features.double(), real.double()
    size, generator = min(KID_SUBSET_SIZE, num_images // 2), torch.Generator().manual_seed(0)
    distances = []
    for _ in range(KID_SUBSETS):
        real_indices = torch.randperm(len(real), generator=generator)[:size]
        indices = torch.randperm(len(features), generator=generator)[:size]
        distances.append(poly_mmd(real[real_indices], features[indices]))
    return float(torch.stack(distances).mean()), float(torch.stack(distances).std(correction=0))


def nearest_neighbors(queries: torch.Tensor, points: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Finds the `k` nearest `points` of each query by Euclidean distance.

    Args:
        queries, points (`torch.Tensor`):
            Vectors `(num_queries, num_features)` and `(num_points, num_features)`. Values of type uint8, such as
            pixels, are scaled to [0, 1].
        k (`int`, defaults to 1): Number of neighbors.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Distances, float32, and indices into `points`, int64, both
            `(num_queries, k)` with the nearest point first.
    """
    num_queries, num_features = queries.shape
    nearest = torch.full((num_queries, k), torch.inf)
    indices = torch.zeros(num_queries, k, dtype=torch.int64)
    num_points = max(k, BLOCK_VALUES // num_features)
    for start in range(0, len(points), num_points):
        block = to_float(points[start : start + num_points])
        for first in range(0, num_queries, BLOCK_ROWS):
            rows = slice(first, first + BLOCK_ROWS)
            distances = torch.cdist(to_float(queries[rows]), block)
            # The points of this block compete with the nearest points of the previous blocks.
            found = torch.cat([nearest[rows], distances], dim=1).topk(k, largest=False)
            is_previous = found.indices < k
            previous = indices[rows].gather(1, found.indices.where(is_previous, 0))
            indices[rows] = previous.where(is_previous, found.indices - k + start)
            nearest[rows] = found.values
    for first in range(0, num_queries, BLOCK_ROWS):
        rows = slice(first, first + BLOCK_ROWS)
        # `cdist` uses matrix products, which are inaccurate for small distances, so the distances are recomputed by
        # subtraction.
        distances = (to_float(queries[rows])[:, None] - to_float(points[indices[rows]])).norm(dim=2)
        nearest[rows], order = distances.sort(dim=1)
        indices[rows] = indices[rows].gather(1, order)
    return nearest, indices


def to_float(vectors: torch.Tensor) -> torch.Tensor:
    """Converts vectors to float32, and uint8 vectors to float32 in [0, 1]."""
    return vectors.float() / 255 if vectors.dtype == torch.uint8 else vectors.float()


def manifold_metrics(features: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    r"""
    Computes precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    The radius around each point is the distance to its fifth nearest neighbor. The results equal those of the package
    `prdc`. This function requires less memory, because it only computes 500 rows of the distance matrices at a time.

    Args:
        features, real (`torch.Tensor`):
            Features of the samples and of the real images, `(num_images, num_features)`. Published values use equal
            numbers of samples and real images.

    Returns:
        `dict[str, float]`: `precision`, `recall` and `coverage` in [0, 1], and `density`, which is 1 on average for
            real images.

    Raises:
        `ValueError`: If there are fewer than 6 images.
    """
    num_images = min(len(features), len(real))
    if num_images <= NEAREST_K:
        raise ValueError(f"Precision and recall require at least {NEAREST_K + 1} images, got {num_images}.")
    features, real = features.float(), real.float()
    # The nearest neighbor of each point is the point itself, which does not count.
    real_radii = nearest_neighbors(real, real, NEAREST_K + 1)[0][:, -1]
    fake_radii = nearest_neighbors(features, features, NEAREST_K + 1)[0][:, -1]
    num_balls = torch.zeros(len(features))
    recalled = covered = 0
    for rows, radii in zip(real.split(BLOCK_ROWS), real_radii.split(BLOCK_ROWS), strict=True):
        distances = torch.cdist(rows, features)
        num_balls += (distances < radii[:, None]).sum(0)
        recalled += int((distances < fake_radii).any(1).sum())
        covered += int((distances.amin(1) < radii).sum())
    return {
        "precision": float((num_balls > 0).float().mean()),
        "recall": recalled / len(real),
        "density": float(num_balls.mean()) / NEAREST_K,
        "coverage": covered / len(real),
    }


def class_shares(classes: torch.Tensor) -> list[float]:
    """Computes the share of each class of Fashion-MNIST, in [0, 1], among `classes`, int64 `(num_images,)`."""
    return (classes.bincount(minlength=len(FASHION_MNIST_LABELS)) / len(classes)).tolist()


def distance_from_uniform(shares: list[float]) -> float:
    """
    Computes the total variation distance between class shares and the uniform distribution.

    The distance is between 0 (all classes have equal shares) and 1 - 1 / num_classes (there is only one class).
    """
    return sum(abs(share - 1 / len(shares)) for share in shares) / 2
