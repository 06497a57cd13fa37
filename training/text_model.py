"""A U-Net and a text encoder that are trained together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from captions import MAX_LENGTH, MAX_VOCAB_SIZE, Captions
from config import TextEncoderConfig
from fmnist_diffusion import FashionMNISTUNet2DModel
from fmnist_diffusion.pipelines import tokenize
from pretrained import PretrainedPipeline


if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d import UNet2DOutput
    from transformers import CLIPTextModel, CLIPTokenizer


class TextConditionalUNet(nn.Module):
    """A U-Net that is conditioned on the pooled output of a text encoder.

    Args:
        unet: Model with `class_embed_type="identity"`.
        text_encoder: Text encoder; its `hidden_size` is the number of channels of the time embedding of `unet`.
        tokenizer: Tokenizer of the captions.
    """

    def __init__(self, unet: FashionMNISTUNet2DModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer):
        super().__init__()
        self.unet, self.text_encoder, self.tokenizer = unet, text_encoder, tokenizer

    @property
    def config(self) -> Any:
        return self.unet.config

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def enable_gradient_checkpointing(self) -> None:
        self.unet.enable_gradient_checkpointing()

    def compile(self) -> None:
        """Only compiles the U-Net, because compilation does not make the small text encoder faster."""
        self.unet.compile()

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, token_ids: torch.Tensor) -> UNet2DOutput:
        """Predicts the target for noisy images `(B, C, H, W)` and the token ids of their captions, int64 `(B, L)`."""
        return self.unet(sample, timestep, self.text_encoder(token_ids).pooler_output)


def get_hidden_size(unet: FashionMNISTUNet2DModel) -> int:
    """Returns the number of channels of the time embedding."""
    return unet.time_embedding.linear_2.out_features


def add_text_encoder(
    config: TextEncoderConfig,
    unet: FashionMNISTUNet2DModel,
    pretrained: PretrainedPipeline | None,
    captions: Captions,
    seed: int,
) -> TextConditionalUNet:
    """Adds the text encoder of the pretrained pipeline or, if it has none, a new one for `captions`.

    With a new text encoder, the model makes the same predictions for the empty prompt as without a text encoder.

    Raises:
        `ValueError`: If `config` does not fit `unet`.
    """
    if pretrained is not None and pretrained.pipe.text_encoder is not None:
        return TextConditionalUNet(unet, pretrained.pipe.text_encoder, pretrained.pipe.tokenizer)
    # Only text-conditional models require transformers.
    from tokenizer import make_tokenizer

    tokenizer = make_tokenizer(captions.make(seed))
    text_encoder = make_text_encoder(config, get_hidden_size(unet), tokenizer)
    with torch.no_grad():
        null_embedding = text_encoder(tokenize(tokenizer, [""])).pooler_output[0]
        unet.time_embedding.linear_2.bias -= null_embedding
    return TextConditionalUNet(unet, text_encoder, tokenizer)


def get_null_label(unet: FashionMNISTUNet2DModel | TextConditionalUNet) -> int | torch.Tensor | None:
    """Returns the null label of a class-conditional model, or the token ids `(L,)` of the empty prompt."""
    if isinstance(unet, TextConditionalUNet):
        return tokenize(unet.tokenizer, [""])[0].to(unet.device)
    return unet.config["num_class_embeds"]


def check_num_heads(config: TextEncoderConfig, unet: FashionMNISTUNet2DModel) -> None:
    """Raises `ValueError` if `num_attention_heads` does not divide the number of channels of the time embedding."""
    if get_hidden_size(unet) % config.num_attention_heads:
        raise ValueError(
            f"`--text_encoder.num_attention_heads` must divide the {get_hidden_size(unet)} channels of the time"
            f" embedding, got {config.num_attention_heads}."
        )


def count_text_encoder_parameters(
    config: TextEncoderConfig, hidden_size: int, vocab_size: int = MAX_VOCAB_SIZE
) -> int:
    """Returns the number of parameters of a text encoder, by default for the largest possible vocabulary."""
    assert config.num_hidden_layers is not None
    attention = 4 * (hidden_size**2 + hidden_size)
    mlp = 2 * hidden_size * config.intermediate_size + hidden_size + config.intermediate_size
    norms = 4 * hidden_size
    embeddings = (vocab_size + MAX_LENGTH) * hidden_size
    return embeddings + config.num_hidden_layers * (attention + mlp + norms) + 2 * hidden_size


def make_text_encoder(config: TextEncoderConfig, hidden_size: int, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Creates a text encoder with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    assert config.num_hidden_layers is not None
    # The tokenizer has one id for each special token, but its type annotations also allow several.
    special_tokens: Any = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=tokenizer.model_max_length,
            **special_tokens,
        )
    )
