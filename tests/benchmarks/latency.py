"""Measures the time to generate images with the bundled checkpoints and with U-Nets of other projects.

    pip install einops==0.8.2 && pip install --no-deps smalldiffusion==0.5.0
    python tests/benchmarks/latency.py

The U-Nets of diffusers and smalldiffusion have random weights and about as many parameters as `base`. smalldiffusion
depends on torchvision, which its models do not use and whose PyPI wheels require CUDA. Each row runs in its own
process, in float32. The first call is reported separately; later times are medians of `--turns` calls. The rows are
interleaved, so other processes slow them all down equally.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from mocked_packages import UNUSED_PACKAGES, mock_packages

from fmnist_diffusion import load_pipeline


NUM_IMAGES = 1, 64
REFERENCE = "diffusers UNet2DModel, DDIM", 20
# A function that generates the given number of images.
Generate = Callable[[int], object]


def make_checkpoint(name: str, num_inference_steps: int) -> tuple[torch.nn.Module, Generate]:
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)

    def generate(num_images: int) -> object:
        if pipe.text_encoder is not None:
            return pipe(prompt=["a dark pullover"] * num_images, num_inference_steps=num_inference_steps)
        if pipe.label_names is None:
            return pipe(num_images_per_prompt=num_images, num_inference_steps=num_inference_steps)
        labels = [i % len(pipe.label_names) for i in range(num_images)]
        return pipe(labels, num_inference_steps=num_inference_steps)

    return torch.nn.ModuleList(filter(None, [pipe.unet, pipe.text_encoder])), generate


def make_unet2d(num_inference_steps: int) -> tuple[torch.nn.Module, Generate]:
    unet = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(40, 80, 112),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    pipe = DDIMPipeline(unet.to(memory_format=torch.channels_last), DDIMScheduler())  # pyright: ignore[reportCallIssue]
    pipe.set_progress_bar_config(disable=True)
    return unet, lambda num_images: pipe(num_images, num_inference_steps=num_inference_steps)


def make_smalldiffusion(num_inference_steps: int) -> tuple[torch.nn.Module, Generate]:
    with mock_packages(*UNUSED_PACKAGES):
        from smalldiffusion import Scaled, ScheduleLogLinear, Unet, samples  # pyright: ignore[reportMissingImports]

    model = Scaled(Unet)(28, 1, 1, ch=32, ch_mult=(1, 2, 4), attn_resolutions=(14,))
    model.to(memory_format=torch.channels_last)
    sigmas = ScheduleLogLinear(sigma_min=0.01, sigma_max=20, N=800).sample_sigmas(num_inference_steps)
    return model, lambda num_images: list(samples(model, sigmas, gam=1.6, batchsize=num_images))


ROWS: dict[tuple[str, int], Callable[[int], tuple[torch.nn.Module, Generate]]] = {
    ("`fast`", 1): lambda steps: make_checkpoint("fast", steps),
    ("`fast`", 2): lambda steps: make_checkpoint("fast", steps),
    ("`fast`", 4): lambda steps: make_checkpoint("fast", steps),
    ("`base`", 20): lambda steps: make_checkpoint("base", steps),
    ("`text`", 20): lambda steps: make_checkpoint("text", steps),
    ("`spec`", 20): lambda steps: make_checkpoint("spec", steps),
    REFERENCE: make_unet2d,
    ("diffusers UNet2DModel, DDIM", 50): make_unet2d,
    ("smalldiffusion Unet", 20): make_smalldiffusion,
}

generate: Generate
num_parameters: int


def start(row: tuple[str, int]) -> None:
    """Loads the model of a row in its process."""
    global generate, num_parameters
    torch.manual_seed(0)
    model, generate = ROWS[row](row[1])
    num_parameters = sum(parameter.numel() for parameter in model.parameters())


def measure(num_images: int) -> float:
    """Returns the time in seconds to generate `num_images` images."""
    start_time = time.perf_counter()
    generate(num_images)
    return time.perf_counter() - start_time


def count_parameters() -> int:
    return num_parameters


def format_time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--turns", type=int, default=3, help="calls per row after the first call (default: %(default)s)"
    )
    turns = parser.parse_args(args).turns
    pools = {row: ProcessPoolExecutor(1, get_context("spawn"), start, (row,)) for row in ROWS}
    parameters = {row: pool.submit(count_parameters).result() for row, pool in pools.items()}
    times: dict[tuple[str, int], list[list[float]]] = {row: [] for row in ROWS}
    for _ in range(turns + 1):
        for row, pool in pools.items():
            times[row].append([pool.submit(measure, num_images).result() for num_images in NUM_IMAGES])
    for pool in pools.values():
        pool.shutdown()

    print(f"{torch.get_num_threads()} threads, float32\n")
    columns = ["model", "parameters (M)", "NFE"]
    columns += ["1 image, first call", "1 image", "64 images, first call", "64 images", "speedup, 64 images"]
    print(f"| {' | '.join(columns)} |")
    print(f"|{'---|' * len(columns)}")
    later = {row: [median(calls) for calls in zip(*times[row][1:], strict=True)] for row in ROWS}
    for row in ROWS:
        columns = [f"{parameters[row] / 1e6:.1f}", str(row[1])]
        for first, rest in zip(times[row][0], later[row], strict=True):
            columns += [format_time(first), format_time(rest)]
        print(f"| {row[0]} | {' | '.join(columns)} | {later[REFERENCE][1] / later[row][1]:.1f} |")


if __name__ == "__main__":
    main()
