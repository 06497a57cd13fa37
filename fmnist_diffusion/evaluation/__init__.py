"""Measures how good samples are: FID, KID, precision and recall, a second feature space, memorisation, balance."""

from .classifier import Classifier
from .evaluate import evaluate_pipeline, evaluate_samples, load_parts, pipeline_hash
from .inception import InceptionFeatures, download_inception, find_inception
from .metrics import frechet_distance, kernel_distance, manifold_metrics
from .sample_metrics import FastMetrics
from .samples import Samples, SamplingSettings, draw, draw_all, load_samples


__all__ = [
    "Classifier",
    "FastMetrics",
    "InceptionFeatures",
    "Samples",
    "SamplingSettings",
    "download_inception",
    "draw",
    "draw_all",
    "evaluate_pipeline",
    "evaluate_samples",
    "find_inception",
    "frechet_distance",
    "kernel_distance",
    "load_parts",
    "load_samples",
    "manifold_metrics",
    "pipeline_hash",
]
