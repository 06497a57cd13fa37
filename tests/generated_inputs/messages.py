"""Checks of error messages."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from fmnist_diffusion.data import DataError


MAX_LENGTH = 1000
Result = TypeVar("Result")


def check_message(message: str, names: Collection[str]) -> None:
    """Checks that a message is one line of sentences, and that it contains one of `names`."""
    assert message.endswith((".", "?")), message
    assert "\n" not in message and " at 0x" not in message and len(message) <= MAX_LENGTH, message
    assert any(name in message for name in names), f"none of {sorted(names)} is in the message: {message}"


def call_or_get_error(function: Callable[[], Any], error_type: type[Exception], names: list[str]) -> Any:
    """Returns the result, or `None` if the function raises an error of the given type."""
    try:
        return function()
    except error_type as error:
        check_message(str(error), names)
        return None


def get_result(load: Callable[..., Result], error_names: Collection[str], **kwargs: object) -> Result | None:
    """
    Returns the result of `load`, and `None` if it raises a `DataError`.

    Args:
        load: The function to call.
        error_names: One of these names must be in the message of the error; empty if there must be no error.
        kwargs: Arguments of `load`.
    """
    try:
        result = load(**kwargs)
    except DataError as error:
        assert error_names, f"unexpected error: {error}"
        assert str(error)[0].isupper() or str(error)[0] == "`", error
        check_message(str(error), error_names)
        return None
    assert not error_names, f"no error about {sorted(error_names)}"
    return result
