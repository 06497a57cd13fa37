"""`torch.compile`."""

import copy

import pytest
import torch

from tiny_unets import CONFIGS, TINY, assert_close, compute_loss, make_inputs, make_model, predict


# Tracing, graph breaks and recompilation are the same for each backend, and this one is the fastest.
EAGER = {"backend": "eager", "fullgraph": True}
TWO_LEVELS = {**TINY, "block_out_channels": (8, 16)}


@pytest.fixture
def reset_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def recompiling_is_an_error(reset_compiler):
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("cpp_compiler")
def test_inductor_gives_the_same_output(recompiling_is_an_error):
    model, inputs = make_model(TWO_LEVELS), make_inputs(TINY)
    expected = predict(model, **inputs)
    compiled = torch.compile(model, fullgraph=True)
    assert_close(predict(compiled, **inputs), expected)
    assert_close(predict(compiled, **inputs), expected)


@CONFIGS
def test_model_compiles_without_graph_breaks_or_recompilation(config, recompiling_is_an_error):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    compiled = torch.compile(model, **EAGER)
    for _ in range(2):
        assert_close(predict(compiled, **inputs), expected)


# Otherwise, the graph of a square image is only used for square images.
@torch.fx.experimental._config.patch(use_duck_shape=False)
def test_dynamic_sizes_need_no_recompilation(recompiling_is_an_error):
    model = make_model(TWO_LEVELS)
    compiled = torch.compile(model, dynamic=True, **EAGER)
    for size in ((8, 8), (8, 12), (28, 16)):
        inputs = make_inputs(TINY, size=size)
        assert_close(predict(compiled, **inputs), predict(model, **inputs))


@pytest.mark.parametrize("timesteps", [(5, 6, 900, 7), (0.5, 5.25, 900.0, 7.0)], ids=["int", "float"])
def test_timesteps_as_numbers_need_two_graphs(timesteps, reset_compiler):
    model, sample = make_model(TWO_LEVELS), make_inputs(TINY)["sample"]
    compiled = torch.compile(model, **EAGER)
    # One graph for the first number, and one for all others.
    with torch._dynamo.config.patch(recompile_limit=2):
        for timestep in timesteps:
            inputs = {"sample": sample, "timestep": timestep}
            assert_close(predict(compiled, **inputs), predict(model, **inputs))


def test_repeated_blocks_are_compiled_once(reset_compiler):
    config = {**TINY, "block_out_channels": (16, 16), "attention_levels": (1,)}
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    model.compile_repeated_blocks(**EAGER)
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(2):
            assert_close(predict(model, **inputs), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`-wrapped function")
@CONFIGS
def test_compiled_training_with_gradient_checkpointing_gives_the_same_gradients(config, recompiling_is_an_error):
    model, inputs = make_model(config).train(), make_inputs(config)
    checkpointed = copy.deepcopy(model)
    checkpointed.enable_gradient_checkpointing()
    compiled = torch.compile(checkpointed, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        compute_loss(model, inputs).backward()
        compute_loss(compiled, inputs).backward()
    for (name, parameter), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-4, rtol=0, msg=name)
    for name, buffer in model.named_buffers():
        assert_close(checkpointed.get_buffer(name), buffer)
