from itertools import chain, pairwise

import pytest
import torch

from fmnist_diffusion.captions import ATTRIBUTES, find_directions, is_held_out, make_captions, make_test_prompts
from fmnist_diffusion.captions.captions import NOUNS
from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images


@pytest.fixture(scope="module")
def images(fashion_mnist_folder):
    return load_images(train_data_dir=str(fashion_mnist_folder))


@pytest.fixture(scope="module")
def directions(images):
    return find_directions(images.images, images.labels)


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contains(text: str, words: tuple[str, ...]) -> bool:
    # In a caption, the second phrase starts with "and" instead of "with".
    text = f" {text.replace(' and ', ' with ')} "
    return any(f" {word} " in text for word in words)


def test_captions_depend_on_the_generator_only(images, directions):
    captions = make_captions(images.labels, directions, make_generator())
    assert len(captions) == len(images)
    assert captions == make_captions(images.labels, directions, make_generator())
    assert captions != make_captions(images.labels, directions, make_generator(1))


def test_captions_describe_the_class_and_only_attributes_of_the_image(images, directions):
    captions = make_captions(images.labels, directions, make_generator())
    for caption, label, attributes in zip(captions, images.labels.tolist(), directions, strict=True):
        name = FASHION_MNIST_LABELS[label]
        assert contains(caption, NOUNS[name])
        # "on a black background" does not describe the garment.
        caption = caption.partition(" on ")[0].partition(" against ")[0]
        for key, attribute in ATTRIBUTES[name].items():
            for direction in (-1, 1):
                if contains(caption, attribute.get_words(direction)):
                    assert attributes.get(key) == direction, caption


def test_caption_of_the_null_label_is_empty():
    captions = make_captions(torch.tensor([10, 8, 10]), [{}, {}, {}], make_generator())
    assert [bool(caption) for caption in captions] == [False, True, False]


def test_every_word_is_used(images, directions):
    captions = set()
    for seed in range(100):
        captions |= set(make_captions(images.labels, directions, make_generator(seed)))
    for name, attributes in ATTRIBUTES.items():
        for attribute in attributes.values():
            for word in (*attribute.low, *attribute.high):
                assert any(contains(caption, (word,)) and contains(caption, NOUNS[name]) for caption in captions)


def test_articles(images, directions):
    captions = make_captions(images.labels.repeat(5), directions * 5, make_generator())
    for caption in captions:
        words = caption.split()
        for article, word in pairwise(words):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), caption
                assert word not in ("trousers", "pants")


def test_prompts_never_occur_in_training(images, directions):
    prompts = make_test_prompts(images.labels, directions, 200, make_generator())
    texts = {prompt.text for prompt in prompts}
    assert len(texts) > 100
    for seed in range(50):
        assert not texts & set(make_captions(images.labels, directions, make_generator(seed)))


def test_prompts_request_attributes_of_a_real_image(images, directions):
    prompts = make_test_prompts(images.labels, directions, 200, make_generator())
    labels = torch.tensor([prompt.label for prompt in prompts])
    assert labels.bincount().tolist() == [20] * 10
    for prompt in prompts:
        assert prompt.label == images.labels[prompt.index]
        assert prompt.directions
        assert prompt.directions.items() <= directions[prompt.index].items()
        attributes = ATTRIBUTES[prompt.label_name]
        for key, direction in prompt.directions.items():
            assert contains(prompt.text, attributes[key].get_words(direction))
    assert prompts == make_test_prompts(images.labels, directions, 200, make_generator())


def test_too_few_images_for_the_prompts_are_an_error(images):
    with pytest.raises(ValueError, match=r"combination of attributes for one of the classes\. Pass more images\."):
        make_test_prompts(images.labels[:2], [{}, {}], 5, make_generator())


def test_about_a_tenth_of_the_phrases_is_held_out():
    words = {name: [*chain.from_iterable(a.low + a.high for a in ATTRIBUTES[name].values())] for name in NOUNS}
    phrases = {f"{word} {noun}" for name, nouns in NOUNS.items() for noun in nouns for word in words[name]}
    assert 0.05 * len(phrases) <= sum(map(is_held_out, phrases)) <= 0.15 * len(phrases)
    assert not any(is_held_out(noun) for nouns in NOUNS.values() for noun in nouns)
