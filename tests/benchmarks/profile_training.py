"""Attributes the time of training steps to groups of operations, and measures the speed relative to a matrix product.

    python tests/benchmarks/profile_training.py --config training/configs/spec.yaml

All arguments are settings of the trainer. The benchmark runs the trainer's own steps, with data loading, gradient
clipping and EMA.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path

import torch
from throughput import measure_matmul
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from parsing import parse_config
from resolve import resolve_config
from trainer import Trainer


NUM_WARMUP_STEPS = 3
NUM_STEPS = 10
# The first group with a name that is a part of an operation's name contains the operation.
GROUPS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("convolution",),
    "matrix products and attention": ("mm", "linear", "attention"),
    "optimizer, gradient clipping and EMA": ("_fused_adam", "_foreach", "linalg_vector_norm"),
}
OTHERS = "other operations: normalization, activations, copies"


def find_group(name: str) -> str:
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), OTHERS)


def run_steps(trainer: Trainer) -> Iterator[None]:
    """Trains one batch for each requested item."""
    batches = trainer.components.batches
    for images, labels, generator in chain.from_iterable(batches.epoch(epoch) for epoch in count()):
        trainer._train_batch(images, labels, generator)
        yield


def measure_steps(trainer: Trainer) -> tuple[float, float, dict[str, float]]:
    """Returns the seconds and the floating-point operations of a step, and the share of the time of each group."""
    device = trainer.accelerator.device.type
    steps = run_steps(trainer)

    def run(num_steps: int) -> float:
        start = time.perf_counter()
        for _ in islice(steps, num_steps):
            pass
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / num_steps

    # Compiled code hides its operations from the counter.
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        run(1)
    run(NUM_WARMUP_STEPS)
    seconds = run(NUM_STEPS)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        run(NUM_STEPS)
    times = dict.fromkeys([*GROUPS, OTHERS], 0.0)
    for event in profiler.key_averages():
        # The names of GPU kernels do not match GROUPS, so their time is attributed to the operations that launch them.
        if event.device_type == DeviceType.CPU:
            time_total = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            times[find_group(event.key)] += time_total
    total = sum(times.values())
    return seconds, float(counter.get_total_flops()), {group: time / total for group, time in times.items()}


def main() -> None:
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        config = resolve_config(parse_config([*sys.argv[1:], f"--output_dir={folder}"]))
        trainer = Trainer(config)
        with trainer.interrupts, trainer.loss_logger.show_progress(0, trainer.total_steps):
            seconds, flop, shares = measure_steps(trainer)
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    matmul_speed = measure_matmul(trainer.accelerator.device.type, dtype)
    print(f"{config.images_per_step / seconds:.1f} images/s")
    print(f"{flop / seconds / 1e9:.0f} GFLOP/s, {flop / seconds / matmul_speed:.0%} of a matrix product in {dtype}\n")
    print("| operation | share of the time |\n|---|---|")
    for group, share in shares.items():
        print(f"| {group} | {share:.0%} |")


if __name__ == "__main__":
    main()
