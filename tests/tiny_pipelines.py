"""Pipelines with small models and random weights."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.captions import make_tokenizer


CAPTIONS = ["a dark bag", "a bright dress with long sleeves", "a photo of an ankle boot"]


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


def get_pipeline(scheduler: Any = None, **config: Any) -> FashionMNISTPipeline:
    pipe = FashionMNISTPipeline(make_unet(**config), scheduler or DDIMScheduler(), num_inference_steps=2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_text_encoder(hidden_size: int, captions: Sequence[str] = CAPTIONS) -> dict[str, Any]:
    """Returns the components `text_encoder` and `tokenizer` of a text-conditional pipeline."""
    tokenizer = make_tokenizer(captions)
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Larger weights than the default make the images depend on the prompt.
        initializer_factor=20.0,
    )
    return {"text_encoder": CLIPTextModel(config).eval(), "tokenizer": tokenizer}


def get_text_pipeline(scheduler: Any = None) -> FashionMNISTPipeline:
    unet = make_unet(None, class_embed_type="identity")
    pipe = FashionMNISTPipeline(unet, scheduler or DDIMScheduler(), num_inference_steps=2, **make_text_encoder(16))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe: Any, class_labels: Any = None, seed: int = 0, output_type: str = "pt", **kwargs: Any) -> Any:
    """Generates images with one generator; the arguments are those of the pipeline."""
    if class_labels is not None:
        kwargs["class_labels"] = class_labels
    generator = torch.Generator().manual_seed(seed)
    return pipe(generator=generator, output_type=output_type, **kwargs).images
