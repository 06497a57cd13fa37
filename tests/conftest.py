import shutil
import sysconfig
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """An IDX folder of the first 512 training and 128 test images."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def cpp_compiler() -> None:
    """What `torch.compile` builds with on a CPU; `.ci/run` installs it."""
    if shutil.which("g++") is None or not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        pytest.skip("torch.compile needs g++ and Python's headers: install g++ and python3-dev")
