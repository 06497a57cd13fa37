"""The second pair of eyes: a small Fashion-MNIST classifier, for the class of a sample and for a fast distance."""

from pathlib import Path

import torch
from transformers import RegNetForImageClassification

from fmnist_diffusion.data import to_model_input


CLASSIFIER_DIR = Path(__file__).parent / "classifier"
IMAGE_SIZE = 56
BATCH = 250


def to_classifier_input(sample: torch.Tensor) -> torch.Tensor:
    """Enlarges images in [-1, 1], `(batch, 1, height, width)`, to the `(batch, 1, 56, 56)` that is classified."""
    resized = torch.nn.functional.interpolate(sample, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    return resized.contiguous(memory_format=torch.channels_last)


class Classifier:
    r"""
    The bundled classifier, a `transformers` [`RegNetForImageClassification`] that `training/train_classifier.py` made.

    Args:
        device (`str` or `torch.device`, defaults to `"cpu"`): Where to run.
    """

    name = "classifier"
    num_features = 256

    def __init__(self, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.model = RegNetForImageClassification.from_pretrained(CLASSIFIER_DIR)
        self.model.eval().requires_grad_(False)
        self.model.to(device=self.device, memory_format=torch.channels_last)  # pyright: ignore

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features before the last layer, float32 `(num_images, 256)` on the CPU, of uint8 images
        `(num_images, 1, height, width)`."""
        features = []
        # Whatever the model that drew them computes in.
        with torch.autocast(self.device.type, enabled=False):
            for batch in images.split(BATCH):
                sample = to_classifier_input(to_model_input(batch.to(self.device)))
                features.append(self.model.regnet(sample).pooler_output.flatten(1).cpu())
        return torch.cat(features)

    @torch.no_grad()
    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The most likely class, int64 `(num_images,)`, of images with these features."""
        return self.model.classifier(features.to(self.device)).argmax(1).cpu()
