"""Trains classifiers with the architecture of the bundled classifier."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import RegNetConfig, RegNetForImageClassification

from fmnist_diffusion.data import ImageTensors, augment, to_model_input

from .classifier import BATCH_SIZE, to_classifier_input


MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class ClassifierTrainingConfig:
    """Settings of [`train_classifier`]; the defaults are those of the bundled classifier."""

    num_epochs: int = field(default=17, metadata={"help": "number of epochs"})
    num_plain_epochs: int = field(default=3, metadata={"help": "number of final epochs without augmentation"})
    train_batch_size: int = field(default=128, metadata={"help": "number of images per batch"})
    learning_rate: float = field(default=4e-3, metadata={"help": "peak learning rate of AdamW"})
    warmup_ratio: float = field(default=0.1, metadata={"help": "fraction of the steps with increasing learning rate"})
    weight_decay: float = field(
        default=0.05, metadata={"help": "weight decay of AdamW; not applied to biases and normalization layers"}
    )
    label_smoothing: float = field(default=0.1, metadata={"help": "label smoothing of the cross-entropy loss"})
    seed: int = field(default=42, metadata={"help": "random seed"})

    def __post_init__(self):
        for name in ("num_epochs", "train_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`--{name}` must be a positive integer, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"`--learning_rate` must be greater than 0 and less than 1, got {self.learning_rate}.")


def make_classifier(label_names: tuple[str, ...], channels: int = 1) -> RegNetForImageClassification:
    """Creates a RegNet (arXiv 2003.13678) with 1 M parameters and random weights."""
    labels: dict[int, str] = dict(enumerate(label_names))
    config = RegNetConfig(
        num_channels=channels,
        embedding_size=16,
        hidden_sizes=[24, 64, 128, 256],
        depths=[1, 1, 1, 1],
        # No layer has more channels, so each layer has one group.
        groups_width=256,
        layer_type="x",
        downsample_in_first_stage=False,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
    )
    return RegNetForImageClassification(config)


def train_classifier(
    images: ImageTensors,
    config: ClassifierTrainingConfig,
    device: torch.device | str = "cpu",
    progress: str = "training the classifier",
) -> RegNetForImageClassification:
    """
    Trains a classifier with AdamW, a cosine schedule and random shifts and flips. For the same images, settings and
    device, the result only depends on the seed.

    Args:
        images ([`ImageTensors`]): Labeled images of any size.
        config ([`ClassifierTrainingConfig`]): The settings.
        device (`torch.device` or `str`, defaults to `"cpu"`): Device for the training.
        progress (`str`, defaults to `"training the classifier"`): Title of the progress bar.

    Returns:
        [`RegNetForImageClassification`]: The classifier in evaluation mode.
    """
    assert images.labels is not None and images.label_names is not None
    # Without `devices`, `fork_rng` would initialize every GPU.
    devices = [] if torch.device(device).type == "cpu" else [device]
    with (
        torch.random.fork_rng(devices),
        tqdm(total=config.num_epochs * len(images), desc=progress, unit="image", disable=None) as bar,
    ):
        torch.manual_seed(config.seed)
        model: Any = make_classifier(images.label_names, images.images.shape[1])
        model.to(device=device, memory_format=torch.channels_last).train()
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        steps_per_epoch = math.ceil(len(images) / config.train_batch_size)
        num_steps = config.num_epochs * steps_per_epoch
        num_warmup_steps = max(1, round(config.warmup_ratio * num_steps))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(
                (step + 1) / num_warmup_steps,
                (1 + math.cos(math.pi * max(0, step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))) / 2,
            ),
        )
        for epoch in range(config.num_epochs):
            for indices in torch.randperm(len(images)).split(config.train_batch_size):
                batch = to_model_input(images.images[indices].to(device))
                if epoch < config.num_epochs - config.num_plain_epochs:
                    batch = augment(augment(batch, "shift"), "flip")
                logits = model(to_classifier_input(batch)).logits
                labels = images.labels[indices].to(device)
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
                optimizer.step()
                scheduler.step()
                bar.update(len(indices))
    return model.eval()


@torch.no_grad()
def measure_accuracy(model: RegNetForImageClassification, images: ImageTensors) -> float:
    """Returns the accuracy on labeled images, in [0, 1]."""
    assert images.labels is not None
    correct = 0
    batches = zip(images.images.split(BATCH_SIZE), images.labels.split(BATCH_SIZE), strict=True)
    for batch, labels in batches:
        logits = model(to_classifier_input(to_model_input(batch.to(model.device)))).logits
        correct += int((logits.argmax(1).cpu() == labels).sum())
    return correct / len(images)
