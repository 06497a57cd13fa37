"""Resources that only some machines have. `.ci/run` installs all of them."""

import os
from typing import NoReturn

import pytest


def skip_or_fail(missing: str, command: str) -> NoReturn:
    """Skips a test that needs a missing resource, or fails it if FMNIST_DIFFUSION_FULL_DATA is set, as in CI."""
    message = f"This test needs {missing}. Run {command}."
    if os.environ.get("FMNIST_DIFFUSION_FULL_DATA"):
        pytest.fail(message)
    pytest.skip(message)
