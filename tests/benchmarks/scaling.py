"""Measures the time and the memory of training steps for several resolutions, widths and batch sizes.

    python tests/benchmarks/scaling.py measure -o scaling.json
    python tests/benchmarks/scaling.py fit scaling.json

The models have the default architecture with GroupNorm and scaled widths. On a CPU, each setting runs in its own
process, so that its peak memory can be measured. The fit of the step time is

    seconds = overhead + batch_size * (a * flop + b * features),

where `flop` is the number of floating-point operations per image, and `features` is height x width x channels of the
first level, which is proportional to the memory traffic. The fit of the memory is

    bytes = overhead + 20 * parameters + batch_size * c * features,

with five float32 values per parameter: the weight, its gradient, the two running means of Adam, and the EMA.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from peak_memory import get_peak_memory
from scipy.optimize import nnls
from torch.utils.flop_counter import FlopCounterMode

from fmnist_diffusion import FashionMNISTUNet2DModel


WIDTHS = (64, 128, 256, 512)
BYTES_PER_PARAMETER = 20
WARMUP_STEPS = 3
# Each setting consists of the resolution, the factor of the widths and the batch size.
SETTINGS = {
    "cpu": [
        *((28, 1.0, batch_size) for batch_size in (8, 16, 32, 64)),
        *((28, factor, 32) for factor in (0.25, 0.5, 1.5)),
        (32, 1.0, 32),
        (64, 1.0, 16),
        (128, 0.5, 4),
        (128, 1.0, 4),
    ],
    "cuda": [
        *((28, 1.0, batch_size) for batch_size in (64, 128, 256, 512, 1024)),
        *((28, factor, 512) for factor in (0.5, 2.0)),
        (64, 1.0, 64),
        (64, 1.0, 256),
        (64, 2.0, 64),
        (128, 1.0, 32),
        (128, 1.0, 64),
        (128, 2.0, 32),
        (256, 1.0, 16),
        (256, 2.0, 16),
    ],
}


@dataclass(frozen=True)
class Measurement:
    """One setting and its results.

    Attributes:
        resolution: Height and width in pixels.
        width: Channels of the first level.
        batch_size: Number of images per step.
        parameters: Number of parameters.
        flop: Floating-point operations of a training step per image.
        seconds: Median time of a step.
        memory: Peak memory in bytes: that of PyTorch's allocations on a GPU, or of the process on a CPU.
    """

    resolution: int
    width: int
    batch_size: int
    parameters: int
    flop: float
    seconds: float
    memory: float

    @property
    def features(self) -> int:
        return self.resolution**2 * self.width


def make_model(factor: float, resolution: int) -> FashionMNISTUNet2DModel:
    widths = tuple(int(factor * width) for width in WIDTHS)
    return FashionMNISTUNet2DModel(
        sample_size=resolution, block_out_channels=widths, norm_type="group", norm_num_groups=8, attention_head_dim=16
    )


def count_flop(factor: float, resolution: int) -> float:
    """Returns the floating-point operations of the forward and backward pass of one image."""
    with torch.device("meta"):
        model = make_model(factor, resolution)
        sample, timesteps = torch.zeros(1, 1, resolution, resolution), torch.zeros(1)
    with FlopCounterMode(display=False) as counter:
        model(sample, timesteps).sample.sum().backward()
    return float(counter.get_total_flops())


def measure(resolution: int, factor: float, batch_size: int, device: str, bf16: bool, num_steps: int) -> Measurement:
    """Measures training steps of one setting in this process, with AdamW, gradient clipping and EMA."""
    torch.manual_seed(0)
    model = make_model(factor, resolution).to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ema = EMAModel(model.parameters(), foreach=True)
    sample = torch.randn(batch_size, 1, resolution, resolution, device=device)
    timesteps = torch.randint(1000, (batch_size,), device=device)
    times = []
    for _ in range(WARMUP_STEPS + num_steps):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            prediction = model(sample, timesteps).sample
        torch.nn.functional.mse_loss(prediction.float(), sample).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    memory = float(torch.cuda.max_memory_allocated() if device == "cuda" else get_peak_memory())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flop, width = count_flop(factor, resolution), model.config["block_out_channels"][0]
    seconds = float(np.median(times[WARMUP_STEPS:]))
    return Measurement(resolution, width, batch_size, parameters, flop, seconds, memory)


def try_measure(*args) -> Measurement | None:
    """Returns the measurement, or `None` if the setting does not fit in memory."""
    try:
        return measure(*args)
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except RuntimeError as error:
        # PyTorch raises this error if the CPU is out of memory.
        if "can't allocate memory" not in str(error):
            raise
        return None


def measure_all(device: str, bf16: bool, num_steps: int) -> list[Measurement]:
    found = []
    for setting in SETTINGS[device]:
        args = (*setting, device, bf16, num_steps)
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            result = try_measure(*args)
        else:
            try:
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    result = pool.submit(try_measure, *args).result()
            except BrokenProcessPool:
                # The operating system kills a process that uses too much memory.
                result = None
        if result is None:
            print(f"{setting}: out of memory, or the process was killed")
            continue
        found.append(result)
        print(f"{setting}: {result.batch_size / result.seconds:.1f} images/s", flush=True)
    return found


def fit_time(measurements: list[Measurement]) -> np.ndarray:
    """Returns overhead (s), a (s/FLOP) and b (s/feature), fitted to the relative errors."""
    rows = [[1, m.batch_size * m.flop, m.batch_size * m.features] for m in measurements]
    return solve(rows, [m.seconds for m in measurements])


def fit_memory(measurements: list[Measurement]) -> np.ndarray:
    """Returns overhead (bytes) and c (bytes/feature), fitted to the relative errors."""
    rows = [[1, m.batch_size * m.features] for m in measurements]
    return solve(rows, [m.memory - BYTES_PER_PARAMETER * m.parameters for m in measurements])


def solve(rows: list[list[float]], values: list[float]) -> np.ndarray:
    """Returns the non-negative coefficients that minimize the squared relative errors."""
    matrix = np.array(rows, dtype=float) / np.array(values)[:, None]
    scale = matrix.max(axis=0)
    return nnls(matrix / scale, np.ones(len(values)))[0] / scale


def predict_seconds(coefficients: np.ndarray, flop: float, features: float, batch_size: int) -> float:
    return float(coefficients @ [1, batch_size * flop, batch_size * features])


def predict_memory(coefficients: np.ndarray, parameters: int, features: float, batch_size: int) -> float:
    return float(coefficients @ [1, batch_size * features] + BYTES_PER_PARAMETER * parameters)


def report(measurements: list[Measurement]) -> str:
    """Returns a Markdown table of the measurements and the fitted values."""
    time_fit, memory_fit = fit_time(measurements), fit_memory(measurements)
    lines = [
        f"step time: {time_fit[0] * 1e3:.1f} ms + batch_size * ({time_fit[1]:.2e} s/FLOP * flop"
        f" + {time_fit[2]:.2e} s * features)",
        f"memory: {memory_fit[0] / 2**20:.0f} MiB + {BYTES_PER_PARAMETER} B * parameters"
        f" + batch_size * {memory_fit[1]:.0f} B * features",
        "",
        "| resolution (pixels) | channels of the first level | batch size | images/s | images/s (fitted) |"
        " memory (MiB) | memory (MiB, fitted) |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in measurements:
        seconds = predict_seconds(time_fit, m.flop, m.features, m.batch_size)
        memory = predict_memory(memory_fit, m.parameters, m.features, m.batch_size)
        lines.append(
            f"| {m.resolution} | {m.width} | {m.batch_size} | {m.batch_size / m.seconds:.3g} |"
            f" {m.batch_size / seconds:.3g} | {m.memory / 2**20:.0f} | {memory / 2**20:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure training steps on this machine")
    measuring.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    measuring.add_argument("--bf16", action="store_true", help="use bfloat16 autocast")
    measuring.add_argument("--steps", type=int, default=10, help="measured steps per setting (default: %(default)s)")
    fitting = commands.add_parser("fit", help="fit the measurements and print a table")
    fitting.add_argument("input", type=Path, help="JSON file of measurements")
    options = parser.parse_args()
    if options.command == "measure":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        measurements = measure_all(device, options.bf16, options.steps)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps([asdict(m) for m in measurements], indent=1) + "\n")
    else:
        measurements = [Measurement(**values) for values in json.loads(options.input.read_text())]
    print(report(measurements))


if __name__ == "__main__":
    main()
