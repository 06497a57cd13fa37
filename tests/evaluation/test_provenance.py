import torch

from fmnist_diffusion.evaluation import provenance
from fmnist_diffusion.evaluation.provenance import get_device_name, get_versions, tensor_hash
from fmnist_diffusion.files import hash_file


def test_tensor_hash_depends_on_the_values_only(tmp_path):
    images = torch.arange(2 * 28 * 28).to(torch.uint8).view(2, 1, 28, 28)
    assert tensor_hash(images.repeat(1, 2, 1, 1)[:, :1]) == tensor_hash(images)
    assert tensor_hash(images.flip(0)) != tensor_hash(images)
    (tmp_path / "pixels").write_bytes(images.numpy().tobytes())
    assert hash_file(tmp_path / "pixels") == tensor_hash(images)


def test_versions_and_device_are_reported(monkeypatch):
    assert get_versions()["torch"] == torch.__version__
    assert get_versions().keys() >= {"fmnist-diffusion", "diffusers", "transformers", "torchmetrics", "numpy"}
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "not-installed"))
    assert get_versions() == {"torch": torch.__version__}
    assert get_device_name(torch.device("cpu")).startswith("cpu (")
