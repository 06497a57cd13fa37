"""Publishing from a run, and going on from what was published."""

import json
import threading
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from fmnist_diffusion import load_pipeline
from hub_stand_in import Fault
from training.push import BackgroundPush


REPO_ID = "someone/tiny"
PUSH = ["--push_to_hub=true", f"--hub_model_id={REPO_ID}"]


def test_train_push_load_fine_tune_push(hub, launch, tmp_path):
    launch(*PUSH)
    repository = hub.repositories[REPO_ID]
    first = repository.refs["main"]
    assert not [path for path in repository.files if "checkpoint" in path or path.endswith((".csv", ".bin", ".pt"))]
    train_config = json.loads(repository.files["train_config.json"])
    assert train_config["progress"]["global_step"] == 12
    assert str(tmp_path) not in repository.files["train_config.json"].decode()

    assert load_pipeline(REPO_ID)(num_inference_steps=2).images[0].size == (28, 28)
    before = dict(load_pipeline(REPO_ID).unet.named_parameters())

    launch(*PUSH, f"--output_dir={tmp_path / 'tuned'}", f"--init_from={REPO_ID}", "--num_epochs=1")
    assert repository.refs["main"] != first
    assert json.loads(repository.files["train_config.json"])["init_from"] == REPO_ID
    after = dict(load_pipeline(REPO_ID).unet.named_parameters())
    changes = [float((after[name] - before[name]).detach().abs().max()) for name in before]
    # Six steps away from what was published, and not trained anew.
    assert 0 < max(changes) < 0.01


def test_every_so_many_epochs(hub, launch, tmp_path):
    launch("--push_to_hub=true", "--push_to_hub_epochs=1", "--hub_private_repo=true", "--hub_license=cc0-1.0")
    repository = hub.repositories["someone/run"]
    assert repository.private
    assert ModelCard(repository.files["README.md"].decode()).data.license == "cc0-1.0"
    # The empty one and the last; the first epoch's is left out where it still waits when that of the second comes.
    assert len(repository.commits) in (2, 3)
    assert json.loads(repository.files["train_config.json"])["progress"]["epoch"] == 2


@pytest.mark.parametrize("status", [503, None])
def test_a_hub_that_is_away_does_not_harm_the_run(hub, launch, tmp_path, capsys, status):
    hub.faults = [Fault("POST", "", status, times=99)]
    launch(*PUSH)
    folder = tmp_path / "run" / "pipeline"
    load_pipeline(folder)
    assert f"by hand: fmnist-diffusion push {folder} --repo-id {REPO_ID}" in capsys.readouterr().out


def test_without_a_token_the_run_does_not_start(launch, monkeypatch, capsys):
    monkeypatch.setattr("training.train.get_token", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        launch(*PUSH)
    assert stopped.value.code == 2
    assert "run hf auth login" in capsys.readouterr().err


def test_only_the_newest_waits(monkeypatch, tmp_path):
    pushed, began, go_on = [], threading.Event(), threading.Event()

    def push_pipeline(folder, repo_id, private, license):
        began.set()
        go_on.wait(timeout=60)
        pushed.append(Path(folder, "state").read_text())

    monkeypatch.setattr("training.push.push_pipeline", push_pipeline)
    publisher = BackgroundPush(REPO_ID, False, None, print)
    folder = tmp_path / "pipeline"
    folder.mkdir()
    for state in ("first", "second", "third"):
        (folder / "state").write_text(state)
        publisher.push(folder)
        began.wait(timeout=60)
    go_on.set()
    publisher.finish()
    assert pushed == ["first", "third"]


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), KeyError("name")])
def test_whatever_goes_wrong_is_reported(monkeypatch, tmp_path, error):
    def push_pipeline(folder, repo_id, private, license):
        raise error

    monkeypatch.setattr("training.push.push_pipeline", push_pipeline)
    said = []
    publisher = BackgroundPush(REPO_ID, True, "cc0-1.0", said.append)
    publisher.push(tmp_path / "is not there")
    publisher.push(tmp_path)
    publisher.finish()
    assert len(said) == 2
    assert all(f"--repo-id {REPO_ID} --private --license cc0-1.0" in line for line in said)
