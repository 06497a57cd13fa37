from typing import Any

import pytest

from config import DataConfig, EvalConfig, TrainingConfig
from fmnist_diffusion.data import FASHION_MNIST_LABELS, DataSummary
from summary import describe_images, describe_parameters, find_class_warnings


def make_summary(**changes: Any) -> DataSummary:
    values: dict[str, Any] = {
        "num_images": 12,
        "sizes": {(20, 30): 4, (64, 48): 8},
        "channels": 3,
        "num_transparent": 0,
        "label_names": ("cat", "dog"),
        "class_counts": (9, 3),
        "skipped": (),
    }
    return DataSummary(**(values | changes))


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"unet": 3_850_000}, "U-Net with 3.85 M parameters"),
        (
            {"unet": 3_850_000, "text_encoder": 410_000, "vae": 60_000},
            "U-Net with 3.85 M parameters, text encoder with at most 0.41 M, autoencoder with 0.06 M",
        ),
    ],
)
def test_parameters_of_all_components_are_described(parameters: dict[str, int], text: str):
    assert describe_parameters(parameters) == text


def test_images_are_described():
    assert describe_images(DataConfig(train_data_dir="photos"), make_summary()) == [
        "images       12 RGB images from photos",
        "sizes        64x48 (8), 20x30 (4), height x width in pixels",
        "classes      2: cat (9), dog (3)",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"channels": 1}, "images       12 grayscale images from owner/name"),
        ({"num_images": 1}, "images       1 RGB image from owner/name"),
        ({"num_transparent": 1}, "transparency 1 image with transparent pixels, which become white"),
        ({"label_names": None, "class_counts": None}, "classes      none"),
        ({"num_transparent": 5}, "transparency 5 images with transparent pixels, which become white"),
        (
            {"skipped": (("a.txt", "not an image"), ("b.txt", "not an image"), ("c.png", "empty"))},
            "skipped      3 files: a.txt, b.txt (not an image); c.png (empty)",
        ),
        (
            {"skipped": tuple((f"{name}.txt", "not an image") for name in "abcdefgh")},
            "skipped      8 files: a.txt, b.txt, c.txt and 5 more (not an image)",
        ),
        (
            {"label_names": tuple("abcdefghij"), "class_counts": (1,) * 10},
            "classes      10: a (1), b (1), c (1), d (1), e (1), f (1), g (1), h (1) and 2 more",
        ),
        ({"sizes": {(i, i): 1 for i in range(10, 20)}}, "sizes        10x10 (1), 11x11 (1), 12x12 (1), 13x13 (1),"),
    ],
)
def test_special_cases_are_described(changes: dict[str, Any], line: str):
    lines = describe_images(DataConfig(dataset_name="owner/name"), make_summary(**changes))
    assert any(other.startswith(line) for other in lines), lines


def test_classes_without_images_are_reported():
    summary = make_summary(label_names=("cat", "dog", "cow"), class_counts=(9, 0, 0))
    [warning] = find_class_warnings(TrainingConfig(), {"num_class_embeds": 3}, summary)
    assert warning.startswith("There are no training images of dog, cow, so the model cannot learn these classes.")
    assert list(find_class_warnings(TrainingConfig(), {"num_class_embeds": None}, summary)) == []
    assert list(find_class_warnings(TrainingConfig(), {"num_class_embeds": 2}, make_summary())) == []


@pytest.mark.parametrize(
    ("label_names", "num_class_embeds"), [(tuple("0123456789"), 10), (FASHION_MNIST_LABELS[::-1], None)]
)
def test_evaluation_of_other_images_is_reported(label_names: tuple[str, ...], num_class_embeds: int | None):
    config = TrainingConfig(eval=EvalConfig(every_n_epochs=1))
    summary = make_summary(label_names=label_names, class_counts=(1,) * 10)
    [warning] = find_class_warnings(config, {"num_class_embeds": num_class_embeds}, summary)
    assert warning.startswith(
        "`--eval.every_n_epochs` compares the samples with Fashion-MNIST, whose classes have other"
    )
    assert list(find_class_warnings(TrainingConfig(), {"num_class_embeds": 10}, summary)) == []
    summary = make_summary(label_names=FASHION_MNIST_LABELS, class_counts=(1,) * 10)
    assert list(find_class_warnings(config, {"num_class_embeds": 10}, summary)) == []
