"""How fast the network of FID runs here, beside plain float32 TorchScript: `python tests/benchmarks/inception.py`."""

import time
from collections.abc import Callable

import torch

from fmnist_diffusion.data import load_images
from fmnist_diffusion.evaluation import InceptionFeatures, download_inception
from fmnist_diffusion.evaluation.inception import to_inception_input


BATCH, ROUNDS = 100, 3


def timed(network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> tuple[float, torch.Tensor]:
    began = time.perf_counter()
    features = network(images)
    return time.perf_counter() - began, features


@torch.no_grad()
def main() -> None:
    weights = download_inception()
    images = load_images(split="test", max_samples=ROUNDS * BATCH).images
    script, ours = torch.jit.load(weights).eval(), InceptionFeatures(weights)

    def plain(batch: torch.Tensor) -> torch.Tensor:
        return script(to_inception_input(batch)).flatten(1)

    for network in (plain, ours):
        network(images[:4])
    seconds = {"TorchScript": 0.0, "InceptionFeatures": 0.0}
    for batch in images.split(BATCH):
        spent, expected = timed(plain, batch)
        seconds["TorchScript"] += spent
        spent, features = timed(ours, batch)
        seconds["InceptionFeatures"] += spent
        print(f"largest difference of a feature: {(features - expected).abs().max():.1e} of {expected.max():.2f}")
    for name, spent in seconds.items():
        print(f"{name:18} {len(images) / spent:6.2f} images/s at batch {BATCH}, {torch.get_num_threads()} threads")
    print(f"ratio {seconds['TorchScript'] / seconds['InceptionFeatures']:.2f}")


if __name__ == "__main__":
    main()
