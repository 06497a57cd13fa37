"""Pipelines with small models and random weights."""

from typing import Any

import torch
from diffusers import DDIMScheduler

from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline, FashionMNISTUNet2DModel


def make_unet(num_class_embeds: int | None = 10, **config: Any) -> FashionMNISTUNet2DModel:
    torch.manual_seed(0)
    return FashionMNISTUNet2DModel(
        **{
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "norm_type": "group",
            "norm_num_groups": 4,
            "attention_head_dim": 8,
            "time_embedding_dim": 16,
            "num_class_embeds": num_class_embeds,
            **config,
        }
    )


def make_classifier(num_classes: int = 10, **config: Any) -> FashionMNISTGuidanceClassifier:
    torch.manual_seed(1)
    config = {"block_out_channels": (8, 16), "norm_num_groups": 4, **config}
    classifier = FashionMNISTGuidanceClassifier(num_classes=num_classes, **config)
    # Larger weights than the default make the images depend on the classifier.
    torch.nn.init.normal_(classifier.linear_out.weight)
    return classifier.eval()


def get_pipeline(scheduler: Any = None, classifier: Any = None, **config: Any) -> FashionMNISTPipeline:
    scheduler = scheduler or DDIMScheduler()
    pipe = FashionMNISTPipeline(make_unet(**config), scheduler, num_inference_steps=2, classifier=classifier)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: Any, class_labels: Any = None, seed: int = 0, output_type: str = "pt", **kwargs: Any) -> Any:
    """Generates images with one generator; the arguments are those of the pipeline."""
    if class_labels is not None:
        kwargs["class_labels"] = class_labels
    generator = torch.Generator().manual_seed(seed)
    return pipe(generator=generator, output_type=output_type, **kwargs).images
