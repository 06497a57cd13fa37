"""Damaged folders of saved pipelines."""

import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from damaged_folders import (
    CONFIGS,
    INDEX,
    NOT_JSON_OBJECTS,
    SHARD,
    WEIGHTS,
    WRONG_OPTIONS,
    damage_shards,
    damage_weights,
)
from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import get_height_width
from saved_pipelines import save_pipeline

from .damage import Change, changes, damage_bytes
from .messages import call_or_get_error


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
        damage: Files and changes of their bytes.
        contents: Name and new contents of a file.
        fault: A fault in `WEIGHT_FAULTS` or `SHARD_FAULTS`.
    """

    num_class_embeds: int | None
    options: tuple[tuple[str, str, Any], ...] = ()
    damage: tuple[tuple[str, Change], ...] = ()
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
    damage = st.tuples(st.sampled_from(FILES), changes("flip", "truncate", "delete", "insert", "zeros"))
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
        st.builds(ModelFolder, classes, st.just(()), st.lists(damage, min_size=1, max_size=3).map(tuple)),
        st.builds(ModelFolder, classes, contents=st.tuples(st.sampled_from(FILES), contents)),
        st.builds(ModelFolder, classes, fault=st.sampled_from(faults)),
    )


@functools.cache
def make_intact_folder(num_class_embeds: int | None) -> tempfile.TemporaryDirectory:
    """Returns a folder that contains `pipeline` and is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="generated-pipeline-")
    save_pipeline(Path(folder.name) / "pipeline", num_class_embeds=num_class_embeds)
    return folder


def write_model_folder(data: ModelFolder, folder: Path) -> None:
    shutil.copytree(Path(make_intact_folder(data.num_class_embeds).name) / "pipeline", folder)
    for file, name, value in data.options:
        options = json.loads((folder / file).read_text(encoding="utf-8"))
        if value == REMOVED:
            options.pop(name, None)
        else:
            options[name] = value
        (folder / file).write_text(json.dumps(options), encoding="utf-8")
    for file, change in data.damage:
        (folder / file).write_bytes(damage_bytes((folder / file).read_bytes(), [change]))
    if data.contents is not None:
        (folder / data.contents[0]).write_bytes(data.contents[1])
    if data.fault in WEIGHT_FAULTS:
        WEIGHT_FAULTS[data.fault](folder / WEIGHTS)
    elif data.fault is not None:
        (folder / INDEX).write_text(json.dumps(SHARD_FAULTS[data.fault]), encoding="utf-8")


def list_error_names(data: ModelFolder) -> list[str]:
    """Returns files, at least one of which the error must name; empty if loading must succeed."""
    if data.options:
        return [*FILES]
    if data.contents is not None:
        return [data.contents[0]]
    if data.fault is not None:
        return [WEIGHTS if data.fault in WEIGHT_FAULTS else SHARD if data.fault == "missing shard" else INDEX]
    return [file for file, _ in data.damage]


def check_model_folder(data: ModelFolder, folder: Path) -> None:
    """The pipeline must generate images, or be rejected by an error that names the file or the option."""
    path = folder / "pipeline"
    write_model_folder(data, path)
    names = list_error_names(data)
    pipe = call_or_get_error(lambda: load_pipeline(path), OSError, names)
    if pipe is None:
        # All functions that load a pipeline must agree.
        assert call_or_get_error(lambda: FashionMNISTPipeline.from_pretrained(path), OSError, names) is None
        return
    assert data.fault is None
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    steps = min(3, pipe.scheduler.config.num_train_timesteps)
    labels = {} if pipe.unet.config.num_class_embeds is None else {"class_labels": 0}
    images = call_or_get_error(
        lambda: pipe(num_inference_steps=steps, generator=generator, output_type="pt", **labels).images,
        ValueError,
        ["cheduler", "NaN or infinite"],
    )
    if images is not None:
        height, width = get_height_width(pipe.unet.config.sample_size)
        assert images.shape == (1, pipe.unet.config.out_channels, height, width) and images.isfinite().all()
        assert images.min() >= 0 and images.max() <= 1
    saved = folder / "saved"
    pipe.save_pretrained(saved)
    assert type(load_pipeline(saved).scheduler) is type(pipe.scheduler)
