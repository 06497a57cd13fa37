"""The default architecture and the interface of `UNet2DModel`."""

import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from fmnist_diffusion.models.unet_fmnist import (
    CheckpointSafeBatchNorm2d,
    FashionMNISTAttention,
    FashionMNISTResidualBlock,
    FashionMNISTUNet2DModel,
)
from tiny_unets import CONFIGS, TINY, TINY_CONDITIONAL, assert_close, make_inputs, make_model, predict


@pytest.fixture(scope="module")
def spec_model():
    return make_model({})


def test_default_stages_have_the_specified_shapes(spec_model):
    stages = []

    def record(name):
        return lambda module, args, output: stages.append((name, tuple(args[0].shape[1:]), tuple(output.shape[1:])))

    pattern = re.compile(r"(down|up)_blocks\.\d\.(conv|conv_transpose|resnets\.\d|attention)|time_embedding|conv_out")
    handles = [
        module.register_forward_hook(record(name))
        for name, module in spec_model.named_modules()
        if pattern.fullmatch(name)
    ]
    predict(spec_model, sample=torch.randn(2, 1, 28, 28), timestep=5)
    for handle in handles:
        handle.remove()

    assert stages == [
        ("time_embedding", (128,), (512,)),
        ("down_blocks.0.conv", (1, 28, 28), (64, 28, 28)),
        ("down_blocks.0.resnets.0", (64, 28, 28), (64, 28, 28)),
        ("down_blocks.1.conv", (64, 28, 28), (128, 14, 14)),
        ("down_blocks.1.resnets.0", (128, 14, 14), (128, 14, 14)),
        ("down_blocks.2.conv", (128, 14, 14), (256, 7, 7)),
        ("down_blocks.2.resnets.0", (256, 7, 7), (256, 7, 7)),
        ("down_blocks.3.conv", (256, 7, 7), (512, 4, 4)),
        ("down_blocks.3.resnets.0", (512, 4, 4), (512, 4, 4)),
        ("down_blocks.3.attention", (512, 4, 4), (512, 4, 4)),
        ("up_blocks.0.conv_transpose", (512, 4, 4), (256, 7, 7)),
        ("up_blocks.0.resnets.0", (512, 7, 7), (256, 7, 7)),
        ("up_blocks.1.conv_transpose", (256, 7, 7), (128, 14, 14)),
        ("up_blocks.1.resnets.0", (256, 14, 14), (128, 14, 14)),
        ("up_blocks.2.conv_transpose", (128, 14, 14), (64, 28, 28)),
        ("up_blocks.2.resnets.0", (128, 28, 28), (64, 28, 28)),
        ("conv_out", (64, 28, 28), (1, 28, 28)),
    ]


def test_default_layers_are_those_of_the_specification(spec_model):
    assert spec_model.num_parameters() == 13_246_913
    types = [type(module) for module in spec_model.modules()]
    assert types.count(FashionMNISTResidualBlock) == 7
    assert types.count(CheckpointSafeBatchNorm2d) == 14
    assert types.count(FashionMNISTAttention) == types.count(nn.LayerNorm) == 1
    assert types.count(nn.ConvTranspose2d) == 3
    assert not {nn.GroupNorm, nn.SiLU, nn.GELU, nn.Embedding} & set(types)
    assert [block.conv.stride for block in spec_model.down_blocks] == [(1, 1), (2, 2), (2, 2), (2, 2)]
    assert all(block.conv.kernel_size == (3, 3) for block in spec_model.down_blocks)
    assert all(block.conv_transpose.stride == (2, 2) for block in spec_model.up_blocks)
    assert spec_model.conv_out.kernel_size == (3, 3)
    assert spec_model.down_blocks[3].attention.attn.heads == 8


def test_residual_block_equals_the_formula(spec_model):
    block = spec_model.up_blocks[1].resnets[0]
    features = torch.randn(2, 256, 14, 14)
    with torch.no_grad():
        inner = block.norm2(F.conv2d(F.relu(block.norm1(F.conv2d(features, block.conv1.weight, padding=1))),
                                     block.conv2.weight, padding=1))  # fmt: skip
        expected = F.relu(inner + F.conv2d(features, block.conv_shortcut.weight, block.conv_shortcut.bias))
        assert_close(block(features, None), expected, atol=1e-4)
    assert isinstance(spec_model.down_blocks[1].resnets[0].conv_shortcut, nn.Identity)


def test_bottleneck_adds_the_time_embedding_and_applies_attention(spec_model):
    seen = {}
    bottleneck = spec_model.down_blocks[3]
    handles = [
        spec_model.time_embedding.register_forward_hook(lambda m, args, output: seen.update(sin=args[0], temb=output)),
        bottleneck.resnets[0].register_forward_hook(lambda m, args, output: seen.update(features=output)),
        bottleneck.attention.register_forward_hook(lambda m, args, output: seen.update(before=args[0], after=output)),
    ]
    predict(spec_model, sample=torch.randn(2, 1, 28, 28), timestep=torch.tensor([0, 999]))
    for handle in handles:
        handle.remove()

    frequencies = 10000 ** (-torch.arange(64) / 64)
    angles = torch.tensor([[0.0], [999.0]]) * frequencies
    assert_close(seen["sin"], torch.cat([angles.cos(), angles.sin()], dim=1), atol=1e-3)
    assert_close(seen["before"], seen["features"] + seen["temb"][:, :, None, None])
    # Multi-head self-attention over 16 tokens, with LayerNorm before it and a residual connection, in PyTorch.
    norm, attn = bottleneck.attention.norm, bottleneck.attention.attn
    tokens = seen["before"].flatten(2).transpose(1, 2)
    projections = (attn.to_q, attn.to_k, attn.to_v)
    expected, _ = F.multi_head_attention_forward(
        *[norm(tokens).transpose(0, 1)] * 3,
        embed_dim_to_check=512,
        num_heads=8,
        in_proj_weight=torch.cat([linear.weight for linear in projections]),
        in_proj_bias=torch.cat([linear.bias for linear in projections]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attn.to_out[0].weight,
        out_proj_bias=attn.to_out[0].bias,
    )
    assert_close(seen["after"], seen["before"] + expected.permute(1, 2, 0).view_as(seen["before"]))


def test_forward_has_the_signature_of_unet2dmodel():
    ours = inspect.signature(FashionMNISTUNet2DModel.forward).parameters
    theirs = inspect.signature(UNet2DModel.forward).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@CONFIGS
def test_return_dict_selects_the_type_of_the_output(config):
    model, inputs = make_model(config), make_inputs(config)
    output = model(**inputs)
    assert isinstance(output, UNet2DOutput)
    assert output.sample.shape == inputs["sample"].shape
    (sample,) = model(**inputs, return_dict=False)
    assert torch.equal(sample, output.sample)


def test_config_has_the_attributes_that_pipelines_read():
    model = FashionMNISTUNet2DModel()
    assert (model.config.sample_size, model.config.in_channels, model.config.out_channels) == (28, 1, 1)


@pytest.mark.parametrize(
    "timestep",
    [
        7.0,
        torch.tensor(7),
        torch.tensor([7]),
        torch.tensor([7, 7]),
        torch.tensor(7.0),
        *(torch.tensor([7, 7], dtype=dtype) for dtype in (torch.uint8, torch.int32)),
        *(torch.tensor(7, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)),
    ],
    ids=repr,
)
def test_all_timestep_types_give_the_same_output(timestep):
    model, sample = make_model(TINY), make_inputs(TINY)["sample"]
    assert torch.equal(predict(model, sample=sample, timestep=timestep), predict(model, sample=sample, timestep=7))


def test_fractional_timesteps_are_not_rounded():
    model, sample = make_model(TINY), make_inputs(TINY)["sample"]
    half = predict(model, sample=sample, timestep=7.5)
    assert torch.equal(half, predict(model, sample=sample, timestep=torch.tensor([7.5, 7.5])))
    assert not torch.allclose(half, predict(model, sample=sample, timestep=7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=repr)
def test_timestep_embedding_is_computed_in_float32(dtype):
    model = make_model(TINY).to(dtype)
    seen = []
    model.time_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    predict(model, sample=make_inputs(TINY)["sample"].to(dtype), timestep=999)
    assert torch.equal(seen[0], model.time_proj(torch.tensor([999.0, 999.0])).to(dtype))


def test_each_image_has_its_own_timestep_and_label():
    model, inputs = make_model(TINY_CONDITIONAL), make_inputs(TINY_CONDITIONAL)
    together = predict(model, **inputs)
    for i in range(2):
        alone = predict(model, **{name: value[i : i + 1] for name, value in inputs.items()})
        assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (13, 8), (17, 30), (28, 28), (64, 8)], ids=str)
@pytest.mark.parametrize("skip_connection", ["concat", "add", "none"])
def test_any_height_and_width_is_supported(size, skip_connection):
    model = make_model({**TINY, "block_out_channels": (8, 8, 16, 16), "skip_connection": skip_connection})
    sample = torch.randn(1, 1, *size)
    assert predict(model, sample=sample, timestep=1).shape == sample.shape


@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 1), (3, 3), (4, 2), (1, 5)])
def test_any_number_of_channels_is_supported(in_channels, out_channels):
    model = make_model({**TINY, "in_channels": in_channels, "out_channels": out_channels})
    assert predict(model, sample=torch.randn(2, in_channels, 8, 9), timestep=1).shape == (2, out_channels, 8, 9)


@pytest.mark.parametrize("pipeline", [DDPMPipeline, DDIMPipeline], ids=lambda pipeline: pipeline.__name__)
@CONFIGS
def test_stock_pipelines_generate_images(config, pipeline):
    scheduler = {DDPMPipeline: DDPMScheduler, DDIMPipeline: DDIMScheduler}[pipeline]()
    pipe = pipeline(unet=make_model({"sample_size": 8, **config}), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=2, output_type="np").images
    height_width = config.get("sample_size", (8, 8))
    assert images.shape == (2, *height_width, config.get("in_channels", 1))
