import re
import runpy
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file


SPACE = Path(__file__).parents[2] / "space"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("as_argument", [True, False])
def test_script_serves_the_checkpoint_of_its_argument_or_the_environment(model_folder, app_environment, as_argument):
    environment = app_environment | {"MODEL_ID": "missing" if as_argument else model_folder}
    command = [sys.executable, str(SPACE / "app.py"), *([model_folder] if as_argument else [])]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        try:
            while (line := server.stdout.readline()) and b"http://" not in line:
                pass
            port = environment["GRADIO_SERVER_PORT"]
            assert b"<code>tiny" in urllib.request.urlopen(f"http://127.0.0.1:{port}/config").read()
        finally:
            server.terminate()


@pytest.fixture
def get_error(monkeypatch, capsys):
    """Returns what the script prints before it exits with code 2."""

    def run(model: Path | str) -> str:
        monkeypatch.setattr(sys, "argv", ["app.py", str(model)])
        monkeypatch.setattr(signal, "signal", lambda *args: None)
        with pytest.raises(SystemExit) as exit_info:
            runpy.run_path(str(SPACE / "app.py"), run_name="__main__")
        assert exit_info.value.code == 2
        return capsys.readouterr().err

    return run


@pytest.fixture
def copied_model(model_folder, tmp_path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", WEIGHTS])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:50])])
def test_damaged_model_is_reported_in_one_line(get_error, copied_model, name, damage):
    damage(copied_model / name)
    error = get_error(copied_model)
    assert re.fullmatch(r"error: .*\.\n", error)
    assert Path(name).name in error


@pytest.mark.parametrize("model", ["/missing/folder", "bse"])
def test_missing_model_is_reported_in_one_line(get_error, model):
    assert re.fullmatch(f"error: Could not find a pipeline at '{model}': .*\\.\n", get_error(model))


def test_model_that_generates_invalid_pixels_is_reported_in_one_line(get_error, copied_model):
    weights = load_file(copied_model / WEIGHTS)
    save_file(weights | {"conv_out.weight": torch.full_like(weights["conv_out.weight"], 3e38)}, copied_model / WEIGHTS)
    assert re.fullmatch(r"error: .*NaN or infinite pixels.*\.\n", get_error(copied_model))


@pytest.fixture
def constraints() -> dict[str, str]:
    """The version of each package in the tests."""
    lines = (SPACE.parent / "constraints.txt").read_text().lower().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name.replace("_", "-"): version for name, version in pairs}


def test_front_matter_is_valid(constraints):
    metadata = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert metadata["sdk"] == "gradio"
    assert metadata["sdk_version"] == constraints["gradio"]
    assert (SPACE / metadata["app_file"]).is_file()
    # ZeroGPU supports Python 3.10 and 3.12, and the package requires 3.11 or later.
    assert metadata["python_version"] == "3.12"
    assert len(metadata["short_description"]) <= 60
    assert metadata["colorFrom"] in ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


def test_requirements_have_the_tested_versions(constraints):
    for line in (SPACE / "requirements.txt").read_text().splitlines():
        name, _, version = re.sub(r"\[.*\]", "", line).partition("==")
        assert constraints[name] == version
