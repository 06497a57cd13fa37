import torch
from diffusers import DDPMScheduler

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.evaluation import provenance, weights_hash
from fmnist_diffusion.evaluation.provenance import get_device_name, get_versions, tensor_hash
from fmnist_diffusion.files import hash_file


def test_weights_hash_depends_on_the_weights_only():
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8)
    expected = weights_hash(FashionMNISTPipeline(unet, DDPMScheduler()))
    assert weights_hash(FashionMNISTPipeline(unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2"))) == expected
    torch.nn.init.zeros_(unet.conv_out.bias)
    assert weights_hash(FashionMNISTPipeline(unet, DDPMScheduler())) != expected


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
