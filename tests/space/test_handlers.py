import json
import warnings
from typing import Any

import gradio as gr
import numpy as np
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from PIL import Image

import downloads
import handlers
import layout
import markup
from engine import MAX_IMAGES
from fmnist_diffusion import FashionMNISTPipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.evaluation import Classifier
from handlers import ALL_CLASSES, Handlers
from text_pipelines import CAPTIONS
from tiny_pipelines import make_unet


@pytest.fixture(scope="module")
def tiny_handlers(model_folder) -> Handlers:
    return Handlers(model_folder)


@pytest.fixture(scope="module")
def base_handlers() -> Handlers:
    return Handlers("base")


@pytest.fixture(scope="module")
def text_handlers(text_folder) -> Handlers:
    return Handlers(text_folder)


def copies(updates, *indices):
    """Returns the last updates of a handler and its downloads, which are read before the handler deletes them."""
    update, opened = None, []
    for update in updates:
        files = [update[index].get("value") for index in indices]
        opened = [Image.open(file) for file in files if file]
        for image in opened:
            image.load()
    return update, opened


def cells(grid: Image.Image, size: int, count: int) -> list[np.ndarray]:
    """Returns the images of a grid, without borders and at their original size."""
    pixels = np.asarray(grid)[4 :: downloads.MAX_GRID_SCALE, 4 :: downloads.MAX_GRID_SCALE].astype(int)
    columns = (pixels.shape[1] + 1) // (size + 1)
    corners = [(i // columns * (size + 1), i % columns * (size + 1)) for i in range(count)]
    return [pixels[top : top + size, left : left + size] for top, left in corners]


def last_grid(updates) -> Image.Image:
    """Returns the image that an endpoint generates."""
    grid = None
    for update in updates:
        if isinstance(update, str):
            grid = Image.open(update)
            grid.load()
    assert grid is not None
    return grid


def classify(images: np.ndarray) -> torch.Tensor:
    classifier = Classifier()
    return classifier.classify(classifier(torch.from_numpy(images).to(torch.uint8)[:, None]))


class TestGenerate:
    inputs = (["Bag", "Coat"], 3, 4, "ddim", 2, 11)

    def test_start_clears_the_previous_result(self, tiny_handlers):
        run = tiny_handlers.on_generate("tiny", *self.inputs)
        gallery, bar, strip, png, gif = next(run)
        run.close()
        assert gallery.count("<img") == 3
        assert "step 0 of 4" in bar
        assert strip == ""
        assert png["value"] is gif["value"] is None

    def test_downloads_contain_images_and_settings(self, tiny_handlers):
        update, (png, gif) = copies(tiny_handlers.on_generate("tiny", *self.inputs), 3, 4)
        assert png.size == (26 * 8, 8 * 8)
        assert json.loads(png.info["parameters"]) == {
            "checkpoint": "tiny",
            "scheduler": "ddim",
            "num_inference_steps": 4,
            "guidance_scale": 2,
            "guidance_interval": [0.0, 1.0],
            "seed": 11,
            "labels": ["Bag", "Coat"],
            "num_images": 3,
            "prompt": "",
        }
        assert gif.n_frames == 5
        assert "The first image during denoising" in update[2]

    def test_animation_and_strip_start_from_noise(self, tiny_handlers):
        steps = list(tiny_handlers.start_generate("tiny", *self.inputs).steps)
        strip = np.asarray(downloads.make_denoising_strip(steps))
        assert strip.shape == (2 * 9 - 1, 5 * 9 - 1)
        np.testing.assert_array_equal(strip[:8, :8], np.asarray(steps[0].images[0]))
        np.testing.assert_array_equal(strip[9:, :8], np.asarray(steps[0].predicted[0]))
        np.testing.assert_array_equal(strip[:8, -8:], np.asarray(steps[-1].images[0]))

    def test_long_animation_has_fewer_frames(self, tiny_handlers, tmp_path):
        steps = list(tiny_handlers.start_generate("tiny", [], 1, 100, "ddim", 1, 0).steps)
        with Image.open(downloads.save_denoising_gif(steps, tmp_path / "denoising.gif")) as gif:
            assert gif.n_frames <= downloads.MAX_GIF_FRAMES

    def test_endpoint_returns_the_images_of_the_page(self, tiny_handlers):
        _, (png, _) = copies(tiny_handlers.on_generate("tiny", *self.inputs), 3, 4)
        assert last_grid(tiny_handlers.generate(*self.inputs)).tobytes() == png.tobytes()

    def test_invalid_request_is_shown(self, tiny_handlers):
        with pytest.raises(gr.Error, match=r"The seed must be a whole number from 0 to 4294967295, got 3\.7"):
            next(tiny_handlers.on_generate("tiny", [], 3, 4, "ddim", 2, 3.7))

    def test_only_the_conditions_of_the_selected_checkpoints_are_visible(self, base_handlers):
        def get_visible(*checkpoints: str) -> list[bool]:
            return [update["visible"] for update in base_handlers.show_conditions(*checkpoints)]

        assert get_visible("base") == get_visible("fast", "spec") == [True, False]
        assert get_visible("spec") == [False, False]
        assert get_visible("text") == [False, True]
        assert get_visible("spec", "text") == [False, True]
        assert get_visible("base", "text") == [True, True]

    def test_images_depend_on_the_prompt(self, text_handlers):
        grids = [last_grid(text_handlers.generate([], 2, 2, "default", 1, 0, prompt)) for prompt in CAPTIONS[:2]]
        assert grids[0].tobytes() != grids[1].tobytes()

    def test_checkpoint_is_chosen_by_name(self, tiny_handlers, base_handlers):
        settings = ["Bag"], 1, 2, "default", 1, 3
        update, (png, _) = copies(tiny_handlers.on_generate("base", *settings), 3, 4)
        assert png.size == (28 * 8, 28 * 8)
        assert update[0] == copies(base_handlers.on_generate("base", *settings))[0][0]
        with pytest.raises(gr.Error, match="The checkpoint must be one of tiny, base,"):
            next(tiny_handlers.on_generate("missing", *settings))


class TestLiveRuns:
    """Runs that start when a setting changes."""

    inputs = (["Bag", "Coat"], 3, 4, "default", 1, 11)

    @pytest.fixture(scope="class")
    def live_handlers(self, live_folder) -> Handlers:
        return Handlers(live_folder)

    def test_run_shows_the_prediction_of_the_first_step_and_the_images(self, live_handlers):
        first, last = live_handlers.on_generate_change("live", *self.inputs)
        steps = list(live_handlers.start_generate("live", *self.inputs).steps)
        captions = ["Bag", "Coat", "Bag"]
        assert first[0] == markup.gallery(steps[0].predicted, captions)
        assert last[0] == markup.gallery(steps[-1].images, captions)
        assert "step 0 of 4" in first[1] and " 4 <abbr" in last[1]
        # Results of an earlier run are removed, and no files are written.
        for _, _, strip, png, gif in (first, last):
            assert strip == ""
            assert png["value"] is gif["value"] is None

    def test_interpolation_has_the_images_of_the_button(self, live_handlers):
        inputs = "Bag", "Coat", 1, 2, 5, 4, "default"
        _, last = live_handlers.on_interpolate_change(*inputs)
        assert last[1] == copies(live_handlers.on_interpolate(*inputs))[0][1]
        assert last[0] == ""

    def test_invalid_setting_is_shown(self, live_handlers):
        with pytest.raises(gr.Error, match="The seed must be a whole number"):
            next(live_handlers.on_generate_change("live", [], 1, 4, "default", 1, 0.5))

    def test_only_a_live_page_starts_with_an_interpolation(self, live_handlers, tiny_handlers):
        first = live_handlers.first_interpolation
        assert first is not None and len(first.images) == handlers.MAX_FRAMES
        assert tiny_handlers.first_interpolation is None


def test_checkpoint_whose_scheduler_cannot_interpolate(tmp_path):
    pipe = FashionMNISTPipeline(make_unet(10), EulerAncestralDiscreteScheduler(), num_inference_steps=4)
    pipe.save_pretrained(tmp_path)
    handlers = Handlers(str(tmp_path))
    assert handlers.first_interpolation is None and handlers.first_step.number == 4


class TestInterpolate:
    def test_ends_equal_generated_images_and_those_between_change(self, base_handlers):
        grid = last_grid(base_handlers.interpolate("Sneaker", "Sneaker", 3, 4, 12, 20, "default"))
        images = cells(grid, 28, 12)
        for image, seed in ((images[0], 3), (images[-1], 4)):
            alone = last_grid(base_handlers.generate(["Sneaker"], 1, 20, "default", 1, seed))
            assert abs(image - cells(alone, 28, 1)[0]).max() <= 1
        assert abs(images[0] - images[-1]).mean() > 10
        assert all(abs(images[i] - images[i + 1]).mean() > 1 for i in range(11))

    def test_animation_runs_back_and_forth(self, tiny_handlers):
        update, (png, gif) = copies(tiny_handlers.on_interpolate("Bag", "Coat", 1, 2, 4, 3, "ddim"), 3, 4)
        assert gif.n_frames == 6
        assert "data:image/gif" in update[0]
        settings = json.loads(png.info["parameters"])
        assert (settings["seed"], settings["last_seed"]) == (1, 2)

    def test_both_classes_are_required(self, tiny_handlers):
        with pytest.raises(gr.Error, match="Choose the first and the last class"):
            next(tiny_handlers.on_interpolate("Bag", None, 1, 2, 4, 3, "ddim"))

    def test_single_image_is_an_error(self, tiny_handlers):
        with pytest.raises(gr.Error, match="The number of images must be a whole number from 3 to 24, got 1"):
            next(tiny_handlers.on_interpolate("Bag", "Coat", 1, 2, 1, 3, "ddim"))

    def test_invalid_last_seed_is_shown(self, tiny_handlers):
        with pytest.raises(gr.Error, match="The seed must be a whole number"):
            next(tiny_handlers.on_interpolate("Bag", "Coat", 1, 2.5, 4, 3, "ddim"))


class TestImageToImage:
    def test_input_is_the_first_image_of_the_download(self, tiny_handlers):
        run = tiny_handlers.on_image_to_image("Bag", ALL_CLASSES, 0.5, 4, "ddim", 1, 0, None, "")
        _, (png,) = copies(run, 2)
        assert json.loads(png.info["parameters"])["strength"] == 0.5
        images = cells(png, 8, 11)
        np.testing.assert_array_equal(images[0], np.asarray(tiny_handlers.get_image(None, "Bag")))

    def test_upload_replaces_the_example(self, tiny_handlers, tmp_path):
        Image.new("RGB", (300, 100), "white").save(tmp_path / "upload.jpg")
        image = tiny_handlers.get_image({"path": str(tmp_path / "upload.jpg")}, "Bag")
        assert image.size == (8, 8)
        assert image.tobytes() != tiny_handlers.get_image(None, "Bag").tobytes()

    def test_mask_limits_the_change_to_a_region(self, tiny_handlers):
        mask = "1" * 24 + "0" * 40
        settings = "Bag", "Coat", 1, 4, "ddim", 1, 0, None, mask
        _, (png,) = copies(tiny_handlers.on_image_to_image(*settings), 2)
        assert json.loads(png.info["parameters"])["mask"] == mask
        image, result = cells(png, 8, 2)
        np.testing.assert_array_equal(result[3:], image[3:])
        assert (result[:3] != image[:3]).mean() > 0.5
        grid = last_grid(tiny_handlers.image_to_image(*settings))
        np.testing.assert_array_equal(cells(grid, 8, 1)[0], result)

    def test_invalid_mask_is_shown(self, tiny_handlers):
        with pytest.raises(gr.Error, match="The mask must be a string of 64 characters, 0 or 1, one for"):
            next(tiny_handlers.on_image_to_image("Bag", "Coat", 0.5, 4, "ddim", 1, 0, None, "1" * 63))

    def test_image_is_required(self, tiny_handlers):
        with pytest.raises(gr.Error, match="Upload an image, or choose one of T-shirt/top"):
            next(tiny_handlers.on_image_to_image(None, "Bag", 0.5, 4, "ddim", 1, 0, None, ""))

    def test_default_settings_change_the_class(self, base_handlers):
        page = layout.build(base_handlers)
        inputs = next(fn.inputs for fn in page.fns.values() if fn.api_name == "image_to_image")
        grid = last_grid(base_handlers.image_to_image(*[component.value for component in inputs]))
        images = np.stack(cells(grid, 28, 10))
        assert (classify(images) == torch.arange(10)).all()


class TestTextConditionalModel:
    """Every tab passes the prompt to the model."""

    first, last = CAPTIONS[:2]

    def generate(self, text_handlers, prompt: str, seed: int) -> np.ndarray:
        grid = last_grid(text_handlers.generate([], 1, 3, "default", 1, seed, prompt))
        return cells(grid, 8, 1)[0]

    def test_interpolation_ends_as_generated(self, text_handlers):
        inputs = None, None, 3, 9, 5, 3, "default", self.first, self.last
        _, (png, _) = copies(text_handlers.on_interpolate(*inputs), 3, 4)
        images = cells(png, 8, 5)
        for image, prompt, seed in ((images[0], self.first, 3), (images[-1], self.last, 9)):
            assert abs(image - self.generate(text_handlers, prompt, seed)).max() <= 1
        settings = json.loads(png.info["parameters"])
        assert (settings["prompt"], settings["last_prompt"]) == (self.first, self.last)
        assert last_grid(text_handlers.interpolate(*inputs)).tobytes() == png.tobytes()

    def test_image_to_image_shows_the_prompt(self, text_handlers):
        settings = f"seed {handlers.FIRST_SEED}", ALL_CLASSES, 0.7, 3, "default", 2, 0
        grids = []
        for prompt in (self.first, self.last):
            _, (png,) = copies(text_handlers.on_image_to_image(*settings, prompt, None, ""), 2)
            assert json.loads(png.info["parameters"])["prompt"] == prompt
            grids.append(np.stack(cells(png, 8, 6)[1:]))
            endpoint = last_grid(text_handlers.image_to_image(*settings, None, "", prompt))
            np.testing.assert_array_equal(np.stack(cells(endpoint, 8, 5)), grids[-1])
        assert abs(grids[0] - grids[1]).max() > 1

    def test_other_checkpoints_have_a_choice_of_classes(self, text_handlers):
        name = text_handlers.name
        visible = [[item["visible"] for item in text_handlers.show_conditions(*c)] for c in ((name,), (name, "base"))]
        assert visible == [[False, True], [True, True]]
        updates = [list(text_handlers.on_generate("base", labels, 1, 2, "ddim", 1, 5))[-1] for labels in ([], ["Bag"])]
        assert updates[0][0] != updates[1][0]
        assert "Bag" in updates[1][0]
        # The page ignores selected classes if the checkpoint has none, but the endpoint rejects them.
        next(text_handlers.on_generate(name, ["Bag"], 1, 2, "ddim", 1, 5))
        with pytest.raises(gr.Error, match="`labels` must be empty"):
            next(text_handlers.generate(["Bag"], 1, 2, "ddim", 1, 5))

    def test_comparison_passes_the_prompt_to_text_conditional_sides(self, text_handlers):
        sides = ["text", 3, "default", 1, "spec", 2, "ddim", 1]
        updates = [list(text_handlers.on_compare([], prompt, 2, 5, *sides))[-1] for prompt in (self.first, self.last)]
        assert updates[0][0] != updates[1][0]
        assert updates[0][2] == updates[1][2]
        expected, _ = copies(text_handlers.on_generate("text", [], 2, 3, "default", 1, 5, self.first))
        assert updates[0][0] == expected[0]

    @pytest.mark.parametrize(
        ("name", "inputs", "prompts"),
        [
            ("on_generate", ("text", [], 1, 2, "default", 1, 5), 1),
            ("generate", ([], 1, 2, "default", 1, 5), 1),
            ("on_interpolate", (None, None, 3, 9, 3, 2, "default"), 2),
            ("interpolate", (None, None, 3, 9, 3, 2, "default"), 2),
            ("on_image_to_image", (f"seed {handlers.FIRST_SEED}", ALL_CLASSES, 0.7, 2, "default", 2, 0), 1),
            ("image_to_image", (f"seed {handlers.FIRST_SEED}", ALL_CLASSES, 0.7, 2, "default", 2, 0, None, ""), 1),
        ],
    )
    def test_unknown_words_and_truncated_prompts_are_shown(self, text_handlers, monkeypatch, name, inputs, prompts):
        warnings = []
        monkeypatch.setattr(gr, "Warning", warnings.append)
        rest = [None, ""] if name == "on_image_to_image" else []
        handler = getattr(text_handlers, name)
        next(handler(*inputs, *[self.first] * prompts, *rest))
        assert warnings == []
        next(handler(*inputs, *[self.first] * (prompts - 1), "a <b>spaceship</b>" + " dark bag" * 20, *rest))
        unknown, truncated = warnings
        assert (
            unknown.startswith("The vocabulary of the tokenizer does not contain these words: ")
            and "spaceship" in unknown
        )
        assert "was truncated because the text encoder can only handle sequences of up to 24 tokens" in truncated

    def test_comparison_shows_each_warning_once_and_escapes_html(self, text_handlers, monkeypatch):
        warnings = []
        monkeypatch.setattr(gr, "Warning", warnings.append)
        sides = ["text", 2, "default", 1] * 2
        next(text_handlers.on_compare([], "dark bag " * 15 + "<i>", 1, 5, *sides))
        (warning,) = warnings
        assert "&lt;i&gt;" in warning.replace(" ", "") and "<" not in warning

    def test_long_last_prompt_is_shown_as_an_error(self, text_handlers):
        with pytest.raises(gr.Error, match="The prompt must be a string of at most 200 characters"):
            next(text_handlers.on_interpolate(None, None, 3, 9, 5, 3, "default", "", "x" * 201))

    def test_all_tabs_have_visible_prompts(self, text_handlers, tiny_handlers):
        def is_visible(item: Any) -> bool:
            return item is None or (bool(getattr(item, "visible", True)) and is_visible(item.parent))

        def count_prompts(page: gr.Blocks) -> dict[str, int]:
            tabs = {str(fn.api_name): fn.inputs for fn in page.fns.values() if str(fn.api_name).startswith("on_")}
            prompts = {name: [item for item in tabs[name] if "rompt" in item.label] for name in tabs}
            return {name: sum(map(is_visible, items)) for name, items in prompts.items()}

        counts, hidden = (count_prompts(layout.build(each)) for each in (text_handlers, tiny_handlers))
        assert counts == {
            "on_generate": 1,
            "on_generate_change": 1,
            "on_interpolate": 2,
            "on_interpolate_change": 2,
            "on_image_to_image": 1,
            "on_compare": 1,
        }
        assert hidden == dict.fromkeys(counts, 0)


def test_published_page_compares_its_only_checkpoint(model_folder, monkeypatch):
    """The source in a Space has no bundled checkpoints."""
    monkeypatch.setattr(handlers, "bundled_pipelines", tuple)
    page = layout.build(Handlers(model_folder))
    labels = "Checkpoint A", "Checkpoint B"
    sides = [item for item in page.blocks.values() if getattr(item, "label", None) in labels]
    assert [item.value for item in sides] == ["tiny", "tiny"]


def test_flow_matching_page_offers_schedulers_that_work(flow_folder):
    page = layout.build(Handlers(flow_folder))
    schedulers = {fn.api_name: [item for item in fn.inputs if item.label == "Scheduler"] for fn in page.fns.values()}
    for name in ("on_interpolate", "on_image_to_image"):
        (dropdown,) = schedulers[name]
        assert [value for _, value in dropdown.choices] == ["default", "dpmsolver++", "unipc"]
    # Other checkpoints can be chosen in these tabs.
    for name in ("on_generate", "on_compare"):
        assert all(len(dropdown.choices) == len(handlers.SCHEDULER_CHOICES) for dropdown in schedulers[name])


class TestCustomModels:
    @pytest.fixture(scope="class")
    def custom(self, custom_folder) -> Handlers:
        return Handlers(custom_folder)

    @pytest.mark.parametrize("name", ["on_generate", "on_interpolate", "on_image_to_image", "on_compare"])
    def test_every_tab_works(self, custom, name):
        page = layout.build(custom)
        inputs = next(fn.inputs for fn in page.fns.values() if fn.api_name == name)
        values = {"Steps": 2, "Number of images": 3}
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always", UserWarning)
            updates = list(getattr(custom, name)(*[values.get(item.label, item.value) for item in inputs]))
        is_limited = name == "on_image_to_image" and len(custom.label_names) > MAX_IMAGES
        expected = ["Only the first 40 of 50 classes are shown."] if is_limited else []
        assert [str(warning.message) for warning in shown] == expected
        assert any(isinstance(update, str) and "<img" in update for update in updates[-2])

    def test_upload_follows_the_rules_of_the_training_data(self, custom, tmp_path):
        engine = custom.engine
        image = Image.new("RGBA", (engine.width * 3, engine.height * 3), (200, 0, 0, 255))
        image.paste((9, 9, 9, 0), (0, 0, engine.width * 3, engine.height))
        image.save(tmp_path / "upload.png")
        pixels = np.asarray(custom.get_image({"path": str(tmp_path / "upload.png")}, None))
        assert pixels.shape[:2] == (engine.height, engine.width)
        # Transparent pixels are white, and colors are not inverted.
        expected = [200, 0, 0] if engine.channels == 3 else 60
        assert (pixels[0] == 255).all()
        assert (pixels[-1] == expected).all()

    def test_downloads_have_a_limited_size(self, custom):
        grid = last_grid(custom.generate([], 40, 1, "ddim", 1, 0))
        assert max(grid.size) <= 10 * (downloads.MAX_GRID_CELL + 8)

    def test_examples_are_generated_images(self, custom):
        name, image = next(iter(custom.examples.items()))
        assert name == (custom.label_names[0] if custom.label_names else f"seed {handlers.FIRST_SEED}")
        assert image is custom.first_step.images[0]

    def test_classes_are_chosen_with_checkboxes_or_a_dropdown(self, custom):
        page = layout.build(custom)
        choice = next(fn.inputs[0] for fn in page.fns.values() if fn.api_name == "generate")
        assert isinstance(choice, gr.Dropdown if len(custom.label_names) > 12 else gr.CheckboxGroup)


def test_tabs_start_with_a_suitable_number_of_steps(live_folder):
    page = layout.build(Handlers(live_folder))
    names = "Checkpoint", "Checkpoint A", "Checkpoint B", "Steps"
    values = {fn.api_name: [item.value for item in fn.inputs if item.label in names] for fn in page.fns.values()}
    assert values["on_generate"] == ["live", 4]
    assert values["on_interpolate"] == [4]
    assert values["on_image_to_image"] == [20]
    assert values["on_compare"] == ["live", 4, "base", 20]


def test_sides_of_a_comparison_run_one_after_the_other(tiny_handlers):
    sides = [tiny_handlers.name, 3, "default", 1, "spec", 2, "ddim", 1]
    updates = list(tiny_handlers.on_compare(["Bag"], "", 2, 5, *sides))
    assert updates[0][2:] == ("", "")
    images_a, bar_a, images_b, bar_b = updates[-1]
    assert 'alt="Bag"' in images_a and 'alt="seed 6"' in images_b
    assert " 3 <abbr" in bar_a and " 2 <abbr" in bar_b


def test_choosing_an_example_removes_the_upload(tiny_handlers):
    preview, upload = tiny_handlers.choose_example("Bag")
    assert "Model input" in preview and upload is None


def test_quality_returns_the_metrics(base_handlers, tiny_handlers):
    assert tiny_handlers.quality() == {"model": "tiny", "num_samples": None}
    quality = base_handlers.quality()
    assert quality["model"] == "base"
    assert quality["Precision"].keys() == {"generated", "real"}


def test_name_of_a_folder_has_no_path(tiny_handlers):
    assert tiny_handlers.name == "tiny"


def test_first_images_show_each_class(base_handlers):
    images = np.stack([np.asarray(image) for image in base_handlers.first_step.images])
    assert classify(images).tolist() == list(range(len(FASHION_MNIST_LABELS)))


def test_runs_share_the_documented_limits(tiny_handlers):
    page = layout.build(tiny_handlers)
    assert page._queue.max_size == 30
    runs = [function for function in page.fns.values() if function.concurrency_id == "model"]
    assert {function.api_name for function in runs} >= {"generate", "interpolate", "image_to_image"}
    assert {function.concurrency_limit for function in runs} == {2}
