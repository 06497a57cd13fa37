from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

from hub_stand_in import HubStandIn


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """An IDX folder of the first 512 training and 128 test images."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[HubStandIn]:
    """A Hub on which this process is `someone`, and where waiting between attempts takes no time."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with HubStandIn(users={"hf_someone": "someone", "hf_other": "other"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
        # Large files go by LFS, of which the stand-in knows the content.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_someone")
        yield hub


@pytest.fixture(scope="session")
def cpp_compiler() -> None:
    """What `torch.compile` builds with on a CPU; `.ci/run` installs it."""
    from training.components import can_compile

    if not can_compile():
        pytest.skip("torch.compile needs g++ and Python's headers: install g++ and python3-dev")
