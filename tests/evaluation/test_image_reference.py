import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fmnist_diffusion.evaluation import (
    EvaluationConfig,
    ImageReference,
    ImageSource,
    evaluate_pipeline,
    evaluate_samples,
)
from fmnist_diffusion.evaluation.distances import kernel_distance, nearest_neighbors
from fmnist_diffusion.evaluation.image_reference import compare_features, distribute_classes, select_images
from fmnist_diffusion.sampling import Samples
from tiny_pipelines import get_pipeline


COLORS = {"blue": (20, 40, 200), "green": (30, 200, 40), "red": (200, 30, 20)}
COUNTS = {"blue": 10, "green": 20, "red": 30}


class FakeInception:
    """Stands in for [`InceptionFeatures`]: means of the channels of image regions, for images of any size."""

    name, num_features, sha256, device = "inception", 48, "0" * 64, torch.device("cpu")

    def __init__(self):
        self.num_images = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.num_images += len(images)
        rgb = images.float().expand(-1, 3, -1, -1) / 255
        return torch.nn.functional.adaptive_avg_pool2d(rgb, 4).flatten(1)


def write_images(folder: Path, size: int, seed: int = 0, counts: dict[str, int] = COUNTS) -> None:
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            noise = generator.integers(-20, 50, (size, size, 3))
            image = np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{i:03d}.png")


@pytest.fixture(scope="module")
def images_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 RGB training images and 15 test images of 12x12 pixels in three class folders."""
    folder = tmp_path_factory.mktemp("reference") / "colors"
    write_images(folder / "train", 12)
    write_images(folder / "test", 12, seed=1, counts=dict.fromkeys(COLORS, 5))
    return folder


@pytest.fixture
def make_reference(images_folder: Path, cache_folder: Path):
    def make_reference(shape: tuple[int, int, int] = (3, 8, 8), source: str = "", **kwargs: Any) -> ImageReference:
        return ImageReference(ImageSource.parse(source or str(images_folder)), FakeInception(), shape, **kwargs)

    return make_reference


def make_samples(count: int = 60, channels: int = 3, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    return Samples(torch.randint(0, 256, (count, channels, 8, 8), dtype=torch.uint8, generator=generator))


@pytest.mark.parametrize(
    ("text", "name", "split", "argument"),
    [
        ("images", "images", "train", "train_data_dir"),
        ("images:test", "images", "test", "train_data_dir"),
        ("a:b", "a:b", "train", "train_data_dir"),
        ("a:b:validation", "a:b", "validation", "train_data_dir"),
        ("someone/things", "someone/things", "train", "dataset_name"),
        ("someone/things:test", "someone/things", "test", "dataset_name"),
        ("mnist", "mnist", "train", "dataset_name"),
    ],
)
def test_sources_are_parsed(
    text: str, name: str, split: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for folder in ("images", "a:b"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    assert ImageSource.parse(text) == ImageSource(name, split, {argument: name})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`reference` must be a folder, a file or a dataset, optionally with :split, got ''"),
        (":test", "got ':test'"),
        ("images:", "got 'images:'"),
        ("./missing", r"Could not find the folder or file \./missing"),
        ("/a/b/c:test", "Could not find the folder or file /a/b/c"),
    ],
)
def test_invalid_sources_are_errors(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        ImageSource.parse(text)


def test_results_name_the_reference_without_its_folder(make_reference, images_folder: Path, tmp_path: Path):
    results = evaluate_samples(make_samples(), tmp_path / "out", name="noise", reference=make_reference())
    assert results["reference"] | {"images_sha256": ""} == {
        "name": "colors",
        "split": "train",
        "num_images": 60,
        "channels": 3,
        "resolution": [8, 8],
        "images_sha256": "",
    }
    assert str(images_folder.parent) not in (tmp_path / "out" / "metrics.json").read_text()
    assert results["real_metrics"]["num_images"] == 30
    assert results["metrics"]["kid"] > 3 * abs(results["real_metrics"]["kid"])
    assert results["metrics"]["precision"] < results["real_metrics"]["precision"]
    assert "8x8 uint8 RGB images" in results["protocol"]
    with Image.open(tmp_path / "out" / "report.png") as report:
        assert report.size == (1500, 1680)


def test_reference_images_have_the_best_metrics(make_reference, tmp_path: Path):
    reference = make_reference((3, 12, 12))
    results = evaluate_samples(
        Samples(reference.real_images.images), tmp_path / "out", name="copy", reference=reference
    )
    metrics = results["metrics"]
    assert (metrics["precision"], metrics["recall"], metrics["coverage"]) == (1, 1, 1)
    assert metrics["nearest_pixels"]["median"] == metrics["nearest_inception"]["median"] == 0
    assert metrics["nearest_pixels"]["nearer_than_99_percent_of_reference"] == 1
    assert metrics["nearest_pixels"]["reference_median"] > 0
    # With more images than features, FID is meaningful.
    assert metrics["fid"] == pytest.approx(0, abs=1e-4)


def test_fid_requires_more_images_than_features():
    features = torch.rand(60, 48, generator=torch.Generator().manual_seed(0))
    assert "fid" in compare_features(features[:49], features)
    assert compare_features(features[:48], features).keys() == compare_features(features, features[:48]).keys()
    assert "fid" not in compare_features(features[:48], features)
    assert compare_features(features, features[:50])["kid"] == kernel_distance(features, features[:50])[0]


def test_statistics_are_computed_once_and_again_if_damaged(make_reference, cache_folder: Path, tmp_path: Path):
    def evaluate(name: str) -> tuple[dict[str, Any], int]:
        reference = make_reference()
        results = evaluate_samples(make_samples(), tmp_path / name, name="noise", reference=reference)
        return results, reference.inception.num_images

    first, num_images = evaluate("first")
    assert num_images == 120
    assert evaluate("second") == (first, 60)
    for folder, expected in (("references", 60), ("features", 120)):
        (path,) = (cache_folder / folder).rglob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-1])
        assert evaluate(f"damaged {folder}") == (first, expected)
        assert len(list((cache_folder / folder).rglob("*.safetensors"))) == 1


def test_statistics_of_the_reference_leave_out_the_image_itself(make_reference):
    reference = make_reference()
    duplicated = reference.real_images.images.clone()
    duplicated[1] = duplicated[0]
    reference.real_images.images[:] = duplicated
    reference.features = reference.inception(reference.real_images.images)
    distances, floor = reference.load_statistics()
    pixels = duplicated.flatten(1)
    expected = nearest_neighbors(pixels, pixels, k=2)[0][:, 1]
    assert distances["pixels"][:2].tolist() == [0, 0]
    assert torch.equal(distances["pixels"], expected)
    assert distances["pixels"][2:].min() > 0
    assert floor.keys() == {"num_images", "kid", "kid_std", "precision", "recall", "density", "coverage"}


@pytest.mark.parametrize(("sample_channels", "colors"), [(1, True), (3, False)])
def test_grayscale_and_rgb_images_are_compared_in_rgb(
    sample_channels: int, colors: bool, make_reference, tmp_path: Path
):
    folder = tmp_path / "gray"
    if not colors:
        folder.mkdir()
        for i, image in enumerate(make_samples(seed=3, channels=1).images):
            Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    reference = make_reference((sample_channels, 8, 8), "" if colors else str(folder))
    assert reference.real_images.images.shape == (60, 3, 8, 8)
    samples = make_samples(channels=sample_channels)
    results = evaluate_samples(samples, tmp_path / "out", name="noise", reference=reference)
    assert results["reference"]["channels"] == 3
    expected, _ = nearest_neighbors(
        samples.images.expand(-1, 3, -1, -1).flatten(1), reference.real_images.images.flatten(1)
    )
    assert results["metrics"]["nearest_pixels"]["median"] == float(expected.median())


def test_class_conditional_samples_have_the_proportions_of_the_reference(make_reference, tmp_path: Path):
    names = ("red", "purple", "green", "blue")
    pipe = get_pipeline(in_channels=3, out_channels=3, num_class_embeds=4, label_names=names)
    reference = make_reference()
    labels = torch.tensor(reference.choose_conditions(pipe, 60)["class_labels"])
    assert labels.bincount(minlength=4).tolist() == [30, 0, 20, 10]
    assert labels[:30].bincount(minlength=4).tolist() == [15, 0, 10, 5]
    config = EvaluationConfig(num_samples=60)
    results = evaluate_pipeline(pipe, tmp_path / "out", config, name="pipe", reference=reference)
    assert results["class_proportions"] == "reference"
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["class_proportions"] == "reference"


def test_classes_that_are_not_those_of_the_reference_have_equal_proportions(make_reference):
    pipe = get_pipeline(in_channels=3, out_channels=3, num_class_embeds=2, label_names=("red", "green"))
    reference = make_reference()
    assert list(reference.choose_conditions(pipe, 60)["class_labels"]) == [0, 1]
    assert reference.get_settings(pipe)["class_proportions"] == "equal"
    assert "class_proportions" not in reference.get_settings()


def test_labels_are_distributed_evenly():
    assert distribute_classes(torch.full((3,), 1 / 3, dtype=torch.float64), 7) == [0, 1, 2, 0, 1, 2, 0]
    labels = torch.tensor(distribute_classes(torch.tensor([0.1, 0.0, 0.9]).double(), 50))
    assert labels.bincount(minlength=3).tolist() == [5, 0, 45]


def test_selected_images_are_random(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fmnist_diffusion.evaluation.image_reference.MAX_IMAGES", 20)
    values = torch.arange(200)
    selected = select_images(values)
    assert len(selected) == len(set(selected.tolist())) == 20
    assert selected.max() > 150
    assert torch.equal(select_images(values[:20]), values[:20])


@pytest.mark.parametrize(
    ("config", "kwargs", "message"),
    [
        ({"sample_size": (8, 12)}, {}, r"images of 8x8 pixels, got RGB images of 8x12 pixels"),
        ({"in_channels": 4, "out_channels": 4}, {}, r"grayscale or RGB images .*, got 4-channel images"),
        (
            {"num_class_embeds": None},
            {},
            r"got no classes\. Pass `conditional=False`\.",
        ),
        ({}, {"num_samples": 49}, r"at least 50 samples, got 49\."),
    ],
)
def test_unsuitable_pipelines_are_rejected(
    config: dict[str, Any], kwargs: dict[str, Any], message: str, make_reference, tmp_path: Path
):
    pipe = get_pipeline(**{"in_channels": 3, "out_channels": 3} | config)
    evaluation_config = EvaluationConfig(**{"num_samples": 60} | kwargs)
    with pytest.raises(ValueError, match=message):
        evaluate_pipeline(pipe, tmp_path / "out", evaluation_config, name="pipe", reference=make_reference())
    assert not (tmp_path / "out").exists()


def test_small_and_missing_references_are_rejected(make_reference, images_folder: Path):
    with pytest.raises(ValueError, match=r"`reference` must have at least 50 images, got 15\."):
        make_reference(source=f"{images_folder}:test")
    with pytest.raises(ValueError, match="Could not find the split 'other'"):
        make_reference(source=f"{images_folder}:other")
