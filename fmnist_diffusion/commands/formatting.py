"""Text formatting for the output of commands."""

from collections.abc import Callable, Mapping
from typing import Any


def format_section(title: str, values: Mapping[str, Any], format_float: Callable[[float], str] = str) -> list[str]:
    """
    Formats nested values as a title and one indented line per value.

    Args:
        title (`str`): First line.
        values (`Mapping`): Nested values. The result is empty if there are none.
        format_float (`Callable`, defaults to `str`): Function that formats floating-point numbers.
    """
    from fmnist_diffusion.metadata import flatten

    def format_value(value: Any) -> str:
        if isinstance(value, float):
            return format_float(value)
        if isinstance(value, list):
            return ", ".join(map(format_value, value))
        return str(value)

    rows = [(name, format_value(value)) for name, value in flatten(values)]
    width = max((len(name) for name, _ in rows), default=0)
    return [title, *(f"    {name:{width}}  {value}" for name, value in rows)] if rows else []
