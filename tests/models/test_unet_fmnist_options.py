"""The options of the model, and the errors for invalid ones."""

import inspect
import itertools
import random
import re

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.activations import get_activation
from torch import nn

from fmnist_diffusion.models.unet_fmnist import (
    UNSUPPORTED_ARGUMENTS,
    FashionMNISTResidualBlock,
    FashionMNISTUNet2DModel,
    condition_on_time,
)
from tiny_unets import TINY, TINY_CONDITIONAL, assert_close, compute_loss, make_inputs, make_model, predict


GRID = list(
    itertools.product(
        ["batch", "group"], ["bottleneck", "all"], ["default", "scale_shift"], ["concat", "add", "none"], [None, 3],
        [None, (), (0,)],
    )
)  # fmt: skip


@pytest.mark.parametrize(
    "index", [pytest.param(i, marks=[pytest.mark.slow] if i % 9 else []) for i in range(len(GRID))]
)
def test_every_combination_of_options_trains_and_loads(index, tmp_path):
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
    compute_loss(model, inputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias before a batch normalization has no effect, so its gradient only consists of rounding errors.
        assert parameter.grad.any() or name.endswith("bias"), name

    model.eval().save_pretrained(tmp_path)
    loaded = FashionMNISTUNet2DModel.from_pretrained(tmp_path)
    assert torch.equal(predict(loaded, **inputs), predict(model, **inputs))


INTEGER, LAYERS, CLASSES = (f"an integer from 1 to {maximum}" for maximum in (8192, 64, 1_000_000))
SIZES = "an integer from 8 to 512, or a tuple (height, width) of these"
NORM_TYPES, ACTIVATIONS = "one of 'batch', 'group'", "one of 'swish', 'silu', 'mish', 'gelu', 'relu'"
LEVELS, CHANNELS = "a tuple of levels from 0 to 3", "a tuple of 1 to 8 integers from 1 to 8192"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("norm_type", "layer", NORM_TYPES),
        ("norm_type", ["batch"], NORM_TYPES),
        ("act_fn", "tanh", ACTIVATIONS),
        ("act_fn", None, ACTIVATIONS),
        ("time_conditioning", "none", "one of 'bottleneck', 'all'"),
        ("resnet_time_scale_shift", True, "one of 'default', 'scale_shift'"),
        ("skip_connection", "sum", "one of 'concat', 'add', 'none'"),
        ("in_channels", 0, INTEGER),
        ("out_channels", "1", INTEGER),
        ("layers_per_block", 0, LAYERS),
        ("layers_per_block", (1, 2), LAYERS),
        ("layers_per_block", True, LAYERS),
        ("layers_per_block", 10**9, LAYERS),
        ("sample_size", 7, SIZES),
        ("sample_size", (8, 513), SIZES),
        ("sample_size", [8], SIZES),
        ("label_names", 3, "a tuple of distinct strings"),
        ("label_names", ("a", "a"), "a tuple of distinct strings"),
        ("norm_num_groups", None, INTEGER),
        ("attention_head_dim", 0, INTEGER),
        ("num_class_embeds", 0, CLASSES),
        ("num_class_embeds", 2.5, CLASSES),
        ("time_embedding_dim", 127, "a positive even number"),
        ("time_embedding_dim", 0, INTEGER),
        ("dropout", 1.0, "a number in [0, 1)"),
        ("dropout", "0.1", "a number in [0, 1)"),
        ("block_out_channels", 64, CHANNELS),
        ("block_out_channels", (), CHANNELS),
        ("block_out_channels", [64, "128"], CHANNELS),
        ("attention_levels", 3, LEVELS),
        ("attention_levels", (4,), LEVELS),
        ("attention_levels", [-1], LEVELS),
    ],
)
def test_invalid_value_is_an_error(name, value, expected):
    with pytest.raises(ValueError, match=re.escape(f"`{name}` must be {expected}, got {value!r}.")):
        FashionMNISTUNet2DModel(**{name: value})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"attention_head_dim": 48}, "`attention_head_dim` must divide the 512 channels .*, got 48"),
        ({"norm_type": "group", "norm_num_groups": 48}, "`norm_num_groups` must divide every entry .*, got 48"),
        (
            {"label_names": ("a", "b")},
            r"`label_names` requires `num_class_embeds`\. Set it to the number of names \(2\)",
        ),
        ({"label_names": ("a", "b"), "num_class_embeds": 3}, r"must have one name for each class .*=3\), got 2"),
        ({"class_embed_type": "identity", "num_class_embeds": 3}, "`num_class_embeds` must be None .*, got 3"),
        ({"class_embed_type": "identity", "label_names": ("a",)}, "`label_names` must be None .*, got \\('a',\\)"),
        ({"class_embed_type": "timestep"}, "`class_embed_type` must be one of None, 'identity', got 'timestep'"),
    ],
    ids=str,
)
def test_conflicting_options_are_an_error(config, message):
    with pytest.raises(ValueError, match=message):
        FashionMNISTUNet2DModel(**config)


@pytest.mark.parametrize("name", list(inspect.signature(UNet2DModel).parameters))
def test_unet2dmodel_arguments_work_or_name_a_replacement(name):
    """Every argument either works or raises an error that says what to use in its place."""
    if name in inspect.signature(FashionMNISTUNet2DModel).parameters:
        assert name not in UNSUPPORTED_ARGUMENTS
        return
    value = inspect.signature(UNet2DModel).parameters[name].default
    with pytest.raises(
        ValueError, match=f"^`{name}` is not supported by FashionMNISTUNet2DModel\\. Remove it: .*[^.]\\.$"
    ):
        FashionMNISTUNet2DModel(**{name: value})


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_ARGUMENTS))
def test_suggested_arguments_exist(name):
    suggested = set(re.findall(r"`(\w+)(?:=\(\))?`", UNSUPPORTED_ARGUMENTS[name])) - {"forward"}
    assert suggested <= inspect.signature(FashionMNISTUNet2DModel).parameters.keys()


def test_unknown_argument_is_an_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_class_embedings'"):
        FashionMNISTUNet2DModel(num_class_embedings=10)


def test_config_only_has_the_documented_options():
    parameters = inspect.signature(FashionMNISTUNet2DModel).parameters.keys() - {"kwargs"}
    assert {name for name in make_model(TINY).config if not name.startswith("_")} == parameters


def test_identity_adds_the_embeddings_that_a_class_embedding_contains():
    model = make_model(TINY_CONDITIONAL)
    inputs = make_inputs(TINY_CONDITIONAL)
    identity = FashionMNISTUNet2DModel(
        **TINY_CONDITIONAL | {"class_embed_type": "identity", "num_class_embeds": None, "label_names": None}
    ).eval()
    weights = model.state_dict()
    embeddings = weights.pop("class_embedding.weight")
    identity.load_state_dict(weights)
    embedded = inputs | {"class_labels": embeddings[inputs["class_labels"]]}
    assert torch.equal(predict(identity, **embedded), predict(model, **inputs))
    with pytest.raises(ValueError, match=r"`class_labels` must be embeddings .*, got None"):
        predict(identity, **embedded | {"class_labels": None})


def test_lists_are_equivalent_to_tuples():
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in TINY_CONDITIONAL.items()}
    inputs = make_inputs(TINY_CONDITIONAL)
    assert torch.equal(predict(make_model(lists), **inputs), predict(make_model(TINY_CONDITIONAL), **inputs))


@pytest.mark.parametrize("act_fn", ["relu", "silu", "gelu", "mish"])
def test_act_fn_selects_the_activation(act_fn):
    model = make_model({**TINY, "act_fn": act_fn, "time_conditioning": "all"})
    activations = [m for m in model.modules() if isinstance(m, (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish))]
    assert len(activations) == 6
    assert all(type(activation) is type(get_activation(act_fn)) for activation in activations)


def test_norm_type_and_norm_num_groups_select_the_normalization():
    model = make_model({**TINY, "norm_type": "group", "norm_num_groups": 4})
    assert all(isinstance(b.norm1, nn.GroupNorm) and b.norm2.num_groups == 4 for b in residual_blocks(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def residual_blocks(model) -> list[FashionMNISTResidualBlock]:
    return [module for module in model.modules() if isinstance(module, FashionMNISTResidualBlock)]


def test_layers_per_block_is_the_number_of_residual_blocks():
    model = make_model({**TINY, "layers_per_block": 3})
    assert [len(block.resnets) for block in (*model.down_blocks, *model.up_blocks)] == [3] * 5


def test_attention_levels_and_attention_head_dim_select_the_attention():
    model = make_model({**TINY, "attention_levels": (0, 2), "attention_head_dim": 4})
    levels = [block.attention is not None for block in (*model.down_blocks, *model.up_blocks)]
    assert levels == [True, False, True, False, True]
    assert model.down_blocks[0].attention.attn.heads == 2
    assert model.down_blocks[2].attention.attn.heads == 4
    assert not make_model({**TINY, "attention_levels": ()}).attn_processors


@pytest.mark.parametrize("time_conditioning", ["bottleneck", "all"])
@pytest.mark.parametrize("time_scale_shift", ["default", "scale_shift"])
def test_time_conditioning_selects_the_blocks_that_depend_on_time(time_conditioning, time_scale_shift):
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
def test_skip_connection_is_concatenated_added_or_omitted(skip_connection):
    block = make_model({**TINY, "skip_connection": skip_connection}).up_blocks[0]
    features, skip = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 7, 8)
    with torch.no_grad():
        upsampled = block.conv_transpose(features, output_size=(7, 8))
        entering = {"concat": torch.cat([upsampled, skip], dim=1), "add": upsampled + skip, "none": upsampled}
        assert_close(block(features, skip, None), block.resnets[0](entering[skip_connection], None))


def test_dropout_is_only_applied_in_training_mode():
    model, inputs = make_model({**TINY, "norm_type": "group", "norm_num_groups": 4, "dropout": 0.5}), make_inputs(TINY)
    assert torch.equal(predict(model, **inputs), predict(model, **inputs))
    model.train()
    assert not torch.allclose(predict(model, **inputs), predict(model, **inputs))
    assert sum(isinstance(module, nn.Dropout) and module.p == 0.5 for module in model.modules()) == 6


def test_no_label_means_the_null_label():
    model, inputs = make_model(TINY_CONDITIONAL), make_inputs(TINY_CONDITIONAL)
    outputs = {
        label: predict(model, **{**inputs, "class_labels": label if label is None else torch.tensor([label] * 2)})
        for label in (None, 0, 9, 10)
    }
    assert torch.equal(outputs[None], outputs[10])
    assert not torch.allclose(outputs[None], outputs[0])
    assert not torch.allclose(outputs[0], outputs[9])


def test_labels_are_an_error_for_an_unconditional_model():
    with pytest.raises(ValueError, match="`class_labels` is not supported by an unconditional model"):
        predict(make_model(TINY), **make_inputs(TINY), class_labels=torch.tensor([1, 2]))
