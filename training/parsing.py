"""Reads the settings of a training run from YAML files and the command line."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace, set_dumper, set_loader

from checks import find_problems
from config import TrainingConfig
from settings import TYPES, describe_unknown_name, describe_wrong_type, find_wrong_settings
from yaml_files import dump_yaml, load_yaml, read_yaml


# A message lists at most this many problems.
MAX_PROBLEMS = 10
MAX_VALUE_LENGTH = 60

set_loader("core_yaml", load_yaml, (ValueError,))
set_dumper("core_yaml", dump_yaml)


def is_first_process() -> bool:
    """Returns whether this is the main process; also works before Accelerate is initialized."""
    return os.environ.get("RANK", "0") == "0"


class Parser(ArgumentParser):
    """Parser that checks YAML files before jsonargparse interprets them, and reports all problems in one message."""

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        try:
            read_yaml(Path(path))
        except ValueError as error:
            self.stop([str(error)])
        return super().parse_path(path, *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        problems = list(find_wrong_settings(load_yaml(content)).values())
        if problems:
            self.stop(problems)
        return super().parse_string(content, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.stop(describe_parser_error(message))

    def stop(self, problems: list[str]) -> NoReturn:
        """Prints the problems in one line and exits with code 2."""
        others = len(problems) - MAX_PROBLEMS
        text = " ".join(problems[:MAX_PROBLEMS] + ([f"{others} other settings are invalid."] if others > 0 else []))
        self.exit(2, f"{self.prog}: error: {' '.join(text.split())}\n" if is_first_process() else None)


def describe_parser_error(message: str) -> list[str]:
    """Returns sentences that name the settings in an error message of jsonargparse as the user types them."""
    unknown = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
    if unknown:
        names = re.findall(r"(?:^|\s)--([^\s=]+)", unknown[1])
        return [describe_unknown_name(name) for name in names] or [f"Could not find the option {unknown[1]!r:.100}."]
    unknown = re.match(r"Group '([\w.]+)' does not accept option '(.*)'", message)
    if unknown:
        return [describe_unknown_name(f"{unknown[1]}.{unknown[2]}")]
    name = re.match(r'Parser key "([\w.]+)"', message)
    if name and name[1] in TYPES:
        patterns = (r"Given value: (.*)\Z", r"Got value: (.*)\Z", r"Unable to load config '(.*?)'")
        matches = [match[1] for pattern in patterns if (match := re.search(pattern, message, re.DOTALL))]
        value = repr((matches or ["an invalid value"])[0][:MAX_VALUE_LENGTH])[1:-1]
        return [describe_wrong_type(name[1], {"None": "null", "True": "true", "False": "false"}.get(value, value))]
    return [f"Could not read the settings: {message[:300].rstrip('.')}."]


def parse_config(args: list[str] | None = None) -> TrainingConfig:
    """Reads `--config file.yaml` and `--any.field=value`; later arguments win. Errors exit with code 2.

    The settings of the run to resume, or of the pipeline to fine-tune, replace the defaults.
    """
    parser = Parser(
        prog="train.py",
        allow_abbrev=False,
        parser_mode="core_yaml",
        description="Trains a FashionMNISTUNet2DModel: accelerate launch training/train.py --config FILE ...",
    )
    parser.add_argument("--config", action="config", help="YAML file, such as training/configs/spec.yaml")
    parser.add_class_arguments(TrainingConfig, None)
    settings = parser.parse_args(args)
    has_source = settings.init_from is not None or settings.resume is not None
    # The defaults of a run with a source are not known yet, so contradictions with them are found below.
    problems = check_settings(settings, contradictions=not has_source)
    if not problems and has_source:
        # This module requires the slow import of diffusers.
        from pretrained import find_defaults

        try:
            defaults = find_defaults(settings.init_from, settings.resume, settings.output_dir)
        except (ValueError, OSError) as error:
            parser.stop([str(error)])
        problems = list(find_wrong_settings(defaults).values())
        if not problems:
            # jsonargparse does not convert the types of defaults.
            typed_defaults = parser.parse_object(defaults, defaults=False).as_dict()
            parser.set_defaults(flatten(typed_defaults))
            settings = parser.parse_args(args)
            problems = check_settings(settings)
    if problems:
        parser.stop(problems)
    fields = vars(parser.instantiate(settings))
    del fields["config"]
    return TrainingConfig(**fields)


def check_settings(settings: Namespace, contradictions: bool = True) -> list[str]:
    """Returns sentences about all invalid values and, optionally, about contradictory ones."""
    nested = {name: value for name, value in settings.as_dict().items() if name != "config"}
    problems = find_wrong_settings(nested)
    values = flatten(nested)
    values |= {f"model.{name}": value for name, value in values.pop("model").items()}
    valid = {name: value for name, value in values.items() if name not in problems}
    return [*problems.values(), *find_problems(valid, contradictions)]


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested settings by their names. The arguments of the model stay together."""
    values = {}
    for name, value in settings.items():
        if name != "model" and isinstance(value, dict):
            values |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            values[name] = value
    return values
