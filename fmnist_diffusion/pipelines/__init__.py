"""Pipelines. Importing this package enables `FashionMNISTPipeline.from_pretrained` to load without remote code."""

from .components import load_components
from .pipeline_fmnist import FashionMNISTPipeline, encode_images, get_vae_scale_factor, predict_x0, tokenize


FashionMNISTPipeline._load_components = staticmethod(load_components)

__all__ = ["FashionMNISTPipeline", "encode_images", "get_vae_scale_factor", "predict_x0", "tokenize"]
