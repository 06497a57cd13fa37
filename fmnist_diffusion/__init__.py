"""Fashion-MNIST diffusion models for Hugging Face diffusers."""

import importlib
import importlib.util
import sys
import types
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .loading import bundled_pipelines, load_pipeline
    from .models import FashionMNISTGuidanceClassifier, FashionMNISTUNet2DModel
    from .pipelines import FashionMNISTPipeline

__version__ = "0.1.0"

__all__ = [
    "FashionMNISTGuidanceClassifier",
    "FashionMNISTPipeline",
    "FashionMNISTUNet2DModel",
    "bundled_pipelines",
    "load_pipeline",
]

LAZY_IMPORTS = {
    "FashionMNISTGuidanceClassifier": ".models",
    "FashionMNISTPipeline": ".pipelines",
    "FashionMNISTUNet2DModel": ".models",
    "bundled_pipelines": ".loading",
    "load_pipeline": ".loading",
}


class LazyModule(types.ModuleType):
    """Placeholder that imports the module of the same name when one of its attributes is first accessed."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.util.find_spec(name)

    def __getattr__(self, name: str):
        # Tools that inspect sys.modules read attributes such as __file__, which must not import torch.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


# The `model_index.json` of a DDPMPipeline with this model contains the name of this module. diffusers only finds the
# module in `sys.modules`.
MODEL_MODULE = f"{__name__}.models.unet_fmnist"
sys.modules[MODEL_MODULE] = LazyModule(MODEL_MODULE)


def __getattr__(name: str):
    if name not in LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY_IMPORTS[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY_IMPORTS])
