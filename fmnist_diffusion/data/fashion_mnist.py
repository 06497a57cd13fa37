"""Names and locations of Fashion-MNIST."""

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
