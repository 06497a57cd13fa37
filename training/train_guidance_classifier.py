"""Trains a classifier of noisy images and adds it to a pipeline for classifier guidance (arXiv 2105.05233, section 4):

    python training/train_guidance_classifier.py base --output_dir output/guided
    fmnist-diffusion sample output/guided --class-labels bag --guidance-scale 0 --classifier-guidance-scale 1

The classifier is trained with the noise schedule of the pipeline, whose other components do not change.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm

from batches import Batches
from config import ObjectiveConfig
from export import add_output_arguments, check_new_folder, get_public_name, save_with_train_config
from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import DEFAULT_DATASET, ImageTensors, load_images
from fmnist_diffusion.hub.metadata import read_train_config
from fmnist_diffusion.loading import get_pipeline_folder
from losses import DiffusionLoss
from model import get_noise_scheduler


# One of this number of images is not used for training, but to measure the accuracy.
VALIDATION_INTERVAL = 10
# The accuracy is measured separately for this number of ranges of timesteps.
NUM_RANGES = 10
WARMUP_STEPS = 100
MAX_GRADIENT_NORM = 1.0


def split(images: ImageTensors) -> tuple[ImageTensors, ImageTensors]:
    """Returns the images for training and for validation."""
    assert images.labels is not None
    is_validation = torch.arange(len(images)) % VALIDATION_INTERVAL == 0
    return tuple(  # pyright: ignore[reportReturnType]
        ImageTensors(images.images[mask], images.labels[mask], images.label_names)
        for mask in (~is_validation, is_validation)
    )


def check_images(images: ImageTensors, pipe: FashionMNISTPipeline) -> None:
    """Raises `ValueError` if the classes of the images are not those of the pipeline."""
    if pipe.text_encoder is not None:
        raise ValueError("The pipeline must not be text-conditional. Pass a different pipeline.")
    if images.label_names is None:
        raise ValueError("The images must have labels. Pass different images.")
    if pipe.is_conditional and (images.label_names != pipe.label_names):
        raise ValueError(
            f"The images must have the classes of the pipeline ({', '.join(pipe.label_names or ['no names'])}), got"
            f" {', '.join(images.label_names)}. Pass different images."
        )


def make_loss(pipe: FashionMNISTPipeline, num_classes: int, device: torch.device) -> DiffusionLoss:
    """Creates a loss whose `add_noise` samples timesteps uniformly and keeps the labels."""
    objective = ObjectiveConfig(timestep_sampling="uniform", label_dropout=0.0)
    return DiffusionLoss(objective, get_noise_scheduler(pipe), num_classes, device)


def train(
    classifier: FashionMNISTGuidanceClassifier,
    batches: Batches,
    loss: DiffusionLoss,
    num_epochs: int,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """Trains with the cross-entropy loss, AdamW and a cosine schedule."""
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=weight_decay)
    num_steps = num_epochs * len(batches)
    lr_scheduler = get_scheduler(
        "cosine", optimizer, num_warmup_steps=min(WARMUP_STEPS, num_steps // 10), num_training_steps=num_steps
    )
    bar = tqdm(total=num_steps * batches.batch_size, desc="training", unit="image", disable=None)
    for epoch in range(num_epochs):
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
    """Returns the accuracy in each of `NUM_RANGES` equal ranges of the timesteps, or `None` without images in it."""
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


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="name of a bundled checkpoint, a local folder or a Hub repository id")
    add_output_arguments(parser)
    for name, default, text in (
        ("dataset_name", DEFAULT_DATASET, "dataset id on the Hub"),
        ("train_data_dir", None, "local images to use instead, such as an IDX folder"),
        ("max_train_samples", None, "maximum number of images, from the start of the dataset"),
        ("num_train_epochs", 5, "number of passes over the images"),
        ("train_batch_size", 128, "number of images per batch"),
        ("learning_rate", 1e-3, "peak learning rate of AdamW"),
        ("weight_decay", 0.05, "weight decay of AdamW"),
        ("seed", 42, "random seed"),
        ("device", "cuda" if torch.cuda.is_available() else "cpu", "torch device, such as cuda"),
    ):
        value_type = int if name == "max_train_samples" else str if default is None else type(default)
        suffix = "" if default is None else " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=value_type, default=default, help=text + suffix)
    return parser


def main(args: list[str] | None = None) -> None:
    parser = make_parser()
    options = parser.parse_args(args)
    device = torch.device(options.device)
    try:
        check_new_folder(options.output_dir)
        pipe: Any = load_pipeline(options.pipeline)
        unet_config = pipe.unet.config
        images = load_images(
            options.dataset_name,
            train_data_dir=options.train_data_dir,
            max_samples=options.max_train_samples,
            resolution=unet_config.sample_size,
            channels=unet_config.in_channels,
        )
        check_images(images, pipe)
        assert images.label_names is not None
        training_images, validation_images = split(images)
        batches = Batches(training_images, options.train_batch_size, options.seed, device)
    except (OSError, ValueError) as error:
        parser.exit(2, f"train_guidance_classifier.py: error: {error}\n")
    num_classes = len(images.label_names)
    torch.manual_seed(options.seed)
    classifier: Any = FashionMNISTGuidanceClassifier(
        unet_config.in_channels, num_classes, label_names=images.label_names
    )
    classifier.to(device=device, memory_format=torch.channels_last)
    loss = make_loss(pipe, num_classes, device)
    train(classifier, batches, loss, options.num_train_epochs, options.learning_rate, options.weight_decay)
    batch_size = min(options.train_batch_size, len(validation_images))
    accuracy = measure_accuracy(classifier.eval(), Batches(validation_images, batch_size, options.seed, device), loss)
    print(format_accuracy(accuracy, loss.noise_scheduler.config["num_train_timesteps"]))

    source = options.dataset_name if options.train_data_dir is None else options.train_data_dir
    settings = {
        name: getattr(options, name)
        for name in ("num_train_epochs", "train_batch_size", "learning_rate", "weight_decay", "seed")
    }
    settings |= {"data": get_public_name(source), "accuracy": accuracy}
    train_config = read_train_config(get_pipeline_folder(options.pipeline) / "train_config.json") or {}
    pipe.register_modules(classifier=classifier.cpu())
    pipe.to(getattr(torch, options.dtype))
    try:
        save_with_train_config(pipe, options.output_dir, train_config | {"guidance_classifier": settings})
    except OSError as error:
        parser.exit(2, f"train_guidance_classifier.py: error: {error}\n")
    print(f"Saved the pipeline to {options.output_dir}.")


if __name__ == "__main__":
    main()
