"""Error classes for invalid data."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


MAX_NAMES = 5


class DataError(ValueError):
    """Raised if data is missing, damaged or in an unexpected format. The message says how to fix it."""


class ImageError(DataError):
    """
    Raised if an image cannot be used.

    Args:
        name (`str`): The image, such as "the image a.png" or "the image in row 3".
        reason (`str`): A phrase that says what is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(f"Could not read {name} ({reason}). Replace or remove it.")
        self.name, self.reason = name, reason

    def __reduce__(self):
        # Exceptions are pickled with the arguments of their base class by default.
        return type(self), (self.name, self.reason)


def combine_image_errors(errors: Sequence[ImageError]) -> DataError:
    """Returns one error that names at most 5 of the images and says how many there are."""
    if len(errors) == 1:
        return errors[0]
    names = list_names([f"{error.name} ({error.reason})" for error in errors])
    return DataError(f"Could not read {len(errors)} images: {names}. Replace or remove them.")


@contextmanager
def rename_arguments(names: Mapping[str, str], error_class: type[ValueError] = DataError) -> Iterator[None]:
    """
    Replaces argument names in the message of a [`DataError`] with names that the user of the caller knows.

    Args:
        names (`Mapping[str, str]`): Pairs of text and replacement, such as "`split`" and "`--data.split`".
        error_class (`type[ValueError]`, defaults to `DataError`): Class of the new error.
    """
    try:
        yield
    except DataError as error:
        pattern = "|".join(map(re.escape, names))
        raise error_class(re.sub(pattern, lambda match: names[match[0]], str(error))) from error


def list_names(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    """Joins at most `limit` names with commas and adds the number of the others."""
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit:,} more"


def get_reason(error: BaseException) -> str:
    """Returns the first line of the message of `error`, for use in another message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
