"""Measures the speed of InceptionFeatures and of plain float32 TorchScript on this machine:

    python tests/benchmarks/inception.py

Both networks process batches of 4 images. They take turns, so that other load on the machine affects both of them.
"""

import argparse
import time
from collections.abc import Callable

import torch

from fmnist_diffusion.data import load_images
from fmnist_diffusion.evaluation import InceptionFeatures, download_inception
from fmnist_diffusion.evaluation.inception import CPU_BATCH_SIZE, to_inception_input


def measure(network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Returns the seconds that the network takes, and its features."""
    start = time.perf_counter()
    features = network(images)
    return time.perf_counter() - start, features


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-round", type=int, default=100, help="images per round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: %(default)s)")
    options = parser.parse_args()

    weights = download_inception()
    images = load_images(split="test", max_samples=options.rounds * options.images_per_round).images
    script, inception = torch.jit.load(weights).eval(), InceptionFeatures(weights)

    def torchscript(batch: torch.Tensor) -> torch.Tensor:
        return torch.cat([script(to_inception_input(part)).flatten(1) for part in batch.split(CPU_BATCH_SIZE)])

    networks = {"TorchScript": torchscript, "InceptionFeatures": inception}
    # TorchScript optimizes the network in its first two calls.
    for network in [*networks.values()] * 2:
        network(images[:CPU_BATCH_SIZE])
    seconds = dict.fromkeys(networks, 0.0)
    for batch in images.split(options.images_per_round):
        features = {}
        for name, network in networks.items():
            duration, features[name] = measure(network, batch)
            seconds[name] += duration
        expected = features["TorchScript"]
        difference = (features["InceptionFeatures"] - expected).abs().max()
        print(f"largest difference of a feature: {difference:.1e}, largest feature: {expected.max():.2f}")
    print(f"batches of {CPU_BATCH_SIZE}, {torch.get_num_threads()} threads")
    for name, duration in seconds.items():
        print(f"{name:18} {len(images) / duration:6.2f} images/s")
    print(f"speedup {seconds['TorchScript'] / seconds['InceptionFeatures']:.2f}x")


if __name__ == "__main__":
    main()
