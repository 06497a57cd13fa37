from .unet_fmnist import FashionMNISTUNet2DModel


__all__ = ["FashionMNISTUNet2DModel"]
