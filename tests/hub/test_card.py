import ast
import json
import re
from pathlib import Path

import pytest
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from huggingface_hub import ModelCard

from fake_hub import find_card_errors
from fmnist_diffusion import load_pipeline
from fmnist_diffusion.commands import main
from fmnist_diffusion.hub.card import format_cell, make_model_card
from fmnist_diffusion.loading import PRETRAINED_DIR
from fmnist_diffusion.metadata import read_metrics, read_train_config
from fmnist_diffusion.sampling import make_pipeline
from saved_pipelines import save_pipeline
from text_pipelines import get_text_pipeline
from tiny_pipelines import make_unet


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


def test_merged_checkpoint_is_described(make_card, folder):
    sentence = "\n\nThe weights are a linear combination of several checkpoints."
    assert sentence not in make_card().text
    path = folder / "train_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"combined": {"weights": [1.2, -0.2]}}))
    assert sentence in make_card().text


def test_flow_matching_model_is_described(make_card, tmp_path):
    card = make_card(save_pipeline(tmp_path / "flow", FlowMatchEulerDiscreteScheduler(shift=3.0)))
    assert "flow-matching" in card.data.tags and "ddpm" not in card.data.tags
    text = " ".join(card.text.split())
    assert "This flow-matching model generates grayscale images of 8x8 pixels." in text
    assert (
        "samples with `FlowMatchEulerDiscreteScheduler` in 20 steps. It also supports `num_inference_steps` and other"
        " flow-matching schedulers of diffusers."
    ) in text
    assert "denoising diffusion" not in text


def test_text_encoder_is_described(make_card, tmp_path):
    pipe = get_text_pipeline()
    pipe.save_pretrained(tmp_path / "text")
    card = make_card(tmp_path / "text")
    assert card.data.pipeline_tag == "text-to-image"
    unet, text = pipe.unet.num_parameters(), pipe.text_encoder.num_parameters()
    assert (
        f"The model has {unet + text:,} parameters. The component `unet` is a `FashionMNISTUNet2DModel` with {unet:,}"
        f" parameters. The component `text_encoder` is a `CLIPTextModel` with {text:,} parameters."
    ) in card.text
    assert "generates grayscale images of 8x8 pixels from text." in card.text
    assert all('pipe(prompt="a photo of a bag")' in block for block in get_python_blocks(card))
    assert "\n\nThe text encoder requires transformers (`pip install transformers`).\n\n" in card.text


def test_counts_of_one_are_singular(make_card, tmp_path):
    folder = tmp_path / "one"
    unet = make_unet(1, label_names=["shoe"])
    make_pipeline(unet, DDPMScheduler(), num_inference_steps=1).save_pretrained(folder)
    text = make_card(folder).text
    assert "in 1 class." in text and "in 1 step." in text


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
        {"dataset_name": "../images"},
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


def test_fine_tuning_command_is_valid(make_card, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("fmnist_diffusion.commands.train.run", lambda command: started.append(command) or 0)
    monkeypatch.chdir(tmp_path)
    Path("path/to/images").mkdir(parents=True)
    command = make_card().text.partition("fmnist-diffusion train ")[2].partition("\n")[0]
    main(["train", *command.split()])
    assert {"--data.train_data_dir=path/to/images", f"--init_from={REPO_ID}"} <= set(started[0])


def test_card_shows_the_reference_and_the_floor(make_card, folder):
    metrics = {
        "num_samples": 500,
        "metrics": {"kid": 0.01},
        "reference": {"name": "me/shoes"},
        "real_metrics": {"num_images": 300, "kid": 0.001},
        "protocol": "<b>as in | the papers</b>",
        "scheduler": "DDIM`|Scheduler",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    card = make_card()
    assert "computed on 500 generated images, with me/shoes as the reference. Unconditional sampling" in card.text
    assert "| KID | 0.01 | 0.001 |" in card.text
    assert "FD-classifier is" not in card.text
    assert r"Protocol: \<b\>as in \| the papers\</b\>." in card.text
    assert "`DDIM Scheduler`" in card.text
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("me/shoes", "me/shoes")


@pytest.mark.parametrize(
    "name", ["a|b", "`code`", "line\nbreak", "<script>alert(1)</script>", "\ud800", 'a "b"', "靴"]
)
def test_names_of_settings_and_labels_are_escaped(make_card, folder, tmp_path, name):
    (folder / "train_config.json").write_text(json.dumps({name: name}))
    rows = [line for line in make_card().text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) in (3, 4) for row in rows)
    labeled = save_pipeline(tmp_path / "labeled", num_class_embeds=1, label_names=[name])
    card = make_card(labeled)
    assert card.text.encode("utf-8")
    assert "<script>" not in card.text.replace('pipe("<script>', "")
