"""Mocks packages that other projects import but do not use in the benchmarks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import MagicMock


# denoising-diffusion-pytorch and smalldiffusion do not use these packages for training and sampling.
UNUSED_PACKAGES = ("torchvision", "scipy", "scipy.optimize")


@contextmanager
def mock_packages(*names: str) -> Iterator[None]:
    """Replaces the modules `names` with mocks inside the block, unless they are already imported."""
    mocks = {name: MagicMock() for name in names if name not in sys.modules}
    sys.modules.update(mocks)
    yield
    for name in mocks:
        del sys.modules[name]
