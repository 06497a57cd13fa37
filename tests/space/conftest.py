import gc
from collections.abc import Iterator
from pathlib import Path

import app
import pytest
import torch
from diffusers import DDPMScheduler

from fmnist_diffusion import FashionMNISTUNet2DModel, export_pipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS


# Starlette's and gradio's own, in their servers and clients.
WARNINGS = ["ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for warning in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="module", autouse=True)
def clients_are_gone() -> Iterator[None]:
    """What gradio's clients leave open is found here, where it is no error, and not in a test elsewhere."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> str:
    """A pipeline that knows the ten classes but draws only noise of another kind for each."""
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(
        block_out_channels=(8, 16),
        norm_type="group",
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=10,
        label_names=FASHION_MNIST_LABELS,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export_pipeline(unet, DDPMScheduler(), folder)
    return str(folder)


@pytest.fixture(scope="session")
def url(model_folder) -> Iterator[str]:
    """The address of the running demo."""
    page = app.build(app.App(model_folder))
    _, local_url, _ = app.launch(page, prevent_thread_lock=True, quiet=True)
    yield local_url
    page.close(verbose=False)
