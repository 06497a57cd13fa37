"""Names and locations of Fashion-MNIST."""

from collections.abc import Sequence
from pathlib import Path


FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DEFAULT_DATASET = "zalando-datasets/fashion_mnist"
# The Debian package dataset-fashion-mnist installs the IDX files here.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def has_fashion_mnist_order(label_names: Sequence[str] | None) -> bool:
    """Returns whether the classes are those of Fashion-MNIST in their original order, or the numbers 0 to 9."""
    return label_names is not None and tuple(label_names) in (FASHION_MNIST_LABELS, tuple("0123456789"))
