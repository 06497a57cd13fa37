"""Pretrained weights in a model with other channels or classes: both models must make the same predictions."""

from typing import Any

import pytest
import torch

from adaptation import find_old_labels, load_adapted_weights
from fmnist_diffusion import FashionMNISTUNet2DModel


TINY: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "attention_head_dim": 8,
    "norm_type": "group",
    "norm_num_groups": 4,
}
CLASSES: dict[str, Any] = {"num_class_embeds": 2, "label_names": ("Cat", "dog")}


def make_model(channels: int = 1, **options: Any) -> FashionMNISTUNet2DModel:
    unet = FashionMNISTUNet2DModel(in_channels=channels, out_channels=channels, **TINY, **options).eval()
    # PyTorch initializes biases of convolutions at random, but an untrained class embedding could be small.
    if unet.class_embedding is not None:
        torch.nn.init.normal_(unet.class_embedding.weight, std=3)
    return unet


def adapt(pretrained: FashionMNISTUNet2DModel, channels: int = 1, **options: Any) -> FashionMNISTUNet2DModel:
    unet = make_model(channels, **options)
    load_adapted_weights(unet, pretrained)
    return unet


@torch.no_grad()
def predict(unet: FashionMNISTUNet2DModel, images: torch.Tensor, label: int | None = None) -> torch.Tensor:
    labels = None if label is None else torch.full((len(images),), label)
    return unet(images, torch.tensor([10, 700]), labels).sample


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 1, 12, 10)


def test_grayscale_model_predicts_gray_images_in_rgb(images: torch.Tensor):
    gray = make_model()
    rgb = adapt(gray, 3)
    torch.testing.assert_close(predict(rgb, images.expand(-1, 3, -1, -1)), predict(gray, images).expand(-1, 3, -1, -1))


def test_rgb_model_predicts_the_mean_of_its_channels_in_grayscale(images: torch.Tensor):
    rgb = make_model(3)
    gray = adapt(rgb, 1)
    expected = predict(rgb, images.expand(-1, 3, -1, -1)).mean(dim=1, keepdim=True)
    torch.testing.assert_close(predict(gray, images), expected)


def test_same_channels_and_classes_keep_all_weights():
    pretrained = make_model(3, **CLASSES)
    for name, weight in adapt(pretrained, 3, **CLASSES).state_dict().items():
        assert torch.equal(weight, pretrained.state_dict()[name]), name


def test_same_names_keep_their_classes_and_new_ones_start_as_the_null_label(images: torch.Tensor):
    pretrained = make_model(**CLASSES)
    unet = adapt(pretrained, num_class_embeds=3, label_names=("cat", "horse", "dog"))
    for label, old_label in ((0, 0), (1, 2), (2, 1), (3, 2)):
        torch.testing.assert_close(predict(unet, images, label), predict(pretrained, images, old_label))
    assert not torch.allclose(predict(unet, images, 0), predict(unet, images, 1))


def test_the_same_number_of_classes_without_names_keeps_the_classes(images: torch.Tensor):
    pretrained = make_model(num_class_embeds=2)
    unet = adapt(pretrained, **CLASSES)
    for label in range(3):
        torch.testing.assert_close(predict(unet, images, label), predict(pretrained, images, label))
    assert not torch.allclose(predict(unet, images, 0), predict(unet, images, 1))


def test_unconditional_model_predicts_what_the_null_label_predicted(images: torch.Tensor):
    pretrained = make_model(**CLASSES)
    torch.testing.assert_close(predict(adapt(pretrained), images), predict(pretrained, images))
    assert not torch.allclose(predict(pretrained, images), predict(pretrained, images, 0))


def test_classes_of_an_unconditional_model_start_without_an_effect(images: torch.Tensor):
    pretrained = make_model()
    unet = adapt(pretrained, **CLASSES)
    for label in range(3):
        torch.testing.assert_close(predict(unet, images, label), predict(pretrained, images))


def test_channels_and_classes_change_together(images: torch.Tensor):
    pretrained = make_model(**CLASSES)
    unet = adapt(pretrained, 3, num_class_embeds=1, label_names=("DOG",))
    expected = predict(pretrained, images, 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(predict(unet, images.expand(-1, 3, -1, -1), 0), expected)


@pytest.mark.parametrize(
    ("old_names", "names", "expected"),
    [
        (("a", "b"), ("B", "c"), [1, None]),
        # An exact match has priority, then the first one.
        (("A", "a"), ("a", "A"), [1, 0]),
        (("Ä", "SS"), ("ä", "ß"), [0, 1]),
        (("e\u0301",), ("\u00c9",), [0]),
        ((), ("a",), [None]),
    ],
)
def test_class_names_match_ignoring_case_and_normalization(old_names: tuple, names: tuple, expected: list):
    assert find_old_labels(old_names, len(old_names), names) == expected
