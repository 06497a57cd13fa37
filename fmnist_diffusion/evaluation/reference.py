"""The real images that samples are compared with."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.data import ImageTensors

from .generation import EvaluationSamples
from .inception import InceptionFeatures
from .processes import Processes
from .sample_metrics import Measurement


class Reference(ABC):
    r"""
    Real images and the metrics that compare samples with them; see [`FashionMNISTReference`] and [`ImageReference`].

    Attributes:
        inception ([`InceptionFeatures`], *optional*): The network for FID.
        device (`torch.device`): Device of the feature networks.
        real_images ([`ImageTensors`]): The images that samples are compared with.
        shape (`tuple[int, int, int]`): Number of channels, height and width of the images.
    """

    inception: InceptionFeatures | None
    device: torch.device
    shape: tuple[int, int, int]

    @cached_property
    @abstractmethod
    def real_images(self) -> ImageTensors: ...

    @property
    def label_names(self) -> Sequence[str] | None:
        """Class names of the real images; `None` if they have no labels."""
        return self.real_images.label_names

    @abstractmethod
    def load_test_images(self) -> ImageTensors:
        """Loads other labeled images of the same classes; raises `ValueError` if there are none."""

    @classmethod
    @abstractmethod
    def check_num_samples(cls, num_samples: int) -> None:
        """Raises `ValueError` if there are too few samples."""

    @abstractmethod
    def check_pipeline(self, pipe: FashionMNISTPipeline, conditional: bool) -> None:
        """Raises `ValueError` if the images of the pipeline cannot be compared with this reference."""

    @abstractmethod
    def choose_conditions(self, pipe: FashionMNISTPipeline, num_samples: int) -> dict[str, Sequence[Any]]:
        """Returns the class labels or prompts for a conditional pipeline as keyword arguments of [`generate`]."""

    @abstractmethod
    def get_label_names(self, pipe: FashionMNISTPipeline) -> Sequence[str] | None:
        """Returns the class names of a class-conditional pipeline; `None` if they are unknown."""

    @abstractmethod
    def get_settings(self, pipe: FashionMNISTPipeline | None = None) -> dict[str, Any]:
        """Returns the entries of `settings.json` that identify the reference and describe the labels of `pipe`."""

    @abstractmethod
    def prepare(self, processes: Processes) -> None:
        """Computes the features of the real images. All `processes` must call this method before `measure`."""

    @abstractmethod
    def measure(self, run: EvaluationSamples) -> Measurement:
        """Computes all metrics of the samples of one seed."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns the entries of `metrics.json` that describe the real images, feature networks and protocol."""
