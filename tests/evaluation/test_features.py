from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmnist_diffusion.evaluation.features import cached_features


class CountingExtractor:
    name, sha256 = "classifier", "0" * 64

    def __init__(self):
        self.num_calls = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return images.flatten(1)[:, :4].float()


@pytest.mark.parametrize("use_cache_folder", [True, False])
def test_features_are_computed_once(use_cache_folder: bool, tmp_path: Path, cache_folder: Path):
    extractor, images = CountingExtractor(), torch.randint(0, 256, (1500, 1, 28, 28), dtype=torch.uint8)
    folder = None if use_cache_folder else tmp_path / "features"
    first = cached_features(extractor, images, folder=folder)
    assert extractor.num_calls == 2
    assert torch.equal(cached_features(extractor, images, folder=folder), first)
    assert torch.equal(cached_features(extractor, images[:1000], folder=folder), first[:1000])
    assert extractor.num_calls == 2
    assert torch.equal(cached_features(extractor, images.flip(0), folder=folder), first.flip(0))
    assert extractor.num_calls == 4
    expected_folder = folder or cache_folder / "features" / "classifier-000000000000"
    assert len(list(expected_folder.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("damage", ["empty", "flipped bit", "other features"])
def test_damaged_features_are_computed_again(damage: str, tmp_path: Path):
    extractor, images = CountingExtractor(), torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    expected = cached_features(extractor, images, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        save_file({"features": torch.zeros(19, 4)}, path)
    for num_calls in (2, 2):
        assert torch.equal(cached_features(extractor, images, folder=tmp_path), expected)
        assert extractor.num_calls == num_calls


def test_images_of_different_shapes_have_different_features(tmp_path: Path):
    extractor, images = CountingExtractor(), torch.randint(0, 256, (20, 3, 4, 16), dtype=torch.uint8)
    cached_features(extractor, images, folder=tmp_path)
    cached_features(extractor, images.view(20, 3, 16, 4), folder=tmp_path)
    assert extractor.num_calls == 2
