"""Loads image datasets for training and evaluation, and converts their labels and pixels."""

from .decoding import decode, stream_images
from .errors import DataError
from .fashion_mnist import DEBIAN_FOLDER, DEFAULT_DATASET, FASHION_MNIST_LABELS
from .image_tensors import ImageTensors
from .pixels import to_model_input, to_pil, to_uint8
from .splits import load_images, load_split
from .tensor_file import save_tensors


__all__ = [
    "DEBIAN_FOLDER",
    "DEFAULT_DATASET",
    "FASHION_MNIST_LABELS",
    "DataError",
    "ImageTensors",
    "decode",
    "load_images",
    "load_split",
    "save_tensors",
    "stream_images",
    "to_model_input",
    "to_pil",
    "to_uint8",
]
