import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmnist_diffusion.commands import main
from saved_pipelines import save_pipeline


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> str:
    """The folder of a small class-conditional pipeline for 8x8 images."""
    folder = save_pipeline(tmp_path_factory.mktemp("commands") / "pipeline", num_class_embeds=10)
    (folder / "train_config.json").write_text(json.dumps({"num_epochs": 3, "optimizer": {"name": "adam"}}))
    return str(folder)


@pytest.fixture
def no_slow_steps(monkeypatch) -> None:
    """Fails the test if images are decoded or generated, or if a large network is loaded or exported."""

    def fail(*args, **kwargs):
        raise AssertionError

    for name in (
        "data.load_images",
        "evaluation.InceptionFeatures",
        "evaluation.fashion_mnist.load_images",
        "evaluation.image_reference.load_images",
        "evaluation.samples.load_images",
        "export.onnx_file.convert_to_onnx",
        "pipelines.FashionMNISTPipeline._denoise",
    ):
        monkeypatch.setattr(f"fmnist_diffusion.{name}", fail)


@pytest.fixture
def get_error(capsys, monkeypatch, tmp_path) -> Callable[..., str]:
    """Runs a command in an empty folder and returns its error message, which must be one line and the only output."""
    monkeypatch.chdir(tmp_path)

    def get_error(*args: str | Path, exit_code: int = 2) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main([str(arg) for arg in args])
        output = capsys.readouterr()
        assert exit_info.value.code == exit_code
        assert output.out == ""
        assert output.err.startswith("fmnist-diffusion: error: ")
        assert output.err.count("\n") == 1
        return output.err.removeprefix("fmnist-diffusion: error: ").rstrip("\n")

    return get_error
