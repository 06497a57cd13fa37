"""Agreement between prompts and generated images."""

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
        `dict[str, Any]`: `class_accuracy`, the fraction of images of the requested class, and `attributes`. For each
        attribute of each class, it contains the number of prompts that request it (`num_prompts`) and the fraction of
        their images that are on the requested side of the median of the class (`accuracy`). The class `"all"` combines
        the classes.
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
