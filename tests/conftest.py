import itertools
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest


# huggingface_hub reads environment variables at import time. The settings of the user must not affect the tests.
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "DIFFUSERS_"))]:
    del os.environ[name]
HF_HOME = tempfile.TemporaryDirectory(prefix="fmnist-diffusion-tests-")
os.environ["HF_HOME"] = HF_HOME.name
# In a background job of a shell, SIGINT is ignored, also in the processes that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

from huggingface_hub import constants, hf_api  # noqa: E402

from fake_hub import FakeHub  # noqa: E402
from optional_resources import skip_or_fail  # noqa: E402


# These files contain few but slow tests. They run first, so that no worker is left with a slow test at the end.
LONG_FILES = ("test_training_processes.py", "test_tutorial.py", "test_generated_inputs.py", "test_kills.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG_FILES)


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """An IDX folder of the first 512 training and 128 test images."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def complete_fashion_mnist_folder() -> Path:
    """An IDX folder with all training and test images."""
    from fmnist_diffusion.data import DEBIAN_FOLDER

    if not DEBIAN_FOLDER.is_dir():
        skip_or_fail("the complete Fashion-MNIST", "apt-get install dataset-fashion-mnist")
    return DEBIAN_FOLDER


@pytest.fixture(scope="session")
def user_weights() -> Path | None:
    """The Inception network in the user's cache, which the tests do not write to."""
    from fmnist_diffusion.evaluation import find_inception

    return find_inception()


@pytest.fixture(scope="session")
def inception_weights(user_weights: Path | None) -> Path:
    if user_weights is None:
        skip_or_fail("the Inception network", "make inception")
    return user_weights


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[FakeHub]:
    """A fake Hub with the logged-in user `someone`. Retries do not wait."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with FakeHub(users={"hf_someone": "someone", "hf_other": "other"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
        # FakeHub supports LFS for large files, but not Xet.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_someone")
        yield hub


@pytest.fixture(scope="session")
def cpp_compiler() -> None:
    """The compiler that `torch.compile` needs on a CPU."""
    from machine import can_compile

    if not can_compile():
        skip_or_fail("g++ and Python's headers", "apt-get install g++ python3-dev")


@pytest.fixture
def slow_legends(monkeypatch) -> None:
    """Makes each search for the best position of a legend take so long that Matplotlib warns."""
    ticks = itertools.count(step=60)
    monkeypatch.setattr("matplotlib.legend.time", SimpleNamespace(perf_counter=lambda: next(ticks)))


@pytest.fixture
def fake_onnx_model(monkeypatch) -> None:
    """Replaces the conversion of a model to ONNX, which takes seconds. The file of the fake model is empty."""
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), save=lambda path, **kwargs: path.touch())
    monkeypatch.setattr("fmnist_diffusion.export.onnx_file.convert_to_onnx", lambda *args: program)


@pytest.fixture
def dynamic_modules(tmp_path, monkeypatch) -> Iterator[None]:
    """Makes `trust_remote_code=True` store its modules in a temporary folder."""

    def remove_modules():
        for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers_modules"]:
            del sys.modules[name]

    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    remove_modules()
    yield
    remove_modules()


@pytest.fixture
def diffusers_log(caplog) -> Iterator[pytest.LogCaptureFixture]:
    """Captures the log messages of diffusers at level WARNING and above."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
