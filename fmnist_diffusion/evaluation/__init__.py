"""Evaluation metrics: FID, KID, precision, recall, FD-classifier, class accuracy, CAS, memorization and likelihood."""

from .alignment import measure_alignment
from .classifier import Classifier
from .classifier_training import ClassifierTrainingConfig, measure_accuracy, train_classifier
from .config import EvaluationConfig
from .distances import frechet_distance, kernel_distance, manifold_metrics
from .fashion_mnist import FashionMNISTReference
from .generation import load_batches
from .image_reference import ImageReference, ImageSource
from .inception import InceptionFeatures, download_inception, find_inception
from .likelihood import check_likelihood, measure_likelihood
from .processes import Processes, connect_processes, disconnect_processes
from .reference import Reference
from .report import metric_rows
from .runner import evaluate_pipeline, evaluate_samples
from .sample_metrics import FastMetrics
from .samples import load_samples


__all__ = [
    "Classifier",
    "ClassifierTrainingConfig",
    "EvaluationConfig",
    "FashionMNISTReference",
    "FastMetrics",
    "ImageReference",
    "ImageSource",
    "InceptionFeatures",
    "Processes",
    "Reference",
    "check_likelihood",
    "connect_processes",
    "disconnect_processes",
    "download_inception",
    "evaluate_pipeline",
    "evaluate_samples",
    "find_inception",
    "frechet_distance",
    "kernel_distance",
    "load_batches",
    "load_samples",
    "manifold_metrics",
    "measure_accuracy",
    "measure_alignment",
    "measure_likelihood",
    "metric_rows",
    "train_classifier",
]
