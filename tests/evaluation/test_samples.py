"""Samples: drawn alike in batches of any size, counted, and read from files, or refused in words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, HeunDiscreteScheduler
from PIL import Image

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.evaluation import SamplingSettings, draw, load_samples


@pytest.fixture
def pipe() -> FashionMNISTPipeline:
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8, num_class_embeds=10).eval()
    pipe = FashionMNISTPipeline(unet, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_an_image_is_the_same_in_every_batch(pipe: FashionMNISTPipeline):
    settings = SamplingSettings(3, conditional=True)
    whole = draw(pipe, settings, 0, 12, seed=2)
    parts = [draw(pipe, settings, 0, 5, seed=2), draw(pipe, settings, 5, 7, seed=2)]
    together = torch.cat([part.images for part in parts])
    assert (whole.images.int() - together.int()).abs().max() <= 1
    assert whole.labels is not None
    assert whole.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert not torch.equal(draw(pipe, settings, 0, 5, seed=3).images, parts[0].images)


def test_images_of_seed_0_are_those_of_the_command_line(pipe: FashionMNISTPipeline):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    images = pipe(num_images_per_prompt=2, num_inference_steps=3, generator=generators).images
    drawn = draw(pipe, SamplingSettings(3), 0, 2).images
    assert drawn.shape == (2, 1, 28, 28)
    assert drawn.dtype == torch.uint8
    assert np.array_equal(drawn[:, 0].numpy(), np.stack([np.asarray(image) for image in images]))


@pytest.mark.parametrize(
    ("settings", "evaluations"),
    [
        (SamplingSettings(4), 4),
        (SamplingSettings(4, guidance_scale=2.0, conditional=True), 8),
        (SamplingSettings(4, guidance_scale=2.0, guidance_interval=(0.5, 1.0), conditional=True), 6),
    ],
)
def test_evaluations_are_counted(pipe: FashionMNISTPipeline, settings: SamplingSettings, evaluations: int):
    samples = draw(pipe, settings, 0, 3)
    assert samples.evaluations == 3 * evaluations
    assert samples.seconds > 0


def test_a_scheduler_of_second_order_counts_twice_but_once(pipe: FashionMNISTPipeline):
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    assert draw(pipe, SamplingSettings(4), 0, 2).evaluations == 2 * 7


def test_a_model_that_draws_no_numbers_is_refused(pipe: FashionMNISTPipeline):
    torch.nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))
    with pytest.raises(ValueError, match="pixels that are not finite: take another"):
        draw(pipe, SamplingSettings(2), 0, 2)


def write_pictures(folder: Path, count: int = 3) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    return images


def test_a_folder_is_read_in_the_order_of_names_without_the_grid(tmp_path: Path):
    images = write_pictures(tmp_path)
    for name in ("grid.png", "report.png"):
        Image.new("L", (56, 56)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    samples = load_samples(tmp_path)
    assert np.array_equal(samples.images[:, 0].numpy(), images)
    assert len(load_samples(tmp_path, 2)) == 2
    with pytest.raises(ValueError, match="has 3 images, not 4"):
        load_samples(tmp_path, 4)


def test_grey_saved_as_colour_is_read_and_colour_is_refused(tmp_path: Path):
    images = write_pictures(tmp_path, 1)
    Image.fromarray(images[0]).convert("RGB").save(tmp_path / "0000.png")
    assert np.array_equal(load_samples(tmp_path).images[0, 0].numpy(), images[0])
    Image.new("RGB", (28, 28), "red").save(tmp_path / "0000.png")
    with pytest.raises(ValueError, match=r"0000\.png is RGB of 28x28: give grey"):
        load_samples(tmp_path)
    # Of these, the pixels are numbers of colours.
    Image.fromarray(images[0]).convert("P", palette=Image.Palette.ADAPTIVE, colors=16).save(tmp_path / "0000.png")
    with pytest.raises(ValueError, match=r"0000\.png is P of 28x28: give grey"):
        load_samples(tmp_path)


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (28, 28, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_npz_of_each_layout_is_read(tmp_path: Path, shape: tuple[int, ...], dtype: type):
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
    stored = images if dtype is np.uint8 else (images / 255).astype(dtype)
    np.savez(tmp_path / "x.npz", images=stored.reshape(4, *shape), labels=np.array([3, 1, 0, 9]))
    samples = load_samples(tmp_path / "x.npz")
    assert np.array_equal(samples.images[:, 0].numpy(), images)
    assert samples.labels is not None
    assert samples.labels.tolist() == [3, 1, 0, 9]


GOOD = np.zeros((4, 28, 28), np.uint8)
BAD_FILES = {
    "shape": ({"images": np.zeros((4, 32, 32), np.uint8)}, r"have the shape \(4, 32, 32\): give"),
    "channels": ({"images": np.zeros((4, 3, 28, 28), np.uint8)}, "have the shape"),
    "none": ({"images": GOOD[:0]}, "have the shape"),
    "dtype": ({"images": GOOD.astype(np.int64)}, "pixels of .* are int64: give uint8"),
    "range": ({"images": GOOD - 1.0}, "go from -1 to -1: give floats"),
    "bright": ({"images": GOOD + 255.0}, "go from 255 to 255: give floats"),
    "nan": ({"images": GOOD + np.nan}, "not finite: draw these samples again"),
    "names": ({"x": GOOD, "y": GOOD}, "has no array of the name images"),
    "objects": ({"images": np.array([object()])}, r"cannot be read as \.npz"),
    "labels": ({"images": GOOD, "labels": np.zeros(3, int)}, "not one whole number for each of 4"),
    "classes": ({"images": GOOD, "labels": np.full(4, 10)}, "not in 0 to 9"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_arrays_are_refused_in_words(tmp_path: Path, name: str):
    arrays, message = BAD_FILES[name]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_samples(tmp_path / "x.npz")


def test_other_bad_sources_are_refused_in_words(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no PNG: give a folder"):
        load_samples(tmp_path)
    with pytest.raises(ValueError, match="is no pipeline, no folder of pictures and no"):
        load_samples(tmp_path / "missing.npz")
    np.savez_compressed(
        tmp_path / "whole.npz", images=np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)
    )
    np.save(tmp_path / "array.npy", GOOD)
    whole, array = (tmp_path / "whole.npz").read_bytes(), (tmp_path / "array.npy").read_bytes()
    for content in (b"PK no zip", whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:], array):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read as \.npz"):
            load_samples(tmp_path / "x.npz")
    write_pictures(tmp_path)
    Image.new("L", (32, 28)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match=r"wide\.png is L of 32x28"):
        load_samples(tmp_path)
    (tmp_path / "wide.png").write_bytes((tmp_path / "0000.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"wide\.png cannot be read .*remove it"):
        load_samples(tmp_path)
