"""Text-conditional pipelines with small models and random weights."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from fmnist_diffusion import FashionMNISTPipeline
from tiny_pipelines import make_unet
from tokenizer import make_tokenizer


CAPTIONS = ["a dark bag", "a bright dress with long sleeves", "a photo of an ankle boot"]


def make_text_encoder(hidden_size: int) -> dict[str, Any]:
    """Returns the components `text_encoder` and `tokenizer` of a text-conditional pipeline."""
    tokenizer = make_tokenizer(CAPTIONS)
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


def get_text_pipeline(**config: Any) -> FashionMNISTPipeline:
    unet = make_unet(None, class_embed_type="identity", **config)
    pipe = FashionMNISTPipeline(unet, DDIMScheduler(), num_inference_steps=2, **make_text_encoder(16))
    pipe.set_progress_bar_config(disable=True)
    return pipe
