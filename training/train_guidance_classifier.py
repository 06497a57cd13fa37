"""Trains a classifier on noisy images and adds it to a pipeline for classifier guidance (arXiv 2105.05233, section 4):

    python training/train_guidance_classifier.py --init_from=base --output_dir=output/guided
    fmnist-diffusion sample output/guided --class-labels bag --guidance-scale 0 --classifier-guidance-scale 1

The classifier uses the noise schedule of the pipeline. The other components of the pipeline do not change.
"""

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from batches import Batches
from components import make_lr_scheduler, make_optimizer
from config import DataConfig, ObjectiveConfig, OptimizerConfig
from export import hide_local_paths, save_with_train_config
from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import ImageTensors, to_model_input
from fmnist_diffusion.files import describe_write_errors
from fmnist_diffusion.loading import get_device
from fmnist_diffusion.schedulers import get_noise_scheduler
from launch_environment import get_num_processes, print_and_exit
from losses import DiffusionLoss
from output_folder import check_new_folder
from parsing import parse
from pretrained import find_train_config
from states import are_finite
from training_images import load_training_images


PROGRAM = "train_guidance_classifier.py"
# One in this many images is held out to measure the accuracy.
VALIDATION_INTERVAL = 10
# The accuracy is measured separately in this many ranges of timesteps.
NUM_RANGES = 10
EVALUATION_BATCH_SIZE = 128


@dataclass(frozen=True)
class GuidanceClassifierConfig:
    """Settings for training a classifier for guidance.

    Args:
        init_from: pipeline to add the classifier to: a folder, the name of a bundled checkpoint or a Hub repository
        output_dir: new folder for the pipeline with the classifier
        seed: random seed of the initial weights, the order of the data, and the noise
        num_epochs: number of passes over the training images
        train_batch_size: number of images per batch
        device: torch device, such as cuda; auto uses a GPU if one is available
        data: labeled images; the pipeline determines their resolution and channels
        optimizer: optimizer and learning rate
    """

    init_from: str = "base"
    output_dir: str = "output/guided"
    seed: int = 42
    num_epochs: int = 5
    train_batch_size: int = 128
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            learning_rate=1e-3,
            adam_weight_decay=0.05,
            lr_scheduler="cosine",
            lr_warmup_steps=100,
            max_grad_norm=1.0,
        )
    )

    def __post_init__(self):
        if self.data.resolution is not None or self.data.channels is not None:
            raise ValueError("The pipeline determines `--data.resolution` and `--data.channels`. Omit both options.")
        if self.data.streaming:
            raise ValueError("`--data.streaming` must be false, because all images are kept in memory.")


def split(images: ImageTensors) -> tuple[ImageTensors, ImageTensors]:
    """Returns the images for training and for validation. Images with the null label are dropped.

    Raises:
        `ValueError`: If no class has two or more images.
    """
    assert images.labels is not None and images.label_names is not None
    labeled = (images.labels < len(images.label_names)).nonzero().flatten()
    # `ranks` contains the position of each image within its class.
    ranks = torch.empty_like(labeled)
    for label in range(len(images.label_names)):
        is_label = images.labels[labeled] == label
        ranks[is_label] = torch.arange(int(is_label.sum()))
    # The first image of a class is used for training, so that no class is missing.
    is_validation = ranks % VALIDATION_INTERVAL == 1
    if not is_validation.any():
        raise ValueError("At least one class must have two images, because one is held out. Add images to a class.")
    return images.select(labeled[~is_validation]), images.select(labeled[is_validation])


def check_label_names(images: ImageTensors, pipe: FashionMNISTPipeline) -> tuple[str, ...]:
    """Returns the class names; raises `ValueError` if the images do not have the classes that the pipeline needs."""
    if images.label_names is None:
        raise ValueError("The images must have labels, got none. Pass labeled images.")
    if len(images.label_names) < 2:
        raise ValueError("The images must have at least two classes, got one. Pass images of several classes.")
    if pipe.is_conditional and images.label_names != pipe.label_names:
        raise ValueError(
            f"The images must have the classes of the pipeline ({', '.join(pipe.label_names or ['no names'])}), got"
            f" {', '.join(images.label_names)}. Pass different images."
        )
    return images.label_names


def make_loss(pipe: FashionMNISTPipeline, num_classes: int, device: torch.device) -> DiffusionLoss:
    """Creates a loss whose `prepare_batch` samples timesteps uniformly and does not drop labels."""
    objective = ObjectiveConfig(timestep_sampling="uniform", label_dropout=0.0)
    return DiffusionLoss(objective, get_noise_scheduler(pipe), num_classes, device)


def train(
    classifier: FashionMNISTGuidanceClassifier, batches: Batches, loss: DiffusionLoss, config: GuidanceClassifierConfig
) -> None:
    """Trains with the cross-entropy loss. The warm-up takes at most a tenth of the steps."""
    optimizer = make_optimizer(config.optimizer, classifier)
    num_steps = config.num_epochs * len(batches)
    # A short run must reach the peak of the learning rate.
    num_warmup_steps = min(config.optimizer.lr_warmup_steps, num_steps // 10)
    optimizer_config = replace(config.optimizer, lr_warmup_steps=num_warmup_steps)
    lr_scheduler = make_lr_scheduler(optimizer_config, optimizer, num_steps, global_step=0)
    bar = tqdm(total=num_steps * batches.batch_size, desc="training", unit="image", disable=None)
    for epoch in range(config.num_epochs):
        for images, labels, generator in batches.epoch(epoch):
            batch = loss.prepare_batch(images.contiguous(memory_format=torch.channels_last), labels, generator)
            assert batch.class_labels is not None
            cross_entropy = F.cross_entropy(classifier(batch.images, batch.timesteps), batch.class_labels)
            cross_entropy.backward()
            if config.optimizer.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(classifier.parameters(), config.optimizer.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            lr_scheduler.step()
            bar.update(len(images))
            bar.set_postfix(loss=f"{cross_entropy.item():.3f}", refresh=False)
    bar.close()


@torch.no_grad()
def measure_accuracy(
    classifier: FashionMNISTGuidanceClassifier, images: ImageTensors, loss: DiffusionLoss, seed: int
) -> list[float | None]:
    """Returns the accuracy in each of `NUM_RANGES` equal ranges of timesteps; `None` for a range without images."""
    assert images.labels is not None
    device, num_train_timesteps = classifier.device, loss.noise_scheduler.config["num_train_timesteps"]
    generator = torch.Generator(device).manual_seed(seed)
    counts = torch.zeros(2, NUM_RANGES)
    batches = zip(images.images.split(EVALUATION_BATCH_SIZE), images.labels.split(EVALUATION_BATCH_SIZE), strict=True)
    for pixels, labels in batches:
        labels = labels.to(device)
        batch = loss.prepare_batch(to_model_input(pixels).to(device), labels, generator)
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


def main(args: list[str]) -> None:
    try:
        run(args)
    except KeyboardInterrupt:
        print_and_exit(PROGRAM, "Interrupted. Run the same command to start again from the beginning.", 130)


def run(args: list[str]) -> None:
    config = parse(args, GuidanceClassifierConfig, PROGRAM, __doc__)
    try:
        if get_num_processes() > 1:
            raise ValueError("The classifier is trained in one process. Start the script with python.")
        folder, device = Path(config.output_dir), get_device(config.device, "--device")
        check_new_folder(folder)
        with describe_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        pipe: Any = load_pipeline(config.init_from)
        train_config = find_train_config(config.init_from) or {}
        if pipe.text_encoder is not None or pipe.vae is not None:
            raise ValueError("The pipeline must not have a text encoder or an autoencoder. Pass a different pipeline.")
        model = pipe.unet.config
        data = replace(config.data, resolution=model.sample_size, channels=model.in_channels)
        images, _ = load_training_images(data)
        assert isinstance(images, ImageTensors)
        label_names = check_label_names(images, pipe)
        training_images, validation_images = split(images)
        batches = Batches(
            training_images, config.train_batch_size, config.seed, device, augmentation=data.augmentation
        )
    except (OSError, ValueError) as error:
        print_and_exit(PROGRAM, f"error: {error}", 2)

    torch.manual_seed(config.seed)
    classifier: Any = FashionMNISTGuidanceClassifier(images.images.shape[1], len(label_names), label_names=label_names)
    classifier.to(device=device, memory_format=torch.channels_last)
    loss = make_loss(pipe, len(label_names), device)
    try:
        train(classifier, batches, loss, config)
    except torch.OutOfMemoryError:
        print_and_exit(PROGRAM, "error: The GPU ran out of memory. Reduce `--train_batch_size`.", 1)
    if not are_finite(classifier.state_dict().values()):
        print_and_exit(PROGRAM, "error: The weights are NaN or infinite. Reduce `--optimizer.learning_rate`.", 1)
    accuracy = measure_accuracy(classifier.eval(), validation_images, loss, config.seed)
    print(format_accuracy(accuracy, loss.noise_scheduler.config["num_train_timesteps"]))

    settings: dict[str, Any] = asdict(config) | {"data": asdict(data), "accuracy": accuracy}
    for name in ("init_from", "output_dir", "device"):
        del settings[name]
    hide_local_paths(settings["data"])
    pipe.register_modules(classifier=classifier.cpu())
    try:
        save_with_train_config(pipe, folder, train_config | {"guidance_classifier": settings})
    except OSError as error:
        print_and_exit(PROGRAM, f"error: {error}", 2)
    print(f"Saved the pipeline to {folder}.")


if __name__ == "__main__":
    main(sys.argv[1:])
