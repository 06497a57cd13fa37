"""Measures the alignment of generated images with their prompts."""

from collections.abc import Sequence
from typing import Any

import torch

from fmnist_diffusion.captions import Prompt, check_directions

from .classifier import Classifier


def measure_alignment(images: torch.Tensor, prompts: Sequence[Prompt], classifier: Classifier) -> dict[str, Any]:
    """
    Measures how many images have the requested class and attributes.

    Args:
        images (`torch.Tensor`): uint8 pixels `(num_prompts, 1, 28, 28)`.
        prompts (`Sequence[Prompt]`): The prompt of each image.
        classifier ([`Classifier`]): The bundled classifier.

    Returns:
        `dict[str, Any]`: `num_prompts`, `num_distinct_prompts`, `class_accuracy` and `attributes`. `class_accuracy` is
        the fraction of images that have the requested class. `attributes` contains, for each attribute and class, the
        number of prompts that request the attribute (`num_prompts`) and the fraction of their images that are on the
        requested side of the class median (`accuracy`). The class `"all"` combines all classes.
    """
    labels = torch.tensor([prompt.label for prompt in prompts])
    predictions = classifier.classify(classifier(images))
    results: dict[str, dict[str, list[bool]]] = {}
    for prompt, checks in zip(
        prompts, check_directions(images, labels, [prompt.directions for prompt in prompts]), strict=True
    ):
        for name, is_aligned in checks.items():
            for group in ("all", prompt.label_name):
                results.setdefault(name, {}).setdefault(group, []).append(is_aligned)
    return {
        "num_prompts": len(prompts),
        "num_distinct_prompts": len({prompt.text for prompt in prompts}),
        "class_accuracy": float((predictions == labels).float().mean()),
        "attributes": {
            name: {
                group: {"num_prompts": len(checks), "accuracy": sum(checks) / len(checks)}
                for group, checks in groups.items()
            }
            for name, groups in results.items()
        },
    }
