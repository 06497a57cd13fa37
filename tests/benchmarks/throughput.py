"""How fast this model trains and samples beside the U-Nets of other projects, at like parameters, batch and precision.

    pip install einops==0.8.2 && pip install --no-deps denoising-diffusion-pytorch==2.3.4 smalldiffusion==0.5.0
    python tests/benchmarks/throughput.py

Those two packages ask for torchvision, which their models do not use and of which PyPI has no build for a CPU alone.
Each model lives in a process of its own, for its peak of memory, and they take turns, for a machine that is not quiet.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from unittest.mock import MagicMock

import torch
from diffusers import UNet2DModel
from torch.utils.flop_counter import FlopCounterMode

from fmnist_diffusion import FashionMNISTUNet2DModel


# Takes noisy images (B, 1, 28, 28) and timesteps (B,).
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


def leave_out_unused_packages() -> None:
    sys.modules.update({name: MagicMock() for name in ("torchvision", "ema_pytorch", "pytorch_fid")})


def make_denoising_diffusion() -> tuple[torch.nn.Module, Forward]:
    leave_out_unused_packages()
    from denoising_diffusion_pytorch.denoising_diffusion_pytorch import Unet

    model = Unet(dim=76, channels=1, dim_mults=(1, 2, 4))
    return model, model


def make_smalldiffusion() -> tuple[torch.nn.Module, Forward]:
    leave_out_unused_packages()
    from smalldiffusion.model_unet import Unet

    model = Unet(28, 1, 1, ch=64, ch_mult=(1, 2, 4), attn_resolutions=(14,))
    return model, lambda sample, timesteps: model(sample, timesteps + 1.0)


MODELS = {
    "this, spec": make_ours,
    "diffusers UNet2DModel": make_unet2d,
    "denoising-diffusion-pytorch Unet": make_denoising_diffusion,
    "smalldiffusion Unet": make_smalldiffusion,
}


class Bench:
    """One model, its optimizer and a batch."""

    def __init__(self, name: str, device: str, options: argparse.Namespace):
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(0)
        self.device, self.batch_size, self.rounds = device, options.batch_size, options.steps
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

    def loss_and_gradients(self) -> None:
        torch.nn.functional.mse_loss(self.predict().float(), self.sample).backward()

    def train_step(self) -> None:
        self.loss_and_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def timed(self, step: Callable[[], object]) -> float:
        self.synchronize()
        began = time.perf_counter()
        for _ in range(self.rounds):
            step()
        self.synchronize()
        return self.batch_size * self.rounds / (time.perf_counter() - began)

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.accelerator.synchronize()

    def train(self) -> float:
        self.model.train()
        return self.timed(self.train_step)

    @torch.no_grad()
    def sampling(self) -> float:
        self.model.eval()
        return self.timed(self.predict)

    def facts(self) -> dict[str, float]:
        self.model.train()
        with FlopCounterMode(display=False) as counter:
            self.loss_and_gradients()
        self.optimizer.zero_grad()
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "flop": counter.get_total_flops() / self.batch_size,
        }

    def memory(self) -> float:
        """The peak so far in MiB: on a CPU, of the process and all it has loaded."""
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


bench: Bench


def start(name: str, device: str, options: argparse.Namespace) -> None:
    global bench
    bench = Bench(name, device, options)


def call(method: str):
    return getattr(bench, method)()


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best of several products of square matrices."""
    torch.set_float32_matmul_precision("high")
    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        product = left @ right
        # Waits for the device.
        product[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn of a model (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns, whose median counts (default: %(default)s)")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no", help="(default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="run all models through torch.compile")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options.mixed_precision == "bf16" else torch.float32

    pools = {name: ProcessPoolExecutor(1, get_context("spawn"), start, (name, device, options)) for name in MODELS}

    def ask(name: str, method: str):
        return pools[name].submit(call, method).result()

    facts = {name: ask(name, "facts") for name in MODELS}
    speeds = {(name, kind): [] for name in MODELS for kind in ("train", "sampling")}
    memory = {}
    peaks = []
    for turn in range(options.turns + 1):
        peaks.append(matmul_peak(device, dtype))
        for name in MODELS:
            train, sampling = ask(name, "train"), ask(name, "sampling")
            # The first turn warms up.
            if turn:
                speeds[name, "train"].append(train)
                speeds[name, "sampling"].append(sampling)
    for name in MODELS:
        memory[name] = ask(name, "memory")
        pools[name].shutdown()

    peak = max(peaks)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else f", {torch.cuda.get_device_name()}"
    print(f"{device}{threads}, batch {options.batch_size}, {dtype}{', compiled' if options.compile else ''}")
    print(f"matrix product: {peak / 1e12:.3f} TFLOP/s\n")
    print("| model | parameters (M) | training (images/s) | sampling (evaluations/s) | times | of peak | MiB |")
    print("|---|---|---|---|---|---|---|")
    own = {kind: median(speeds["this, spec", kind]) for kind in ("train", "sampling")}
    for name in MODELS:
        train, sampling = (median(speeds[name, kind]) for kind in ("train", "sampling"))
        share = train * facts[name]["flop"] / peak
        print(
            f"| {name} | {facts[name]['parameters'] / 1e6:.1f} | {train:.1f} | {sampling:.1f} |"
            f" {own['train'] / train:.2f} / {own['sampling'] / sampling:.2f} | {share:.0%} | {memory[name]:.0f} |"
        )


if __name__ == "__main__":
    main()
