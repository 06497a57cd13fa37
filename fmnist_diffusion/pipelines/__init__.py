from .pipeline_fmnist import FashionMNISTPipeline


__all__ = ["FashionMNISTPipeline"]
