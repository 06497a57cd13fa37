"""Measures the time that the bundled checkpoints need to generate images.

    python tests/benchmarks/latency.py

The first call, which is slower, is not timed. The time is the median of several calls in float32.
"""

import argparse
import statistics
import time

import torch

from fmnist_diffusion import bundled_pipelines, load_pipeline


def measure_latency(name: str, num_images: int, num_inference_steps: int | None, repeats: int) -> float:
    """Returns the median time in seconds to generate a batch of `num_images` images."""
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    kwargs = {"num_images_per_prompt": num_images}
    if pipe.label_names is not None:
        kwargs = {"class_labels": [i % len(pipe.label_names) for i in range(num_images)]}
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        pipe(num_inference_steps=num_inference_steps, **kwargs)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the time that checkpoints need to generate images.")
    parser.add_argument(
        "checkpoints", nargs="*", default=bundled_pipelines(), help="names or folders (default: all bundled ones)"
    )
    parser.add_argument("--num-images", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--num-inference-steps", type=int, help="denoising steps (default: that of the checkpoint)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (default: %(default)s)")
    options = parser.parse_args(args)
    print(f"{options.num_images} images, {torch.get_num_threads()} threads")
    for name in options.checkpoints:
        seconds = measure_latency(name, options.num_images, options.num_inference_steps, options.repeats)
        print(f"{name}: {seconds:.2f} s")


if __name__ == "__main__":
    main()
