from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """An IDX folder of the first 512 training and 128 test images."""
    return Path(__file__).parent / "data"
