import inspect
import math
from typing import Any

import pytest

from autoencoder_config import AutoencoderConfig
from checks import MAX_PARAMETERS, MODEL_TYPES, RANGES, Range, check_model_size, find_problems, format_value
from config import SchedulerConfig, TrainingConfig
from fmnist_diffusion import FashionMNISTUNet2DModel
from noise_schedule import make_noise_scheduler
from settings import DATA_OPTIONS, Schema
from train_guidance_classifier import GuidanceClassifierConfig


SCHEDULE = {f"scheduler.{name}": value for name, value in vars(SchedulerConfig()).items()}


FLOW = SCHEDULE | {"scheduler.prediction_type": "flow_prediction"}


def test_every_numeric_setting_has_a_range():
    types = Schema(TrainingConfig).types | Schema(AutoencoderConfig).types | Schema(GuidanceClassifierConfig).types
    numeric = {name for name, annotation in types.items() if any(word in str(annotation) for word in ("int", "float"))}
    assert numeric == RANGES.keys()


def test_arguments_of_the_model_are_complete():
    parameters = inspect.signature(FashionMNISTUNet2DModel).parameters
    assert MODEL_TYPES.keys() | set(DATA_OPTIONS) == parameters.keys() - {"kwargs"}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_include_their_bounds_and_nothing_else(name: str):
    bounds = RANGES[name]
    inside = [value for value, open_ in ((bounds.minimum, bounds.above), (bounds.maximum, bounds.below)) if not open_]
    outside = [math.nan, math.inf, -math.inf, 10**30, bounds.minimum - 1, bounds.maximum * 2 + 1]
    outside += [bounds.minimum] * bounds.above + [bounds.maximum] * bounds.below
    for value in [*inside, (bounds.minimum + bounds.maximum) / 2]:
        assert value in bounds
    for value in outside:
        assert value not in bounds
        values: Any = (
            [[value], [8, value]] if name in ("model.block_out_channels", "model.attention_levels") else [value]
        )
        for invalid in values:
            (problem,) = find_problems({name: invalid}, "train.py")
            assert problem == f"`--{name}` must be {bounds}, got {format_value(invalid)}."


def test_ranges_are_described_in_words():
    assert str(Range(8, 512)) == "between 8 and 512"
    assert str(Range(0, 10**6, above=True)) == "greater than 0 and at most 1,000,000"
    assert str(Range(1e-6, 1, below=True)) == "at least 1e-06 and less than 1"
    assert str(Range(0, 1, above=True, below=True)) == "greater than 0 and less than 1"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.resolution": (8, 600)}, "`--data.resolution` must be between 8 and 512, got [8, 600]."),
        ({"model.block_out_channels": []}, "`--model.block_out_channels` must have between 1 and 8 levels, got 0."),
        ({"model.block_out_channels": [8] * 9}, "must have between 1 and 8 levels, got 9."),
        ({"output_dir": ""}, "`--output_dir` must be a non-empty string without control characters, got ''."),
        ({"data.split": "a\x00"}, r"got 'a\x00'."),
        ({"hub_model_id": "\udcff"}, "`--hub_model_id` must be a non-empty string"),
        ({"samples.guidance_interval": (0.5, 0.2)}, "`--samples.guidance_interval` must not end before it starts"),
        (
            {"samples.scheduler": "dddim"},
            "`--samples.scheduler` is not supported: Could not find the scheduler 'dddim'",
        ),
        (
            {"samples.num_inference_steps": 20, "scheduler.num_train_timesteps": 10},
            "`--samples.num_inference_steps` must be at most `--scheduler.num_train_timesteps` (10), got 20.",
        ),
        ({"train_batch_size": 65_536, "data.resolution": 512}, "must be at most 341 for images of 512x512 pixels"),
        (
            {"samples.num_images": 1000, "data.resolution": (512, 512), "data.channels": 3},
            "`--samples.num_images` must be at most 341 for images of 512x512 pixels, got 1000.",
        ),
        (
            SCHEDULE | {"scheduler.beta_start": 0.5},
            "`--scheduler.beta_start` must be at most `--scheduler.beta_end` (0.02)",
        ),
        (
            SCHEDULE | {"scheduler.num_train_timesteps": 100_000},
            "`--scheduler.beta_end` is too large for `--scheduler.num_train_timesteps=100000`",
        ),
        (
            SCHEDULE | {"scheduler.beta_end": 0.5},
            "`--scheduler.beta_end` is too large for `--scheduler.num_train_timesteps=1000`, got 0.5",
        ),
        (
            SCHEDULE | {"scheduler.rescale_betas_zero_snr": True},
            "`--scheduler.rescale_betas_zero_snr` requires `--scheduler.prediction_type` v_prediction or sample",
        ),
        (
            {"scheduler.rescale_betas_zero_snr": True, "scheduler.num_train_timesteps": 1},
            "`--scheduler.rescale_betas_zero_snr` requires at least 2 timesteps, got 1.",
        ),
        (
            FLOW | {"scheduler.beta_schedule": "squaredcos_cap_v2"},
            "`--scheduler.beta_schedule` must be 'linear' for `--scheduler.prediction_type` flow_prediction, which",
        ),
        (
            FLOW | {"scheduler.rescale_betas_zero_snr": True},
            "`--scheduler.rescale_betas_zero_snr` must be false for `--scheduler.prediction_type` flow_prediction",
        ),
        (FLOW | {"objective.snr_gamma": 5.0}, "`--objective.snr_gamma` must be null for"),
        (
            SCHEDULE | {"scheduler.shift": 3.0},
            "`--scheduler.shift` must be 1.0 for `--scheduler.prediction_type` epsilon",
        ),
        (SCHEDULE | {"objective.weighting_scheme": "cosmap"}, "`--objective.weighting_scheme` must be 'none' for"),
        (
            FLOW | {"samples.scheduler": "DDIMScheduler"},
            "`--samples.scheduler` is not supported: DDIMScheduler does not support this flow-matching model.",
        ),
        (SCHEDULE | {"vae": "vae", "scheduler.beta_schedule": "squaredcos_cap_v2"}, "almost pure noise, got epsilon"),
        (SCHEDULE | {"vae": "vae", "scheduler.beta_end": 0.04}, "almost pure noise, got epsilon"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_invalid_and_contradictory_settings(values: dict[str, Any], message: str):
    (problem,) = find_problems(values, "train.py")
    assert message in problem


def test_epsilon_prediction_of_latents_requires_noise_levels_below_pure_noise():
    assert find_problems(SCHEDULE | {"vae": "vae"}, "train.py") == []
    assert find_problems(SCHEDULE | {"scheduler.beta_end": 0.04}, "train.py") == []


def test_noise_schedule_is_checked_without_a_valid_prediction_type():
    values = {name: value for name, value in SCHEDULE.items() if name != "scheduler.prediction_type"}
    (problem,) = find_problems(values | {"scheduler.beta_end": 0.5}, "train.py")
    assert "`--scheduler.beta_end` is too large" in problem


def test_unused_evaluation_settings_are_not_compared():
    values = {"eval.num_inference_steps": 20, "scheduler.num_train_timesteps": 10}
    assert find_problems(values | {"eval.every_n_epochs": None}, "train.py") == []
    assert len(find_problems(values | {"eval.every_n_epochs": 1}, "train.py")) == 1


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"num_train_timesteps": 1},
        {"num_train_timesteps": 3400},
        {"num_train_timesteps": 100_000, "beta_end": 1e-4},
        {"beta_start": 1e-6, "beta_end": 1e-6},
        {"beta_start": 1e-6, "beta_end": 0.06},
        {"beta_schedule": "scaled_linear", "beta_end": 0.09},
        {"beta_schedule": "sigmoid", "beta_end": 0.06},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 100_000},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 2},
    ],
    ids=str,
)
def test_accepted_schedules_have_finite_noise_levels(schedule: dict[str, Any]):
    config = SchedulerConfig(**schedule)
    assert find_problems({f"scheduler.{name}": value for name, value in vars(config).items()}, "train.py") == []
    alphas_cumprod = make_noise_scheduler(config).alphas_cumprod
    assert 1e-16 < alphas_cumprod[-1] <= alphas_cumprod[0] < 1


def test_large_models_are_rejected():
    check_model_size(MAX_PARAMETERS)
    with pytest.raises(ValueError, match="at most 250,000,000 parameters, got 250,000,001"):
        check_model_size(MAX_PARAMETERS + 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), ((1, None), "[1, null]"), ("a", "'a'"), (0.5, "0.5")],
)
def test_values_are_formatted_as_in_yaml(value: object, text: str):
    assert format_value(value) == text


def test_long_values_are_shortened():
    assert len(format_value("x" * 1000)) < 70
    assert len(format_value(["x" * 1000] * 1000)) < 500
