import os
import subprocess
import sys
from pathlib import Path

import pytest

import fmnist_diffusion
from fake_hub import Fault, Repository
from fmnist_diffusion.commands import main


def test_push_uploads_the_pipeline(hub, pipeline, capsys):
    main(["push", pipeline, "--repo-id", "someone/tiny", "--tag", "v1.0", "--private", "--license", "cc0-1.0"])
    assert capsys.readouterr().out == f"Uploaded the pipeline to {hub.endpoint}/someone/tiny.\n"
    repository = hub.repositories["someone/tiny"]
    assert repository.private
    assert repository.tags == {"v1.0"}
    assert b"license: cc0-1.0" in repository.files["README.md"]


def test_push_space_uploads_the_demo(hub, capsys):
    hub.repositories["someone/tiny"] = Repository()
    hub.repositories["someone/tiny"].commit({"model_index.json": b"{}"})
    main(["push-space", "--repo-id", "demo", "--model", "someone/tiny", "--hardware", "zero-a10g"])
    assert hub.repositories["spaces/someone/demo"].hardware == "zero-a10g"
    assert capsys.readouterr().out == f"Uploaded the Space to {hub.endpoint}/spaces/someone/demo.\n"


@pytest.mark.parametrize("models", [[], ["spec", "base"]])
def test_push_space_uploads_a_static_page(hub, capsys, monkeypatch, models):
    calls = []
    monkeypatch.setattr(
        "fmnist_diffusion.hub.static_space.make_static_space", lambda folders, target: calls.append(folders)
    )
    main(["push-space", "--static", "--repo-id", "demo", *(arg for name in models for arg in ("--model", name))])
    assert capsys.readouterr().out == f"Uploaded the Space to {hub.endpoint}/spaces/someone/demo.\n"
    assert [[folder.name for folder in folders] for folders in calls] == [models or ["fast", "base"]]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["push", "nowhere", "--repo-id", "me/tiny"], "Could not find the folder nowhere"),
        (["push", "base"], "Missing option '--repo-id'"),
        (["push", "base", "--repo-id", "me/tiny", "--create-pr", "--tag", "v1"], "Cannot use --create-pr with"),
        (["push-space", "--repo-id", "demo"], "--model must be the repository id of one public model, got 0 values"),
        (
            ["push-space", "--repo-id", "demo", "--model", "me/x", "--model", "me/y"],
            "--model must be the repository id",
        ),
        (
            ["push-space", "--repo-id", "demo", "--model", "output/mine/pipeline"],
            "--model must be the repository id of a public model, got output/mine/pipeline. Upload a local pipeline",
        ),
        (["push-space", "--repo-id", "demo", "--static", "--hardware", "zero-a10g"], "--hardware does not apply to"),
        (["push-space", "--repo-id", "demo", "--static", "--model", "nowhere"], "Could not find the folder nowhere"),
    ],
)
def test_invalid_options_make_no_requests(hub, get_error, args, message):
    assert get_error(*args).startswith(message)
    assert hub.requests == []


def test_folder_without_a_pipeline_is_reported_before_a_missing_token(hub, get_error, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    message = get_error("push", tmp_path, "--repo-id", "me/tiny")
    assert message.startswith(f"Could not find a pipeline in the folder {tmp_path}: it contains no model_index.json.")
    assert hub.requests == []


@pytest.mark.parametrize(
    "args", [["push", "base", "--repo-id", "me/tiny"], ["push-space", "--repo-id", "me/tiny", "--model", "me/x"]]
)
def test_missing_token_is_reported_before_a_pipeline_is_loaded(hub, get_error, monkeypatch, args):
    def fail(*args, **kwargs):
        raise AssertionError

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("fmnist_diffusion.hub_client.get_token", lambda: None)
    monkeypatch.setattr("fmnist_diffusion.hub.push.load_pipeline", fail)
    monkeypatch.setattr("fmnist_diffusion.hub.space.make_space", fail)
    message = get_error(*args, exit_code=1)
    assert message.startswith("You are not logged in to the Hub. Please run `hf auth login`")
    assert hub.requests == []


def test_hub_errors_have_exit_code_1(hub, get_error, pipeline):
    hub.faults = [Fault("POST", "/create", 403, times=9)]
    message = get_error("push", pipeline, "--repo-id", "someone/tiny", exit_code=1)
    assert message.startswith("The Hub denied write access to someone/tiny (a simulated fault).")
    message = get_error("push-space", "--repo-id", "demo", "--model", "missing", exit_code=1)
    assert message.startswith("Could not find someone/missing")


def test_push_rejects_a_folder_without_an_evaluation(hub, get_error, pipeline, tmp_path):
    assert get_error("push", pipeline, "--repo-id", "me/tiny", "--evaluation", tmp_path) == (
        f"--evaluation must be the output folder of a complete evaluation of the current weights of {pipeline}, got"
        f" {tmp_path}. Run `fmnist-diffusion evaluate {pipeline}` and pass its output folder."
    )
    assert hub.repositories == {}


@pytest.mark.slow
def test_hub_errors_are_one_line_in_a_new_process(hub, pipeline, tmp_path):
    hub.faults = [Fault("POST", "/create", 403, times=9)]
    code = "from fmnist_diffusion.commands import main; main()"
    env = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path),
        "HF_TOKEN": "hf_someone",
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(fmnist_diffusion.__file__).parents[1]),
    }
    command = [sys.executable, "-c", code, "push", pipeline, "--repo-id", "someone/tiny"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (1, "")
    message = "The Hub denied write access to someone/tiny (a simulated fault)."
    assert result.stderr.startswith(f"fmnist-diffusion: error: {message}")
    assert result.stderr.count("\n") == 1


def test_push_space_creates_a_private_space(hub):
    hub.repositories["someone/tiny"] = Repository()
    hub.repositories["someone/tiny"].commit({"model_index.json": b"{}"})
    main(["push-space", "--repo-id", "demo", "--model", "someone/tiny", "--private"])
    assert hub.repositories["spaces/someone/demo"].private


def test_push_uploads_to_a_branch_or_a_pull_request(hub, pipeline):
    main(["push", pipeline, "--repo-id", "someone/tiny", "--revision", "trial"])
    repository = hub.repositories["someone/tiny"]
    assert set(repository.files) == {".gitattributes"}
    assert "model_index.json" in repository.commits[repository.refs["trial"]]
    main(["push", pipeline, "--repo-id", "someone/tiny", "--create-pr"])
    assert set(repository.files) == {".gitattributes"}
    assert "refs/pr/1" in repository.refs
