"""Every command that loads a pipeline reports a damaged or missing folder in one line."""

import shutil
from pathlib import Path

import pytest

from damaged_folders import CONFIGS, damage_folders
from fmnist_diffusion import evaluation
from fmnist_diffusion.commands import main


COMMANDS = {
    "info": [],
    "sample": ["--num-images", "1", "--num-inference-steps", "1", "--output-dir", "samples"],
    "evaluate": ["--fast"],
    "likelihood": ["--train-data-dir", str(Path(__file__).parents[1] / "fixtures")],
    "push": ["--repo-id", "someone/tiny"],
}


def run(command: str, folder: Path | str, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command; returns its error message, or an empty string if it succeeds."""
    shutil.rmtree("samples", ignore_errors=True)
    exit_code = 0
    try:
        main([command, str(folder), *COMMANDS[command]])
    except SystemExit as error:
        exit_code = error.code
    output = capsys.readouterr()
    if not exit_code:
        return ""
    assert exit_code == 2
    assert output.out == ""
    assert output.err.startswith("fmnist-diffusion: error: ")
    assert output.err.count("\n") == 1
    return output.err


@pytest.fixture
def folder(monkeypatch, tmp_path) -> Path:
    """The current folder, in which no evaluation runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "evaluate_pipeline", lambda *args, **kwargs: {"num_samples": 1, "metrics": {}})
    result = dict.fromkeys(("bits_per_dim", "standard_error", "num_images", "num_function_evaluations"), 0)
    monkeypatch.setattr(evaluation, "measure_likelihood", lambda *args, **kwargs: result)
    monkeypatch.setattr("fmnist_diffusion.commands.evaluate.format_results", lambda result: [])
    return tmp_path


@pytest.mark.parametrize("step", [30, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_pipelines_are_reported_in_one_line(command, step, pipeline, folder, hub, capsys):
    for fault, name in damage_folders(Path(pipeline), folder / "damaged", step):
        message = run(command, folder / "damaged", capsys)
        assert message, fault
        # `evaluate` treats a folder without model_index.json as a folder of images.
        no_pipeline = command == "evaluate" and name == CONFIGS[0] and "no IDX, image or parquet files" in message
        assert name in message or no_pipeline, (fault, message)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["missing", "me/missing", "", "a\0b", "a" * 300, "/dev/null", "x.safetensors"])
def test_missing_pipelines_are_reported_in_one_line(command, name, folder, hub, capsys):
    message = run(command, name, capsys)
    assert message


@pytest.mark.parametrize("command", COMMANDS)
def test_folders_without_a_pipeline_are_reported_in_one_line(command, folder, hub, capsys):
    (folder / "empty").mkdir()
    assert "empty" in run(command, folder / "empty", capsys)
