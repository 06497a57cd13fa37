"""Adapts the weights of a pretrained model to other channels and classes."""

import unicodedata
from collections.abc import Sequence

import torch
from torch import nn

from fmnist_diffusion import FashionMNISTUNet2DModel


FIRST_CONV = "down_blocks.0.conv.weight"
LAST_CONV = ("conv_out.weight", "conv_out.bias")
CLASS_EMBEDDING = "class_embedding.weight"
# This bias is added to the time embedding, like a class embedding.
TIME_EMBEDDING_BIAS = "time_embedding.linear_2.bias"


@torch.no_grad()
def load_adapted_weights(unet: FashionMNISTUNet2DModel, pretrained: FashionMNISTUNet2DModel) -> None:
    """Loads the weights of `pretrained` into `unet`, whose channels and classes may differ.

    Before it is trained, `unet` makes the same predictions for gray images as `pretrained`:

    - Every input channel gets the same share of the sum of the old weights, and every output channel gets the mean of
      the old output channels.
    - A class keeps its embedding if the old model has a class with the same name. Other classes start with the
      embedding of the null label or, if the old model is unconditional, with an embedding of zero.
    - An unconditional `unet`, or a text-conditional one with an embedding of zero, predicts what a class-conditional
      `pretrained` predicts for the null label.
    """
    weights = pretrained.state_dict()
    in_channels, out_channels = unet.config["in_channels"], unet.config["out_channels"]
    if in_channels != pretrained.config["in_channels"]:
        summed = weights[FIRST_CONV].sum(dim=1, keepdim=True)
        weights[FIRST_CONV] = summed.expand(-1, in_channels, -1, -1) / in_channels
    if out_channels != pretrained.config["out_channels"]:
        for name in LAST_CONV:
            mean = weights[name].mean(dim=0, keepdim=True)
            weights[name] = mean.expand(out_channels, *mean.shape[1:])
    embeddings = weights.pop(CLASS_EMBEDDING, None)
    if isinstance(unet.class_embedding, nn.Embedding):
        weights[CLASS_EMBEDDING] = adapt_embeddings(unet, pretrained, embeddings)
    elif embeddings is not None:
        weights[TIME_EMBEDDING_BIAS] = weights[TIME_EMBEDDING_BIAS] + embeddings[-1]
    unet.load_state_dict(weights)


def adapt_embeddings(
    unet: FashionMNISTUNet2DModel, pretrained: FashionMNISTUNet2DModel, embeddings: torch.Tensor | None
) -> torch.Tensor:
    """Returns the embeddings of the `K` classes and of the null label of `unet`, `(K + 1, D)`."""
    assert isinstance(unet.class_embedding, nn.Embedding)
    if embeddings is None:
        return torch.zeros_like(unet.class_embedding.weight)
    null_label = len(embeddings) - 1
    old_labels = find_old_labels(pretrained.config["label_names"], null_label, unet.config["label_names"])
    index = [null_label if label is None else label for label in old_labels]
    return embeddings[[*index, null_label]]


def find_old_labels(old_names: Sequence[str] | None, num_old: int, names: Sequence[str]) -> list[int | None]:
    """Returns the label of the old class with the same name, ignoring case and Unicode normalization, for each of
    `names`.

    New classes get `None`. If the `num_old` old classes have no names, as many new classes keep their labels.
    """

    def normalize(name: str) -> str:
        return unicodedata.normalize("NFC", name.casefold())

    if old_names is None:
        old_names = names if len(names) == num_old else ()
    labels = {normalize(name): label for label, name in reversed(list(enumerate(old_names)))}
    exact = {name: label for label, name in enumerate(old_names)}
    return [exact.get(name, labels.get(normalize(name))) for name in names]
