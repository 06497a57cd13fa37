"""Generates captions of Fashion-MNIST images from their labels and from attributes measured from their pixels."""

from .attributes import (
    ATTRIBUTES,
    Attribute,
    Thresholds,
    check_directions,
    compute_thresholds,
    find_directions,
    load_thresholds,
)
from .captions import Prompt, is_held_out, make_captions, make_test_prompts


__all__ = [
    "ATTRIBUTES",
    "Attribute",
    "Prompt",
    "Thresholds",
    "check_directions",
    "compute_thresholds",
    "find_directions",
    "is_held_out",
    "load_thresholds",
    "make_captions",
    "make_test_prompts",
]
