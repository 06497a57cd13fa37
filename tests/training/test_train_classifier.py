import errno
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, RegNetForImageClassification

from fmnist_diffusion.evaluation.classifier_training import make_classifier
from train_classifier import main


@pytest.mark.slow
def test_training_writes_a_classifier(tmp_path: Path, fashion_mnist_folder: Path):
    main(
        [
            f"--train_data_dir={fashion_mnist_folder}",
            f"--output_dir={tmp_path}",
            "--max_train_samples=64",
            "--num_epochs=1",
            "--train_batch_size=32",
        ]
    )
    folder = tmp_path / "classifier"
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.id2label[9] == "Ankle boot"
    assert model(torch.zeros(2, 1, 56, 56)).logits.shape == (2, 10)
    facts = json.loads((folder / "metrics.json").read_text())
    assert 0 <= facts["test_accuracy"] <= 1
    assert (facts["num_train_images"], facts["num_test_images"]) == (64, 128)
    assert facts["training"]["num_epochs"] == 1


def test_folder_that_cannot_be_written_is_an_error_before_the_images_are_loaded(tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["--train_data_dir=nowhere", f"--output_dir={tmp_path / 'file'}"])
    assert capsys.readouterr().err == (
        f"train_classifier.py: error: Could not write {tmp_path}/file/classifier: Not a directory.\n"
    )


def test_existing_classifier_is_not_replaced(tmp_path: Path, capsys):
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "model.safetensors").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["--train_data_dir=nowhere", f"--output_dir={tmp_path}"])
    assert f"{tmp_path / 'classifier'} contains files." in capsys.readouterr().err


def test_unknown_device_exits_with_one_line(tmp_path: Path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--device=gpu", f"--output_dir={tmp_path}"])
    message = "`--device` must be auto or an available torch device, got 'gpu'."
    assert capsys.readouterr().err == f"train_classifier.py: error: {message}\n"


def test_full_disk_exits_with_one_line(
    tmp_path: Path, fashion_mnist_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("train_classifier.train_classifier", lambda images, *_: make_classifier(images.label_names))
    monkeypatch.setattr(RegNetForImageClassification, "save_pretrained", fail)
    with pytest.raises(SystemExit, match="2"):
        main([f"--train_data_dir={fashion_mnist_folder}", f"--output_dir={tmp_path}"])
    assert capsys.readouterr().err.endswith(
        f"train_classifier.py: error: Could not write {tmp_path / 'classifier'}: No space left on device.\n"
    )
