"""Pushes during training, and fine-tuning of a pushed pipeline."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from fake_hub import FakeHub, Fault
from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from publishing import BackgroundPush
from saved_pipelines import save_pipeline


REPO_ID = "someone/tiny"
PUSH = ["--push_to_hub=true", f"--hub_model_id={REPO_ID}"]


@pytest.mark.slow
def test_pushed_pipeline_can_be_fine_tuned(hub: FakeHub, launch: Callable[..., None], tmp_path: Path):
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
    # Six steps from the pushed weights are a small change, training from scratch is not.
    assert 0 < max(changes) < 0.01


@pytest.mark.slow
def test_pipeline_is_pushed_every_n_epochs(hub: FakeHub, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch):
    pushes, push = [], BackgroundPush.push

    def count_push(self: BackgroundPush) -> None:
        pushes.append(self)
        push(self)

    monkeypatch.setattr(BackgroundPush, "push", count_push)
    launch("--push_to_hub=true", "--push_to_hub_epochs=1", "--hub_private_repo=true", "--hub_license=cc0-1.0")
    repository = hub.repositories["someone/run"]
    assert repository.private
    assert ModelCard(repository.files["README.md"].decode()).data.license == "cc0-1.0"
    assert len(pushes) == 2
    # The first commit is empty. The push of the first epoch is canceled if it has not started before the second one.
    assert len(repository.commits) in (2, 3)
    assert json.loads(repository.files["train_config.json"])["progress"]["epoch"] == 2


@pytest.mark.slow
def test_unreachable_hub_does_not_end_the_run(
    hub: FakeHub,
    launch: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("fmnist_diffusion.hub_client.TIME_LIMIT", 2.0)
    hub.faults = [Fault("POST", "", kind="hang", times=99)]
    launch(*PUSH)
    folder = tmp_path / "run" / "pipeline"
    load_pipeline(folder)
    assert f"Run `fmnist-diffusion push {folder} --repo-id {REPO_ID}" in capsys.readouterr().out


def test_push_without_a_token_is_an_error(fail_to_launch: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("publishing.get_token", lambda: None)
    assert "`--push_to_hub` requires a token. Run `hf auth login`" in fail_to_launch(*PUSH)


def test_only_the_newest_push_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pushed, started, proceed = [], threading.Event(), threading.Event()

    def push_pipeline(folder: str, repo_id: str, **kwargs: Any) -> str:
        started.set()
        proceed.wait(timeout=60)
        pushed.append((Path(folder, "state").read_text(), kwargs["pipe"].config.num_inference_steps))
        return ""

    monkeypatch.setattr("publishing.push_pipeline", push_pipeline)
    folder = save_pipeline(tmp_path / "pipeline")
    background_push = BackgroundPush(folder, REPO_ID, False, None, print)
    pipe = load_pipeline(folder)
    for number, state in enumerate(("first", "second", "third"), start=1):
        FashionMNISTPipeline(pipe.unet, pipe.scheduler, num_inference_steps=number).save_pretrained(folder)
        (folder / "state").write_text(state)
        background_push.push()
        started.wait(timeout=60)
    proceed.set()
    background_push.finish()
    assert pushed == [("first", 1), ("third", 3)]


def test_pipeline_is_loaded_in_the_thread_that_trains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    threads = []

    def load(*args: Any, **kwargs: Any) -> FashionMNISTPipeline:
        threads.append(threading.current_thread())
        return load_pipeline(*args, **kwargs)

    monkeypatch.setattr("fmnist_diffusion.hub.push.load_pipeline", load)
    monkeypatch.setattr("fmnist_diffusion.hub.push.create_repository", lambda *args: None)
    background_push = BackgroundPush(save_pipeline(tmp_path / "pipeline"), REPO_ID, False, None, print)
    background_push.push()
    background_push.finish()
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), KeyError("name")])
def test_all_errors_of_the_thread_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception):
    def push_pipeline(folder: str, repo_id: str, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr("publishing.push_pipeline", push_pipeline)
    reports: list[str] = []
    folder = tmp_path / "pipeline"
    background_push = BackgroundPush(folder, REPO_ID, True, "cc0-1.0", reports.append)
    background_push.push()
    save_pipeline(folder)
    background_push.push()
    background_push.finish()
    assert len(reports) == 2
    assert all(f"--repo-id {REPO_ID} --private --license cc0-1.0" in report for report in reports)


def test_hanging_push_does_not_keep_the_run_alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    end = threading.Event()
    monkeypatch.setattr("publishing.push_pipeline", lambda *args, **kwargs: end.wait())
    monkeypatch.setattr("publishing.FINISH_TIMEOUT", 0.1)
    reports: list[str] = []
    background_push = BackgroundPush(save_pipeline(tmp_path / "pipeline"), REPO_ID, False, None, reports.append)
    background_push.push()
    background_push.finish()
    assert [report.partition(" (")[0] for report in reports] == ["Could not push the pipeline"]
    assert background_push.thread is not None and background_push.thread.daemon
    end.set()


@pytest.mark.parametrize(
    "fault", [{"status": 503}, *({"kind": kind} for kind in ("close", "hang", "reset", "drip", "html"))], ids=str
)
def test_faulty_hub_is_reported_in_one_line(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: dict[str, Any]
):
    hub.faults = [Fault("POST", "/create", times=99, **fault)]
    reports: list[str] = []
    folder = save_pipeline(tmp_path / "pipeline")
    background_push = BackgroundPush(folder, REPO_ID, False, None, reports.append)
    with monkeypatch.context() as patch:
        patch.setattr("fmnist_diffusion.hub_client.TIME_LIMIT", 1.0)
        background_push.push()
        background_push.finish()
    (report,) = reports
    assert "Hub" in report and "\n" not in report
    assert report.endswith(f"Run `fmnist-diffusion push {folder} --repo-id {REPO_ID}` to try again.")
    hub.faults = []
    background_push.push()
    background_push.finish()
    assert reports[1] == f"Pushed the pipeline to {hub.endpoint}/{REPO_ID}."
