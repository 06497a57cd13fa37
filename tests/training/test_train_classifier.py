import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from train_classifier import main


@pytest.mark.slow
def test_training_writes_a_classifier(tmp_path: Path, fashion_mnist_folder: Path):
    main(
        [
            f"--train_data_dir={fashion_mnist_folder}",
            f"--output_dir={tmp_path}",
            "--max_train_samples=64",
            "--num_train_epochs=1",
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
    assert facts["training"]["num_train_epochs"] == 1
