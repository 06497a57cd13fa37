"""Tokenizer of a text-to-image model."""

import json
from collections.abc import Iterable
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from captions import MAX_LENGTH, MAX_VOCAB_SIZE


END_OF_WORD = "</w>"


def make_tokenizer(captions: Iterable[str], vocab_size: int = MAX_VOCAB_SIZE) -> CLIPTokenizer:
    """Trains a byte-level BPE tokenizer on captions.

    Each word of the captions becomes one token if `vocab_size` is large enough. Other words are split into several
    tokens, at most one per byte, so every text has a representation.

    Args:
        captions: The training captions.
        vocab_size: Maximum number of tokens. The tokenizer has fewer tokens if they cover all words.
    """
    tokenizer = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        # Otherwise, the trainer assigns ids to these tokens in random order, and the ids decide ties between merges.
        special_tokens=[byte + END_OF_WORD for byte in alphabet],
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    # The annotation of `CLIPTokenizer` does not include pairs, which it requires.
    merges: Any = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    # The trainer only adds end-of-word tokens for the last bytes of the words in the captions. As in CLIP, every byte
    # can end a word.
    bytes_ = [*alphabet, *(byte + END_OF_WORD for byte in alphabet)]
    merges = merges[: vocab_size - len(bytes_) - 2]
    tokens = [*dict.fromkeys([*bytes_, *(left + right for left, right in merges)]), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)
