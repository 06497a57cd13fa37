import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from fmnist_diffusion import FashionMNISTGuidanceClassifier, FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.data import ImageTensors, load_images, save_tensors
from latent_pipelines import get_latent_pipeline
from saved_pipelines import save_pipeline
from text_pipelines import get_text_pipeline
from train_guidance_classifier import main, split


@pytest.fixture
def run(tmp_path: Path, fashion_mnist_folder: Path):
    def run(pipeline: Path | str, *args: str) -> Path:
        folder = tmp_path / "guided"
        options = ["--num_epochs=1", "--train_batch_size=32", "--data.max_train_samples=200"]
        main(
            [
                f"--init_from={pipeline}",
                f"--output_dir={folder}",
                f"--data.train_data_dir={fashion_mnist_folder}",
                *options,
                *args,
            ]
        )
        return folder

    return run


@pytest.mark.parametrize(
    ("noise_scheduler", "num_class_embeds"), [(None, 10), (None, None), (FlowMatchEulerDiscreteScheduler(), 10)]
)
def test_pipeline_gets_a_classifier(noise_scheduler, num_class_embeds, run, tmp_path: Path, capsys):
    pipeline = save_pipeline(tmp_path / "source", noise_scheduler, num_class_embeds)
    (pipeline / "train_config.json").write_text('{"progress": {"global_step": 7}}')
    folder = run(pipeline)
    before, after = load_pipeline(pipeline), load_pipeline(folder)
    for name, tensor in before.unet.state_dict().items():
        assert torch.equal(tensor, after.unet.state_dict()[name])
    assert after.classifier.config.label_names[9] == "Ankle boot"
    after.set_progress_bar_config(disable=True)
    assert len(after("Bag", classifier_guidance_scale=1.0, num_inference_steps=2).images) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["timesteps", "accuracy"]
    assert [line.split()[0] for line in lines[1:11]] == [str(100 * i) for i in range(10)]
    assert lines[11] == f"Saved the pipeline to {folder}."
    settings = json.loads((folder / "train_config.json").read_text())
    assert settings["progress"] == {"global_step": 7}
    accuracy = settings["guidance_classifier"].pop("accuracy")
    assert len(accuracy) == 10 and all(value is None or 0 <= value <= 1 for value in accuracy)
    data = settings["guidance_classifier"].pop("data")
    assert (data["train_data_dir"], data["max_train_samples"], data["resolution"]) == ("fixtures", 200, 8)
    optimizer = settings["guidance_classifier"].pop("optimizer")
    assert (optimizer["name"], optimizer["learning_rate"], optimizer["adam_weight_decay"]) == ("adamw", 0.001, 0.05)
    assert settings["guidance_classifier"] == {"num_epochs": 1, "train_batch_size": 32, "seed": 42}


def test_training_raises_the_accuracy_and_only_depends_on_the_seed(run, tmp_path: Path):
    pipeline = save_pipeline(tmp_path / "source", num_class_embeds=10)
    accuracies, states = [], []
    for number, args in enumerate([[], [], ["--num_epochs=6", "--data.max_train_samples=512"], ["--seed=1"]]):
        run(pipeline, f"--output_dir={tmp_path / str(number)}", *args)
        settings = json.loads((tmp_path / str(number) / "train_config.json").read_text())["guidance_classifier"]
        accuracies.append([value for value in settings["accuracy"] if value is not None])
        states.append(load_pipeline(tmp_path / str(number)).classifier.state_dict())
    assert accuracies[0] == accuracies[1]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert any(not torch.equal(tensor, states[3][name]) for name, tensor in states[0].items())
    # With 10 classes, the chance level is 0.1. At the highest noise levels, no classifier can exceed it.
    assert sum(accuracies[2][:4]) / 4 > 0.3


def test_gradients_are_clipped(run, tmp_path: Path, gradient_norms: list[float]):
    run(save_pipeline(tmp_path / "source", num_class_embeds=10), "--optimizer.max_grad_norm=0.01")
    assert gradient_norms == pytest.approx([0.01] * 5, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"num_class_embeds": 2, "label_names": ["cat", "dog"]},
            "must have the classes of the pipeline (cat, dog), got",
        ),
        ("text", "must not have a text encoder or an autoencoder"),
        ("latent", "must not have a text encoder or an autoencoder"),
    ],
)
def test_unsuitable_pipelines_exit_with_one_line(config, message: str, run, tmp_path: Path, capsys):
    special = {"text": get_text_pipeline, "latent": get_latent_pipeline}
    if isinstance(config, str):
        special[config]().save_pretrained(tmp_path / "source")
    else:
        save_pipeline(tmp_path / "source", **config)
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "source")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train_guidance_classifier.py: error: ") and message in line


def test_folder_that_cannot_be_written_is_an_error_before_training(run, tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        run(save_pipeline(tmp_path / "source"), f"--output_dir={tmp_path / 'file' / 'run'}")
    output = capsys.readouterr()
    assert output.err == (
        f"train_guidance_classifier.py: error: Could not write {tmp_path}/file/run: Not a directory.\n"
    )
    assert output.out == ""


def test_full_disk_exits_with_one_line(run, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = save_pipeline(tmp_path / "source")
    monkeypatch.setattr(FashionMNISTPipeline, "save_pretrained", fail)
    with pytest.raises(SystemExit, match="2"):
        run(source, "--train_batch_size=64")
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"train_guidance_classifier.py: error: Could not write {tmp_path / 'guided'}: No space left on device."
    )
    assert list((tmp_path / "guided").iterdir()) == []


def test_images_without_labels_exit_with_one_line(run, tmp_path: Path, capsys):
    (tmp_path / "images").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "images" / "0.png")
    with pytest.raises(SystemExit, match="2"):
        run(save_pipeline(tmp_path / "source"), f"--data.train_data_dir={tmp_path / 'images'}")
    assert "The images must have labels" in capsys.readouterr().err


def test_images_of_one_class_exit_with_one_line(run, tmp_path: Path, capsys):
    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images" / "cat" / "0.png")
    with pytest.raises(SystemExit, match="2"):
        run(
            save_pipeline(tmp_path / "source", num_class_embeds=None),
            f"--data.train_data_dir={tmp_path / 'images'}",
        )
    assert "The images must have at least two classes, got one." in capsys.readouterr().err


def test_several_processes_exit_with_one_line(run, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path / "source")
    assert capsys.readouterr().err == (
        "train_guidance_classifier.py: error: The classifier is trained in one process. Start the script with"
        " python.\n"
    )


def test_interrupted_training_exits_with_one_line(run, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train_guidance_classifier.train", interrupt)
    with pytest.raises(SystemExit, match="130"):
        run(save_pipeline(tmp_path / "source", num_class_embeds=10))
    assert capsys.readouterr().err.splitlines()[-1] == (
        "train_guidance_classifier.py: Interrupted. Run the same command to start again from the beginning."
    )


def test_images_with_the_null_label_are_dropped(run, tmp_path: Path, fashion_mnist_folder: Path):
    images = load_images(train_data_dir=str(fashion_mnist_folder), max_samples=200)
    assert images.labels is not None
    is_unconditional = torch.arange(200) % 3 == 0
    path = tmp_path / "images.safetensors"
    save_tensors(replace(images, labels=images.labels.masked_fill(is_unconditional, 10)), path)
    labeled = tmp_path / "labeled.safetensors"
    kept = ~is_unconditional
    save_tensors(ImageTensors(images.images[kept], images.labels[kept], images.label_names), labeled)
    pipeline = save_pipeline(tmp_path / "source", num_class_embeds=10)
    states = []
    for data in (path, labeled):
        run(pipeline, f"--data.train_data_dir={data}", f"--output_dir={tmp_path / data.stem}")
        states.append(load_pipeline(tmp_path / data.stem).classifier.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_every_class_has_training_images():
    labels = torch.tensor([0, *[1] * 23, *[2] * 2, 3])
    images = ImageTensors(torch.zeros(27, 1, 8, 8, dtype=torch.uint8), labels, ("a", "b", "c"))
    training, validation = split(images)
    assert training.labels is not None and validation.labels is not None
    # The images with the null label 3 are dropped.
    assert training.labels.bincount().tolist() == [1, 20, 1]
    assert validation.labels.bincount().tolist() == [0, 3, 1]


def test_single_images_cannot_be_held_out():
    images = ImageTensors(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(ValueError, match="At least one class must have two images, because one is held out"):
        split(images)


def test_accuracy_includes_all_held_out_images(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    forward, sizes = FashionMNISTGuidanceClassifier.forward, []

    def record_size(self, images: torch.Tensor, *args):
        if not self.training:
            sizes.append(len(images))
        return forward(self, images, *args)

    monkeypatch.setattr(FashionMNISTGuidanceClassifier, "forward", record_size)
    monkeypatch.setattr("train_guidance_classifier.EVALUATION_BATCH_SIZE", 8)
    run(save_pipeline(tmp_path / "source", num_class_embeds=10), "--train_batch_size=16")
    assert sizes == [8, 8, 6]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.streaming=true", "`--data.streaming` must be false, because all images are kept in memory."),
        (
            "--data.resolution=32",
            "The pipeline determines `--data.resolution` and `--data.channels`. Omit both options.",
        ),
        ("--train_batch_size=1000", "`--train_batch_size` must be at most the number of images (178), got 1000."),
        ("--train_batch_size=0", "`--train_batch_size` must be between 1 and 65,536, got 0."),
        ("--device=gpu", "`--device` must be auto or an available torch device, got 'gpu'."),
        ("--num_epochs=0", "`--num_epochs` must be between 1 and 1,000,000, got 0."),
        (
            "--optimizer.learning_rate=.nan",
            "`--optimizer.learning_rate` must be greater than 0 and at most 1, got nan.",
        ),
    ],
)
def test_invalid_settings_exit_with_one_line(option: str, message: str, run, tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(save_pipeline(tmp_path / "source", num_class_embeds=10), option)
    assert capsys.readouterr().err == f"train_guidance_classifier.py: error: {message}\n"


def test_damaged_training_settings_are_an_error_before_training(run, tmp_path: Path, capsys):
    pipeline = save_pipeline(tmp_path / "source", num_class_embeds=10)
    (pipeline / "train_config.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        run(pipeline)
    assert f"{pipeline}/train_config.json is not valid JSON" in capsys.readouterr().err


def test_settings_are_parsed_like_those_of_the_trainer(run, tmp_path: Path, capsys):
    (tmp_path / "settings.yaml").write_text("num_epochs: 0\noptimizer: {learning_rate: 2}\n")
    with pytest.raises(SystemExit, match="2"):
        run("base", f"--config={tmp_path / 'settings.yaml'}", "--num-epochs=3")
    assert capsys.readouterr().err.splitlines() == [
        "train_guidance_classifier.py: error: Found 3 problems:",
        "  - Could not find the setting `--num-epochs`. Did you mean `--num_epochs`?",
        "  - `--num_epochs` must be between 1 and 1,000,000, got 0.",
        "  - `--optimizer.learning_rate` must be greater than 0 and at most 1, got 2.0.",
    ]
    with pytest.raises(SystemExit, match="2"):
        run("base", "--data.channels=1", "--data.streaming=true")
    assert "The pipeline determines `--data.resolution` and `--data.channels`." in capsys.readouterr().err
