"""Text-conditional models."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPTextModel

from averaging import copy_model, make_ema
from captions import Captions, log_truncated_captions
from config import EMAConfig, TextEncoderConfig
from fmnist_diffusion import FashionMNISTUNet2DModel, load_pipeline
from fmnist_diffusion.data import load_images
from fmnist_diffusion.pipelines import tokenize
from text_model import TextConditionalUNet, add_text_encoder, count_text_encoder_parameters, get_null_label
from tiny_unets import TINY


CONFIG = TextEncoderConfig(num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
TEXT = [f"--text_encoder.{name}={value}" for name, value in vars(CONFIG).items()]


@pytest.fixture
def captions(fashion_mnist_folder: Path) -> Captions:
    return Captions(load_images(train_data_dir=str(fashion_mnist_folder), max_samples=50))


@pytest.fixture
def model(captions: Captions) -> TextConditionalUNet:
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(**TINY, norm_type="group", norm_num_groups=4, class_embed_type="identity")
    return add_text_encoder(CONFIG, unet, None, captions, seed=0)


def test_captions_depend_on_the_seed(captions: Captions):
    assert len(captions.make(0)) == 50
    assert captions.make(0) == captions.make(0) != captions.make(1)


def test_other_images_need_captions(fashion_mnist_folder: Path):
    images = load_images(train_data_dir=str(fashion_mnist_folder), max_samples=5, resolution=16)
    with pytest.raises(ValueError, match="requires images with captions"):
        Captions(images)


def test_long_captions_are_logged(model: TextConditionalUNet, captions: Captions, caplog: pytest.LogCaptureFixture):
    # The start and end tokens are also counted.
    log_truncated_captions(model.tokenizer, ["a " * 22, *captions.make(0)])
    assert not caplog.messages
    log_truncated_captions(model.tokenizer, ["a " * 23, "a"])
    assert caplog.messages == [
        "Warning: Captions with more than 24 tokens are truncated (1 of 2). Shorten them so that the text encoder"
        " receives all words."
    ]


def test_parameters_are_counted(model: TextConditionalUNet):
    expected = model.text_encoder.num_parameters()
    assert (
        count_text_encoder_parameters(CONFIG, 16, len(model.tokenizer))
        == expected
        < count_text_encoder_parameters(CONFIG, 16)
    )


@torch.no_grad()
def test_model_passes_the_pooled_output_to_the_unet(model: TextConditionalUNet, captions: Captions):
    images, timesteps = torch.randn(3, 1, 28, 28), torch.tensor([1, 500, 999])
    token_ids = tokenize(model.tokenizer, captions.make(0)[:3])
    embeds = model.text_encoder(token_ids).pooler_output
    expected = model.unet(images, timesteps, embeds).sample
    assert torch.equal(model(images, timesteps, token_ids).sample, expected)


@torch.no_grad()
def test_new_text_encoder_keeps_the_predictions_for_the_empty_prompt(captions: Captions):
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(**TINY, norm_type="group", norm_num_groups=4, class_embed_type="identity")
    images = torch.randn(2, 1, 28, 28)
    expected = unet(images, 500, torch.zeros(2, 16)).sample
    model = add_text_encoder(CONFIG, unet, None, captions, seed=0)
    null = get_null_label(model).expand(2, -1)
    torch.testing.assert_close(model(images, torch.tensor(500), null).sample, expected)


def test_copy_has_the_ema_weights_of_both_parts(model: TextConditionalUNet):
    ema = make_ema(EMAConfig(enabled=True), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    copy = copy_model(model, ema)
    assert not copy.training
    for parameter, original in zip(copy.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(parameter + 1, original)


def test_exported_pipeline_can_be_fine_tuned_on_custom_captions(
    tmp_path: Path, launch: Callable[..., None], fashion_mnist_folder: Path
):
    launch(*TEXT, "--max_train_steps=2", "--data.max_train_samples=40")
    folder = tmp_path / "run" / "pipeline"
    pipe: Any = load_pipeline(folder)
    assert isinstance(pipe.text_encoder, CLIPTextModel)
    assert pipe(prompt="a dark bag", num_inference_steps=2, output_type="pt").images.isfinite().all()

    data = tmp_path / "data"
    data.mkdir()
    with (data / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "text"])
        for i in range(20):
            Image.new("L", (28, 28), 10 * i).save(data / f"{i}.png")
            writer.writerow([f"{i}.png", f"a gray square of brightness {i}"])
    launch(
        f"--data.train_data_dir={data}",
        f"--init_from={folder}",
        f"--output_dir={tmp_path / 'custom'}",
        "--max_train_steps=2",
        "--objective.label_dropout=0",
    )
    custom: Any = load_pipeline(tmp_path / "custom" / "pipeline")
    assert custom.tokenizer.get_vocab() == pipe.tokenizer.get_vocab()
    old, new = (p.text_encoder.get_input_embeddings().weight for p in (pipe, custom))
    # Only the embeddings of tokens in the captions are trained.
    changed = set((old != new).any(1).nonzero().flatten().tolist())
    trained = {token for i in range(20) for token in custom.tokenizer(f"a gray square of brightness {i}").input_ids}
    assert changed and changed <= trained


def test_images_without_captions_cannot_be_used_to_fine_tune(
    tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable[..., str]
):
    launch(*TEXT, "--max_train_steps=1", "--data.max_train_samples=20")
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("L", (28, 28), 10 * i).save(tmp_path / "images" / name / f"{i}.png")
    message = fail_to_launch(
        f"--data.train_data_dir={tmp_path / 'images'}",
        f"--init_from={tmp_path / 'run' / 'pipeline'}",
        f"--output_dir={tmp_path / 'custom'}",
    )
    assert "Add a column `text` with captions to metadata.csv" in message
    # This setting cannot remove the text encoder of the pipeline.
    assert "num_hidden_layers" not in message
    assert message.endswith("To train without captions, pass --init_from=base.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text_encoder.num_attention_heads=3"], "must divide the 16 channels"),
        (
            [
                "--model.block_out_channels=[8, 64]",
                "--text_encoder.num_hidden_layers=64",
                "--text_encoder.intermediate_size=65536",
            ],
            "at most 250,000,000",
        ),
        (["--model.num_class_embeds=10"], "`num_class_embeds` must be None"),
        (["--data.streaming=true"], "`--data.streaming` must be false"),
        (["--data.resolution=16"], "requires images with captions"),
    ],
)
def test_invalid_settings_are_errors(fail_to_launch: Callable[..., str], options: list[str], message: str):
    assert message in fail_to_launch(*TEXT, *options)
