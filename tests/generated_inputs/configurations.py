"""Settings of training runs, in YAML files and on the command line."""

import contextlib
import io
import math
import typing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hypothesis import strategies as st

from checks import FLOW_DEFAULTS, MODEL_TYPES, RANGES
from config import OptimizerConfig, TrainingConfig
from parsing import parse_config
from settings import Schema
from yaml_files import dump_yaml, load_yaml

from .messages import check_message


START = "train.py: error: "
MAX_LENGTH = 3000
SCHEMA = Schema(TrainingConfig)
TYPES, SECTIONS = SCHEMA.types, SCHEMA.sections
NAMES = st.sampled_from(
    [*TYPES, *(name.rpartition(".")[2] for name in TYPES), "zzz", "<<", "class_path", "dict_kwargs"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "none", "no", "latest", "1e-3", ".nan", "ddim", "os.path", "config.yaml", "9" * 50])
)
VALUES = st.recursive(
    SCALARS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(NAMES | st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)
# init_from and resume would read other files.
KEYS = sorted(name for name in TYPES if name not in ("init_from", "resume", "config"))
# Valid values of these settings may contradict each other or the script.
RELATED = (
    "data.resolution",
    "distillation.adversarial_weight",
    "distillation.num_segments",
    "samples.num_images",
    "train_batch_size",
    *FLOW_DEFAULTS,
    *(name for name in TYPES if name.startswith("scheduler.") or name.endswith(("num_inference_steps", "interval"))),
)
INDEPENDENT = sorted(
    name
    for name in set(KEYS) - set(RELATED) - SECTIONS
    if name in RANGES or TYPES[name] is bool or typing.get_origin(TYPES[name]) is Literal
)


@dataclass(frozen=True)
class Configuration:
    """
    Settings of a training run.

    Attributes:
        settings: Nested settings of a YAML file.
        text: Content of a file, instead of `settings`.
        arguments: Arguments of the command line, instead of a file.
        is_valid: Whether the settings must be accepted.
        invalid_name: Name of the only setting that is invalid.
    """

    settings: dict[str, Any] | None = None
    text: bytes | None = None
    arguments: tuple[str, ...] | None = None
    is_valid: bool = False
    invalid_name: str | None = None


def add_setting(settings: dict[str, Any], name: str, value: Any) -> None:
    section, _, key = name.rpartition(".")
    if not section:
        settings[key] = value
    elif isinstance(settings.setdefault(section, {}), dict):
        settings[section][key] = value


@st.composite
def invalid_settings(choose: st.DrawFn) -> Configuration:
    """Generates settings. Most have valid names, and some have valid values."""
    settings: dict[str, Any] = {}
    for name in choose(st.lists(st.sampled_from(KEYS), max_size=5)):
        bounds = RANGES.get(name)
        numbers = [bounds.minimum, bounds.maximum, bounds.maximum + 1] if bounds else [1]
        add_setting(settings, name, choose(st.sampled_from(numbers) | VALUES))
    if choose(st.integers(0, 4)) == 0:
        settings |= choose(st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=2))
    return Configuration({name: value for name, value in settings.items() if name not in ("init_from", "resume")})


@st.composite
def valid_settings(choose: st.DrawFn) -> Configuration:
    """Generates valid settings, at most one of which gets an invalid value."""
    settings: dict[str, Any] = {}
    names = choose(st.lists(st.sampled_from(INDEPENDENT), min_size=1, max_size=25, unique=True))
    for name in names:
        annotation, bounds = TYPES[name], RANGES.get(name)
        if bounds is None:
            values = st.booleans() if annotation is bool else st.sampled_from(typing.get_args(annotation))
        elif "float" in str(annotation):
            # Most of the floats that hypothesis generates in an interval are close to its ends.
            middle = st.integers(1, 9).map(lambda tenths, b=bounds: b.minimum + tenths / 10 * (b.maximum - b.minimum))
            ends = st.floats(bounds.minimum, bounds.maximum, exclude_min=bounds.above, exclude_max=bounds.below)
            values = middle | ends
        else:
            values = st.integers(math.ceil(bounds.minimum), math.floor(bounds.maximum))
        if "list" in str(annotation):
            values = st.lists(values, min_size=1, max_size=8)
        add_setting(settings, name, choose(values))
    invalid_name = choose(st.sampled_from([None, *(name for name in names if name in RANGES)]))
    if invalid_name is None:
        return Configuration(settings, is_valid=True)
    bounds = RANGES[invalid_name]
    too_small = bounds.minimum if bounds.above else bounds.minimum - 1
    too_large = bounds.maximum if bounds.below else bounds.maximum + 1
    value = choose(st.sampled_from((too_small, too_large, math.nan, math.inf, True, "abc")))
    add_setting(settings, invalid_name, [value] if "list" in str(TYPES[invalid_name]) else value)
    return Configuration(settings, invalid_name=invalid_name)


def configurations() -> st.SearchStrategy[Configuration]:
    text = st.text(max_size=60) | st.text("a: &*[]{}!|>-\n#'\"1\t,?%@<", max_size=60)
    contents = text.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=40)
    names = st.sampled_from(["config", *KEYS, *SECTIONS, *(f"model.{name}" for name in MODEL_TYPES)])
    values = st.text(max_size=10) | SCALARS.map(str) | VALUES.map(lambda value: dump_yaml({"x": value})[3:])
    arguments = st.builds("--{}={}".format, names, values)
    unknown = st.sampled_from(["--zzz=1", "--seed", "x", "--data.x.y=1", "--config=/"])
    return st.one_of(
        invalid_settings(),
        valid_settings(),
        valid_settings(),
        st.builds(Configuration, text=contents),
        st.builds(Configuration, arguments=st.lists(arguments | unknown, max_size=4).map(tuple)),
    )


def flatten_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings with dotted names."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        values |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return values


def parse(arguments: list[str]) -> TrainingConfig | str:
    """Returns the configuration or the error message."""
    output, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            return parse_config(arguments)
    except SystemExit as error:
        line = errors.getvalue()
        assert error.code == 2 and output.getvalue() == ""
        assert line.startswith(START) and line.endswith("\n") and len(line) < MAX_LENGTH, line
        return line.removeprefix(START)[:-1]


def check_configuration(data: Configuration, folder: Path) -> None:
    """Settings must be accepted as they are given and survive a round trip, or be rejected by name."""
    path = folder / "config.yaml"
    arguments = list(data.arguments or [])
    if data.arguments is None:
        content = data.text
        if content is None:
            content = dump_yaml(data.settings or {}).encode("utf-8", "surrogatepass")
        path.write_bytes(content)
        arguments = [f"--config={path}"]
    config = parse(arguments)
    if isinstance(config, str):
        assert not data.is_valid, config
        assert data.invalid_name is None or f"`--{data.invalid_name}`" in config, config
        title, *problems = config.splitlines()
        assert not problems or title.startswith("Found "), config
        for problem in problems or [title]:
            check_message(problem.removeprefix("  - "), [*list_names(data, path), "others."])
        return
    assert data.invalid_name is None, f"{data.invalid_name} is accepted"
    assert isinstance(config, TrainingConfig) and isinstance(config.optimizer, OptimizerConfig)
    values = flatten_settings(asdict(config))
    for name, bounds in RANGES.items():
        value = values.get(name)
        for number in value if isinstance(value, list | tuple) else [value]:
            if number not in (None, "auto"):
                assert type(number) in (int, float) and math.isfinite(number), name
                assert number > bounds.minimum if bounds.above else number >= bounds.minimum, name
                assert number < bounds.maximum if bounds.below else number <= bounds.maximum, name
    for name, value in flatten_settings(data.settings or {}).items():
        parsed = values[name]
        # Numbers may be quoted.
        if isinstance(value, str) and not isinstance(parsed, str):
            value = load_yaml(value)
        assert (list(parsed) if isinstance(parsed, tuple) else parsed) == value, name
        assert isinstance(parsed, bool) == isinstance(value, bool), name
    saved = folder / "saved.yaml"
    config.save(saved)
    assert parse([f"--config={saved}"]) == config


def list_names(data: Configuration, path: Path) -> list[str]:
    """Returns the names of the settings, the file or the arguments. The error message must contain one of them."""
    if data.settings is None:
        arguments = [part for argument in data.arguments or [] for part in argument.split("=", 1) if part]
        return [path.name, "`--", *arguments]
    keys = [*data.settings, *(key for value in data.settings.values() if isinstance(value, dict) for key in value)]
    # The message shows control characters as escape sequences.
    return [path.name, "`--`", *(repr(str(key)[:60])[1:-1] for key in keys if str(key))]
