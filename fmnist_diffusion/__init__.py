"""Fashion-MNIST diffusion models for diffusers: a U-Net, a class-conditional pipeline and their loading."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING


# diffusers resolves the parts of a saved pipeline in `sys.modules`, so these imports cannot be lazy but in the console
# script, whose help and refusals shall not wait seconds for torch, and which loads pipelines through `hub` alone.
if TYPE_CHECKING or Path(sys.argv[0]).stem != "fmnist-diffusion":
    from .models.unet_fmnist import FashionMNISTUNet2DModel
    from .schedulers import SDEDPMSolverScheduler

if TYPE_CHECKING:
    from .hub import bundled_pipelines, export_pipeline, load_pipeline
    from .pipelines.pipeline_fmnist import FashionMNISTPipeline

__version__ = "0.1.0"

__all__ = [
    "FashionMNISTPipeline",
    "FashionMNISTUNet2DModel",
    "SDEDPMSolverScheduler",
    "bundled_pipelines",
    "export_pipeline",
    "load_pipeline",
]

LAZY_MODULES = {
    "FashionMNISTPipeline": ".pipelines.pipeline_fmnist",
    "FashionMNISTUNet2DModel": ".models.unet_fmnist",
    "SDEDPMSolverScheduler": ".schedulers",
    "bundled_pipelines": ".hub",
    "export_pipeline": ".hub",
    "load_pipeline": ".hub",
}


def __getattr__(name: str):
    if name not in LAZY_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY_MODULES])
