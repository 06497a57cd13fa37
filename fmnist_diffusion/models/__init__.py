"""Models, imported on first access."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .unet_fmnist import FashionMNISTGuidanceClassifier, FashionMNISTUNet2DModel

__all__ = ["FashionMNISTGuidanceClassifier", "FashionMNISTUNet2DModel"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import unet_fmnist

    return getattr(unet_fmnist, name)
