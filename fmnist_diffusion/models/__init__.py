"""Models, imported on first access."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .unet_fmnist import FashionMNISTUNet2DModel

__all__ = ["FashionMNISTUNet2DModel"]


def __getattr__(name: str):
    if name != "FashionMNISTUNet2DModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .unet_fmnist import FashionMNISTUNet2DModel

    return FashionMNISTUNet2DModel
