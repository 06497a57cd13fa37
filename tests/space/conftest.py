import asyncio
import gc
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, LCMScheduler
from playwright.sync_api import Browser, sync_playwright

import engine
import handlers
import layout
from fmnist_diffusion import FashionMNISTPipeline
from optional_resources import skip_or_fail
from saved_pipelines import save_pipeline
from subprocesses import find_free_port
from text_pipelines import get_text_pipeline
from tiny_pipelines import make_unet


# Gradio, its client and Starlette cause these warnings.
WARNINGS = ["ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"]

# These flags disable network access and unneeded processes.
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="module", autouse=True)
def collect_garbage() -> Iterator[None]:
    """Collects the open connections and event loops of Gradio while their warnings are ignored."""
    yield
    # This is the last event loop that Gradio has created.
    asyncio.set_event_loop(None)
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def patient_gradio() -> Iterator[None]:
    """Gives each worker its own ports, and lets servers start slowly, because the machine can be busy."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    # Gradio waits for five seconds.
    clock = SimpleNamespace(sleep=time.sleep, time=lambda: time.monotonic() / 60)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("gradio.http_server.INITIAL_PORT_VALUE", 7860 + 100 * worker)
        monkeypatch.setattr("gradio.http_server.time", clock)
        monkeypatch.setattr("gradio.networking.url_ok", lambda url: True)
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """A class-conditional pipeline with random weights and images of 8x8 pixels."""
    return str(save_pipeline(tmp_path_factory.mktemp("model") / "tiny", num_class_embeds=10))


@pytest.fixture(scope="session")
def live_folder(tmp_path_factory) -> str:
    """A pipeline with random weights that needs only 4 steps by default."""
    folder = tmp_path_factory.mktemp("model") / "live"
    FashionMNISTPipeline(make_unet(10), LCMScheduler(), num_inference_steps=4).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> str:
    """A text-conditional pipeline with random weights and images of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("model") / "text"
    get_text_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def flow_folder(tmp_path_factory) -> str:
    """A class-conditional flow-matching pipeline with random weights and images of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("model") / "flow"
    return str(save_pipeline(folder, FlowMatchEulerDiscreteScheduler(shift=3.0), num_class_embeds=10))


# Configurations of models that the trainer can produce from the images of users.
CUSTOM_MODELS: dict[str, dict[str, Any]] = {
    "rgb": {"in_channels": 3, "out_channels": 3, "num_class_embeds": 2, "label_names": ("bus", "car")},
    "wide": {"in_channels": 3, "out_channels": 3, "sample_size": (8, 24)},
    "large": {"in_channels": 3, "out_channels": 3, "sample_size": 128},
    "one class": {"num_class_embeds": 1, "label_names": ('<b>猫</b> & "x"',)},
    "many classes": {"num_class_embeds": 50, "label_names": tuple(f"класс {i}" for i in range(50))},
}


@pytest.fixture(scope="session", params=CUSTOM_MODELS)
def custom_folder(request, tmp_path_factory) -> str:
    """Folder of a pipeline with random weights that was not trained on Fashion-MNIST."""
    return str(save_pipeline(tmp_path_factory.mktemp("model") / "custom", **CUSTOM_MODELS[request.param]))


@pytest.fixture(scope="session")
def tiny(model_folder) -> engine.Engine:
    return engine.get_engine(model_folder)


@pytest.fixture
def app_environment() -> dict[str, str]:
    """Environment variables of a demo in a separate process, which exits if another process has taken its port."""
    port = str(find_free_port("127.0.0.1"))
    return os.environ | {"GRADIO_SERVER_PORT": port, "GRADIO_NUM_PORTS": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def slow_evaluations(tiny) -> Iterator[list[threading.Thread]]:
    """Slows down the tiny pipeline so that it can be stopped. Returns the thread of each model evaluation."""
    evaluations = []

    def slow_down(*_) -> None:
        evaluations.append(threading.current_thread())
        time.sleep(0.2)

    hook = tiny.pipe.unet.register_forward_pre_hook(slow_down)
    yield evaluations
    hook.remove()


@pytest.fixture(scope="session")
def base() -> engine.Engine:
    """The engine of a bundled class-conditional checkpoint."""
    return engine.get_engine("base")


@pytest.fixture(scope="session")
def spec() -> engine.Engine:
    """The engine of a bundled unconditional checkpoint."""
    return engine.get_engine("spec")


def serve(model_id: str) -> Iterator[str]:
    page = layout.build(handlers.Handlers(model_id))
    _, local_url, _ = layout.launch(page, prevent_thread_lock=True, quiet=True)
    yield local_url
    page.close(verbose=False)


@pytest.fixture(scope="session")
def url(model_folder) -> Iterator[str]:
    """URL of a running demo of the tiny pipeline."""
    yield from serve(model_folder)


@pytest.fixture(scope="session")
def live_url(live_folder) -> Iterator[str]:
    """URL of a running demo whose images follow every change of a setting."""
    yield from serve(live_folder)


@pytest.fixture(scope="session")
def text_url(text_folder) -> Iterator[str]:
    """URL of a running demo of a text-conditional pipeline."""
    yield from serve(text_folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        skip_or_fail("chromium", "apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield browser
        browser.close()
