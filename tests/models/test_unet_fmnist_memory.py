"""Layerwise casting, offloading and device maps."""

import pytest
import torch
from accelerate import cpu_offload

from fmnist_diffusion import FashionMNISTUNet2DModel
from tiny_unets import CONFIGS, compute_loss, make_inputs, make_model, predict


@CONFIGS
def test_layerwise_casting_saves_memory(config):
    model, inputs = make_model(config), make_inputs(config)
    expected, footprint = predict(model, **inputs), model.get_memory_footprint()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "norm" in name else torch.float8_e4m3fn), name
    output = predict(model, **inputs)
    assert model.dtype == output.dtype == torch.float32
    assert (output - expected).norm() / expected.norm() < 0.3
    assert model.get_memory_footprint() < 0.6 * footprint


@CONFIGS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=repr)
def test_layerwise_casting_computes_in_bfloat16(config, dtype):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    model.to(dtype).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    output = predict(model, **{**inputs, "sample": inputs["sample"].bfloat16()})
    assert model.dtype == output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() / expected.norm() < 0.3


@CONFIGS
@pytest.mark.parametrize("storage_dtype", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=repr)
def test_layerwise_casting_supports_training(config, storage_dtype):
    model, inputs = make_model(config).train(), make_inputs(config)
    model.enable_layerwise_casting(storage_dtype=storage_dtype, compute_dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = compute_loss(model, inputs)
    loss.backward()
    assert loss.isfinite()


@CONFIGS
@pytest.mark.parametrize("offload", [{"offload_type": "block_level", "num_blocks_per_group": 1},
                                     {"offload_type": "leaf_level"}], ids=["block", "leaf"])  # fmt: skip
@pytest.mark.parametrize("to_disk", [False, True], ids=["memory", "disk"])
def test_group_offloading_gives_the_same_output(config, offload, to_disk, tmp_path):
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
def test_cpu_offload_gives_the_same_output(config):
    model, inputs = make_model(config), make_inputs(config)
    expected = predict(model, **inputs)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    for _ in range(2):
        assert torch.equal(predict(model, **inputs), expected)


@CONFIGS
def test_device_map_gives_the_same_output_and_splits_no_block(config, tmp_path):
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
        assert all(name.count(".") < 2 for name in split.hf_device_map), "a block must not be split"
        assert torch.equal(predict(split, **inputs), expected)
