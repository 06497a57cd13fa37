"""Number of training images that usable samples require."""

import math

from config import ResolvedConfig, TrainingConfig
from fmnist_diffusion.metadata import format_count


# With `python tests/benchmarks/ablation.py --num-images 40000 -n 2100`, base.yaml with half the channels, trained from
# scratch on Fashion-MNIST, reaches an FID of 53 and a class accuracy of 76%.
IMAGES_FROM_SCRATCH = 40_000
# In a fine-tuning run of `base` on 796 RGB images of 16 classes, most samples show a clear object after about 160,000
# images. KID x 1000 is 311 after 10,000 images, 78 after 164,000 and 54 after 691,000 (training/README.md, Results on
# a small dataset).
IMAGES_FOR_FINE_TUNING = 160_000
# In the run of training/configs/distill.yaml, 1,000 samples with four steps have a class accuracy of 95% after 60,000
# images (`eval.csv` with `--eval.num_samples=1000`).
IMAGES_FOR_DISTILLATION = 60_000


def is_fine_tuning(config: TrainingConfig) -> bool:
    return config.init_from is not None and not config.distillation.enabled


def get_num_images_needed(config: TrainingConfig) -> int:
    """Returns the number of images, counting repetitions, after which samples are usually usable."""
    if is_fine_tuning(config):
        return IMAGES_FOR_FINE_TUNING
    return IMAGES_FROM_SCRATCH if config.init_from is None else IMAGES_FOR_DISTILLATION


def describe_run_length(images_seen: int, config: ResolvedConfig) -> str:
    """Returns sentences about how far a run that ends after `images_seen` images is from usable samples."""
    needed = get_num_images_needed(config)
    percent = math.floor(100 * images_seen / needed)
    seen = format_count(images_seen, "image")
    text = f"Usable samples require about {needed:,} images. This run ends after {seen} ({percent:,}%)"
    if images_seen >= needed:
        return f"{text}."
    text += ", so expect noise or distorted shapes"
    if is_fine_tuning(config):
        text += f" if the images differ from the training images of {config.init_from}"
    limited = config.max_train_steps is not None and images_seen >= config.max_train_steps * config.images_per_step
    limit = "max_train_steps" if limited else "num_epochs"
    return f"{text}. Increase --{limit} to train longer."
