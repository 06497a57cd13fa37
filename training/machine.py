"""Settings that suit the machine: mixed precision, compilation and batch size."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import parse_flag_from_env


# These batch sizes make full use of the device with images of up to 32x32 pixels. Larger images use smaller batches.
BATCH_SIZES = {"cpu": 32, "mps": 64, "cuda": 128}
BATCH_PIXELS = 32 * 32
MIN_BATCHES_PER_EPOCH = 4
# Shorter runs finish before the compilation has paid off.
MIN_COMPILED_STEPS = 3000


def get_device_type() -> str:
    """Returns the type of the device that Accelerate will use, such as cuda."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if device is None or parse_flag_from_env("ACCELERATE_USE_CPU") else device.type


def choose_mixed_precision(device_type: str) -> Literal["no", "bf16", "fp16"]:
    """Returns the dtype that `accelerate launch` selects, otherwise bf16 where it is faster than float32."""
    # `accelerate launch` always sets this variable, and its default is no.
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched == "bf16" or launched == "fp16":
        return launched
    if device_type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities = torch.cpu.get_capabilities() if device_type == "cpu" else {}
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "no"


def choose_compile(device_type: str, total_steps: int) -> bool:
    return device_type in ("cpu", "cuda") and total_steps >= MIN_COMPILED_STEPS and can_compile()


def can_compile() -> bool:
    """Returns whether the compiler and the headers that `torch.compile` needs are installed."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.is_file() and shutil.which(os.environ.get("CXX", "g++")) is not None


def choose_batch_size(num_images: int, resolution: tuple[int, int], device_type: str, num_processes: int) -> int:
    """Returns a multiple of `num_processes` for which an epoch has several batches.

    Args:
        num_images: Number of training images.
        resolution: Height and width of the images or latents.
        device_type: Type of the device, such as cuda.
        num_processes: Number of processes that share a batch.
    """
    height, width = resolution
    pixels = max(height * width, BATCH_PIXELS)
    largest = max(BATCH_SIZES.get(device_type, BATCH_SIZES["cpu"]) * BATCH_PIXELS // pixels, 2)
    limit = min(largest, max(num_images // MIN_BATCHES_PER_EPOCH // num_processes, 1))
    # The batch size per process is the largest power of two up to the limit.
    return num_processes * 2 ** (limit.bit_length() - 1)
