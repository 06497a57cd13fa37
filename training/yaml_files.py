"""Reads and writes settings in YAML.

Only the part of YAML that settings need is supported: the core schema of YAML 1.2, in which `no` is a string and
`1e-3` is a number. Anchors, aliases and tags are rejected, because a short file with them can expand to any size.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from fmnist_diffusion.files import write_atomically


MAX_BYTES = 100_000
MAX_DEPTH = 16

CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    # Longer digit strings are not numbers, because no setting needs them and Python limits their conversion.
    ("int", r"[-+]?(0|[1-9][0-9_]{0,30})", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


class Loader(yaml.SafeLoader):
    """Loader for the supported part of YAML."""

    yaml_implicit_resolvers = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not supported", problem_mark=event.start_mark)
        if event.tag is not None:
            raise yaml.MarkedYAMLError(problem="tags are not supported", problem_mark=event.start_mark)
        if self.depth == MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"there are more than {MAX_DEPTH} levels", problem_mark=event.start_mark
            )
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="keys must be names", problem_mark=key_node.start_mark)
            if key_node.value in mapping:
                raise yaml.MarkedYAMLError(
                    problem=f"{key_node.value[:60]!r} appears twice", problem_mark=key_node.start_mark
                )
            mapping[key_node.value] = self.construct_object(value_node, deep=deep)
        return mapping


class Dumper(yaml.SafeDumper):
    """Dumper for the supported part of YAML."""

    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for tag, pattern, first in CORE_SCHEMA:
    for cls in (Loader, Dumper):
        # An empty value is null.
        characters = [*first, ""] if tag == "null" else [*first]
        cls.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), characters)


def load_yaml(text: str) -> Any:
    """Parses a YAML document.

    Raises:
        `ValueError`: If `text` is not valid YAML, or uses a part of YAML that settings do not support.
    """
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"{(error.problem or '')[:200]}{place}") from error
    except yaml.reader.ReaderError as error:
        raise ValueError(f"{error.reason} (character {error.position + 1})") from error
    except (ValueError, OverflowError) as error:
        # PyYAML passes the number of an escape sequence such as "\\Uffffffff" to chr(), which rejects large numbers.
        raise ValueError("a string contains an invalid escape sequence") from error


def load_settings(text: str) -> dict[str, Any]:
    """Parses a YAML document; raises `ValueError` if it is not valid or not a mapping."""
    settings = load_yaml(text)
    if not isinstance(settings, dict):
        raise ValueError("it must contain a mapping, such as `num_epochs: 10`")
    return settings


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file that contains a mapping.

    Raises:
        `ValueError`: If the file is missing, is not a regular file, is too large or is not valid.
    """
    try:
        if not path.is_file():
            raise ValueError("it is not a file" if path.exists() else "it does not exist")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it must have at most {MAX_BYTES:,} bytes")
        settings = load_settings(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"Could not read {path}: it must be encoded in UTF-8.") from error
    except OSError as error:
        raise ValueError(f"Could not read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"Could not read {path}: {error}.") from error
    return settings


def dump_yaml(settings: dict[str, Any]) -> str:
    """Returns the settings in YAML, in the order of their names in `settings`."""
    return yaml.dump(settings, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def convert_tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns `settings` after a round trip through YAML, which converts tuples to lists."""
    return load_yaml(dump_yaml(settings))


def write_yaml(path: Path, settings: dict[str, Any]) -> None:
    """Writes a YAML file for `--config`.

    Raises:
        `WriteError`: If the file cannot be written.
    """
    with write_atomically(path) as temporary:
        temporary.write_text(dump_yaml(settings), encoding="utf-8")


def add_defaults(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Adds the `defaults` of missing settings, also in sections, which are dictionaries, and returns the result."""
    sections = {
        name: defaults[name] | value
        for name, value in settings.items()
        if isinstance(value, dict) and isinstance(defaults.get(name), dict)
    }
    return defaults | settings | sections
