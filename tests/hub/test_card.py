import ast
import dataclasses
import json
import re

import pytest
import torch
from diffusers import DDPMScheduler
from huggingface_hub import ModelCard

from config import SchedulerConfig, parse_config
from fake_hub import find_card_errors
from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.hub.card import SCHEDULE_OPTIONS, format_cell, get_schedule_options, make_model_card
from fmnist_diffusion.hub.metadata import read_metrics, read_train_config
from fmnist_diffusion.loading import PRETRAINED_DIR
from saved_pipelines import save_pipeline


REPO_ID = "someone/tiny"


@pytest.fixture
def make_card(folder):
    """Creates the card of the pipeline in a folder, and parses it again."""

    def make_card(folder=folder, images=(), license=None) -> ModelCard:
        card = make_model_card(
            load_pipeline(folder),
            REPO_ID,
            read_train_config(folder / "train_config.json"),
            read_metrics(folder / "metrics.json"),
            list(images),
            license,
        )
        assert find_card_errors(str(card), "model") == []
        return ModelCard(str(card))

    return make_card


def get_python_blocks(card: ModelCard) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)


def test_metadata_describes_the_model_and_its_metrics(make_card):
    data = make_card(images=["samples.png"]).data
    assert data.license == "mit"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.datasets == ["zalando-datasets/fashion_mnist"]
    assert data.widget == [{"text": "samples", "output": {"url": "images/samples.png"}}]
    results = {result.metric_type: result for result in data.eval_results}
    assert set(results) == set(data.metrics) == {"fid", "precision", "accuracy"}
    assert results["fid"].metric_value == 4.25
    assert results["fid"].metric_name == "FID (training images), 12,345 generated images"
    assert results["fid"].dataset_type == "zalando-datasets/fashion_mnist"


def test_text_describes_usage_training_and_evaluation(make_card):
    text = make_card(images=["grid.png", "samples.png"]).text
    for part in (
        "generates grayscale images of 8x8 pixels in 10 classes",
        "![Generated images](images/samples.png)",
        "<Gallery />",
        f'DiffusionPipeline.from_pretrained("{REPO_ID}", trust_remote_code=True)',
        "Pin `revision`",
        f'load_pipeline("{REPO_ID}")',
        'pipe("Ankle boot")',
        "`DPMSolverMultistepScheduler` in 20 steps",
        "| `optimizer.learning_rate` | 0.0001 |",
        "| `block_out_channels` | 8, 16 |",
        "12,345 generated images for each of 2 seeds; the table shows the means. Conditional sampling used "
        "`DDIMScheduler` with 18 steps and guidance scale 1.5.",
        "| FID (training images) | 4.25 | 2.5 |",
        "as in the papers",
    ):
        assert part in text
    assert "{{" not in text and "{%" not in text


def test_card_says_which_information_is_missing(make_card, tmp_path):
    card = make_card(save_pipeline(tmp_path / "plain"))
    assert card.data.datasets is card.data.eval_results is card.data.get("widget") is None
    assert "The model has not been evaluated yet" in card.text
    assert "does not contain the training settings" in card.text
    assert "No license is specified for the weights" in card.text
    assert "guidance_scale" not in card.text and "<Gallery" not in card.text and "zalando" not in card.text
    assert "pipe().images" in card.text


@pytest.mark.parametrize("name", ['the "best" one', "back\\slash", "a|b\n`c` <b>*d*</b>", "жук", "{{ config }}"])
def test_label_names_are_escaped(make_card, tmp_path, name):
    pipeline = save_pipeline(tmp_path / "labels", num_class_embeds=2, label_names=["cat", name])
    card = make_card(pipeline)
    for block in get_python_blocks(card):
        (call,) = [
            node
            for node in ast.walk(ast.parse(block))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "pipe"
        ]
        assert ast.literal_eval(call.args[0]) == name
    (row,) = [line for line in card.text.splitlines() if line.startswith("| `label_names`")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert not re.search(r"(?<!\\)[<>*]", row)


def test_table_cells_are_escaped():
    assert format_cell([1, 2]) == "1, 2"
    assert format_cell("a|b\n`c`<d>") == r"a\|b \`c\`\<d\>"
    assert format_cell("squaredcos_cap_v2") == "squaredcos_cap_v2"


def test_image_names_are_quoted(make_card):
    card = make_card(images=['a "b" (c).png'])
    assert card.data.widget == [{"text": 'a "b" (c)', "output": {"url": "images/a%20%22b%22%20%28c%29.png"}}]
    assert "](images/a%20%22b%22%20%28c%29.png)" in card.text


@pytest.mark.parametrize("license", [None, "cc-by-4.0"])
def test_models_of_other_datasets_have_no_default_license(make_card, folder, license):
    (folder / "train_config.json").write_text(json.dumps({"data": {"dataset_name": "me/mine"}}))
    card = make_card(license=license)
    assert card.data.get("license") == license
    assert card.data.datasets == ["me/mine"]
    expected = (
        f"The weights are available under the license `{license}`"
        if license
        else "No license is specified for the weights"
    )
    assert expected in card.text
    assert "fashion-mnist" not in card.data.tags


@pytest.mark.parametrize(
    "data",
    [
        {"dataset_name": "zalando-datasets/fashion_mnist", "train_data_dir": "images"},
        {"dataset_name": "images"},
        {"dataset_name": 3},
    ],
)
def test_local_training_images_are_not_named(make_card, folder, data):
    (folder / "train_config.json").write_text(json.dumps({"data": data}))
    card = make_card()
    assert card.data.datasets is None
    assert card.data.get("license") is None


@pytest.mark.parametrize("name", ["base", "spec"])
def test_card_of_a_bundled_checkpoint_has_metrics(make_card, name):
    card = make_card(PRETRAINED_DIR / name)
    assert "FID (training images)" in card.text


class TestFineTuningCommand:
    def test_options_are_those_of_the_trainer(self):
        assert tuple(field.name for field in dataclasses.fields(SchedulerConfig)) == SCHEDULE_OPTIONS

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            {"num_train_timesteps": 500, "beta_end": 0.01, "timestep_spacing": "trailing"},
        ],
    )
    def test_command_contains_the_noise_schedule(self, tmp_path, options):
        pipe = load_pipeline(save_pipeline(tmp_path / "pipeline", DDPMScheduler(**options)))
        expected = [f"--scheduler.{name}={options[name]}" for name in SCHEDULE_OPTIONS if name in options]
        assert get_schedule_options(pipe) == expected

    def test_command_does_not_depend_on_the_stored_sampler(self, folder, tmp_path):
        pipe = load_pipeline(folder, scheduler="unipc")
        assert isinstance(pipe, FashionMNISTPipeline)
        assert get_schedule_options(pipe) == get_schedule_options(load_pipeline(folder))

    def test_trainer_accepts_the_command(self, make_card):
        text = make_card(PRETRAINED_DIR / "base").text
        command = text.partition("accelerate launch training/train.py")[2].partition("```")[0]
        config = parse_config(command.replace("\\\n", " ").split())
        assert config.init_from == REPO_ID
        expected = DDPMScheduler.from_config(load_pipeline("base").scheduler.config)
        scheduler = DDPMScheduler(**dataclasses.asdict(config.scheduler))
        assert torch.equal(scheduler.betas, expected.betas)
        assert scheduler.config.prediction_type == expected.config.prediction_type
