"""The attention processors and backends of diffusers."""

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0

from fmnist_diffusion.models.unet_fmnist import FashionMNISTAttention, FashionMNISTAttnProcessor
from tiny_unets import CONFIGS, TINY_CONDITIONAL, assert_close, make_inputs, make_model, predict


@CONFIGS
@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0], ids=lambda processor: processor.__name__)
def test_stock_attention_processors_give_the_same_output(config, processor):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    original = dict(model.attn_processors)
    attentions = [module for module in model.modules() if isinstance(module, FashionMNISTAttention)]
    assert len(original) == len(attentions) > 0
    model.set_attn_processor(processor())
    assert all(type(attention.get_processor()) is processor for attention in attentions)
    assert_close(predict(model, **inputs), expected)
    model.set_attn_processor(dict(original))
    assert model.attn_processors == original
    model.set_attn_processor(processor())
    model.set_default_attn_processor()
    assert {type(processor) for processor in model.attn_processors.values()} == {FashionMNISTAttnProcessor}
    assert torch.equal(predict(model, **inputs), expected)


def test_wrong_number_of_attention_processors_is_an_error():
    model = make_model(TINY_CONDITIONAL)
    with pytest.raises(ValueError, match="number of processors 1 does not match"):
        model.set_attn_processor({next(iter(model.attn_processors)): AttnProcessor()})


@CONFIGS
def test_fused_projections_give_the_same_output(config):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    attention = next(module for module in model.modules() if isinstance(module, FashionMNISTAttention))
    model.fuse_qkv_projections()
    assert attention.fused_projections
    # The model must use the fused weights, so the separate ones have no effect.
    weights = attention.to_q.weight.data.clone()
    attention.to_q.weight.data.zero_()
    assert_close(predict(model, **inputs), expected)
    model.set_attn_processor(FusedAttnProcessor2_0())
    assert_close(predict(model, **inputs), expected)
    attention.to_q.weight.data.copy_(weights)
    model.unfuse_qkv_projections()
    assert not hasattr(attention, "to_qkv")
    model.set_attn_processor(type(attention)._default_processor_cls())
    assert torch.equal(predict(model, **inputs), expected)


def test_attention_backend_can_be_set_and_reset(monkeypatch):
    # `set_attention_backend` also changes the default of the whole process.
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)
    model, inputs = make_model(TINY_CONDITIONAL), make_inputs(TINY_CONDITIONAL)
    expected = predict(model, **inputs)
    with attention_backend("_native_math"):
        in_context = predict(model, **inputs)
    assert_close(in_context, expected)
    model.set_attention_backend("_native_math")
    assert all(processor._attention_backend == "_native_math" for processor in model.attn_processors.values())
    assert torch.equal(predict(model, **inputs), in_context)
    model.reset_attention_backend()
    assert all(processor._attention_backend is None for processor in model.attn_processors.values())
    with pytest.raises(ValueError, match="must be one of the following"):
        model.set_attention_backend("abacus")
