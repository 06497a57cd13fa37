"""Settings that are chosen for the images, the pipeline to fine-tune and the machine."""

import json
import logging
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import assert_equal_weights, load_weights, read_losses

from config import ResolvedConfig, TrainingConfig
from fmnist_diffusion import load_pipeline
from parsing import parse_config
from resolve import AUTO_SETTINGS, resolve_config
from train import main


FINETUNE = Path(__file__).parents[2] / "training" / "configs" / "finetune.yaml"
CLASSES = ("circle", "square", "triangle")


@pytest.fixture(autouse=True)
def log_information(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="training")


@pytest.fixture(autouse=True)
def accelerate_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def save_images(
    folder: Path,
    classes: tuple[str, ...] = CLASSES,
    count: int = 8,
    size: tuple[int, int] = (12, 12),
    mode: str = "RGB",
) -> Path:
    """Saves `count` random images per class, or without class folders if `classes` is empty."""
    generator = np.random.default_rng(0)
    for name in classes or ("",):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = (*size, 3) if mode == "RGB" else size
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """RGB images of 12x12 pixels in three class folders."""
    return save_images(tmp_path / "images")


@pytest.fixture
def resolve(tmp_path: Path, images: Path) -> Callable[..., ResolvedConfig]:
    """Resolves the settings of finetune.yaml for `images`."""

    def run(*args: str) -> ResolvedConfig:
        data = [f"--data.train_data_dir={images}", f"--output_dir={tmp_path / 'run'}", "--report_to=none"]
        return resolve_config(parse_config([f"--config={FINETUNE}", *data, *args]))

    return run


def test_fine_tuning_a_distilled_pipeline_is_a_warning(resolve: Callable, caplog: pytest.LogCaptureFixture):
    resolve("--init_from=fast")
    assert "Warning: fast is a distilled pipeline. Fine-tuning does not preserve the distillation" in caplog.text
    caplog.clear()
    resolve("--init_from=base")
    assert "is a distilled pipeline" not in caplog.text


def test_a_distilled_teacher_is_a_warning(
    fashion_mnist_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    args = [f"--config={FINETUNE.with_name('distill.yaml')}", "--init_from=fast", "--report_to=none"]
    args += [f"--data.train_data_dir={fashion_mnist_folder}", "--eval.every_n_epochs=null"]
    resolve_config(parse_config([*args, f"--output_dir={tmp_path / 'run'}"], "distill.py"))
    assert "Warning: fast is a distilled pipeline. Its predictions do not follow the probability flow" in caplog.text


def test_ignored_captions_are_a_warning(resolve: Callable, images: Path, caplog: pytest.LogCaptureFixture):
    resolve()
    assert "captions are ignored" not in caplog.text
    files = [path.relative_to(images) for path in images.rglob("*.png")]
    rows = [f"{path},a shape,{path.parent}" for path in files]
    (images / "metadata.csv").write_text("\n".join(["file_name,text,label", *rows]))
    resolve()
    assert "Warning: The captions are ignored, because the model has no text encoder." in caplog.text


def test_resuming_a_missing_run_is_the_only_problem(resolve: Callable, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        resolve("--resume=latest")
    assert capsys.readouterr().err.splitlines()[-1].startswith("train.py: error: Could not find a checkpoint in ")


def test_fine_tuned_model_follows_the_images_and_the_checkpoint(resolve: Callable, caplog: pytest.LogCaptureFixture):
    config = resolve()
    base = load_pipeline("base").unet.config
    assert (config.data.resolution, config.data.channels) == (12, 3)
    assert config.model["num_class_embeds"] == 3
    for name in ("block_out_channels", "attention_levels", "norm_type", "time_conditioning"):
        assert config.model[name] == base[name]
    assert not {"sample_size", "in_channels", "out_channels", "label_names"} & config.model.keys()
    assert config.scheduler.prediction_type == "v_prediction"
    assert config.objective.timestep_sampling == "logit_normal"
    text = caplog.text
    for line in (
        "24 RGB images from",
        "12x12 pixels",
        "3: circle (8), square (8), triangle (8)",
        "size 28x28 to 12x12, channels 1 to 3, 3 new classes",
        "v_prediction, squaredcos_cap_v2 noise schedule with 1,000 timesteps",
    ):
        assert line in text
    assert re.search(r"U-Net with 3\.\d\d M parameters, initialized from base", text)
    assert len(caplog.messages) <= 12
    assert "Warning" not in text


def test_resolved_settings_are_complete(resolve: Callable, tmp_path: Path):
    config = resolve()
    assert all(getattr(config, name) != "auto" for name in AUTO_SETTINGS)
    config.save(tmp_path / "config.yaml")
    assert "auto" not in (tmp_path / "config.yaml").read_text()
    assert {field.name for field in fields(config)} == {field.name for field in fields(TrainingConfig)}
    # Resolving the settings again does not change them.
    assert resolve_config(parse_config([f"--config={tmp_path / 'config.yaml'}"])) == config


def test_images_without_labels_make_the_model_unconditional(tmp_path: Path, resolve: Callable):
    folder = save_images(tmp_path / "plain", classes=(), mode="L")
    config = resolve(f"--data.train_data_dir={folder}")
    assert config.model["num_class_embeds"] is None
    assert config.data.channels == 1


def test_non_square_images_keep_their_size(tmp_path: Path, resolve: Callable, caplog: pytest.LogCaptureFixture):
    config = resolve(f"--data.train_data_dir={save_images(tmp_path / 'wide', size=(12, 20))}")
    assert config.data.resolution == (12, 20)
    assert "12x20 pixels" in caplog.text
    assert "cropped" not in caplog.text


def test_warnings_name_what_is_dropped(tmp_path: Path, resolve: Callable, caplog: pytest.LogCaptureFixture):
    folder = save_images(tmp_path / "wide", size=(12, 20))
    config = resolve(
        f"--data.train_data_dir={folder}",
        "--data.channels=1",
        "--data.resolution=16",
        "--model.num_class_embeds=null",
    )
    assert (config.data.channels, config.data.resolution, config.data.label_column) == (1, 16, "none")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3
    assert "Warning: The colors are dropped, because `--data.channels` is 1." in warnings
    cropped = "Warning: Images whose aspect ratio differs from that of 16x16 are center-cropped (24 of 24)."
    assert any(warning.startswith(cropped) for warning in warnings)
    assert any(warning.startswith("Warning: The labels are ignored") for warning in warnings)


def test_resizing_without_cropping_causes_no_warning(resolve: Callable, caplog: pytest.LogCaptureFixture):
    assert resolve("--data.resolution=16").data.resolution == 16
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("options", [[], ["--model.num_class_embeds=null"]])
def test_new_model_is_only_class_conditional_if_the_config_says_so(
    images: Path, caplog: pytest.LogCaptureFixture, options: list[str]
):
    config = resolve_config(parse_config([f"--data.train_data_dir={images}", "--train_batch_size=4", *options]))
    assert config.model.get("num_class_embeds") is None
    assert config.data.label_column == "none"
    assert "The labels are ignored, because the model is unconditional." in caplog.text
    assert (config.data.channels, config.data.resolution) == (3, 12)


def test_all_problems_are_in_one_message(tmp_path: Path, resolve: Callable, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").touch()
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("publishing.get_token", lambda: None)
    with pytest.raises(ValueError) as error:
        resolve(
            "--model.act_fn=relu",
            "--model.num_class_embeds=7",
            "--scheduler.prediction_type=sample",
            "--scheduler.beta_schedule=linear",
            "--train_batch_size=100",
            "--compile=true",
            "--report_to=trackio",
            "--push_to_hub=true",
            "--eval.every_n_epochs=1",
        )
    lines = str(error.value).splitlines()
    assert lines[0] == "Found 10 problems:"
    for message in (
        f"but {tmp_path / 'run'} contains files",
        "trackio is not installed",
        "`--push_to_hub` requires a token.",
        "`--eval.every_n_epochs` requires grayscale 28x28 images",
        "`--compile` requires g++ and Python's headers.",
        "`--model.act_fn` must be 'silu' to fine-tune base, got 'relu'.",
        "`--scheduler.prediction_type` must be 'v_prediction' to fine-tune base, got 'sample'.",
        "`--scheduler.beta_schedule` must be 'squaredcos_cap_v2' to fine-tune base, got 'linear'.",
        "`--model.num_class_embeds` must be the number of classes of the images (3), got 7.",
        "`--train_batch_size` must be at most the number of images (24), got 100.",
    ):
        assert len([line for line in lines[1:] if message in line]) == 1, message


def test_diffusion_model_cannot_be_fine_tuned_with_flow_matching(resolve: Callable):
    with pytest.raises(ValueError) as error:
        resolve("--scheduler.prediction_type=flow_prediction")
    message = "`--scheduler.prediction_type` must be 'v_prediction' to fine-tune base, got 'flow_prediction'."
    assert str(error.value) == message


@pytest.mark.parametrize("options", [["--scheduler.timestep_spacing=leading"], ["--model.dropout=0.1"]])
def test_settings_that_are_no_property_of_the_weights_can_change(resolve: Callable, options: list[str]):
    resolve(*options)


def test_all_settings_that_contradict_the_checkpoint_are_listed(resolve: Callable):
    with pytest.raises(ValueError) as error:
        # Neither the shift nor the betas have an effect on the noise schedule of `base`.
        resolve("--scheduler.shift=3", "--scheduler.beta_start=0.001", "--model.layers_per_block=2")
    assert str(error.value).splitlines() == [
        "Found 3 problems:",
        "  - `--model.layers_per_block` must be 1 to fine-tune base, got 2.",
        "  - `--scheduler.beta_start` must be 0.0001 to fine-tune base, got 0.001.",
        "  - `--scheduler.shift` must be 1.0 to fine-tune base, got 3.0.",
    ]


def test_images_without_captions_are_reported_with_other_problems(resolve: Callable):
    with pytest.raises(ValueError) as error:
        resolve("--text_encoder.num_hidden_layers=1", "--train_batch_size=100")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("  - A text encoder requires images with captions")
    assert lines[1].endswith("To train without captions, pass --text_encoder.num_hidden_layers=null.")


def test_contradictions_are_reported_before_a_dataset_is_downloaded(monkeypatch: pytest.MonkeyPatch):
    def download(*args: object, **kwargs: object):
        raise AssertionError

    monkeypatch.setattr("training_images.inspect_images", download)
    with pytest.raises(ValueError, match=r"`--model\.act_fn` must be 'silu'"):
        resolve_config(parse_config(["--init_from=base", "--model.act_fn=relu", "--data.dataset_name=owner/name"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push_to_hub=true"], "`--push_to_hub` requires a token."),
        (["--eval.every_n_epochs=1"], "`--eval.every_n_epochs` requires grayscale 28x28 images"),
    ],
)
def test_resumed_run_is_checked_before_the_images_are_loaded(
    resolve: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
):
    monkeypatch.setattr("publishing.get_token", lambda: None)
    (tmp_path / "run").mkdir()
    resolve(f"--output_dir={tmp_path / 'new'}").save(tmp_path / "run" / "config.yaml")
    with pytest.raises(ValueError, match=message):
        resolve("--resume=latest", *options)


def test_missing_package_of_the_evaluation_is_an_error(resolve: Callable, monkeypatch: pytest.MonkeyPatch):
    # The modules are removed, so that importing them again requires the missing package.
    for name in list(sys.modules):
        if name.startswith(("validation", "fmnist_diffusion.evaluation", "torchmetrics")):
            monkeypatch.delitem(sys.modules, name)
    find_spec = PathFinder.find_spec

    def hide(name, *args):
        return None if name == "torchmetrics" else find_spec(name, *args)

    monkeypatch.setattr(PathFinder, "find_spec", hide)
    with pytest.raises(ValueError, match=r"`--eval\.every_n_epochs` requires torchmetrics\. Run `pip install"):
        resolve(
            "--eval.every_n_epochs=1", "--data.resolution=28", "--data.channels=1", "--model.num_class_embeds=null"
        )


def test_skipped_files_are_listed_with_the_reasons(resolve: Callable, images: Path, caplog: pytest.LogCaptureFixture):
    for name in ("a.csv", "circle/b.txt", "circle/c.txt", "square/d"):
        (images / name).write_text("no image")
    os.mkfifo(images / "pipe")
    resolve()
    skipped = "a.csv, circle/b.txt, circle/c.txt and 1 more (not an image); pipe (not a regular file)"
    assert f"skipped      5 files: {skipped}" in caplog.messages


def test_pretrained_pipeline_is_loaded_once(
    tmp_path: Path, launch: Callable, images: Path, monkeypatch: pytest.MonkeyPatch
):
    launch(f"--output_dir={tmp_path / 'start'}", "--max_train_steps=1")
    loaded = []

    def load(name: str) -> Any:
        loaded.append(name)
        return load_pipeline(name)

    monkeypatch.setattr("pretrained.load_pipeline", load)
    start = str(tmp_path / "start" / "pipeline")
    launch(f"--init_from={start}", "--max_train_steps=1")
    assert loaded == [start]
    # The weights come from the checkpoint.
    launch("--resume=latest", "--max_train_steps=2")
    assert loaded == [start]


def test_conditional_model_requires_labels(tmp_path: Path, resolve: Callable):
    folder = save_images(tmp_path / "plain", classes=())
    with pytest.raises(ValueError, match="class-conditional model requires images with labels"):
        resolve(f"--data.train_data_dir={folder}", "--model.num_class_embeds=3")


@pytest.mark.parametrize(
    "options", [["--samples.scheduler=heun"], ["--eval.scheduler=heun", "--eval.every_n_epochs=1"]]
)
def test_unsupported_sampling_settings_are_an_error(resolve: Callable, options: list[str]):
    section = options[0][2:].split(".")[0]
    with pytest.raises(ValueError, match=rf"\b{section}: HeunDiscreteScheduler does not support this model, whose"):
        resolve(*options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 24 images in batches of 4 are 6 steps per epoch.
        ([], {"train_batch_size": 4, "num_epochs": 1667, "save_images_epochs": 167, "save_model_epochs": 167}),
        (["--max_train_steps=60"], {"num_epochs": 10, "save_images_epochs": 1}),
        (["--max_train_steps=61", "--gradient_accumulation_steps=2"], {"num_epochs": 21, "save_images_epochs": 2}),
        (["--num_epochs=200"], {"num_epochs": 200, "save_model_epochs": 20}),
        (["--train_batch_size=9"], {"train_batch_size": 9, "num_epochs": 2223}),
        (["--save_images_epochs=3", "--num_epochs=50"], {"save_images_epochs": 3, "save_model_epochs": 5}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_length_of_the_run(resolve: Callable, monkeypatch: pytest.MonkeyPatch, options: list[str], expected: dict):
    monkeypatch.setattr("milestones.IMAGES_FOR_FINE_TUNING", 40_000)
    monkeypatch.setattr("resolve.get_device_type", lambda: "cpu")
    config = resolve(*options)
    assert {name: getattr(config, name) for name in expected} == expected


def test_batches_are_shared_by_all_processes(resolve: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert resolve().train_batch_size % 3 == 0
    with pytest.raises(ValueError, match=r"must be a multiple of the number of processes \(3\), got 4\."):
        resolve("--train_batch_size=4")


def test_short_run_says_how_far_it_is_from_usable_samples(resolve: Callable, caplog: pytest.LogCaptureFixture):
    config = resolve("--max_train_steps=60", "--train_batch_size=4")
    assert (
        "This run ends after 240 images (0%), so expect noise or distorted shapes if the images differ from the"
        f" training images of {config.init_from}. Increase --max_train_steps to train longer."
    ) in caplog.text


def test_same_command_resumes_the_run_exactly(
    tmp_path: Path, images: Path, launch: Callable, reset_accelerate: Callable, monkeypatch: pytest.MonkeyPatch
):
    def train(output_dir: str, *args: str):
        settings = ["--num_epochs=2", "--samples.num_images=3", "--samples.num_inference_steps=2"]
        settings += [f"--data.train_data_dir={images}", f"--output_dir={tmp_path / output_dir}", "--report_to=none"]
        reset_accelerate()
        main([f"--config={FINETUNE}", f"--init_from={tmp_path / 'start' / 'pipeline'}", *settings, *args])

    launch(f"--output_dir={tmp_path / 'start'}", "--max_train_steps=1")
    train("whole")
    train("run", "--max_train_steps=8")
    # The choices for another machine and other weights must not change a resumed run.
    monkeypatch.setattr("resolve.choose_batch_size", lambda *args: 2)
    (tmp_path / "start").rename(tmp_path / "moved")
    train("run", "--resume=latest", "--max_train_steps=null")
    assert read_losses(tmp_path / "run")[:8] == read_losses(tmp_path / "whole")[:8]
    assert len(read_losses(tmp_path / "run")) == len(read_losses(tmp_path / "whole")) == 12
    assert_equal_weights(load_weights(tmp_path / "run"), load_weights(tmp_path / "whole"))
    config = json.loads((tmp_path / "run" / "pipeline" / "train_config.json").read_text())
    assert config["train_batch_size"] == 4
    assert config["data"]["resolution"] == 12
    pipe = load_pipeline(tmp_path / "run" / "pipeline")
    assert tuple(pipe.label_names or ()) == CLASSES
    assert pipe(["circle"], num_inference_steps=2, output_type="pt").images.shape == (1, 3, 12, 12)


def test_resumed_run_can_be_extended(tmp_path: Path, images: Path, launch: Callable, reset_accelerate: Callable):
    launch(f"--output_dir={tmp_path / 'start'}", "--max_train_steps=1")
    for args in (["--max_train_steps=3"], ["--max_train_steps=20", "--resume=latest"]):
        settings = [f"--data.train_data_dir={images}", f"--output_dir={tmp_path / 'run'}", "--report_to=none"]
        settings += ["--samples.num_images=3", "--samples.num_inference_steps=2", "--save_images_epochs=1"]
        reset_accelerate()
        main([f"--config={FINETUNE}", f"--init_from={tmp_path / 'start' / 'pipeline'}", *settings, *args])
    assert len(read_losses(tmp_path / "run")) == 20
    config = json.loads((tmp_path / "run" / "pipeline" / "train_config.json").read_text())
    # There are six batches of four images in an epoch.
    assert (config["num_epochs"], config["save_images_epochs"]) == (4, 1)


def test_too_few_epochs_are_a_warning(launch: Callable, caplog: pytest.LogCaptureFixture):
    launch("--num_epochs=1", "--max_train_steps=7")
    assert (
        "The run ends at step 6, before --max_train_steps=7, because --num_epochs is 1. Increase --num_epochs to train"
        " longer."
    ) in caplog.messages


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (128, 128)])
def test_all_sizes_train_and_sample(tmp_path: Path, launch: Callable, size: tuple[int, int]):
    folder = save_images(tmp_path / "images", classes=(), count=2, size=size)
    launch(f"--data.train_data_dir={folder}", "--max_train_steps=1", "--train_batch_size=2", "--samples.num_images=1")
    images: Any = load_pipeline(tmp_path / "run" / "pipeline")(num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, *size)
    assert torch.isfinite(images).all()


def test_data_errors_are_reported(tmp_path: Path, resolve: Callable):
    with pytest.raises(ValueError, match="/nowhere"):
        resolve("--data.train_data_dir=/nowhere")


def test_messages_about_the_images_name_settings(tmp_path: Path, resolve: Callable):
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "data.csv").touch()
    with pytest.raises(ValueError, match=r"Pass a different folder as `--data\.train_data_dir`\."):
        resolve(f"--data.train_data_dir={folder}")
