"""Compares the speed of latent diffusion with that of pixel-space diffusion, with the same U-Net settings:

    OMP_NUM_THREADS=1 python tests/benchmarks/latent.py training/configs/latent.yaml output/autoencoder/vae

The speed is the number of images per second of CPU time. With one thread, this is the speed on one idle core. The two
models alternate, and the result is the median. Both use float32 and the default memory format, without compilation.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fmnist_diffusion import FashionMNISTUNet2DModel
from fmnist_diffusion.data import get_height_width


sys.path.append(str(Path(__file__).parents[2] / "training"))

from autoencoder import load_vae
from components import make_optimizer
from model import get_sample_shape, make_model_config, make_run_pipeline
from noise_schedule import make_noise_scheduler
from parsing import parse_config


NUM_INFERENCE_STEPS = 20


def measure(function: Callable[[], None], num_images: int) -> float:
    """Returns the number of images per second of CPU time."""
    start = time.process_time()
    function()
    return num_images / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file of the trainer")
    parser.add_argument("vae", help="folder of the autoencoder")
    parser.add_argument("--batch-size", type=int, default=16, help="number of images per step (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="number of measurements (default: %(default)s)")
    options = parser.parse_args()
    config = parse_config([f"--config={options.config}"])
    resolution, channels, batch_size = config.data.resolution, config.data.channels, options.batch_size
    if resolution is None or channels is None:
        parser.error("The config must set `data.resolution` and `data.channels`.")
    height, width = get_height_width(resolution)

    def make_functions(vae_path: str | None) -> dict[str, Callable[[], None]]:
        vae = load_vae(vae_path)
        shape = get_sample_shape(config.data, vae)
        label_names = tuple(map(str, range(config.model.get("num_class_embeds") or 0))) or None
        unet = FashionMNISTUNet2DModel(**make_model_config(config.model, shape, label_names, config.text_encoder))
        pipe = make_run_pipeline(config, unet, make_noise_scheduler(config.scheduler), vae)
        pipe.set_progress_bar_config(disable=True)
        optimizer = make_optimizer(config.optimizer, unet)
        samples, timesteps = torch.randn(batch_size, *shape), torch.randint(1000, (batch_size,))
        labels = None if label_names is None else torch.zeros(batch_size, dtype=torch.int64)

        def train() -> None:
            unet(samples, timesteps, labels).sample.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        def sample() -> None:
            pipe(num_images_per_prompt=batch_size, num_inference_steps=NUM_INFERENCE_STEPS, output_type="pt")

        return {"training": train, f"sampling, {NUM_INFERENCE_STEPS} steps": sample}

    models = {f"{height}x{width} pixels": make_functions(None), "latents": make_functions(options.vae)}
    speeds: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    # The first turn is discarded, because it also allocates memory and selects kernels.
    for turn in range(options.turns + 1):
        for name, functions in models.items():
            for task, function in functions.items():
                speed = measure(function, batch_size)
                if turn:
                    speeds[name].setdefault(task, []).append(speed)
                    print(f"turn {turn}, {name}, {task}: {speed:.2f} images/s", flush=True)
    first, second = speeds.values()
    for task in first:
        pixels, latents = float(np.median(first[task])), float(np.median(second[task]))
        print(f"{task}: {pixels:.2f} and {latents:.2f} images/s, ratio {latents / pixels:.1f}")


if __name__ == "__main__":
    main()
