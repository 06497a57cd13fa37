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


def normalize_label_names(label_names: Sequence[str]) -> list[str]:
    """
    Returns `FASHION_MNIST_LABELS` if the names only differ from them in spaces, and otherwise the names unchanged.

    The default dataset on the Hub calls the first class "T - shirt / top".
    """
    names = [name.replace(" ", "") for name in label_names]
    is_fashion_mnist = names == [name.replace(" ", "") for name in FASHION_MNIST_LABELS]
    return list(FASHION_MNIST_LABELS if is_fashion_mnist else label_names)


def has_fashion_mnist_order(label_names: Sequence[str] | None) -> bool:
    """
    Returns whether the classes are those of Fashion-MNIST in their original order.

    The names 0 to 9 are accepted, because integer labels have no other names.
    """
    return label_names is not None and tuple(label_names) in (FASHION_MNIST_LABELS, tuple("0123456789"))
