"""Generates damaged pipeline folders."""

import itertools
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SHARD = "unet/nothing.safetensors"
CONFIGS = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
# None of these values is valid for any of the damaged options.
NOT_JSON_OBJECTS = (
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"true",
    b"",
    b"{",
    b"[" * 100_000,
    b"\xff\xfe",
    b"\0" * 64,
    b'{"a": 1',
    b"{'a': 1}",
    b"version https://git-lfs.github.com/spec/v1\n",
)
WRONG_INTEGERS = (None, "abc", True, 0, -1, 1.5, [], {}, 10**9, 10**30, float("nan"), float("inf"))
WRONG_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "model_index.json": {
        "unet": (None, [], 3, "unet_fmnist", ["unet_fmnist"], [None, None], [1, 2], {}, ["a", "b", "c"]),
        "scheduler": (
            None,
            [],
            3,
            ["diffusers"],
            ["diffusers", "Nothing"],
            ["diffusers", "__version__"],
            ["diffusers", "UNet2DModel"],
            ["diffusers", "SchedulerMixin"],
            ["diffusers", 3],
            {},
        ),
        "num_inference_steps": WRONG_INTEGERS,
        "timestep_power": ("abc", [], {}, -1, 0.5, 1e300, 10**30, float("nan"), float("inf")),
    },
    "unet/config.json": {
        "sample_size": (*WRONG_INTEGERS, [8], [8, 8, 8], [8, -8], ["8", 8], [10**9, 8], 4),
        "in_channels": WRONG_INTEGERS,
        "out_channels": WRONG_INTEGERS,
        "block_out_channels": (*WRONG_INTEGERS, 8, [0], ["8"], [8, -16], [8] * 1000, [10**6, 10**6], [8, 10**30]),
        "layers_per_block": (*WRONG_INTEGERS, 10**6),
        "norm_type": (None, "layer", 3, [], {}),
        "norm_num_groups": (*WRONG_INTEGERS, 3),
        "act_fn": (None, "abc", 3, [], {}),
        "time_conditioning": (None, "abc", 3, []),
        "resnet_time_scale_shift": (None, "abc", 3, {}),
        "time_embedding_dim": (*WRONG_INTEGERS, 7),
        "attention_levels": ("abc", 3, [5], ["0"], [-1], {}, [None], [[0]]),
        "attention_head_dim": (*WRONG_INTEGERS, 5),
        "skip_connection": (None, "abc", 3, [], "none"),
        "dropout": ("abc", -1, 1.0, 2, [], {}, None, float("nan")),
        "num_class_embeds": (*WRONG_INTEGERS, 3),
        "label_names": (3, "abc", [], ["a"], {}, [1] * 10, [None] * 10, True, [["a"]] * 10, ["a"] * 10),
        "quantization_config": (True, 3, [], {}, {"quant_method": "abc"}, {"quant_method": "bitsandbytes"}),
    },
    "scheduler/scheduler_config.json": {
        "trained_betas": ("abc", 3, [], ["abc"], [0.1], {}, [[0.1]], [None], True, [2.0] * 1000, [-0.1] * 1000),
        "num_train_timesteps": WRONG_INTEGERS,
        "beta_start": (None, "abc", True, [], {}, -1, 2, float("nan"), float("inf"), 1e300),
        "beta_end": (None, "abc", True, [], {}, -1, 2, float("nan"), float("inf"), 1e300),
        "beta_schedule": (None, "abc", 3, [], {}),
        "prediction_type": (None, "abc", 3, [], {}),
        "timestep_spacing": (None, "abc", 3, [], {}),
        "solver_order": (None, "abc", True, 1.5, [], 10**9, 0, -1),
        "algorithm_type": (None, "abc", 3, [], {}),
        "solver_type": (None, "abc", 3, [], {}),
        "thresholding": (None, "abc", 3, [], {}),
        "sample_max_value": (None, "abc", [], {}, float("nan")),
        "steps_offset": (None, "abc", [], 10**9, 1.5),
        "use_karras_sigmas": ("abc", 3, [], {}),
        "final_sigmas_type": (None, "abc", 3, []),
        "lambda_min_clipped": (None, "abc", [], float("nan")),
        "lower_order_final": (None, "abc", 3, []),
        "rescale_betas_zero_snr": (None, "abc", 3, []),
    },
}


def damage_weights() -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Yields the name of a fault and a function that damages the file with the weights."""
    for fraction in (0, 0.0001, 0.01, 0.1, 0.5, 0.9, 0.9999):
        yield (
            f"truncated to {fraction}",
            lambda path, f=fraction: path.write_bytes(path.read_bytes()[: int(f * path.stat().st_size)]),
        )
    for content in (*NOT_JSON_OBJECTS, b"\x80\x04K\x01.", struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"{}"):
        yield f"{content[:20]!r}", lambda path, c=content: path.write_bytes(c)
    yield "missing", Path.unlink
    yield "longer", lambda path: path.write_bytes(path.read_bytes() + b"\0" * 64)
    yield "folder", lambda path: (path.unlink(), path.mkdir())
    yield "dangling link", lambda path: (path.unlink(), path.symlink_to("nothing"))
    yield "device", lambda path: (path.unlink(), path.symlink_to("/dev/zero"))
    yield "pickle only", lambda path: path.rename(path.with_suffix(".bin"))

    def change(function: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
        def change_tensors(path: Path) -> None:
            tensors = load_file(path)
            function(tensors)
            save_file(tensors, path)

        return change_tensors

    for value in (float("nan"), float("inf"), float("-inf")):
        yield f"weights of {value}", change(lambda tensors, v=value: tensors["conv_out.bias"].fill_(v))
    first = "conv_out.weight"
    yield "missing tensor", change(lambda tensors: tensors.pop(first))
    yield "additional tensor", change(lambda tensors: tensors.update(other=torch.zeros(3)))
    yield "no tensors", change(dict.clear)
    yield "renamed tensor", change(lambda tensors: tensors.update(other=tensors.pop(first)))
    for shape in ((1,), (0,), (3, 3), (1, 8, 3, 3, 1), (8, 1, 3, 3), (2, 8, 3, 3), ()):
        yield f"shape {shape}", change(lambda tensors, s=shape: tensors.update({first: torch.zeros(s)}))
    for dtype in (torch.int64, torch.uint8, torch.bool):
        yield f"dtype {dtype}", change(lambda tensors, d=dtype: tensors.update({first: tensors[first].to(d)}))


def damage_shards() -> Iterator[tuple[str, dict[str, Any] | list[Any]]]:
    """Yields the name of a fault and the content of the index of sharded weights."""
    file = Path(WEIGHTS).name
    yield "not an object", []
    yield "no entries", {}
    for metadata in (None, 3, []):
        yield f"metadata {metadata}", {"metadata": metadata, "weight_map": {"conv_out.weight": file}}
    for shards in (None, 3, [], {}, {"a": 3}, {"a": None}, {"a": "../a.safetensors"}, {"a": "/etc/passwd"}, {"a": ""}):
        yield f"weight_map {shards}", {"metadata": {}, "weight_map": shards}
    yield "missing shard", {"metadata": {}, "weight_map": {"conv_out.weight": Path(SHARD).name}}
    yield "pickle", {"metadata": {}, "weight_map": {"conv_out.weight": "weights.bin"}}


def make_faults(folder: Path) -> Iterator[tuple[str, str, Callable[[Path], Any]]]:
    """Yields a description of a fault, the relative path of a file and a function that damages the file."""

    def write(content: Any) -> Callable[[Path], Any]:
        return lambda path: path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    for name in CONFIGS:
        for content in NOT_JSON_OBJECTS:
            yield f"{name} is {content[:20]!r}", name, write(content)
        yield f"{name}: missing", name, Path.unlink
        yield f"{name}: folder", name, lambda path: (path.unlink(), path.mkdir())
        yield f"{name}: device", name, lambda path: (path.unlink(), path.symlink_to("/dev/zero"))
        yield f"{name}: huge", name, write({"a": "a" * 20_000_000})
        options = json.loads((folder / name).read_text(encoding="utf-8"))
        for option, values in WRONG_OPTIONS[name].items():
            for value in values:
                if option in options and value == options[option] and type(value) is type(options[option]):
                    continue
                yield f"{name}: {option}={str(value)[:40]}", name, write(options | {option: value})
    for name in ("model_index.json", "unet/config.json"):
        yield f"{name} is empty", name, write({})
    for option in ("unet", "scheduler"):
        options = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        del options[option]
        yield f"model_index.json without {option}", "model_index.json", write(options)
    for fault, change in damage_weights():
        yield f"{WEIGHTS}: {fault}", WEIGHTS, change
    for fault, index in damage_shards():
        yield f"index: {fault}", INDEX, write(index)


def damage_folders(folder: Path, target: Path, step: int = 1) -> Iterator[tuple[str, str]]:
    """
    Damages copies of a pipeline folder.

    Args:
        folder (`Path`): A valid pipeline.
        target (`Path`): The folder to write; its content is replaced in each iteration.
        step (`int`, defaults to 1): Only every `step`-th fault is generated.

    Yields:
        `tuple[str, str]`: A description of the fault and the path that the error must name, relative to `target`.
    """
    for fault, name, change in itertools.islice(make_faults(folder), 0, None, step):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        change(target / name)
        yield fault, SHARD if fault.endswith("missing shard") else name
