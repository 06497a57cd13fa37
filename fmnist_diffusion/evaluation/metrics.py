"""Distances between sets of images, on features: the Fréchet and kernel distances, the four manifold metrics, the
nearest training images, the balance of the classes."""

import warnings
from dataclasses import dataclass

import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
NEAREST_K = 5
# Rows of a matrix of distances that are held at a time.
ROWS = 500


class Identity(torch.nn.Identity):
    """To torchmetrics, a network of which the features have been taken already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


@dataclass(frozen=True)
class Moments:
    """What the Fréchet distance knows of a set of images.

    Attributes:
        mean (`torch.Tensor`): Mean of the features, float64 `(num_features,)`.
        covariance (`torch.Tensor`): Their covariance, float64 `(num_features, num_features)`.
        num_images (`int`): How many images they are of.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    num_images: int

    @classmethod
    def of(cls, features: torch.Tensor) -> "Moments":
        """Those of features `(num_images, num_features)`."""
        features = features.double()
        return cls(features.mean(0), features.T.cov(), len(features))


def frechet_distance(features: torch.Tensor, real: Moments) -> float:
    r"""
    The Fréchet distance of arXiv 1706.08500, equation 6, between Gaussians of the features' first two moments.

    Args:
        features (`torch.Tensor`): Features of samples, `(num_images, num_features)`.
        real ([`Moments`]): Of the real images.

    Raises:
        `ValueError`: there are no more images than features, so that the covariance says nothing.
    """
    num_images, num_features = features.shape
    if num_images <= num_features:
        raise ValueError(
            f"the Fréchet distance of {num_features} features needs more than {num_features} images, not"
            f" {num_images}: take more samples"
        )
    metric = FrechetInceptionDistance(Identity(num_features))
    # The state that torchmetrics would have come to on the real images.
    count = real.num_images
    metric.real_features_num_samples = torch.tensor(count)
    metric.real_features_sum = real.mean * count
    metric.real_features_cov_sum = real.covariance * (count - 1) + count * torch.outer(real.mean, real.mean)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def kernel_distance(features: torch.Tensor, real: torch.Tensor, seed: int = 0) -> float:
    """The kernel distance (KID, arXiv 1801.01401): the mean over 100 pairs of random subsets of 1,000.

    Args:
        features, real (`torch.Tensor`): Features of samples and of real images, `(num_images, num_features)`.
        seed (`int`, defaults to 0): Of the choice of the subsets.

    Raises:
        `ValueError`: there are fewer than 1,000 images.
    """
    if min(len(features), len(real)) < KID_SUBSET_SIZE:
        raise ValueError(
            f"the kernel distance needs {KID_SUBSET_SIZE} images, not {min(len(features), len(real))}: take more"
            " samples"
        )
    with warnings.catch_warnings():
        # It keeps all features, which are here anyway.
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(Identity(features.shape[1]), subsets=KID_SUBSETS, subset_size=KID_SUBSET_SIZE)
    metric.update(real.double(), real=True)
    metric.update(features.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return float(metric.compute()[0])


def nearest_neighbours(queries: torch.Tensor, points: torch.Tensor, k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distances, float32 `(num_queries, k)`, from `queries` to their `k` nearest `points`, nearest first,
    and those points' indices; both are of shape `(count, num_features)`."""
    distances, indices = [], []
    for rows in queries.float().split(ROWS):
        # By subtraction, not by products, where the distance may be zero.
        near = torch.cdist(rows, points.float()).topk(k, largest=False)
        indices.append(near.indices)
        distances.append((rows[:, None] - points[near.indices].float()).norm(dim=2))
    return torch.cat(distances), torch.cat(indices)


def manifold_metrics(features: torch.Tensor, real: torch.Tensor, nearest_k: int = NEAREST_K) -> dict[str, float]:
    r"""
    Precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797).

    The definitions are those of the package `prdc`, which holds three whole matrices of float64 distances; this one
    holds a few hundred rows.

    Args:
        features, real (`torch.Tensor`):
            Features of samples and of real images, `(num_images, num_features)`; equal numbers make the values
            comparable with others' .
        nearest_k (`int`, defaults to 5): The neighbour that a point's ball reaches to.

    Raises:
        `ValueError`: there are not more than `nearest_k` images.
    """
    if min(len(features), len(real)) <= nearest_k:
        raise ValueError(
            f"precision and recall need more than {nearest_k} images, not {min(len(features), len(real))}: take more"
            " samples"
        )
    features, real = features.float(), real.float()
    # The nearest of all is the point itself.
    real_radii = nearest_neighbours(real, real, nearest_k + 1)[0][:, -1]
    fake_radii = nearest_neighbours(features, features, nearest_k + 1)[0][:, -1]
    real_balls = torch.zeros(len(features))
    recalled = covered = 0
    for rows, radii in zip(real.split(ROWS), real_radii.split(ROWS), strict=True):
        distances = torch.cdist(rows, features)
        real_balls += (distances < radii[:, None]).sum(0)
        recalled += int((distances < fake_radii).any(1).sum())
        covered += int((distances.amin(1) < radii).sum())
    return {
        "precision": float((real_balls > 0).float().mean()),
        "recall": recalled / len(real),
        "density": float(real_balls.mean()) / nearest_k,
        "coverage": covered / len(real),
    }


def class_shares(classes: torch.Tensor, num_classes: int = 10) -> list[float]:
    """The share of each class among `classes`, int64 `(num_images,)`."""
    return (classes.bincount(minlength=num_classes) / len(classes)).tolist()


def distance_from_uniform(shares: list[float]) -> float:
    """Half the sum of the differences from equal shares (total variation): 0 where classes are balanced, and
    1 - 1 / num_classes where there is only one."""
    return sum(abs(share - 1 / len(shares)) for share in shares) / 2
