"""Builds the browser page, which generates images without a server, and uploads it to the Hub as a static Space."""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fmnist_diffusion.export import METADATA_KEY, export_onnx
from fmnist_diffusion.files import find_source_folder
from fmnist_diffusion.hub_client import connect, get_full_repo_id
from fmnist_diffusion.loading import get_short_name, load_pipeline, make_file_name
from fmnist_diffusion.metadata import get_license, read_train_config

from .repository import create_repository
from .space import upload_space


RUNTIME_PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The page uses these files for WebAssembly and for WebGPU. `main.js` contains the same names.
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
MAX_NUM_INFERENCE_STEPS = 20


def push_static_space(repo_id: str, checkpoints: Sequence[Path], *, private: bool = False) -> str:
    """
    Uploads the browser page as a static Space.

    If nothing has changed since the last upload, no commit is made.

    Args:
        repo_id (`str`): Repository id of the Space, `owner/name`, or `name` for your own namespace.
        checkpoints (`Sequence[Path]`): Folders of the pipelines; the page selects the first one by default.
        private (`bool`, defaults to `False`):
            Whether to create a private Space. Raises an error if it exists and is public.

    Returns:
        `str`: The URL of the Space.

    Raises:
        [`HubError`]: If the Hub cannot be reached or rejects a request.
        `ExportError`, `OSError`, `ValueError`: See [`make_static_space`].
    """
    api = connect()
    repo_id = get_full_repo_id(api, repo_id)
    with TemporaryDirectory() as staging:
        make_static_space(checkpoints, Path(staging))
        create_repository(api, repo_id, private, repo_type="space", space_sdk="static")
        return upload_space(api, repo_id, Path(staging), "Upload page", ["*.onnx", "onnxruntime-web/*"])


def make_static_space(checkpoints: Sequence[Path], target: Path) -> None:
    """
    Writes the complete content of a static Space: the page, the exported models and ONNX Runtime Web.

    `models.json` contains the file name and the metadata of each model, with the samplers for 1 to 20 steps.

    Args:
        checkpoints (`Sequence[Path]`): Folders of the pipelines; the page selects the first one by default.
        target (`Path`): New or empty output folder.

    Raises:
        `ExportError`: If the predictions of an exported model differ too much from those of PyTorch.
        `OSError`: If a pipeline cannot be read, or if npm is not installed or cannot download ONNX Runtime Web.
        `ValueError`: If two pipelines have the same name, if a scheduler cannot be exported, or if the SHA-512 hash of
            ONNX Runtime Web is wrong.
    """
    names = [make_file_name(get_short_name(folder)) for folder in checkpoints]
    if len(names) > len(set(names)):
        raise ValueError(f"`model` must name different pipelines, got {', '.join(names)}. Omit or rename one of them.")
    shutil.copytree(find_source_folder("space") / "browser", target, dirs_exist_ok=True)
    download_runtime(target / "onnxruntime-web")
    models = [export_model(folder, target) for folder in checkpoints]
    (target / "models.json").write_text(json.dumps(models))


def export_model(folder: Path, target: Path) -> dict[str, Any]:
    """Exports a pipeline to an ONNX file in `target`, and returns its entry for `models.json`."""
    import onnx

    pipe = load_pipeline(folder, dtype=torch.float32)
    default = min(pipe.config.num_inference_steps, MAX_NUM_INFERENCE_STEPS)
    name = get_short_name(folder)
    path = target / f"{make_file_name(name)}.onnx"
    export_onnx(
        pipe,
        path,
        name=name,
        # The first number of steps is the default.
        num_inference_steps=list(dict.fromkeys([default, *range(1, MAX_NUM_INFERENCE_STEPS + 1)])),
        license=get_license(read_train_config(folder / "train_config.json")),
    )
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    # With the hash, a browser that is offline never combines a cached model with the metadata of another one.
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path = path.rename(path.with_stem(f"{path.stem}-{digest[:8]}"))
    return {"file": path.name, **json.loads(metadata[METADATA_KEY])}


def download_runtime(target: Path) -> None:
    """
    Downloads ONNX Runtime Web (33 MB) with npm, and writes the files that the page uses to a folder.

    Args:
        target (`Path`): Output folder, which must not exist.

    Raises:
        `OSError`: If npm is not installed or cannot download the package.
        `ValueError`: If the SHA-512 hash of the package is wrong.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise OSError(f"Could not find npm, which downloads {RUNTIME_PACKAGE}. Install Node.js and try again.")
    with TemporaryDirectory() as folder:
        # npm downloads the package from the configured registry and caches it.
        command = [npm, "pack", RUNTIME_PACKAGE, "--prefer-offline", "--loglevel=error", "--pack-destination", folder]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        packages = list(Path(folder).glob("*.tgz"))
        if process.returncode or not packages:
            reason = (process.stderr.strip().splitlines() or ["no error message"])[0]
            raise OSError(f"npm could not download {RUNTIME_PACKAGE} ({reason}). Check your connection and try again.")
        digest = base64.b64encode(hashlib.sha512(packages[0].read_bytes()).digest()).decode()
        if digest != RUNTIME_SHA512:
            raise ValueError(
                f"The SHA-512 hash of {RUNTIME_PACKAGE} must be {RUNTIME_SHA512[:12]}..., got {digest[:12]}... Check"
                " the registry that npm uses."
            )
        target.mkdir()
        with tarfile.open(packages[0]) as package:
            for name in RUNTIME_FILES:
                member = package.extractfile(f"package/dist/{name}")
                assert member is not None
                (target / name).write_bytes(member.read())
