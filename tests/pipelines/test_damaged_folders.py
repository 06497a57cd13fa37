"""Loading of damaged pipeline folders."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from damaged_folders import damage_folders
from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from latent_pipelines import make_vae
from saved_pipelines import save_pipeline
from text_pipelines import get_text_pipeline
from tiny_pipelines import make_classifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("saved") / "pipeline", num_class_embeds=10)


def check_error(load: Callable[[Path], object], path: Path, fault: str, name: str) -> None:
    with pytest.raises(OSError) as error:
        load(path)
    message = str(error.value)
    assert name in message, (fault, message)
    assert message.endswith(".") and "\n" not in message and len(message) < 700, (fault, message)


@pytest.fixture(scope="module")
def complete_pipe() -> FashionMNISTPipeline:
    """A pipeline with all optional components."""
    pipe = get_text_pipeline(in_channels=2, out_channels=2)
    pipe.register_modules(classifier=make_classifier(in_channels=2), vae=make_vae())
    return pipe


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "classifier/config.json",
        "classifier/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
@pytest.mark.parametrize("damage", [None, b"{}", b"\0damaged", b"[" * 100_000])
def test_damaged_files_of_optional_components_are_named(complete_pipe, tmp_path: Path, name, damage):
    complete_pipe.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    if damage is not None:
        (tmp_path / name).write_bytes(damage)
    check_error(load_pipeline, tmp_path, str(damage), name.split("/")[0])


@pytest.mark.parametrize("component", ["unet", "text_encoder", "classifier", "vae"])
def test_damaged_weights_are_named(complete_pipe, tmp_path: Path, component):
    complete_pipe.save_pretrained(tmp_path)
    (path,) = (tmp_path / component).glob("*.safetensors")
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    value = tensors[name]
    for changed, expected in (
        ({name: torch.full_like(value, float("nan"))}, "contains NaN or infinite values"),
        ({name: torch.zeros(3, 3, 3)}, component),
        ({"other": value.clone()}, component),
    ):
        save_file(tensors | changed, path, metadata={"format": "pt"})
        with pytest.raises(OSError, match=expected):
            load_pipeline(tmp_path)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    check_error(load_pipeline, tmp_path, "missing tensor", component)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "classifier", "vae"])
def test_missing_shards_are_named(complete_pipe, tmp_path: Path, component):
    complete_pipe.save_pretrained(tmp_path, max_shard_size="2KB")
    paths = sorted((tmp_path / component).glob("*.safetensors"))
    assert len(paths) > 1
    paths[1].unlink()
    check_error(load_pipeline, tmp_path, "missing shard", paths[1].name)


def test_damaged_files_are_named(folder: Path, tmp_path: Path):
    for fault, name in damage_folders(folder, tmp_path / "damaged", step=12):
        check_error(load_pipeline, tmp_path / "damaged", fault, name)


@pytest.mark.slow
def test_all_damaged_files_are_named(folder: Path, tmp_path: Path):
    number = 0
    for fault, name in damage_folders(folder, tmp_path / "damaged"):
        number += 1
        check_error(FashionMNISTPipeline.from_pretrained, tmp_path / "damaged", fault, name)
    assert number >= 400


class TensorSizes(TorchDispatchMode):
    """Records the number of elements of the largest tensor that an operation returns, except on the meta device."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type != "meta":
            self.largest = max(self.largest, result.numel())
        return result


def test_large_models_are_not_allocated(folder: Path, tmp_path: Path):
    (tmp_path / "unet").mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
    config = (tmp_path / "unet" / "config.json").read_text()
    # This model has 38 billion parameters.
    config = config.replace("8,\n    16", "8192,\n    8192").replace('"layers_per_block": 1', '"layers_per_block": 16')
    assert "8192" in config
    (tmp_path / "unet" / "config.json").write_text(config)
    with TensorSizes() as sizes:
        check_error(load_pipeline, tmp_path, "large", "diffusion_pytorch_model.safetensors")
    assert sizes.largest < 1e6


def test_random_state_is_not_changed_by_loading(folder: Path):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_pipeline(folder)
    assert torch.equal(torch.rand(1), expected)


def test_pickle_files_are_never_loaded(folder: Path):
    with pytest.raises(ValueError, match="`use_safetensors` must be True"):
        load_pipeline(folder, use_safetensors=False)
