import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


# huggingface_hub reads its settings when it is imported, and those of the user must not change what the tests do.
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "DIFFUSERS_"))]:
    del os.environ[name]
HF_HOME = tempfile.TemporaryDirectory(prefix="fmnist-diffusion-tests-")
os.environ["HF_HOME"] = HF_HOME.name

from huggingface_hub import constants, hf_api  # noqa: E402

from hub_stand_in import HubStandIn  # noqa: E402


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """An IDX folder of the first 512 training and 128 test images."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubStandIn]:
    """A stand-in for the Hub, where this process is the user `someone` and waiting between attempts takes no time."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with HubStandIn(users={"hf_someone": "someone", "hf_other": "other"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
        # The stand-in supports LFS for large files, but not Xet.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_someone")
        yield hub


@pytest.fixture(scope="session")
def cpp_compiler() -> None:
    """Skips a test if `torch.compile` cannot compile on this machine; `.ci/run` installs the compiler."""
    from components import can_compile

    if not can_compile():
        pytest.skip("torch.compile needs g++ and Python's headers: install g++ and python3-dev")


@pytest.fixture
def dynamic_modules(tmp_path, monkeypatch) -> Iterator[None]:
    """Keeps the copies of sources that `trust_remote_code=True` makes out of the user's cache."""

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
    """Captures what diffusers logs from the level WARNING on."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
