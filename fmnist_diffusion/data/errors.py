"""Error class for invalid data."""


class DataError(ValueError):
    """Raised if data is missing, corrupted or in an unexpected format. The message says how to fix it."""


def get_reason(error: BaseException) -> str:
    """Returns the first line of the message of `error`, for use in another message."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
