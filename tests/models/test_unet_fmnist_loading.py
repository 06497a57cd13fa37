"""Saving, loading and copying."""

import copy
import pickle

import pytest
import torch
from diffusers.utils import constants

from fmnist_diffusion import FashionMNISTUNet2DModel
from tiny_unets import CONFIGS, TINY, make_inputs, make_model, predict


@CONFIGS
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [1, 3], ids=["one file", "shards"])
def test_loaded_model_gives_the_same_output(config, variant, shards, tmp_path, monkeypatch):
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
def test_model_can_be_loaded_in_any_dtype(config, dtype, tmp_path):
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
def test_copied_and_pickled_models_give_the_same_output(config, clone):
    model, inputs = make_model(config), make_inputs(config)
    assert torch.equal(predict(clone(model), **inputs), predict(model, **inputs))


def test_config_values_are_only_in_the_config():
    model = make_model(TINY)
    with pytest.warns(FutureWarning, match="Accessing config attribute `sample_size` directly"):
        assert model.sample_size == 28
    with pytest.raises(AttributeError, match="'FashionMNISTUNet2DModel' object has no attribute 'missing'"):
        _ = model.missing
