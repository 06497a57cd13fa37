"""Evaluation metrics: FID, KID, precision, recall, FD-classifier, class accuracy, class balance and memorization."""

from .classifier import Classifier
from .distances import frechet_distance, kernel_distance, manifold_metrics
from .inception import InceptionFeatures, download_inception, find_inception
from .provenance import weights_hash
from .runner import evaluate_pipeline, evaluate_samples
from .sample_metrics import FastMetrics
from .samples import load_parts, load_samples


__all__ = [
    "Classifier",
    "FastMetrics",
    "InceptionFeatures",
    "download_inception",
    "evaluate_pipeline",
    "evaluate_samples",
    "find_inception",
    "frechet_distance",
    "kernel_distance",
    "load_parts",
    "load_samples",
    "manifold_metrics",
    "weights_hash",
]
