"""Compares the training and sampling speed of this model and of the U-Nets of other projects, with similar numbers of
parameters and the same batch size and precision.

    pip install einops==0.8.2 && pip install --no-deps denoising-diffusion-pytorch==2.3.4 smalldiffusion==0.5.0
    python tests/benchmarks/throughput.py

The two packages depend on torchvision, which their models do not use and which PyPI only has with CUDA. Each model
runs in its own process, so that its peak memory can be measured. The models take turns, so that other processes on the
machine slow all of them down equally.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import torch
from diffusers import UNet2DModel
from mocked_packages import UNUSED_PACKAGES, mock_packages
from peak_memory import get_peak_memory
from torch.utils.flop_counter import FlopCounterMode

from fmnist_diffusion import FashionMNISTUNet2DModel


# The arguments are noisy images (B, 1, 28, 28) and timesteps (B,).
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_ours() -> tuple[torch.nn.Module, Forward]:
    model = FashionMNISTUNet2DModel()
    return model, lambda sample, timesteps: model(sample, timesteps).sample


def make_unet2d() -> tuple[torch.nn.Module, Forward]:
    model = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(64, 128, 224),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )
    return model, lambda sample, timesteps: model(sample, timesteps).sample


def make_denoising_diffusion() -> tuple[torch.nn.Module, Forward]:
    with mock_packages("ema_pytorch", *UNUSED_PACKAGES):
        from denoising_diffusion_pytorch.denoising_diffusion_pytorch import (  # pyright: ignore[reportMissingImports]
            Unet,
        )

    model = Unet(dim=76, channels=1, dim_mults=(1, 2, 4))
    return model, model


def make_smalldiffusion() -> tuple[torch.nn.Module, Forward]:
    with mock_packages(*UNUSED_PACKAGES):
        from smalldiffusion.model_unet import Unet  # pyright: ignore[reportMissingImports]

    model = Unet(28, 1, 1, ch=64, ch_mult=(1, 2, 4), attn_resolutions=(14,), dropout=0.0)
    return model, lambda sample, timesteps: model(sample, timesteps + 1.0)


OWN_MODEL = "FashionMNISTUNet2DModel, spec"
MODELS = {
    OWN_MODEL: make_ours,
    "diffusers UNet2DModel": make_unet2d,
    "denoising-diffusion-pytorch Unet": make_denoising_diffusion,
    "smalldiffusion Unet": make_smalldiffusion,
}


class Benchmark:
    """One model with its optimizer and a batch of inputs."""

    def __init__(self, name: str, device: str, options: argparse.Namespace):
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(0)
        self.device, self.batch_size, self.num_steps = device, options.batch_size, options.steps
        self.bf16 = options.mixed_precision == "bf16"
        self.model, self.forward = MODELS[name]()
        self.model.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if options.compile:
            self.model.compile()
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        self.sample = torch.randn(self.batch_size, 1, 28, 28, device=device)
        self.timesteps = torch.randint(1000, (self.batch_size,), device=device)

    def predict(self) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.forward(self.sample, self.timesteps)

    def compute_gradients(self) -> None:
        torch.nn.functional.mse_loss(self.predict().float(), self.sample).backward()

    def train_step(self) -> None:
        self.compute_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def measure(self, step: Callable[[], object]) -> float:
        """Returns the images per second of `step`."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(self.num_steps):
            step()
        self.synchronize()
        return self.batch_size * self.num_steps / (time.perf_counter() - start)

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.accelerator.synchronize()

    def measure_training(self) -> float:
        self.model.train()
        return self.measure(self.train_step)

    @torch.no_grad()
    def measure_sampling(self) -> float:
        self.model.eval()
        return self.measure(self.predict)

    def count(self) -> dict[str, float]:
        """Returns the number of parameters and of floating-point operations per image in a training step."""
        self.model.train()
        # Without `force_eager`, torch.compile would never compile the model after this call.
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            self.compute_gradients()
        self.optimizer.zero_grad()
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "flop": counter.get_total_flops() / self.batch_size,
        }

    def measure_memory(self) -> float:
        """Returns the peak memory in MiB: of the process on a CPU, of PyTorch's allocations on a GPU."""
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated() / 2**20
        return get_peak_memory() / 2**20


benchmark: Benchmark


def start(name: str, device: str, options: argparse.Namespace) -> None:
    """Initializes the process of a model."""
    global benchmark
    benchmark = Benchmark(name, device, options)


def call(method: str):
    return getattr(benchmark, method)()


def measure_matmul(device: str, dtype: torch.dtype) -> float:
    """Returns the highest FLOP/s of eight products of square matrices."""
    torch.set_float32_matmul_precision("high")
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start_time = time.perf_counter()
        product = left @ right
        # Reading a value waits for the device.
        product[0, 0].item()
        best = min(best, time.perf_counter() - start_time)
    return 2 * size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps per turn (default: %(default)s)")
    parser.add_argument(
        "--turns", type=int, default=3, help="turns per model, of which the median is shown (default: %(default)s)"
    )
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="models to compare (default: all)"
    )
    parser.add_argument(
        "--mixed-precision", choices=("no", "bf16"), default="no", help="autocast dtype (default: %(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="compile the models with torch.compile")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options.mixed_precision == "bf16" else torch.float32
    names = dict.fromkeys([OWN_MODEL, *options.models])

    pools = {name: ProcessPoolExecutor(1, get_context("spawn"), start, (name, device, options)) for name in names}

    def request(name: str, method: str):
        return pools[name].submit(call, method).result()

    counts = {name: request(name, "count") for name in names}
    training: dict[str, list[float]] = {name: [] for name in names}
    sampling: dict[str, list[float]] = {name: [] for name in names}
    matmul_speeds = []
    for turn in range(options.turns + 1):
        matmul_speeds.append(measure_matmul(device, dtype))
        for name in names:
            speeds = request(name, "measure_training"), request(name, "measure_sampling")
            # The first turn is a warm-up.
            if turn:
                training[name].append(speeds[0])
                sampling[name].append(speeds[1])
    memory = {name: request(name, "measure_memory") for name in names}
    for pool in pools.values():
        pool.shutdown()

    matmul_speed = max(matmul_speeds)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else f", {torch.cuda.get_device_name()}"
    print(f"{device}{threads}, batch {options.batch_size}, {dtype}{', compiled' if options.compile else ''}")
    print(f"matrix product: {matmul_speed / 1e12:.3f} TFLOP/s\n")
    print(
        "| model | parameters (M) | training (images/s) | sampling (NFE/s) | speedup of `spec` |"
        " % of matrix product FLOP/s | MiB |"
    )
    print("|---|---|---|---|---|---|---|")
    own_training, own_sampling = median(training[OWN_MODEL]), median(sampling[OWN_MODEL])
    for name in names:
        images, evaluations = median(training[name]), median(sampling[name])
        utilization = images * counts[name]["flop"] / matmul_speed
        speedup = f"{own_training / images:.2f} / {own_sampling / evaluations:.2f}"
        print(
            f"| {name} | {counts[name]['parameters'] / 1e6:.1f} | {images:.1f} | {evaluations:.1f} | {speedup} |"
            f" {utilization * 100:.0f}% | {memory[name]:.0f} |"
        )


if __name__ == "__main__":
    main()
