"""Pipelines. Importing this package registers the installed model class with `FashionMNISTPipeline`."""

from ..models import FashionMNISTUNet2DModel
from .pipeline_fmnist import FashionMNISTPipeline


FashionMNISTPipeline._unet_class = FashionMNISTUNet2DModel

__all__ = ["FashionMNISTPipeline"]
