"""The error of invalid data."""


class DataError(ValueError):
    """Raised if data is missing, broken or not as described. The message names the data and says how to fix it."""


def get_reason(error: BaseException) -> str:
    """Return the first line of an error message, to quote it in another message."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
