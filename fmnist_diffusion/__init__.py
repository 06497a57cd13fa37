"""Fashion-MNIST diffusion models for Hugging Face diffusers."""

import importlib
import sys
import types
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .loading import bundled_pipelines, load_pipeline
    from .models import FashionMNISTUNet2DModel
    from .pipelines import FashionMNISTPipeline

__version__ = "0.1.0"

__all__ = ["FashionMNISTPipeline", "FashionMNISTUNet2DModel", "bundled_pipelines", "load_pipeline"]

LAZY_IMPORTS = {
    "FashionMNISTPipeline": ".pipelines",
    "FashionMNISTUNet2DModel": ".models",
    "bundled_pipelines": ".loading",
    "load_pipeline": ".loading",
}


class LazyModule(types.ModuleType):
    """Stands in for the module of its name, which it imports when one of the attributes is first used."""

    def __getattr__(self, name: str):
        # Tools that look at all modules read attributes such as __file__.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


# A stock pipeline that was saved with this model names its module, and diffusers only looks for that in `sys.modules`.
MODEL_MODULE = f"{__name__}.models.unet_fmnist"
sys.modules[MODEL_MODULE] = LazyModule(MODEL_MODULE)


def __getattr__(name: str):
    if name not in LAZY_IMPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY_IMPORTS[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY_IMPORTS])
