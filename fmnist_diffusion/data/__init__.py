"""Loads image datasets for training and evaluation, and converts their labels and pixels."""

from .augmentation import augment
from .conversion import convert_image
from .decoding import ImageStream, decode
from .errors import DataError
from .fashion_mnist import DEBIAN_FOLDER, DEFAULT_DATASET, FASHION_MNIST_LABELS, has_fashion_mnist_order
from .image_tensors import ImageTensors
from .pixels import get_height_width, to_model_input, to_pil, to_uint8
from .reading import read_header, read_image
from .sources import DataSource
from .splits import inspect_images, load_images, load_split
from .summary import DataSummary
from .tensor_file import save_tensors


__all__ = [
    "DEBIAN_FOLDER",
    "DEFAULT_DATASET",
    "FASHION_MNIST_LABELS",
    "DataError",
    "DataSource",
    "DataSummary",
    "ImageStream",
    "ImageTensors",
    "augment",
    "convert_image",
    "decode",
    "get_height_width",
    "has_fashion_mnist_order",
    "inspect_images",
    "load_images",
    "load_split",
    "read_header",
    "read_image",
    "save_tensors",
    "to_model_input",
    "to_pil",
    "to_uint8",
]
