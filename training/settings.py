"""Names and types of the settings of a program, such as optimizer.learning_rate."""

import difflib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union

from checks import MODEL_TYPES, format_value


# The training images and the text encoder determine these arguments of the model.
DATA_OPTIONS = ("sample_size", "in_channels", "out_channels", "label_names", "class_embed_type")
MAX_NAME_LENGTH = 60


def list_types(cls: type, section: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the name and the type of each field of a dataclass; a section comes before its settings."""
    for name, annotation in typing.get_type_hints(cls).items():
        yield f"{section}{name}", annotation
        if isinstance(annotation, type) and is_dataclass(annotation):
            yield from list_types(annotation, f"{name}.")


def describe_type(annotation: Any) -> str:
    """Returns words for the values of a type, such as "an integer or null"."""
    names = {int: "an integer", float: "a number", str: "a string", NoneType: "null"}
    words = []
    options = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, UnionType) else [annotation]
    for option in options:
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin is Literal:
            choices = ", ".join(format_value(value) for value in args)
            words.append(choices if len(args) == 1 else f"one of {choices}")
        elif option is bool:
            words += ["true", "false"]
        elif origin is tuple and Ellipsis not in args:
            words.append(f"a list of {len(args)} {'integers' if args[0] is int else 'numbers'}")
        else:
            is_list = origin in (list, tuple)
            words.append("a list of integers" if is_list else names.get(option, "a mapping of settings"))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def has_type(value: Any, annotation: Any) -> bool:
    """Returns whether a value has the annotated type. Only supports the types of model arguments, and null."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, UnionType):
        return any(has_type(value, option) for option in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is list:
        return isinstance(value, list) and all(has_type(item, args[0]) for item in value)
    return type(value) is annotation or (annotation is float and type(value) is int)


class Schema:
    """The settings that a dataclass defines, and messages about wrong ones.

    Args:
        config_class: The dataclass. Its fields that are dataclasses, and `model`, are sections.

    Attributes:
        types: The type of each setting and section by its name.
        sections: The names of the sections.
    """

    def __init__(self, config_class: type):
        self.types = dict(list_types(config_class))
        if "model" in self.types:
            self.types |= {f"model.{name}": annotation for name, annotation in MODEL_TYPES.items()}
        self.sections = {name.partition(".")[0] for name in self.types if "." in name}

    def find_wrong_settings(self, settings: Mapping[str, Any], section: str = "") -> dict[str, str]:
        """Returns a sentence about each unknown name, and about each wrong type that jsonargparse does not find.

        Args:
            settings: Nested settings, such as `{"optimizer": {"learning_rate": 1e-3}}`.
            section: Prefix of the names, such as `"optimizer."`.
        """
        problems = {}
        for key, value in settings.items():
            name = f"{section}{key}"
            if name not in self.types or "." in key:
                problems[name] = self.describe_unknown_name(name)
            elif name in self.sections and isinstance(value, dict):
                problems |= self.find_wrong_settings(value, f"{name}.")
            else:
                # jsonargparse does not check the arguments of the model, and ignores the type if a file contains null.
                is_unchecked = value is None or section == "model."
                if name in self.sections or (is_unchecked and not has_type(value, self.types[name])):
                    problems[name] = self.describe_wrong_type(name, format_value(value))
        return problems

    def describe_wrong_type(self, name: str, value: str) -> str:
        hint = " Remove it to use the defaults." if name in self.sections else ""
        return f"`--{name}` must be {describe_type(self.types[name])}, got {value}.{hint}"

    def describe_unknown_name(self, name: str) -> str:
        """Returns a sentence about a name that is not the name of a setting."""
        section, _, key = name.partition(".")
        if name in self.types:
            return f"`{name}` must be written as `{section}: {{{key}: ...}}` in a YAML file."
        if section in self.sections and section == "model" and key in DATA_OPTIONS:
            return (
                f"`--{name}` cannot be set, because it is determined by other settings. Set `--data.resolution`,"
                " `--data.channels`, `--data.label_column` or `--text_encoder.num_hidden_layers` instead."
            )
        hint = "Pass --help to list all settings."
        candidates = {known.rpartition(".")[2]: known for known in self.types if known not in self.sections}
        if section in self.sections and key not in candidates:
            candidates = {key: known for key, known in candidates.items() if known.startswith(f"{section}.")}
        for match in difflib.get_close_matches(name.rpartition(".")[2][:MAX_NAME_LENGTH], candidates, 1):
            hint = f"Did you mean `--{candidates[match]}`?"
        # repr() escapes control characters.
        return f"Could not find the setting `--{repr(name[:MAX_NAME_LENGTH])[1:-1]}`. {hint}"
