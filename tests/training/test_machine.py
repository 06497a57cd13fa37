import pytest
import torch

from machine import choose_batch_size, choose_compile, choose_mixed_precision, get_device_type


@pytest.mark.parametrize(
    ("num_images", "resolution", "device_type", "num_processes", "expected"),
    [
        (60_000, (28, 28), "cpu", 1, 32),
        (60_000, (28, 28), "cuda", 1, 128),
        (60_000, (64, 64), "cpu", 1, 8),
        (60_000, (64, 48), "cuda", 1, 32),
        (60_000, (512, 512), "cpu", 1, 2),
        (100, (28, 28), "cpu", 1, 16),
        (5, (28, 28), "cpu", 1, 1),
        (1, (28, 28), "cpu", 1, 1),
        (60_000, (28, 28), "cuda", 3, 384),
        (13, (28, 28), "cuda", 3, 3),
    ],
)
def test_batch_size_follows_images_and_device(
    num_images: int, resolution: tuple[int, int], device_type: str, num_processes: int, expected: int
):
    assert choose_batch_size(num_images, resolution, device_type, num_processes) == expected


@pytest.mark.parametrize(
    ("launched", "capabilities", "expected"),
    [
        ("no", {}, "no"),
        ("no", {"avx512_bf16": True}, "bf16"),
        ("no", {"amx_bf16": True}, "bf16"),
        ("fp16", {"amx_bf16": True}, "fp16"),
        ("bf16", {}, "bf16"),
    ],
)
def test_mixed_precision_of_a_cpu(monkeypatch: pytest.MonkeyPatch, launched: str, capabilities: dict, expected: str):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_mixed_precision("cpu") == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "no")])
def test_mixed_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch, supported: bool, expected: str):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_mixed_precision("cuda") == expected


def test_mixed_precision_of_other_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    assert choose_mixed_precision("mps") == "no"


def test_only_long_runs_with_a_compiler_are_compiled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("machine.can_compile", lambda: True)
    assert not choose_compile("cpu", 1000)
    assert choose_compile("cpu", 100_000)
    assert choose_compile("cuda", 100_000)
    assert not choose_compile("mps", 100_000)
    monkeypatch.setattr("machine.can_compile", lambda: False)
    assert not choose_compile("cpu", 100_000)


def test_accelerate_can_force_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert get_device_type() == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert get_device_type() == "cpu"
