import copy
import inspect
import itertools
import pickle
import random
import re

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.activations import get_activation
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.training_utils import EMAModel
from diffusers.utils import constants
from torch import nn
from torch.utils.checkpoint import checkpoint

from fmnist_diffusion.models.unet_fmnist import (
    CheckpointSafeBatchNorm2d,
    FashionMNISTAttention,
    FashionMNISTResidualBlock,
    FashionMNISTUNet2DModel,
    condition_on_time,
)


TINY = {"block_out_channels": (8, 16, 16), "attention_head_dim": 8}
# As far from the defaults as the options go.
TINY_CONDITIONAL = {
    "sample_size": (12, 16),
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 2,
    "norm_type": "group",
    "norm_num_groups": 4,
    "act_fn": "silu",
    "time_conditioning": "all",
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_dim": 16,
    "attention_levels": (0, 1),
    "attention_head_dim": 4,
    "skip_connection": "add",
    "num_class_embeds": 10,
    "label_names": tuple("abcdefghij"),
}
CONFIGS = pytest.mark.parametrize("config", [TINY, TINY_CONDITIONAL], ids=["tiny", "conditional"])


def make_model(config, seed=0) -> FashionMNISTUNet2DModel:
    """A model in eval mode whose normalizations do not have their initial, neutral values."""
    torch.manual_seed(seed)
    model = FashionMNISTUNet2DModel(**config)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def make_inputs(config, batch_size=2, size=(12, 16)):
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "sample": torch.randn(batch_size, config.get("in_channels", 1), *size, generator=generator),
        "timestep": torch.tensor([10, 700])[:batch_size],
    }
    if "num_class_embeds" in config:
        inputs["class_labels"] = torch.tensor([3, 10])[:batch_size]
    return inputs


@torch.no_grad()
def predict(model, **inputs):
    return model(**inputs, return_dict=False)[0]


def loss_of(model, inputs):
    prediction = model(**inputs).sample
    return F.mse_loss(prediction, torch.linspace(-1, 1, prediction.numel()).view_as(prediction).to(prediction))


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# ---- the specification


@pytest.fixture(scope="module")
def spec_model():
    return make_model({})


def test_the_defaults_have_the_stages_of_the_specification(spec_model):
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


def test_the_defaults_have_the_layers_of_the_specification(spec_model):
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


def test_a_residual_block_is_conv_norm_relu_conv_norm_plus_shortcut_relu(spec_model):
    block = spec_model.up_blocks[1].resnets[0]
    features = torch.randn(2, 256, 14, 14)
    with torch.no_grad():
        inner = block.norm2(F.conv2d(F.relu(block.norm1(F.conv2d(features, block.conv1.weight, padding=1))),
                                     block.conv2.weight, padding=1))  # fmt: skip
        expected = F.relu(inner + F.conv2d(features, block.conv_shortcut.weight, block.conv_shortcut.bias))
        assert_close(block(features, None), expected, atol=1e-4)
    assert isinstance(spec_model.down_blocks[1].resnets[0].conv_shortcut, nn.Identity)


def test_the_time_embedding_is_added_to_the_bottleneck_features_in_front_of_the_attention(spec_model):
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
    # Pre-LayerNorm multi-head self-attention over 16 tokens, with a residual, against PyTorch's own.
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


# ---- the contract of UNet2DModel


def test_forward_takes_what_unet2dmodel_takes():
    ours = inspect.signature(FashionMNISTUNet2DModel.forward).parameters
    theirs = inspect.signature(UNet2DModel.forward).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@CONFIGS
def test_the_output_is_a_dataclass_or_a_tuple(config):
    model, inputs = make_model(config), make_inputs(config)
    output = model(**inputs)
    assert isinstance(output, UNet2DOutput)
    assert output.sample.shape == inputs["sample"].shape
    (sample,) = model(**inputs, return_dict=False)
    assert torch.equal(sample, output.sample)


def test_the_config_has_what_pipelines_read():
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
def test_a_timestep_may_have_any_form(timestep):
    model, sample = make_model(TINY), make_inputs(TINY)["sample"]
    assert torch.equal(predict(model, sample=sample, timestep=timestep), predict(model, sample=sample, timestep=7))


def test_a_timestep_is_not_rounded():
    model, sample = make_model(TINY), make_inputs(TINY)["sample"]
    half = predict(model, sample=sample, timestep=7.5)
    assert torch.equal(half, predict(model, sample=sample, timestep=torch.tensor([7.5, 7.5])))
    assert not torch.allclose(half, predict(model, sample=sample, timestep=7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=repr)
def test_the_sinusoids_are_computed_in_float32(dtype):
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
def test_any_height_and_width(size, skip_connection):
    model = make_model({**TINY, "block_out_channels": (8, 8, 16, 16), "skip_connection": skip_connection})
    sample = torch.randn(1, 1, *size)
    assert predict(model, sample=sample, timestep=1).shape == sample.shape


@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 1), (3, 3), (4, 2), (1, 5)])
def test_any_number_of_channels(in_channels, out_channels):
    model = make_model({**TINY, "in_channels": in_channels, "out_channels": out_channels})
    assert predict(model, sample=torch.randn(2, in_channels, 8, 9), timestep=1).shape == (2, out_channels, 8, 9)


@pytest.mark.parametrize("pipeline", [DDPMPipeline, DDIMPipeline], ids=lambda pipeline: pipeline.__name__)
@CONFIGS
def test_stock_pipelines_draw_with_it(config, pipeline):
    scheduler = {DDPMPipeline: DDPMScheduler, DDIMPipeline: DDIMScheduler}[pipeline]()
    pipe = pipeline(unet=make_model({"sample_size": 8, **config}), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=2, output_type="np").images
    height_width = config.get("sample_size", (8, 8))
    assert images.shape == (2, *height_width, config.get("in_channels", 1))


# ---- the options

GRID = list(
    itertools.product(
        ["batch", "group"], ["bottleneck", "all"], ["default", "scale_shift"], ["concat", "add", "none"], [None, 3],
        [None, (), (0,)],
    )
)  # fmt: skip


@pytest.mark.parametrize("index", range(len(GRID)))
def test_every_combination_trains_and_survives_saving(index, tmp_path):
    norm_type, time_conditioning, time_scale_shift, skip_connection, num_class_embeds, attention_levels = GRID[index]
    rng = random.Random(index)
    config = {
        "block_out_channels": rng.choice([(8,), (8, 4), (4, 8, 8)]),
        "layers_per_block": rng.choice([1, 2]),
        "norm_type": norm_type,
        "norm_num_groups": 2,
        "act_fn": rng.choice(["relu", "silu", "swish", "gelu", "mish"]),
        "time_conditioning": time_conditioning,
        "resnet_time_scale_shift": time_scale_shift,
        "time_embedding_dim": rng.choice([2, 6, 16]),
        "attention_levels": attention_levels,
        "attention_head_dim": rng.choice([2, 4]),
        "skip_connection": skip_connection,
        "dropout": rng.choice([0, 0.2]),
        "num_class_embeds": num_class_embeds,
    }
    model = make_model(config).train()
    inputs = {"sample": torch.randn(3, 1, 9, 12), "timestep": torch.tensor([0, 5, 999])}
    if num_class_embeds is not None:
        inputs["class_labels"] = torch.tensor([0, 2, 3])
    loss_of(model, inputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias in front of a batch normalization has no effect, so its gradient is a matter of rounding.
        assert parameter.grad.any() or name.endswith("bias"), name

    model.eval().save_pretrained(tmp_path)
    loaded = FashionMNISTUNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(predict(loaded, **inputs), predict(model, **inputs))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"norm_type": "layer"}, "`norm_type` is 'layer' but must be one of 'batch', 'group'"),
        ({"norm_type": ["batch"]}, "must be one of 'batch', 'group'"),
        ({"act_fn": "tanh"}, "'swish', 'silu', 'mish', 'gelu', 'relu'"),
        ({"act_fn": None}, "'swish', 'silu', 'mish', 'gelu', 'relu'"),
        ({"time_conditioning": "none"}, "'bottleneck', 'all'"),
        ({"resnet_time_scale_shift": True}, "'default', 'scale_shift'"),
        ({"skip_connection": "sum"}, "'concat', 'add', 'none'"),
        ({"in_channels": 0}, "`in_channels` is 0 but must be a positive integer"),
        ({"out_channels": "1"}, "`out_channels` is '1' but must be a positive integer"),
        ({"layers_per_block": 0}, "`layers_per_block` is 0"),
        ({"layers_per_block": (1, 2)}, "`layers_per_block` is .1, 2. but must be a positive integer"),
        ({"norm_num_groups": None}, "`norm_num_groups` is None"),
        ({"attention_head_dim": 0}, "`attention_head_dim` is 0"),
        ({"num_class_embeds": 0}, "`num_class_embeds` is 0"),
        ({"num_class_embeds": 2.5}, "`num_class_embeds` is 2.5"),
        ({"time_embedding_dim": 127}, "`time_embedding_dim` is 127 but must be a positive even number"),
        ({"time_embedding_dim": 0}, "positive even number"),
        ({"dropout": 1.0}, r"`dropout` is 1.0 but must be a number in \[0, 1\)"),
        ({"dropout": "0.1"}, "`dropout` is '0.1'"),
        ({"block_out_channels": 64}, "`block_out_channels` is 64 but must be a tuple"),
        ({"block_out_channels": ()}, "must be a tuple of one or more positive integers"),
        ({"block_out_channels": [64, "128"]}, "positive integers"),
        ({"attention_levels": 3}, "`attention_levels` is 3 but must be a tuple of levels from 0 to 3"),
        ({"attention_levels": (4,)}, "levels from 0 to 3"),
        ({"attention_levels": [-1]}, "levels from 0 to 3"),
        ({"attention_head_dim": 48}, "`attention_head_dim` is 48 but must divide the 512 channels"),
        ({"norm_type": "group", "norm_num_groups": 48}, "`norm_num_groups` is 48 but must divide every entry"),
        ({"label_names": ("a", "b")}, "2 names but must have one for each of the `num_class_embeds`=None"),
        ({"label_names": ("a", "b"), "num_class_embeds": 3}, "2 names but must have one for each"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_in_words(config, message):
    with pytest.raises(ValueError, match=message):
        FashionMNISTUNet2DModel(**config)


def test_lists_from_json_do_what_tuples_do():
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in TINY_CONDITIONAL.items()}
    inputs = make_inputs(TINY_CONDITIONAL)
    assert torch.equal(predict(make_model(lists), **inputs), predict(make_model(TINY_CONDITIONAL), **inputs))


@pytest.mark.parametrize("act_fn", ["relu", "silu", "gelu", "mish"])
def test_act_fn(act_fn):
    model = make_model({**TINY, "act_fn": act_fn, "time_conditioning": "all"})
    activations = [m for m in model.modules() if isinstance(m, (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish))]
    assert len(activations) == 6
    assert all(type(activation) is type(get_activation(act_fn)) for activation in activations)


def test_norm_type_and_norm_num_groups():
    model = make_model({**TINY, "norm_type": "group", "norm_num_groups": 4})
    assert all(isinstance(b.norm1, nn.GroupNorm) and b.norm2.num_groups == 4 for b in residual_blocks(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def residual_blocks(model) -> list[FashionMNISTResidualBlock]:
    return [module for module in model.modules() if isinstance(module, FashionMNISTResidualBlock)]


def test_layers_per_block():
    model = make_model({**TINY, "layers_per_block": 3})
    assert [len(block.resnets) for block in (*model.down_blocks, *model.up_blocks)] == [3] * 5


def test_attention_levels_and_attention_head_dim():
    model = make_model({**TINY, "attention_levels": (0, 2), "attention_head_dim": 4})
    levels = [block.attention is not None for block in (*model.down_blocks, *model.up_blocks)]
    assert levels == [True, False, True, False, True]
    assert model.down_blocks[0].attention.attn.heads == 2
    assert model.down_blocks[2].attention.attn.heads == 4
    assert not make_model({**TINY, "attention_levels": ()}).attn_processors


@pytest.mark.parametrize("time_conditioning", ["bottleneck", "all"])
@pytest.mark.parametrize("time_scale_shift", ["default", "scale_shift"])
def test_time_conditioning(time_conditioning, time_scale_shift):
    model = make_model({**TINY, "time_conditioning": time_conditioning, "resnet_time_scale_shift": time_scale_shift})
    everywhere = time_conditioning == "all"
    assert all((block.time_emb_proj is not None) == everywhere for block in residual_blocks(model))
    assert [block.add_time for block in model.down_blocks] == [False, False, not everywhere]

    outputs = []
    for block in (*model.down_blocks, *model.up_blocks):
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    sample = make_inputs(TINY)["sample"]
    for timestep in (10, 700):
        predict(model, sample=sample, timestep=timestep)
    depends_on_time = [not torch.equal(early, late) for early, late in zip(outputs[:5], outputs[5:], strict=True)]
    assert depends_on_time == [everywhere, everywhere, True, True, True]


def test_scale_shift_scales_and_shifts():
    features, scale, shift = torch.randn(2, 4, 3, 3), torch.randn(2, 4), torch.randn(2, 4)
    conditioned = condition_on_time(features, torch.cat([scale, shift], dim=1), "scale_shift")
    assert_close(conditioned, features * (1 + scale.view(2, 4, 1, 1)) + shift.view(2, 4, 1, 1))


@pytest.mark.parametrize("skip_connection", ["concat", "add", "none"])
def test_skip_connection(skip_connection):
    block = make_model({**TINY, "skip_connection": skip_connection}).up_blocks[0]
    features, skip = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 7, 8)
    with torch.no_grad():
        upsampled = block.conv_transpose(features, output_size=(7, 8))
        entering = {"concat": torch.cat([upsampled, skip], dim=1), "add": upsampled + skip, "none": upsampled}
        assert_close(block(features, skip, None), block.resnets[0](entering[skip_connection], None))


def test_dropout_acts_in_training_alone():
    model, inputs = make_model({**TINY, "norm_type": "group", "norm_num_groups": 4, "dropout": 0.5}), make_inputs(TINY)
    assert torch.equal(predict(model, **inputs), predict(model, **inputs))
    model.train()
    assert not torch.allclose(predict(model, **inputs), predict(model, **inputs))
    assert sum(isinstance(module, nn.Dropout) and module.p == 0.5 for module in model.modules()) == 6


def test_no_label_is_the_null_label():
    model, inputs = make_model(TINY_CONDITIONAL), make_inputs(TINY_CONDITIONAL)
    outputs = {
        label: predict(model, **{**inputs, "class_labels": label if label is None else torch.tensor([label] * 2)})
        for label in (None, 0, 9, 10)
    }
    assert torch.equal(outputs[None], outputs[10])
    assert not torch.allclose(outputs[None], outputs[0])
    assert not torch.allclose(outputs[0], outputs[9])


def test_labels_need_a_model_of_labels():
    with pytest.raises(ValueError, match="`class_labels` need a model that was made with `num_class_embeds`"):
        predict(make_model(TINY), **make_inputs(TINY), class_labels=torch.tensor([1, 2]))


# ---- saving and loading


@CONFIGS
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [1, 3], ids=["one file", "shards"])
def test_saved_and_loaded(config, variant, shards, tmp_path, monkeypatch):
    model, inputs = make_model(config), make_inputs(config)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(tmp_path, variant=variant, max_shard_size="10GB" if shards == 1 else f"{size // 2500}KB")
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) >= shards
    assert all((variant in file.name) for file in files if variant)
    for parallel in (False, True):
        monkeypatch.setattr(constants, "HF_ENABLE_PARALLEL_LOADING", parallel)
        loaded = FashionMNISTUNet2DModel.from_pretrained(tmp_path, variant=variant)
        assert not loaded.training
        assert torch.equal(predict(loaded, **inputs), predict(model, **inputs))
    if variant:
        with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\.bin"):
            FashionMNISTUNet2DModel.from_pretrained(tmp_path)


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=repr)
def test_loaded_and_run_in_a_dtype(config, dtype, tmp_path):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    model.save_pretrained(tmp_path)
    inputs["sample"] = inputs["sample"].to(dtype)
    for low_cpu_mem_usage in (True, False):
        loaded = FashionMNISTUNet2DModel.from_pretrained(
            tmp_path, torch_dtype=dtype, low_cpu_mem_usage=low_cpu_mem_usage
        )
        assert loaded.dtype == dtype
        output = predict(loaded, **inputs)
        assert output.dtype == dtype
        error = (output.float() - expected).norm() / expected.norm()
        assert error < {torch.float32: 1e-6, torch.float16: 0.01, torch.bfloat16: 0.06}[dtype]


@CONFIGS
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copied_and_pickled(config, clone):
    model, inputs = make_model(config), make_inputs(config)
    assert torch.equal(predict(clone(model), **inputs), predict(model, **inputs))


def test_config_values_are_read_from_the_config():
    model = make_model(TINY)
    with pytest.warns(FutureWarning, match="Accessing config attribute `sample_size` directly"):
        assert model.sample_size == 28
    with pytest.raises(AttributeError, match="'FashionMNISTUNet2DModel' object has no attribute 'missing'"):
        _ = model.missing


# ---- training


def reentrant_checkpoint(module, *args):
    return checkpoint(module.__call__, *args, use_reentrant=True)


@CONFIGS
@pytest.mark.parametrize("checkpointing_func", [None, reentrant_checkpoint])
def test_gradient_checkpointing_changes_nothing(config, checkpointing_func):
    model, inputs = make_model(config).train(), make_inputs(config)
    inputs["sample"].requires_grad_()  # for the reentrant kind, which otherwise sees no gradient to compute
    checkpointed = copy.deepcopy(model)
    assert not checkpointed.is_gradient_checkpointing
    checkpointed.enable_gradient_checkpointing(checkpointing_func)
    assert checkpointed.is_gradient_checkpointing
    for _ in range(2):
        loss, checkpointed_loss = loss_of(model, inputs), loss_of(checkpointed, inputs)
        assert_close(checkpointed_loss, loss)
        loss.backward()
        checkpointed_loss.backward()
    for (name, parameter), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-5, rtol=0, msg=name)
    for name, buffer in model.named_buffers():
        assert torch.equal(checkpointed.get_buffer(name), buffer), name
    checkpointed.disable_gradient_checkpointing()
    assert not checkpointed.is_gradient_checkpointing


def test_gradient_checkpointing_is_applied_to_each_block():
    model, inputs = make_model(TINY).train(), make_inputs(TINY)
    checkpointed = []

    def record(module, *args):
        checkpointed.append(module)
        return checkpoint(module, *args, use_reentrant=False)

    model.enable_gradient_checkpointing(record)
    predict(model, **inputs)
    assert checkpointed == []
    loss_of(model, inputs)
    assert checkpointed == [*model.down_blocks, *model.up_blocks]


@CONFIGS
def test_ema_of_the_weights(config):
    model, inputs = make_model(config).train(), make_inputs(config)
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=FashionMNISTUNet2DModel, model_config=model.config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    shadow = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(3):
        loss_of(model, inputs).backward()
        optimizer.step()
        ema.step(model.parameters())
        decay = ema.cur_decay_value
        shadow = [decay * s + (1 - decay) * p.detach() for s, p in zip(shadow, model.parameters(), strict=True)]
    ema.store(model.parameters())
    trained = predict(model.eval(), **inputs)
    ema.copy_to(model.parameters())
    for parameter, expected in zip(model.parameters(), shadow, strict=True):
        assert_close(parameter.detach(), expected, atol=1e-6)
    assert not torch.equal(predict(model, **inputs), trained)
    ema.restore(model.parameters())
    assert torch.equal(predict(model, **inputs), trained)


@CONFIGS
def test_mixed_precision_training(config):
    model, inputs = make_model(config).train(), make_inputs(config)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, inputs)
    loss.backward()
    exact = copy.deepcopy(model)
    exact.zero_grad()
    loss_of(exact, inputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name
    cosine = F.cosine_similarity(model.conv_out.weight.grad.flatten(), exact.conv_out.weight.grad.flatten(), dim=0)
    assert cosine > 0.99


@CONFIGS
def test_channels_last(config):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    model.to(memory_format=torch.channels_last)
    inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    features = []
    model.up_blocks[-1].register_forward_hook(lambda module, args, output: features.append(output))
    assert_close(predict(model, **inputs), expected)
    assert features[0].is_contiguous(memory_format=torch.channels_last)
    loss_of(model.train(), inputs).backward()


# ---- attention


@CONFIGS
@pytest.mark.parametrize("processor", [AttnProcessor, AttnProcessor2_0], ids=lambda processor: processor.__name__)
def test_stock_attention_processors(config, processor):
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
    assert torch.equal(predict(model, **inputs), expected)


def test_a_wrong_number_of_attention_processors_is_refused():
    model = make_model(TINY_CONDITIONAL)
    with pytest.raises(ValueError, match="number of processors 1 does not match"):
        model.set_attn_processor({next(iter(model.attn_processors)): AttnProcessor()})


@CONFIGS
def test_fused_projections(config):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    attention = next(module for module in model.modules() if isinstance(module, FashionMNISTAttention))
    model.fuse_qkv_projections()
    assert attention.fused_projections
    # The model must use the fused weights: spoilt separate ones make no difference.
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


def test_attention_backends(monkeypatch):
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


# ---- memory


@CONFIGS
def test_layerwise_casting(config):
    model, inputs = make_model(config), make_inputs(config)
    expected, footprint = predict(model, **inputs), model.get_memory_footprint()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    for name, parameter in model.named_parameters():
        skipped = re.search("norm|time_embedding|class_embedding|conv_out", name)
        assert parameter.dtype == (torch.float32 if skipped else torch.float8_e4m3fn), name
    output = predict(model, **inputs)
    assert model.dtype == output.dtype == torch.float32
    assert (output - expected).norm() / expected.norm() < 0.3
    assert model.get_memory_footprint() < 0.6 * footprint
    in_bf16 = make_model(config).to(torch.bfloat16)
    in_bf16.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert predict(in_bf16, **{**inputs, "sample": inputs["sample"].bfloat16()}).isfinite().all()
    assert in_bf16.get_memory_footprint() < model.get_memory_footprint()


@CONFIGS
@pytest.mark.parametrize("storage_dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=repr)
def test_layerwise_casting_in_training(config, storage_dtype):
    model, inputs = make_model(config).train(), make_inputs(config)
    model.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, inputs)
    loss.backward()
    assert loss.isfinite()


@CONFIGS
@pytest.mark.parametrize("offload", [{"offload_type": "block_level", "num_blocks_per_group": 1},
                                     {"offload_type": "leaf_level"}], ids=["block", "leaf"])  # fmt: skip
@pytest.mark.parametrize("to_disk", [False, True], ids=["memory", "disk"])
def test_group_offloading(config, offload, to_disk, tmp_path):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    if to_disk:
        offload = {**offload, "offload_to_disk_path": str(tmp_path)}
    model.enable_group_offload(torch.device("cpu"), **offload)
    hooked = [module for module in model.modules() if hasattr(module, "_diffusers_hook")]
    assert len(hooked) >= len([*model.down_blocks, *model.up_blocks])
    assert bool(list(tmp_path.glob("*.safetensors"))) == to_disk
    for _ in range(2):
        assert torch.equal(predict(model, **inputs), expected)


@CONFIGS
def test_offloaded_weights(config):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert torch.equal(predict(model, **inputs), expected)


@CONFIGS
def test_device_map(config, tmp_path):
    model, inputs = make_model({**config, "norm_type": "group", "norm_num_groups": 4}), make_inputs(config)
    expected = predict(model, **inputs)
    model.save_pretrained(tmp_path / "model")
    whole = FashionMNISTUNet2DModel.from_pretrained(tmp_path / "model", device_map={"": "cpu"})
    assert torch.equal(predict(whole, **inputs), expected)

    units = [name for name, module in model.named_children() if name not in ("down_blocks", "up_blocks")]
    units += [f"{name}.{i}" for name in ("down_blocks", "up_blocks") for i in range(len(getattr(model, name)))]
    alternating = {unit: ("cpu", "disk")[i % 2] for i, unit in enumerate(units)}
    max_memory = {"cpu": int(0.7 * model.get_memory_footprint())}
    for device_map in ("auto", alternating):
        split = FashionMNISTUNet2DModel.from_pretrained(
            tmp_path / "model",
            device_map=device_map,
            max_memory=max_memory if device_map == "auto" else None,
            offload_folder=tmp_path / "offload",
        )
        assert set(split.hf_device_map.values()) == {"cpu", "disk"}
        assert all(name.count(".") < 2 for name in split.hf_device_map), "no block may be split"
        assert torch.equal(predict(split, **inputs), expected)


# ---- torch.compile

# Tracing, graph breaks and recompilation are the same for each backend, and this one is the fastest.
EAGER = {"backend": "eager", "fullgraph": True}
TWO_LEVELS = {**TINY, "block_out_channels": (8, 16)}


@pytest.fixture
def recompiling_is_an_error():
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("cpp_compiler")
def test_compiled_by_inductor(recompiling_is_an_error):
    model, inputs = make_model(TWO_LEVELS), make_inputs(TINY)
    expected = predict(model, **inputs)
    compiled = torch.compile(model, fullgraph=True)
    assert_close(predict(compiled, **inputs), expected)
    assert_close(predict(compiled, **inputs), expected)


@CONFIGS
def test_compiled_without_graph_break_or_recompilation(config, recompiling_is_an_error):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    compiled = torch.compile(model, **EAGER)
    for _ in range(2):
        assert_close(predict(compiled, **inputs), expected)


# Else a first square image stands for square images alone.
@torch.fx.experimental._config.patch(use_duck_shape=False)
def test_compiled_for_many_sizes(recompiling_is_an_error):
    model = make_model(TWO_LEVELS)
    compiled = torch.compile(model, dynamic=True, **EAGER)
    for size in ((8, 8), (8, 12), (28, 16)):
        inputs = make_inputs(TINY, size=size)
        assert_close(predict(compiled, **inputs), predict(model, **inputs))


@pytest.mark.parametrize("timesteps", [(5, 6, 900, 7), (0.5, 5.25, 900.0, 7.0)], ids=["int", "float"])
def test_compiled_for_all_numbers_as_timestep(timesteps):
    torch.compiler.reset()
    model, sample = make_model(TWO_LEVELS), make_inputs(TINY)["sample"]
    compiled = torch.compile(model, **EAGER)
    # One graph for the first number, and one for all others.
    with torch._dynamo.config.patch(recompile_limit=2):
        for timestep in timesteps:
            inputs = {"sample": sample, "timestep": timestep}
            assert_close(predict(compiled, **inputs), predict(model, **inputs))
    torch.compiler.reset()


def test_repeated_blocks_are_compiled_once():
    torch.compiler.reset()
    config = {**TINY, "block_out_channels": (16, 16), "attention_levels": (1,)}
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    model.compile_repeated_blocks(**EAGER)
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(2):
            assert_close(predict(model, **inputs), expected)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function")
@CONFIGS
def test_compiled_training_with_gradient_checkpointing(config, recompiling_is_an_error):
    model, inputs = make_model(config).train(), make_inputs(config)
    checkpointed = copy.deepcopy(model)
    checkpointed.enable_gradient_checkpointing()
    compiled = torch.compile(checkpointed, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        loss_of(model, inputs).backward()
        loss_of(compiled, inputs).backward()
    for (name, parameter), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-4, rtol=0, msg=name)
    for name, buffer in model.named_buffers():
        assert_close(checkpointed.get_buffer(name), buffer)
