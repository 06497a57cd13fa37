from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checks import MAX_PROBLEMS, RANGES
from config import TrainingConfig
from parsing import parse_config
from settings import Schema, has_type
from yaml_files import dump_yaml


SCHEMA = Schema(TrainingConfig)
TYPES, SECTIONS = SCHEMA.types, SCHEMA.sections


@pytest.fixture
def fail_to_parse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Parses arguments, which must exit with code 2, and returns the message."""

    def fail(*args: str) -> str:
        with pytest.raises(SystemExit) as error:
            parse_config(list(args))
        assert error.value.code == 2
        message = capsys.readouterr().err
        check_message(message)
        return message.removeprefix("train.py: error: ").removesuffix("\n")

    return fail


def check_message(message: str) -> None:
    """Checks that the message is one line, or a list with one line per problem."""
    first, *others = message.splitlines()
    assert first.startswith("train.py: error: Found " if others else "train.py: error: ")
    assert len(others) != 1 and all(line.startswith("  - ") for line in others)
    assert all(line.endswith((".", "?")) for line in others or [first])


def make_argument(name: str, value: float) -> str:
    text = {"inf": ".inf", "nan": ".nan"}.get(str(value), str(value))
    form = "[{0}, {0}]" if "interval" in name else "[{}]" if "list" in str(TYPES[name]) else "{}"
    return f"--{name}={form.format(text)}"


def make_groups(names: list[str]) -> list[list[str]]:
    """Returns groups of names whose problems fit in one message."""
    return [names[i : i + MAX_PROBLEMS] for i in range(0, len(names), MAX_PROBLEMS)]


NUMERIC = sorted(RANGES.keys() & TYPES.keys())
GROUPS = make_groups(NUMERIC)


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_values_out_of_range_are_rejected(names: list[str], fail_to_parse: Callable[..., str]):
    too_small, too_large = [], []
    for name in names:
        bounds, is_integer = RANGES[name], "float" not in str(TYPES[name])
        too_small.append(make_argument(name, bounds.minimum if bounds.above else bounds.minimum - 1))
        too_large.append(make_argument(name, bounds.maximum + 1 if is_integer else float("inf")))
    for args in (too_small, too_large):
        message = fail_to_parse(*args)
        for name in names:
            assert f"`--{name}` must be {RANGES[name]}, got " in message


def test_largest_values_are_accepted():
    # The largest values of these settings contradict each other or are not allowed in train.py.
    exceptions = ("scheduler.num_train_timesteps", "scheduler.beta_start", "scheduler.beta_end", "train_batch_size")
    exceptions += ("distillation.num_segments", "distillation.adversarial_weight", "scheduler.shift")
    args = [
        make_argument(name, RANGES[name].maximum - 1e-6 if RANGES[name].below else RANGES[name].maximum)
        for name in NUMERIC
        if name not in (*exceptions, "samples.num_images") and "num_inference_steps" not in name
    ]
    config = parse_config(args)
    assert (config.data.resolution, config.ema.power, config.model["layers_per_block"]) == (512, 10, 16)


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
def test_types_other_than_numbers_are_rejected(names: list[str], fail_to_parse: Callable[..., str]):
    message = fail_to_parse(*(f"--{name}=true" for name in names))
    assert all(f"`--{name}` must be " in message for name in names)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num_epoch=3"], "Could not find the setting `--num_epoch`. Did you mean `--num_epochs`?"),
        (["--learning_rate=3"], "Did you mean `--optimizer.learning_rate`?"),
        (["--optimizer.learning_rat=3"], "Did you mean `--optimizer.learning_rate`?"),
        # The trainer does not support classifier guidance, so it has no such settings.
        (
            ["--samples.classifier_guidance_scale=1"],
            "Could not find the setting `--samples.classifier_guidance_scale`.",
        ),
        (["--eval.classifier_guidance_scale=1"], "Could not find the setting `--eval.classifier_guidance_scale`."),
        (["--zzz=3"], "Could not find the setting `--zzz`. Pass --help to list all settings."),
        (["run"], "Could not find the option 'run'."),
        (
            ["--model.norm_typ=group"],
            "Could not find the setting `--model.norm_typ`. Did you mean `--model.norm_type`?",
        ),
        (["--model.sample_size=32"], "`--model.sample_size` cannot be set"),
        (["--model.norm_type=layer"], "`--model.norm_type` must be one of 'batch', 'group', got 'layer'."),
        (["--model.dropout=true"], "`--model.dropout` must be a number, got true."),
        (["--objective.loss_type=l3"], "`--objective.loss_type` must be one of 'mse', 'l1', 'huber', got l3."),
        (["--num_epochs=none"], "`--num_epochs` must be an integer or 'auto', got none."),
        (["--num_epochs=1.5"], "`--num_epochs` must be an integer or 'auto', got 1.5."),
        (["--num_epochs=null"], "`--num_epochs` must be an integer or 'auto', got null."),
        (["--data.channels=true"], "`--data.channels` must be one of 1, 3 or null, got true."),
        (["--data.channels=2"], "`--data.channels` must be one of 1, 3 or null, got 2."),
        (["--compile=1"], "`--compile` must be true, false or 'auto', got 1."),
        (["--data.resolution=[8]"], "`--data.resolution` must be an integer, a list of 2 integers or null, got [8]."),
        (["--seed=" + "9" * 5000], "`--seed` must be "),
        (["--seed"], "`--seed` must be an integer, got no value."),
        (
            ["--optimizer=null"],
            "`--optimizer` must be a mapping of settings, got null. Remove it to use the defaults.",
        ),
        (["--model=null"], "`--model` must be a mapping of settings, got null. Remove it to use the defaults."),
        (["--data=[1, 2]"], "`--data` must be a mapping of settings, got [1, 2]."),
        (["--ema.power=nan"], "`--ema.power` must be a number, got nan."),
        (["--config=missing.yaml"], "missing.yaml'). Pass the path of a YAML file."),
        (["--config=/dev/zero"], "Could not read `--config` (Path is not a file: '/dev/zero')."),
        (["--config="], "Could not read `--config` (it must contain a mapping, such as `num_epochs: 10`)."),
        (["--config=[1]"], "Could not read `--config` (it must contain a mapping, such as `num_epochs: 10`)."),
        (["--config"], "Could not read `--config` (expected one argument)."),
        (["--optimizer={'': 1}"], "Could not find the setting `--`."),
        (["--init_from=missing"], "missing"),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_invalid_arguments(args: list[str], message: str, fail_to_parse: Callable[..., str]):
    assert message in fail_to_parse(*args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: null", "`--optimizer` must be a mapping of settings, got null. Remove it to use the defaults."),
        ("optimizer: other.yaml", "`--optimizer` must be a mapping of settings, got 'other.yaml'."),
        ("optimizer: {class_path: os.path}", "Could not find the setting `--optimizer.class_path`."),
        ("scheduler: [1, 2]", "`--scheduler` must be a mapping of settings, got [1, 2]."),
        ("model: 3", "`--model` must be a mapping of settings, got 3."),
        (
            "data: {resolutoin: 28}",
            "Could not find the setting `--data.resolutoin`. Did you mean `--data.resolution`?",
        ),
        ("optimizer.learning_rate: 1", "must be written as `optimizer: {learning_rate: ...}` in a YAML file."),
        ("1: 2", "Could not find the setting `--1`."),
        ("seed: 2026-01-31", "`--seed` must be an integer, got 2026-01-31."),
        ("a: &a [*a]", "config.yaml: anchors and aliases are not supported (line 1, column 4)."),
        ("seed: 1\nseed: 2", "config.yaml: 'seed' appears twice (line 2, column 1)."),
        ("", "config.yaml: it must contain a mapping, such as `num_epochs: 10`."),
    ],
    ids=lambda value: value[:30],
)
def test_invalid_files(text: str, message: str, tmp_path: Path, fail_to_parse: Callable[..., str]):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert message in fail_to_parse(f"--config={path}")


def test_all_invalid_values_are_reported_together(tmp_path: Path, fail_to_parse: Callable[..., str]):
    path = tmp_path / "config.yaml"
    path.write_text("seed: -1\noptimizer: {learning_rate: .inf}\nmodel: {dropout: 2}\nsamples: {num_images: 0}\n")
    assert fail_to_parse(f"--config={path}", "--ema.power=-1", "--scheduler.beta_start=0.5") == (
        "Found 6 problems:\n"
        "  - `--seed` must be between 0 and 4,294,967,295, got -1.\n"
        "  - `--model.dropout` must be at least 0 and less than 1, got 2.\n"
        "  - `--optimizer.learning_rate` must be greater than 0 and at most 1, got inf.\n"
        "  - `--ema.power` must be greater than 0 and at most 10, got -1.0.\n"
        "  - `--samples.num_images` must be between 1 and 1,000, got 0.\n"
        "  - `--scheduler.beta_start` must be at most `--scheduler.beta_end` (0.02), got 0.5."
    )
    path.write_text("zzz: 1\ndata: null\nmodel: {norm_type: 1, yyy: 2}\n")
    message = fail_to_parse(f"--config={path}")
    assert all(f"`--{name}`" in message for name in ("zzz", "data", "model.norm_type", "model.yyy"))


def test_unknown_names_wrong_types_and_values_out_of_range_are_reported_together(fail_to_parse: Callable[..., str]):
    args = ["--num_epochs=0", "--optimizer.learning_rte=3", "--train_batch_size", "x", "--push_to_hub", "--seed=1"]
    problems = fail_to_parse(*args).splitlines()
    assert problems[0] == "Found 4 problems:"
    assert sorted(problems[1:]) == [
        "  - Could not find the setting `--optimizer.learning_rte`. Did you mean `--optimizer.learning_rate`?",
        "  - `--num_epochs` must be between 1 and 1,000,000, got 0.",
        "  - `--push_to_hub` must be true or false, got no value.",
        "  - `--train_batch_size` must be an integer or 'auto', got x.",
    ]


def test_long_lists_of_problems_are_shortened(tmp_path: Path, fail_to_parse: Callable[..., str]):
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(f"z{i}: 1" for i in range(1000)))
    message = fail_to_parse(f"--config={path}")
    assert message.startswith("Found 1,000 problems:\n") and message.endswith("\n  - 990 others.")
    assert len(message) < 1000


@pytest.mark.parametrize("option", ["--print_config", "--help"])
def test_options_that_print_do_not_hide_invalid_settings(option: str, fail_to_parse: Callable[..., str]):
    assert fail_to_parse("--seed=abc", option) == "`--seed` must be an integer, got abc."


def test_null_is_only_accepted_where_it_has_a_meaning(tmp_path: Path, fail_to_parse: Callable[..., str]):
    path = tmp_path / "config.yaml"
    settings: dict[str, Any] = {section: {} for section in SECTIONS}
    for name, annotation in TYPES.items():
        section, _, key = name.rpartition(".")
        if has_type(None, annotation):
            (settings[section] if section else settings)[key] = None
    path.write_text(dump_yaml(settings))
    config = parse_config([f"--config={path}"])
    assert config.data.train_data_dir is None and config.model == {"attention_levels": None, "num_class_embeds": None}
    required = [name for name, annotation in TYPES.items() if not has_type(None, annotation)]
    for names in make_groups(required):
        settings = {section: {} for section in SECTIONS if section not in names}
        for name in names:
            section, _, key = name.rpartition(".")
            if section not in names:
                (settings[section] if section else settings)[key] = None
        path.write_text(dump_yaml(settings))
        message = fail_to_parse(f"--config={path}")
        assert all(f"`--{name}` must be " in message for name in names if name.partition(".")[0] not in names)
    # On the command line, settings of type str accept null as a string.
    for names in make_groups([name for name in required if TYPES[name] is not str]):
        message = fail_to_parse(*(f"--{name}=null" for name in names))
        assert all(f"`--{name}` must be " in message for name in names)


@pytest.mark.parametrize("name", ["mixed_precision", "compile", "train_batch_size", "num_epochs"])
def test_auto_is_accepted(name: str):
    assert getattr(parse_config([f"--{name}=auto"]), name) == "auto"


def test_special_values_are_accepted():
    config = parse_config(["--data.resolution=[8, 512]", "--data.label_column=none", "--mixed_precision=no"])
    assert (config.data.resolution, config.data.label_column, config.mixed_precision) == ((8, 512), "none", "no")
    assert parse_config(["--output_dir=2026"]).output_dir == "2026"


def test_resumed_run_keeps_its_settings(tmp_path: Path, fail_to_parse: Callable[..., str]):
    config = parse_config(
        ["--model.norm_type=group", "--data.resolution=[16, 32]", "--eval.guidance_interval=[0, 0.5]"]
    )
    path = tmp_path / "config.yaml"
    config.save(path)
    args = ["--resume=latest", f"--output_dir={tmp_path}"]
    resumed = parse_config([*args, "--model.act_fn=silu", "--seed=1"])
    assert (resumed.data, resumed.eval) == (config.data, config.eval)
    assert (resumed.model, resumed.seed) == ({"norm_type": "group", "act_fn": "silu"}, 1)
    text = path.read_text()
    for old, new, message in (
        ("seed: 0", "seed: abc", "`--seed` must be an integer, got abc."),
        ("seed: 0", "seed: null", "`--seed` must be an integer, got null."),
        ("seed: 0", "seed: -1", "`--seed` must be between 0 and 4,294,967,295, got -1."),
        ("optimizer:", "optimizers:", "Could not find the setting `--optimizers`."),
        (text[text.index("optimizer:") : text.index("ema:")], "optimizer: 3\n", "`--optimizer` must be a mapping of"),
        ("norm_type: group", "norm_type: [1]", "`--model.norm_type` must be one of"),
        ("seed: 0", "zzz: 1\nseed: 0", "Could not find the setting `--zzz`."),
        (text, "", "it must contain a mapping"),
    ):
        path.write_text(text.replace(old, new, 1))
        assert message in fail_to_parse(*args)


def test_range_of_the_settings_is_checked_before_a_pipeline_is_read(fail_to_parse: Callable[..., str]):
    assert "`--seed` must be" in fail_to_parse("--init_from=missing", "--seed=-1")
