"""Inspects and loads the training images."""

from dataclasses import fields
from typing import Any

from batches import ImageDataset
from config import DataConfig, TrainingConfig
from fmnist_diffusion.data import (
    DataError,
    DataSummary,
    ImageStream,
    ImageTensors,
    inspect_images,
    load_images,
    load_split,
)
from fmnist_diffusion.data.errors import rename_arguments
from pretrained import PretrainedPipeline


# In error messages, these settings replace arguments and functions.
SETTINGS = {f"`{field.name}`": f"`--data.{field.name}`" for field in fields(DataConfig)} | {
    "`max_samples`": "`--data.max_train_samples`",
    "`ImageStream`": "`--data.streaming=true`",
    "`load_images`": "`--data.streaming=false`",
}


def inspect_training_images(config: TrainingConfig, pretrained: PretrainedPipeline | None) -> DataSummary:
    """Inspects the images. If this fails and the model does not need labels, inspects them again without labels.

    Raises:
        `DataError`: If the images cannot be used.
    """
    source: dict[str, Any] = config.data.get_source()
    with rename_arguments(SETTINGS):
        try:
            return inspect_images(**source)
        except DataError:
            unconditional = (
                config.text_encoder.enabled or config.model.get("num_class_embeds", 1 if pretrained else None) is None
            )
            if not unconditional or config.data.label_column is not None:
                raise
        source["label_column"] = "none"
        return inspect_images(**source)


def load_training_images(config: DataConfig) -> tuple[ImageTensors | ImageDataset, tuple[str, ...] | None]:
    """Returns the images and the class names. With `config.streaming`, a dataset decodes the images on access, and
    `config.resolution` and `config.channels` must not be `None`.

    Raises:
        `DataError`: If the images cannot be used.
    """
    source = config.get_source()
    with rename_arguments(SETTINGS):
        if not config.streaming:
            images = load_images(**source, resolution=config.resolution, channels=config.channels)
            return images, images.label_names
        dataset = load_split(**source)
    label_names = tuple(dataset.features["label"].names) if "label" in dataset.features else None
    channels, height, width = config.image_shape
    return ImageStream(dataset, resolution=(height, width), channels=channels), label_names
