"""Reads the settings of a training run from YAML files and the command line."""

import re
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_dumper, set_loader

from checkpoint import find_checkpoint
from checks import find_problems, format_problems
from config import TrainingConfig
from fmnist_diffusion.metadata import flatten
from launch_environment import is_first_process
from pretrained import find_defaults, get_saved_settings_path
from settings import TYPES, describe_unknown_name, describe_wrong_type, find_wrong_settings
from yaml_files import dump_yaml, load_yaml, read_yaml


MAX_VALUE_LENGTH = 60

set_loader("core_yaml", load_yaml, (ValueError,))
set_dumper("core_yaml", dump_yaml)


class SettingsError(Exception):
    """Raised if settings cannot be parsed. `problems` contains one sentence per problem."""

    def __init__(self, problems: list[str]):
        super().__init__(" ".join(problems))
        self.problems = problems


class Parser(ArgumentParser):
    """Parser that checks YAML files before jsonargparse interprets them, and raises [`SettingsError`]."""

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        try:
            read_yaml(Path(path))
        except ValueError as error:
            raise SettingsError([str(error)]) from error
        return super().parse_path(path, *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        settings = load_yaml(content)
        if not isinstance(settings, dict):
            raise ValueError("it must contain a mapping, such as `num_epochs: 10`")
        problems = list(find_wrong_settings(settings).values())
        if problems:
            raise SettingsError(problems)
        return super().parse_string(content, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SettingsError(describe_parser_error(message)) from ex


def describe_parser_error(message: str) -> list[str]:
    """Returns sentences that name the settings in an error message of jsonargparse as the user types them."""
    unknown = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if unknown:
        names = re.findall(r"(?:^|\s)--([^\s=]+)", unknown[1])
        return [describe_unknown_name(name) for name in names] or [f"Could not find the option {unknown[1]!r:.100}."]
    unknown = re.match(r"Group '([\w.]+)' does not accept option '(.*)'", message)
    if unknown:
        return [describe_unknown_name(f"{unknown[1]}.{unknown[2]}")]
    incomplete = re.match(r"argument --([\w.]+): expected one argument", message)
    if incomplete and incomplete[1] in TYPES:
        return [describe_wrong_type(incomplete[1], "no value")]
    empty = re.match(r'Empty nested key: "(.*)"', message, re.DOTALL)
    if empty:
        return [describe_unknown_name(empty[1])]
    config = re.match(r'(?:Parser key "config"|argument --config): (.*)', message, re.DOTALL)
    if config:
        return [f"Could not read `--config` ({config[1][:300].rstrip('.')}). Pass the path of a YAML file."]
    name = re.match(r'Parser key "([\w.]+)"', message)
    if name and name[1] in TYPES:
        patterns = (r"Given value: (.*)\Z", r"Got value: (.*)\Z", r"Unable to load config '(.*?)'")
        matches = [match[1] for pattern in patterns if (match := re.search(pattern, message, re.DOTALL))]
        value = repr((matches or ["an invalid value"])[0][:MAX_VALUE_LENGTH])[1:-1]
        return [describe_wrong_type(name[1], {"None": "null", "True": "true", "False": "false"}.get(value, value))]
    return [f"Could not read the settings: {message[:300].rstrip('.')}."]


DESCRIPTIONS = {
    "train.py": "Trains a FashionMNISTUNet2DModel: accelerate launch training/train.py --config FILE ...",
    "distill.py": (
        "Distills a pipeline into one that needs one to four steps: accelerate launch training/distill.py --config"
        " FILE --init_from PIPELINE ..."
    ),
}


def parse_config(args: list[str], program: Literal["train.py", "distill.py"] = "train.py") -> TrainingConfig:
    """Reads `--config file.yaml` and `--any.field=value`; later arguments win. Errors exit with code 2.

    The settings of the run to resume, or of the pipeline to fine-tune or distill, replace the defaults.
    """
    parser = Parser(
        prog=program,
        allow_abbrev=False,
        parser_mode="core_yaml",
        description=DESCRIPTIONS[program],
    )
    example = "spec" if program == "train.py" else "distill"
    parser.add_argument("--config", action="config", help=f"YAML file, such as training/configs/{example}.yaml")
    parser.add_class_arguments(TrainingConfig, None)
    try:
        settings = parse_settings(parser, args)
    except SettingsError as error:
        text = format_problems([" ".join(problem.split()) for problem in error.problems])
        parser.exit(2, f"{parser.prog}: error: {text}\n" if is_first_process() else None)
    fields = vars(parser.instantiate(settings))
    del fields["config"]
    return TrainingConfig(**fields)


def parse_settings(parser: Parser, args: list[str]) -> Namespace:
    """Returns valid settings; raises [`SettingsError`] otherwise."""
    try:
        settings = parser.parse_args(args)
    except SettingsError as error:
        raise SettingsError(find_all_problems(parser, args, error.problems)) from error
    changes_defaults = settings.init_from is not None or settings.resume is not None
    # The defaults from `init_from` or `resume` are not known yet, so contradictions with them are found below.
    check_settings(settings, None if changes_defaults else parser.prog)
    if not changes_defaults:
        return settings
    try:
        if settings.resume is not None and not get_saved_settings_path(settings.resume, settings.output_dir).is_file():
            # Without the settings of the run to resume, the checks below would report misleading contradictions.
            find_checkpoint(settings.resume, Path(settings.output_dir) / "checkpoints")
        defaults = find_defaults(settings.init_from, settings.resume, settings.output_dir)
    except (ValueError, OSError) as error:
        raise SettingsError([str(error)]) from error
    problems = list(find_wrong_settings(defaults).values())
    if problems:
        raise SettingsError(problems)
    # jsonargparse does not convert the types of defaults.
    typed_defaults = parser.parse_object(defaults, defaults=False).as_dict()
    # `model` is a single setting, whose value is a dictionary.
    model = {"model": typed_defaults.pop("model")} if "model" in typed_defaults else {}
    parser.set_defaults(dict(flatten(typed_defaults)) | model)
    settings = parser.parse_args(args)
    check_settings(settings, parser.prog)
    return settings


def find_all_problems(parser: Parser, args: list[str], first_problems: list[str]) -> list[str]:
    """Parses each option separately to find all problems, because jsonargparse stops at the first one."""
    starts = [index for index, text in enumerate(args) if index == 0 or text.startswith("--")]
    options = [args[start:end] for start, end in zip(starts, [*starts[1:], len(args)], strict=True)]
    problems = list(first_problems)
    for option in options:
        # These options print a text and exit.
        if option[0].startswith(("--print_config", "--help", "-h")):
            continue
        try:
            check_settings(parser.parse_args(option), None)
        except SettingsError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def check_settings(settings: Namespace, program: str | None) -> None:
    """Raises [`SettingsError`] if values are invalid or, with a `program`, contradict it or other values."""
    nested = {name: value for name, value in settings.as_dict().items() if name != "config"}
    wrong = find_wrong_settings(nested)
    valid = {name: value for name, value in flatten(nested) if name not in wrong}
    problems = [*wrong.values(), *find_problems(valid, program)]
    if problems:
        raise SettingsError(problems)
