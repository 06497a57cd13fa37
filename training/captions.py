"""Captions of the training images."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from fmnist_diffusion.captions import find_directions, make_captions
from fmnist_diffusion.data import FASHION_MNIST_LABELS, ImageTensors
from fmnist_diffusion.pipelines import tokenize


if TYPE_CHECKING:
    from transformers import CLIPTokenizer

logger = logging.getLogger("training")

MAX_VOCAB_SIZE, MAX_LENGTH = 8192, 24  # tokens of the vocabulary and of a caption

MISSING_CAPTIONS = (
    "A text encoder requires images with captions, or the images of Fashion-MNIST at their original size. Add a column"
    " `text` with captions to metadata.csv or to the dataset (one string for each image), or set"
    " `--data.caption_column` to the caption column."
)


def can_be_captioned(label_names: tuple[str, ...] | None, shape: tuple[int, ...]) -> bool:
    """Returns whether captions can be generated, which requires the images of Fashion-MNIST at their original size."""
    return label_names == FASHION_MNIST_LABELS and shape == (1, 28, 28)


class Captions:
    """Captions of images in memory.

    If the data contains no captions, they are generated from the labels and the pixels of Fashion-MNIST. Different
    seeds then give different captions.

    Raises:
        `ValueError`: If the images have no captions and are not those of Fashion-MNIST.
    """

    def __init__(self, images: ImageTensors):
        self.captions, self.labels, self.label_names = images.captions, images.labels, images.label_names
        if images.captions is not None:
            return
        if not can_be_captioned(images.label_names, tuple(images.images.shape[1:])):
            raise ValueError(MISSING_CAPTIONS)
        assert images.labels is not None
        self.directions = find_directions(images.images, images.labels)

    def make(self, seed: int) -> list[str]:
        """Returns one caption for each image."""
        if self.captions is not None:
            return list(self.captions)
        assert self.labels is not None
        return make_captions(self.labels, self.directions, torch.Generator().manual_seed(seed))

    def get_conditions(self) -> dict[str, Any]:
        """Returns a caption for each image, and the labels of Fashion-MNIST, as keyword arguments of [`generate`]."""
        # The evaluation compares the labels with predictions for the classes of Fashion-MNIST.
        labels = {}
        if self.labels is not None and self.label_names == FASHION_MNIST_LABELS:
            labels = {"class_labels": self.labels.tolist()}
        return {"prompts": self.make(0)} | labels

    def make_token_ids(self, tokenizer: CLIPTokenizer, seed: int) -> torch.Tensor:
        """Returns the token ids of one caption for each image, int64 `(N, L)`."""
        return tokenize(tokenizer, self.make(seed))


def log_truncated_captions(tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    """Logs a warning with the number of captions that have too many tokens for the text encoder."""
    lengths = [len(token_ids) for token_ids in tokenizer(captions, verbose=False).input_ids]
    num_truncated = sum(length > tokenizer.model_max_length for length in lengths)
    if num_truncated:
        logger.warning(
            f"Warning: Captions with more than {tokenizer.model_max_length} tokens are truncated ({num_truncated:,} of"
            f" {len(captions):,}). Shorten them so that the text encoder receives all words."
        )
