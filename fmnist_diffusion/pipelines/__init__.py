"""Pipelines; importing this package gives `FashionMNISTPipeline.from_pretrained` the installed model class."""

from ..models import FashionMNISTUNet2DModel
from .pipeline_fmnist import FashionMNISTPipeline


FashionMNISTPipeline._unet_class = FashionMNISTUNet2DModel

__all__ = ["FashionMNISTPipeline"]
