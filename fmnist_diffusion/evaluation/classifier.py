"""A small Fashion-MNIST classifier for class accuracy and the Fréchet distance in its features (FD-classifier)."""

from pathlib import Path

import torch
from transformers import RegNetForImageClassification

from fmnist_diffusion.data import to_model_input
from fmnist_diffusion.files import hash_file


CLASSIFIER_DIR = Path(__file__).parent / "classifier"
IMAGE_SIZE = 56
BATCH_SIZE = 250


def to_classifier_input(sample: torch.Tensor) -> torch.Tensor:
    """Resizes images in [-1, 1], `(batch, 1, height, width)`, to the classifier's input `(batch, 1, 56, 56)`."""
    resized = torch.nn.functional.interpolate(sample, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    return resized.contiguous(memory_format=torch.channels_last)


class Classifier:
    r"""
    The bundled classifier, a [`RegNetForImageClassification`] that `training/train_classifier.py` trained.

    Args:
        device (`str` or `torch.device`, defaults to `"cpu"`): Device of the model.

    Attributes:
        sha256 (`str`): SHA-256 of the weights file.
    """

    name = "classifier"
    num_features = 256

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.sha256 = hash_file(CLASSIFIER_DIR / "model.safetensors")
        self.model = RegNetForImageClassification.from_pretrained(CLASSIFIER_DIR)
        self.model.eval().requires_grad_(False)
        self.model.to(device=self.device, memory_format=torch.channels_last)  # pyright: ignore

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Computes the features before the last layer.

        Args:
            images (`torch.Tensor`): uint8 images `(num_images, 1, height, width)`.

        Returns:
            `torch.Tensor`: float32 features `(num_images, 256)` on the CPU.
        """
        features = []
        # Features are always float32, even if the caller uses an autocast context.
        with torch.autocast(self.device.type, enabled=False):
            for batch in images.split(BATCH_SIZE):
                sample = to_classifier_input(to_model_input(batch.to(self.device)))
                features.append(self.model.regnet(sample).pooler_output.flatten(1).cpu())
        return torch.cat(features)

    @torch.no_grad()
    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the most likely class of each image, int64 `(num_images,)`, from its features."""
        return self.model.classifier(features.to(self.device)).argmax(1).cpu()
