from itertools import chain

import pytest
from transformers import CLIPTokenizer

from fmnist_diffusion.captions import ATTRIBUTES
from fmnist_diffusion.captions.captions import NOUNS, PREFIXES, SUFFIXES
from tokenizer import MAX_LENGTH, make_tokenizer


@pytest.fixture(scope="module")
def captions() -> list[str]:
    attributes = chain.from_iterable(attributes.values() for attributes in ATTRIBUTES.values())
    words = chain.from_iterable((*attribute.low, *attribute.high) for attribute in attributes)
    return [*words, *chain.from_iterable(NOUNS.values()), *PREFIXES, *SUFFIXES]


@pytest.fixture(scope="module")
def tokenizer(captions) -> CLIPTokenizer:
    return make_tokenizer(captions)


def test_each_word_of_the_captions_is_one_token(tokenizer, captions):
    assert len(tokenizer) < 2000
    words = {word for caption in captions for word in caption.replace("-", " ").split()}
    assert "sleeveless" in words
    for word in words:
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert tokenizer.tokenize("A Dark  t-shirt") == ["a</w>", "dark</w>", "t</w>", "-</w>", "shirt</w>"]


@pytest.mark.parametrize("text", ["zebra", "hémisphère", "日本", "🙂", "3%", "darkness"])
def test_unknown_words_are_split_into_known_tokens(tokenizer, text):
    tokens = tokenizer.tokenize(text)
    assert len(tokens) > 1
    ids = tokenizer(text).input_ids
    assert len(ids) == len(tokens) + 2
    assert tokenizer.eos_token_id not in ids[:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text


def test_prompts_have_a_fixed_length(tokenizer):
    texts = ["", "a bag", "zebra " * 50]
    ids = tokenizer(texts, padding="max_length", truncation=True).input_ids
    assert [len(row) for row in ids] == [MAX_LENGTH] * 3
    assert ids[0] == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * (MAX_LENGTH - 1)
    assert ids[2][-1] == tokenizer.eos_token_id


def test_saved_tokenizer_is_equal(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "CLIPTokenizer"
    assert loaded.model_max_length == MAX_LENGTH
    for text in ("a dark bag with a handle", "zebra 日本", ""):
        assert loaded(text).input_ids == tokenizer(text).input_ids


def test_size_of_the_vocabulary_is_limited(captions):
    tokenizer = make_tokenizer(captions, vocab_size=600)
    assert len(tokenizer) <= 600
    assert len(tokenizer.tokenize("sleeveless")) > 1


def test_equal_captions_give_equal_tokenizers():
    """A resumed run and every process of a distributed run train their own tokenizer."""
    captions = ["cat cab can cap cut cup cub bag bad bat bar ban cot cob cog dog dig dip"]
    assert len({tuple(sorted(make_tokenizer(captions).get_vocab().items())) for _ in range(8)}) == 1
