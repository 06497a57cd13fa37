"""Trains a classifier on noisy images and adds it to a pipeline for classifier guidance (arXiv 2105.05233, section 4):

    python training/train_guidance_classifier.py --init_from=base --output_dir=output/guided
    fmnist-diffusion sample output/guided --class-labels bag --guidance-scale 0 --classifier-guidance-scale 1

The classifier uses the noise schedule of the pipeline. The other components of the pipeline do not change.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from batches import Batches
from config import ObjectiveConfig
from export import get_public_name, save_with_train_config
from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import DEFAULT_DATASET, ImageTensors, load_images
from fmnist_diffusion.files import describe_write_errors
from lock import check_new_folder
from losses import DiffusionLoss
from noise_schedule import get_noise_scheduler
from pretrained import find_train_config


# One in this many images is held out to measure the accuracy.
VALIDATION_INTERVAL = 10
# The accuracy is measured separately in this many ranges of timesteps.
NUM_RANGES = 10
WARMUP_STEPS = 100
MAX_GRADIENT_NORM = 1.0


@dataclass
class GuidanceClassifierConfig:
    """Settings for training a classifier for guidance."""

    init_from: str = field(
        default="base", metadata={"help": "pipeline: a folder, the name of a bundled checkpoint or a Hub repository"}
    )
    output_dir: str = field(
        default="output/guided", metadata={"help": "new folder for the pipeline with the classifier"}
    )
    dataset_name: str = field(default=DEFAULT_DATASET, metadata={"help": "dataset id on the Hub"})
    train_data_dir: str | None = field(
        default=None, metadata={"help": "local images to use instead, such as a folder of IDX files"}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "maximum number of images, from the start of the dataset"}
    )
    num_train_epochs: int = field(default=5, metadata={"help": "number of passes over the images"})
    train_batch_size: int = field(default=128, metadata={"help": "number of images per batch"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    weight_decay: float = field(default=0.05, metadata={"help": "weight decay of AdamW"})
    seed: int = field(default=42, metadata={"help": "random seed"})
    device: str = field(
        default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "torch device, such as cuda"}
    )


def split(images: ImageTensors) -> tuple[ImageTensors, ImageTensors]:
    """Returns the images for training and for validation."""
    assert images.labels is not None
    is_validation = torch.arange(len(images)) % VALIDATION_INTERVAL == 0
    return tuple(  # pyright: ignore[reportReturnType]
        ImageTensors(images.images[mask], images.labels[mask], images.label_names)
        for mask in (~is_validation, is_validation)
    )


def check_label_names(images: ImageTensors, pipe: FashionMNISTPipeline) -> tuple[str, ...]:
    """Returns the class names; raises `ValueError` if the classes of the images are not those of the pipeline."""
    if images.label_names is None:
        raise ValueError("The images must have labels, got none. Pass labeled images.")
    if pipe.is_conditional and images.label_names != pipe.label_names:
        raise ValueError(
            f"The images must have the classes of the pipeline ({', '.join(pipe.label_names or ['no names'])}), got"
            f" {', '.join(images.label_names)}. Pass different images."
        )
    return images.label_names


def make_loss(pipe: FashionMNISTPipeline, num_classes: int, device: torch.device) -> DiffusionLoss:
    """Creates a loss whose `add_noise` samples timesteps uniformly and does not drop labels."""
    objective = ObjectiveConfig(timestep_sampling="uniform", label_dropout=0.0)
    return DiffusionLoss(objective, get_noise_scheduler(pipe), num_classes, device)


def train(
    classifier: FashionMNISTGuidanceClassifier, batches: Batches, loss: DiffusionLoss, config: GuidanceClassifierConfig
) -> None:
    """Trains with the cross-entropy loss, AdamW and a cosine schedule."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    num_steps = config.num_train_epochs * len(batches)
    lr_scheduler = get_scheduler(
        "cosine", optimizer, num_warmup_steps=min(WARMUP_STEPS, num_steps // 10), num_training_steps=num_steps
    )
    bar = tqdm(total=num_steps * batches.batch_size, desc="training", unit="image", disable=None)
    for epoch in range(config.num_train_epochs):
        for images, labels, generator in batches.epoch(epoch):
            batch = loss.add_noise(images.contiguous(memory_format=torch.channels_last), labels, generator)
            assert batch.class_labels is not None
            cross_entropy = F.cross_entropy(classifier(batch.images, batch.timesteps), batch.class_labels)
            cross_entropy.backward()
            torch.nn.utils.clip_grad_norm_(classifier.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
            lr_scheduler.step()
            bar.update(len(images))
            bar.set_postfix(loss=f"{cross_entropy.item():.3f}", refresh=False)
    bar.close()


@torch.no_grad()
def measure_accuracy(
    classifier: FashionMNISTGuidanceClassifier, batches: Batches, loss: DiffusionLoss
) -> list[float | None]:
    """Returns the accuracy in each of `NUM_RANGES` equal ranges of timesteps; `None` for a range without images."""
    num_train_timesteps = loss.noise_scheduler.config["num_train_timesteps"]
    counts = torch.zeros(2, NUM_RANGES)
    for images, labels, generator in batches.epoch(0):
        batch = loss.add_noise(images, labels, generator)
        ranges = (batch.timesteps * NUM_RANGES / num_train_timesteps).long().clamp(max=NUM_RANGES - 1).cpu()
        correct = (classifier(batch.images, batch.timesteps).argmax(1) == labels).cpu()
        counts += torch.stack([torch.bincount(r, minlength=NUM_RANGES) for r in (ranges[correct], ranges)])
    return [float(correct / total) if total else None for correct, total in counts.T]


def format_accuracy(accuracy: list[float | None], num_train_timesteps: int) -> str:
    """Returns one line for each range of timesteps."""
    limits = [index * num_train_timesteps // NUM_RANGES for index in range(NUM_RANGES + 1)]
    lines = [
        f"{start:>9} - {stop - 1:<6}{'no images' if value is None else f'{value:.1%}'}"
        for start, stop, value in zip(limits, limits[1:], accuracy, strict=False)
    ]
    return "\n".join(["timesteps         accuracy", *lines])


def main(args: list[str] | None = None) -> None:
    parser = HfArgumentParser(GuidanceClassifierConfig, description=__doc__)  # pyright: ignore[reportArgumentType]
    (config,) = parser.parse_args_into_dataclasses(args)
    folder, device = Path(config.output_dir), torch.device(config.device)
    try:
        check_new_folder(folder)
        with describe_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        pipe: Any = load_pipeline(config.init_from)
        if pipe.text_encoder is not None or pipe.vae is not None:
            raise ValueError("The pipeline must not have a text encoder or an autoencoder. Pass a different pipeline.")
        images = load_images(
            config.dataset_name,
            train_data_dir=config.train_data_dir,
            max_samples=config.max_train_samples,
            resolution=pipe.unet.config.sample_size,
            channels=pipe.unet.config.in_channels,
        )
        label_names = check_label_names(images, pipe)
        training_images, validation_images = split(images)
        batches = Batches(training_images, config.train_batch_size, config.seed, device)
    except (OSError, ValueError) as error:
        parser.exit(2, f"train_guidance_classifier.py: error: {error}\n")

    torch.manual_seed(config.seed)
    classifier: Any = FashionMNISTGuidanceClassifier(images.images.shape[1], len(label_names), label_names=label_names)
    classifier.to(device=device, memory_format=torch.channels_last)
    loss = make_loss(pipe, len(label_names), device)
    train(classifier, batches, loss, config)
    batch_size = min(config.train_batch_size, len(validation_images))
    accuracy = measure_accuracy(classifier.eval(), Batches(validation_images, batch_size, config.seed, device), loss)
    print(format_accuracy(accuracy, loss.noise_scheduler.config["num_train_timesteps"]))

    settings: dict[str, Any] = asdict(config) | {"accuracy": accuracy}
    for name in ("init_from", "output_dir", "device"):
        del settings[name]
    if config.train_data_dir is not None:
        settings["train_data_dir"] = get_public_name(config.train_data_dir)
    train_config = find_train_config(config.init_from) or {}
    pipe.register_modules(classifier=classifier.cpu())
    try:
        save_with_train_config(pipe, folder, train_config | {"guidance_classifier": settings})
    except OSError as error:
        parser.exit(2, f"train_guidance_classifier.py: error: {error}\n")
    print(f"Saved the pipeline to {folder}.")


if __name__ == "__main__":
    main()
