import json
from pathlib import Path

import pytest

from saved_pipelines import METRICS, TRAIN_CONFIG, save_pipeline


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a trained pipeline, with files that must not be uploaded."""
    folder = save_pipeline(tmp_path / "run" / "pipeline", num_class_embeds=10)
    (folder / "train_config.json").write_text(json.dumps(TRAIN_CONFIG))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "images").mkdir()
    (folder / "images" / "samples.png").write_bytes(b"\x89PNG\0")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.bin").write_bytes(b"state")
    (folder / "loss.csv").write_text("step,loss\n")
    (folder / "unet" / "optimizer.pt").write_bytes(b"state")
    return folder
