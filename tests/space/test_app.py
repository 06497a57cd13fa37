import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml


SPACE = Path(__file__).parents[2] / "space"


@pytest.mark.slow
@pytest.mark.parametrize("as_argument", [True, False])
def test_script_serves_the_checkpoint_of_its_argument_or_the_environment(model_folder, free_port, as_argument):
    environment = os.environ | {"GRADIO_SERVER_PORT": str(free_port), "OMP_NUM_THREADS": "1"}
    environment["MODEL_ID"] = "missing" if as_argument else model_folder
    command = [sys.executable, str(SPACE / "app.py"), *([model_folder] if as_argument else [])]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        try:
            while (line := server.stdout.readline()) and b"http://" not in line:
                pass
            assert b"<code>tiny" in urllib.request.urlopen(f"http://127.0.0.1:{free_port}/config").read()
        finally:
            server.terminate()


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
    assert isinstance(metadata["python_version"], str)
    assert len(metadata["short_description"]) <= 60
    assert metadata["colorFrom"] in ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


def test_requirements_have_the_tested_versions(constraints):
    for line in (SPACE / "requirements.txt").read_text().splitlines():
        name, _, version = re.sub(r"\[.*\]", "", line).partition("==")
        # The package for ZeroGPU is not installed here.
        assert name == "spaces" or constraints[name] == version
