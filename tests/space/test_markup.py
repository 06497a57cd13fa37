import re

import pytest
from PIL import Image

import markup
from engine import Step
from saved_pipelines import METRICS


def step(number: int, num_images: int = 2) -> Step:
    images = [Image.new("L", (8, 8))] * num_images
    return Step(number, 20, images, images, num_function_evaluations=number, seconds=1.25)


def test_text_is_escaped():
    assert "<b>" not in markup.header("<b>", "<b>")
    assert "<b>" not in markup.gallery([Image.new("L", (8, 8))], ["<b>"])


def test_gallery_has_a_caption_and_alternative_text_for_each_image():
    gallery = markup.gallery([Image.new("L", (8, 8))] * 2, ["Bag", "Coat"])
    assert re.findall(r'alt="(\w+)"', gallery) == re.findall(r"<figcaption>(\w+)<", gallery) == ["Bag", "Coat"]


@pytest.mark.parametrize("number, text", [(0, "step 0 of 20"), (12, "step 12 of 20")])
def test_progress_bar_shows_the_step(number, text):
    assert text in markup.progress_bar(step(number))


@pytest.mark.parametrize("num_images, text", [(1, "1 image in 1.2 s"), (2, "2 images in 1.2 s")])
def test_progress_bar_shows_the_cost_after_the_last_step(num_images, text):
    bar = re.sub("<.*?>", "", markup.progress_bar(step(20, num_images)))
    assert bar == f"{text}, 20 NFE per image"


class TestQualityTable:
    def test_numbers_are_rounded(self):
        metrics = METRICS | {"metrics": {"fid_train": 2.1767323, "kid_train": -1.4e-05}}
        table = markup.quality_table(metrics)
        assert "12,345 generated images" in table
        assert re.findall(r"<td>(.*?)</td>", table) == ["2.177", "2.5", "-0.000014", "0"]

    def test_reference_of_the_metrics_is_named(self):
        metrics = METRICS | {"reference": {"name": "<shoes>", "split": "train", "num_images": 4321}}
        table = markup.quality_table(metrics)
        assert "with 4,321 images of &lt;shoes&gt;" in table and "Fashion-MNIST" not in table
        assert "the training images of Fashion-MNIST" in markup.quality_table(METRICS)

    @pytest.mark.parametrize("metrics", [None, METRICS | {"metrics": {}}])
    def test_checkpoint_without_metrics_is_explained(self, metrics):
        assert "no metrics yet" in markup.quality_table(metrics)
