"""Number of training images that usable samples require."""

import math


# Measured with `python tests/benchmarks/ablation.py --num-images 40000 -n 2100`: base.yaml with half the channels,
# trained from scratch on Fashion-MNIST, reaches an FID of 53 and a class accuracy of 76%.
IMAGES_FROM_SCRATCH = 40_000
# No measurement of fine-tuning is available yet.
IMAGES_FOR_FINE_TUNING = 40_000


def get_num_images_needed(fine_tuning: bool) -> int:
    """Returns the number of images, counting repetitions, after which samples are usually usable."""
    return IMAGES_FOR_FINE_TUNING if fine_tuning else IMAGES_FROM_SCRATCH


def compare_with_usable(images_seen: int, fine_tuning: bool) -> str:
    """Returns sentences about how far a run that ends after `images_seen` images is from usable samples."""
    needed = get_num_images_needed(fine_tuning)
    percent = math.floor(100 * images_seen / needed)
    text = f"Usable samples require about {needed:,} images. This run ends after {images_seen:,} images ({percent:,}%)"
    if images_seen >= needed:
        return f"{text}."
    return f"{text}, so expect noise or distorted shapes. Increase --num_epochs to train longer."
