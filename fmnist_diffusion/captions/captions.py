"""Generates captions of Fashion-MNIST images from synonyms, attributes and templates."""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fmnist_diffusion.data import FASHION_MNIST_LABELS

from .attributes import ATTRIBUTES


NOUNS: dict[str, tuple[str, ...]] = {
    "T-shirt/top": ("t-shirt", "tee", "top", "tee shirt"),
    "Trouser": ("trousers", "pants", "pair of trousers", "pair of pants"),
    "Pullover": ("pullover", "sweater", "jumper"),
    "Dress": ("dress", "gown"),
    "Coat": ("coat", "jacket"),
    "Sandal": ("sandal", "open shoe"),
    "Shirt": ("shirt", "blouse"),
    "Sneaker": ("sneaker", "trainer", "running shoe"),
    "Bag": ("bag", "handbag", "purse"),
    "Ankle boot": ("ankle boot", "boot", "bootie"),
}
PLURAL_NOUNS = {"trousers", "pants"}
CLASS_NOUNS = [NOUNS[name] for name in FASHION_MNIST_LABELS]
ALL_NOUNS = {noun for nouns in CLASS_NOUNS for noun in nouns}
PREFIXES = (
    "",
    "a photo of ",
    "a snapshot of ",
    "an image of ",
    "a product photo of ",
    "a grayscale photo of ",
    "a small photo of ",
    "a photo showing ",
    "a catalog image of ",
)
SUFFIXES = ("", "", " on a black background", " against a black background", " on black")
ATTRIBUTE_PROBABILITY = 0.6
ARTICLE_PROBABILITY = 0.8
HELD_OUT_FRACTION = 0.1
MAX_ATTEMPTS = 10_000


@dataclass(frozen=True)
class Prompt:
    """
    A prompt with the class and the attributes that it requests.

    Attributes:
        text (`str`): The prompt.
        label (`int`): Class index.
        directions (`dict[str, int]`): Requested attributes, -1 for low and 1 for high values.
        index (`int`): Index of the real image that the prompt describes.
    """

    text: str
    label: int
    directions: dict[str, int]
    index: int

    @property
    def label_name(self) -> str:
        """Name of the class."""
        return FASHION_MNIST_LABELS[self.label]


def make_captions(labels: torch.Tensor, directions: Sequence[dict[str, int]], generator: torch.Generator) -> list[str]:
    """
    Generates a random caption for each image. The captions contain no phrase that [`is_held_out`].

    Args:
        labels (`torch.Tensor`):
            int64 class indices `(num_images,)`. The caption of the null label, which is 10, is empty.
        directions (`Sequence[dict[str, int]]`): Attributes of the images, from [`find_directions`].
        generator (`torch.Generator`): Generator on the CPU.
    """
    rng = _make_rng(generator)
    captions = []
    for label, attributes in zip(labels.tolist(), directions, strict=True):
        if label == len(FASHION_MNIST_LABELS):
            captions.append("")
            continue
        phrase, _ = _make_phrase(label, attributes, rng)
        while is_held_out(phrase):
            phrase, _ = _make_phrase(label, attributes, rng)
        captions.append(_fill_template(phrase, rng))
    return captions


def make_test_prompts(
    labels: torch.Tensor, directions: Sequence[dict[str, int]], num_prompts: int, generator: torch.Generator
) -> list[Prompt]:
    """
    Generates prompts that [`make_captions`] never returns, because their phrases are held out. The list can contain
    duplicates.

    Args:
        labels (`torch.Tensor`): int64 class indices `(num_images,)` of many real images.
        directions (`Sequence[dict[str, int]]`): Attributes of the images. A prompt only requests attributes of one
            image.
        num_prompts (`int`): Number of prompts. It is divided equally among the classes, up to a difference of one.
        generator (`torch.Generator`): Generator on the CPU.

    Raises:
        `ValueError`: If the images of a class have no held-out combination of attributes.
    """
    rng = _make_rng(generator)
    classes = [(labels == label).nonzero().flatten().tolist() for label in labels.unique().tolist()]
    prompts = []
    for position in range(num_prompts):
        for _ in range(MAX_ATTEMPTS):
            index = rng.choice(classes[position % len(classes)])
            label = int(labels[index])
            phrase, requested = _make_phrase(label, directions[index], rng)
            if is_held_out(phrase):
                prompts.append(Prompt(_fill_template(phrase, rng), label, requested, index))
                break
        else:
            raise ValueError(
                "Could not find a held-out combination of attributes for one of the classes. Pass more images."
            )
    return prompts


def is_held_out(phrase: str) -> bool:
    """
    Returns whether a phrase, such as "narrow dark trousers", is reserved for tests. A hash selects about a tenth of
    the phrases. A noun without attributes is never held out.
    """
    return phrase not in ALL_NOUNS and zlib.crc32(phrase.encode()) < HELD_OUT_FRACTION * 2**32


def _make_rng(generator: torch.Generator) -> random.Random:
    # Python's generator is much faster than torch's at sampling single numbers.
    return random.Random(int(torch.randint(2**63 - 1, (), generator=generator)))


def _make_phrase(label: int, directions: dict[str, int], rng: random.Random) -> tuple[str, dict[str, int]]:
    """Returns a noun with words for some of the attributes, such as "dark narrow trousers", and these attributes."""
    names = [name for name in directions if rng.random() < ATTRIBUTE_PROBABILITY]
    rng.shuffle(names)
    attributes = ATTRIBUTES[FASHION_MNIST_LABELS[label]]
    words = [rng.choice(attributes[name].get_words(directions[name])) for name in names]
    adjectives = [word for word in words if not word.startswith("with")]
    endings = [word for word in words if word.startswith("with")]
    # "with a high heel" and "with a tall shaft" become "with a high heel and a tall shaft".
    endings[1:] = ["and " + ending.removeprefix("with ") for ending in endings[1:]]
    phrase = " ".join([*adjectives, rng.choice(CLASS_NOUNS[label]), *endings])
    return phrase, {name: directions[name] for name in names}


def _fill_template(phrase: str, rng: random.Random) -> str:
    words, article = phrase.split(), ""
    is_singular = "pair" in words or not PLURAL_NOUNS & set(words)
    if is_singular and rng.random() < ARTICLE_PROBABILITY:
        article = "an " if phrase[0] in "aeiou" else "a "
    return rng.choice(PREFIXES) + article + phrase + rng.choice(SUFFIXES)
