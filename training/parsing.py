"""Reads the settings of a program from YAML files and the command line."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_dumper, set_loader

from checkpoint import find_checkpoint
from checks import find_problems, format_problems
from config import TrainingConfig, get_saved_settings_path
from fmnist_diffusion.metadata import flatten
from launch_environment import print_and_exit
from pretrained import find_defaults
from settings import Schema
from yaml_files import dump_yaml, load_settings, load_yaml, read_yaml


Config = TypeVar("Config")

MAX_VALUE_LENGTH = 60

set_loader("core_yaml", load_yaml, (ValueError,))
set_dumper("core_yaml", dump_yaml)


class SettingsError(Exception):
    """Raised if settings cannot be parsed. `problems` contains one sentence per problem."""

    def __init__(self, problems: list[str]):
        super().__init__(" ".join(problems))
        self.problems = problems


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Formatter that keeps the line breaks of the description, which contains commands."""


class Parser(ArgumentParser):
    """Parser that checks YAML files before jsonargparse interprets them, and raises [`SettingsError`]."""

    schema: Schema

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        try:
            read_yaml(Path(path))
        except ValueError as error:
            raise SettingsError([str(error)]) from error
        return super().parse_path(path, *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        problems = list(self.schema.find_wrong_settings(load_settings(content)).values())
        if problems:
            raise SettingsError(problems)
        return super().parse_string(content, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SettingsError(describe_parser_error(message, self.schema)) from ex


def describe_parser_error(message: str, schema: Schema) -> list[str]:
    """Returns sentences that name the settings in an error message of jsonargparse as the user types them."""
    unknown = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if unknown:
        names = re.findall(r"(?:^|\s)--([^\s=]+)", unknown[1])
        return [schema.describe_unknown_name(name) for name in names] or [
            f"Could not find the option {unknown[1]!r:.100}."
        ]
    unknown = re.match(r"Group '([\w.]+)' does not accept option '(.*)'", message)
    if unknown:
        return [schema.describe_unknown_name(f"{unknown[1]}.{unknown[2]}")]
    incomplete = re.match(r"argument --([\w.]+): expected one argument", message)
    if incomplete and incomplete[1] in schema.types:
        return [schema.describe_wrong_type(incomplete[1], "no value")]
    empty = re.match(r'Empty nested key: "(.*)"', message, re.DOTALL)
    if empty:
        return [schema.describe_unknown_name(empty[1])]
    config = re.match(r'(?:Parser key "config"|argument --config): (.*)', message, re.DOTALL)
    if config:
        return [f"Could not read `--config` ({config[1][:300].rstrip('.')}). Pass the path of a YAML file."]
    name = re.match(r'Parser key "([\w.]+)"', message)
    if name and name[1] in schema.types:
        patterns = (r"Given value: (.*)\Z", r"Got value: (.*)\Z", r"Unable to load config '(.*?)'")
        matches = [match[1] for pattern in patterns if (match := re.search(pattern, message, re.DOTALL))]
        value = repr((matches or ["an invalid value"])[0][:MAX_VALUE_LENGTH])[1:-1]
        value = {"None": "null", "True": "true", "False": "false"}.get(value, value)
        return [schema.describe_wrong_type(name[1], value)]
    return [f"Could not read the settings: {message[:300].rstrip('.')}."]


def parse_arguments(parser: Parser, args: list[str]) -> Namespace:
    """Returns settings of the right types; raises [`SettingsError`] otherwise."""
    try:
        return parser.parse_args(args)
    except SettingsError as error:
        raise SettingsError(find_all_problems(parser, args, error.problems)) from error


def parse_settings(parser: Parser, args: list[str]) -> Namespace:
    """Returns settings that are valid on their own; raises [`SettingsError`] otherwise."""
    settings = parse_arguments(parser, args)
    check_settings(parser, settings, None)
    return settings


def parse(
    args: list[str],
    config_class: type[Config],
    program: str,
    description: str | None,
    example: str | None = None,
    read_settings: Callable[[Parser, list[str]], Namespace] = parse_settings,
) -> Config:
    """Reads `--config file.yaml` and `--any.field=value`; later arguments take precedence. Errors exit with code 2.

    Args:
        args: The arguments of the command line.
        config_class: The dataclass to create.
        program: Name of the script.
        description: Text at the start of the help.
        example: Path of a YAML file for the help.
        read_settings: Function that parses and checks the arguments.
    """
    parser = Parser(
        prog=program,
        allow_abbrev=False,
        parser_mode="core_yaml",
        description=description,
        formatter_class=HelpFormatter,
    )
    parser.schema = Schema(config_class)
    hint = "" if example is None else f", such as {example}"
    parser.add_argument("--config", action="config", help=f"YAML file with settings{hint}")
    parser.add_class_arguments(config_class, None)
    try:
        settings = read_settings(parser, args)
    except SettingsError as error:
        text = format_problems([" ".join(problem.split()) for problem in error.problems])
        print_and_exit(program, f"error: {text}", 2, where="machine")
    try:
        fields = vars(parser.instantiate(settings))
        del fields["config"]
        return config_class(**fields)
    except ValueError as error:
        print_and_exit(program, f"error: {error}", 2, where="machine")


DESCRIPTIONS = {
    "train.py": """Trains or fine-tunes a diffusion model:

    accelerate launch training/train.py --config training/configs/base.yaml""",
    "distill.py": """Distills a pipeline into one that needs one to four steps:

    accelerate launch training/distill.py --config training/configs/distill.yaml --init_from=base""",
}


def parse_config(args: list[str], program: Literal["train.py", "distill.py"] = "train.py") -> TrainingConfig:
    """Returns the settings of a training run. Errors exit with code 2.

    The settings of the run to resume, or of the pipeline to fine-tune or distill, replace the defaults.
    """
    example = f"training/configs/{'spec' if program == 'train.py' else 'distill'}.yaml"
    return parse(args, TrainingConfig, program, DESCRIPTIONS[program], example, parse_training_settings)


def parse_training_settings(parser: Parser, args: list[str]) -> Namespace:
    """Returns settings without contradictions; raises [`SettingsError`] otherwise."""
    settings = parse_arguments(parser, args)
    changes_defaults = settings.init_from is not None or settings.resume is not None
    # The defaults from `init_from` or `resume` are not known yet, so contradictions with them are found below.
    check_settings(parser, settings, None if changes_defaults else parser.prog)
    if not changes_defaults:
        return settings
    try:
        if settings.resume is not None and not get_saved_settings_path(settings.resume, settings.output_dir).is_file():
            # Without the settings of the run to resume, the checks below would report misleading contradictions.
            find_checkpoint(settings.resume, Path(settings.output_dir) / "checkpoints")
        defaults = find_defaults(settings.init_from, settings.resume, settings.output_dir)
    except (ValueError, OSError) as error:
        raise SettingsError([str(error)]) from error
    problems = list(parser.schema.find_wrong_settings(defaults).values())
    if problems:
        raise SettingsError(problems)
    # jsonargparse does not convert the types of defaults.
    typed_defaults = parser.parse_object(defaults, defaults=False).as_dict()
    # `model` is a single setting, whose value is a dictionary.
    model = {"model": typed_defaults.pop("model")} if "model" in typed_defaults else {}
    parser.set_defaults(dict(flatten(typed_defaults)) | model)
    settings = parser.parse_args(args)
    if settings.resume is not None:
        # With `init_from`, the config only contains the changed arguments of the model, so the saved ones are added.
        settings.model = model.get("model", {}) | settings.model
    check_settings(parser, settings, parser.prog)
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
            check_settings(parser, parser.parse_args(option), None)
        except SettingsError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def check_settings(parser: Parser, settings: Namespace, program: str | None) -> None:
    """Raises [`SettingsError`] if values are invalid or, with a `program`, contradict it or other values."""
    nested = {name: value for name, value in settings.as_dict().items() if name != "config"}
    wrong = parser.schema.find_wrong_settings(nested)
    valid = {name: value for name, value in flatten(nested) if name not in wrong}
    problems = [*wrong.values(), *find_problems(valid, program)]
    if problems:
        raise SettingsError(problems)
