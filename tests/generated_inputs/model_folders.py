"""Damaged folders of saved pipelines."""

import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from damaged_folders import CONFIGS, NOT_JSON_OBJECTS, WEIGHTS, WRONG_OPTIONS, damage_shards, damage_weights
from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from saved_pipelines import save_pipeline

from .messages import check_message


FILES = (*CONFIGS, WEIGHTS)
WEIGHT_FAULTS = dict(damage_weights())
SHARD_FAULTS = dict(damage_shards())
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS | st.integers(-2, 20),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=4), values, max_size=2),
    max_leaves=5,
)
# Some models and schedulers have these values.
VALID_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "model_index.json": {
        "scheduler": tuple(
            ["diffusers", name]
            for name in (
                "DDPMScheduler",
                "DPMSolverMultistepScheduler",
                "EulerDiscreteScheduler",
                "HeunDiscreteScheduler",
            )
        ),
        "num_inference_steps": (1, 3),
        "timestep_power": (None, 1, 2.5),
    },
    "unet/config.json": {"dropout": (0.5,), "_name_or_path": ("elsewhere",), "act_fn": ("gelu",)},
    "scheduler/scheduler_config.json": {
        "num_train_timesteps": (2, 10, 2000),
        "beta_start": (1e-5, 0.01),
        "beta_end": (0.05, 0.5),
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "timestep_spacing": ("leading", "linspace", "trailing"),
        "clip_sample": (True, False),
        "steps_offset": (1,),
        "solver_order": (1, 2, 3),
        "use_karras_sigmas": (True, False),
        "rescale_betas_zero_snr": (True, False),
    },
}


@dataclass(frozen=True)
class ModelFolder:
    """
    The folder of a saved pipeline, with changes.

    Attributes:
        num_class_embeds: Number of classes of the intact pipeline.
        options: Configuration file, name and value of changed options; the value `REMOVED` removes the option.
        damage: Changes of bytes: file, kind of change, position as a fraction of the length, and value.
        contents: Name and new contents of a file.
        fault: A fault in `WEIGHT_FAULTS` or `SHARD_FAULTS`.
    """

    num_class_embeds: int | None
    options: tuple[tuple[str, str, Any], ...] = ()
    damage: tuple[tuple[str, str, float, int], ...] = ()
    contents: tuple[str, bytes] | None = None
    fault: str | None = None


REMOVED = "REMOVED"


@st.composite
def changed_options(choose: st.DrawFn) -> tuple[str, str, Any]:
    file = choose(st.sampled_from(CONFIGS))
    table = choose(st.sampled_from((WRONG_OPTIONS, VALID_OPTIONS, VALID_OPTIONS)))[file]
    name = choose(st.sampled_from(sorted(table)) | st.sampled_from(sorted(WRONG_OPTIONS[file])))
    values = st.sampled_from(table[name]) if name in table else st.nothing()
    return file, name, choose(st.one_of(values, values, VALUES, st.just(REMOVED)))


def model_folders() -> st.SearchStrategy[ModelFolder]:
    classes = st.sampled_from((None, 3, 10))
    changes = st.tuples(
        st.sampled_from(FILES),
        st.sampled_from(("flip", "truncate", "delete", "insert", "zeros")),
        st.floats(0, 1, exclude_max=True) | st.floats(0, 0.1),
        st.integers(0, 255),
    )
    contents = (
        st.sampled_from(NOT_JSON_OBJECTS) | st.binary(max_size=40) | VALUES.map(lambda v: json.dumps(v).encode())
    )
    faults = [*WEIGHT_FAULTS, *SHARD_FAULTS]
    valid_options = st.sampled_from(
        [(file, name, value) for file in CONFIGS for name, values in VALID_OPTIONS[file].items() for value in values]
    )
    return st.one_of(
        st.builds(ModelFolder, classes, st.lists(valid_options, max_size=5).map(tuple)),
        st.builds(ModelFolder, classes, st.lists(changed_options(), min_size=1, max_size=3).map(tuple)),
        st.builds(ModelFolder, classes, st.just(()), st.lists(changes, min_size=1, max_size=3).map(tuple)),
        st.builds(ModelFolder, classes, contents=st.tuples(st.sampled_from(FILES), contents)),
        st.builds(ModelFolder, classes, fault=st.sampled_from(faults)),
    )


@functools.cache
def get_intact_folder(num_class_embeds: int | None) -> Path:
    """Returns a folder that is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="generated-pipeline-")
    path = Path(folder.name) / "pipeline"
    save_pipeline(path, num_class_embeds=num_class_embeds)
    FOLDERS.append(folder)
    return path


FOLDERS: list[tempfile.TemporaryDirectory] = []


def change_bytes(path: Path, kind: str, fraction: float, value: int) -> None:
    content = bytearray(path.read_bytes())
    position = int(fraction * len(content))
    end = position + 1 + value % 8
    if kind == "truncate":
        del content[position:]
    elif kind == "delete":
        del content[position:end]
    elif kind == "insert":
        content[position:position] = bytes([value])
    elif kind == "zeros":
        content[position:end] = bytes(len(content[position:end]))
    elif content:
        content[position] ^= 1 << value % 8
    path.write_bytes(content)


def write_model_folder(data: ModelFolder, folder: Path) -> None:
    shutil.copytree(get_intact_folder(data.num_class_embeds), folder)
    for file, name, value in data.options:
        options = json.loads((folder / file).read_text(encoding="utf-8"))
        if value == REMOVED:
            options.pop(name, None)
        else:
            options[name] = value
        (folder / file).write_text(json.dumps(options), encoding="utf-8")
    for file, *change in data.damage:
        change_bytes(folder / file, *change)
    if data.contents is not None:
        (folder / data.contents[0]).write_bytes(data.contents[1])
    if data.fault in WEIGHT_FAULTS:
        WEIGHT_FAULTS[data.fault](folder / WEIGHTS)
    elif data.fault is not None:
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(SHARD_FAULTS[data.fault]), encoding="utf-8")


def call_or_get_error(function: Callable[[], Any], error_type: type[Exception], names: list[str]) -> Any:
    """Returns the result, or `None` if the function raises an error of the given type."""
    try:
        return function()
    except error_type as error:
        check_message(str(error), names)
        return None


def check_model_folder(data: ModelFolder, folder: Path) -> None:
    """The pipeline must generate images, or be rejected by an error that names the file or the option."""
    path = folder / "pipeline"
    write_model_folder(data, path)
    names = [Path(name).name for name in (*FILES, "unet")]
    pipe = call_or_get_error(lambda: load_pipeline(path), OSError, names)
    if pipe is None:
        # All functions that load a pipeline must agree.
        assert call_or_get_error(lambda: FashionMNISTPipeline.from_pretrained(path), OSError, names) is None
        return
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    steps = min(3, pipe.scheduler.config.num_train_timesteps)
    labels = {} if pipe.unet.config.num_class_embeds is None else {"class_labels": 0}
    images = call_or_get_error(
        lambda: pipe(num_inference_steps=steps, generator=generator, output_type="pt", **labels).images,
        ValueError,
        ["scheduler", "Scheduler", "`", "NaN or infinite"],
    )
    if images is not None:
        size = pipe.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        assert images.shape == (1, pipe.unet.config.out_channels, height, width) and images.isfinite().all()
        assert images.min() >= 0 and images.max() <= 1
    saved = folder / "saved"
    pipe.save_pretrained(saved)
    assert type(load_pipeline(saved).scheduler) is type(pipe.scheduler)
