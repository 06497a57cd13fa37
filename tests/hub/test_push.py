import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from huggingface_hub import constants
from safetensors import SafetensorError
from torch.testing import assert_close

from fake_hub import Fault, HubRequestHandler, Repository
from fmnist_diffusion import load_pipeline
from fmnist_diffusion.files import WriteError
from fmnist_diffusion.hub.push import make_repository, push_pipeline
from fmnist_diffusion.hub_client import HubError
from fmnist_diffusion.metadata import stored_dtypes, weights_hash
from fmnist_diffusion.models import unet_fmnist
from fmnist_diffusion.pipelines import pipeline_fmnist
from latent_pipelines import get_latent_pipeline
from saved_pipelines import METRICS, save_pipeline
from text_pipelines import get_text_pipeline
from tiny_pipelines import sample


REPO_ID = "someone/tiny"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))


class TestMakeRepository:
    def test_repository_contains_no_local_paths(self, folder, tmp_path):
        make_repository(folder, REPO_ID, tmp_path / "repository")
        for content in read_files(tmp_path / "repository").values():
            assert str(tmp_path).encode() not in content
            # If the home folder is "/", the string is "//", which occurs in every URL.
            assert Path.home() == Path("/") or f"{Path.home()}/".encode() not in content

    @pytest.mark.parametrize("name", ["metrics.json", "metrics-1-step.json"])
    def test_metrics_of_other_weights_are_an_error(self, folder, tmp_path, name):
        pipe = load_pipeline(folder)
        metrics = METRICS | {"dtype": "float32", "weights_sha256": weights_hash(pipe, torch.float32)}
        (folder / name).write_text(json.dumps(metrics))
        make_repository(folder, REPO_ID, tmp_path / "first")
        assert (tmp_path / "first" / name).is_file()
        pipe.unet.conv_out.bias.data += 1
        pipe.save_pretrained(folder)
        with pytest.raises(ValueError, match=f"{folder / name} contains metrics of different weights. Remove it, or"):
            make_repository(folder, REPO_ID, tmp_path / "second")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_weights_and_sampler_are_kept(self, folder, tmp_path, dtype):
        load_pipeline(folder, scheduler="ddim", dtype=dtype).save_pretrained(tmp_path / "saved")
        make_repository(tmp_path / "saved", REPO_ID, tmp_path / "repository")
        before, after = read_files(tmp_path / "saved"), read_files(tmp_path / "repository")
        assert {name: after[name] for name in before} == before

    def test_dtype_of_each_model_is_kept(self, tmp_path):
        pipe = get_text_pipeline()
        pipe.unet.half()
        pipe.save_pretrained(tmp_path / "saved")
        make_repository(tmp_path / "saved", REPO_ID, tmp_path / "repository")
        dtypes = {"unet": torch.float16, "text_encoder": torch.float32}
        assert stored_dtypes(tmp_path / "saved") == stored_dtypes(tmp_path / "repository") == dtypes

    @pytest.mark.parametrize("scheduler", [DDPMScheduler(), FlowMatchEulerDiscreteScheduler()])
    def test_any_scheduler_is_kept(self, folder, tmp_path, scheduler):
        pipe = load_pipeline(folder)
        pipe.scheduler = scheduler
        pipe.save_pretrained(tmp_path / "saved")
        make_repository(tmp_path / "saved", REPO_ID, tmp_path / "repository")
        index = json.loads((tmp_path / "repository" / "model_index.json").read_text())
        assert index["scheduler"] == ["diffusers", type(scheduler).__name__]

    def test_metrics_of_another_program_are_left_out(self, folder, tmp_path):
        (folder / "metrics.json").write_text('{"accuracy": 0.9}')
        make_repository(folder, REPO_ID, tmp_path / "repository")
        assert not (tmp_path / "repository" / "metrics.json").exists()
        assert "not been evaluated" in (tmp_path / "repository" / "README.md").read_text()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_metrics_of_an_evaluation_are_included(self, folder, tmp_path, dtype):
        pipe = load_pipeline(folder, dtype=dtype)
        metrics = METRICS | {"dtype": str(dtype).removeprefix("torch."), "weights_sha256": weights_hash(pipe)}
        write_metrics(tmp_path / "evaluation", metrics | {"num_samples": 54321})
        make_repository(folder, REPO_ID, tmp_path / "repository", evaluation=tmp_path / "evaluation")
        assert json.loads((tmp_path / "repository" / "metrics.json").read_text())["num_samples"] == 54321
        assert "54,321 generated images" in (tmp_path / "repository" / "README.md").read_text()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"weights_sha256": "0" * 64}, "`evaluation` must be the output folder of a complete evaluation of"),
            ({"dtype": "tensor"}, "`evaluation` must be the output folder of a complete evaluation of"),
            ({"num_samples": None}, "metrics.json contains damaged metrics"),
            (None, "`evaluation` must be the output folder of a complete evaluation of"),
        ],
    )
    def test_unsuitable_evaluation_is_an_error(self, folder, tmp_path, change, message):
        metrics = METRICS | {"dtype": "float32", "weights_sha256": weights_hash(load_pipeline(folder))}
        if change is not None:
            write_metrics(tmp_path / "evaluation", metrics | change)
        with pytest.raises(ValueError, match=message):
            make_repository(folder, REPO_ID, tmp_path / "repository", evaluation=tmp_path / "evaluation")
        assert not (tmp_path / "repository").exists()

    def test_metrics_with_other_numbers_of_steps_are_listed(self, folder, tmp_path):
        for name, steps, fid in (("metrics-2-steps.json", 2, 7.5), ("metrics-1-step.json", 1, None)):
            metrics = METRICS["metrics"] | {"fid_train": fid}
            (folder / name).write_text(json.dumps(METRICS | {"num_inference_steps": steps, "metrics": metrics}))
        (folder / "metrics-other.json").write_text("[]")
        make_repository(folder, REPO_ID, tmp_path / "repository")
        assert (tmp_path / "repository" / "metrics-1-step.json").read_bytes() == (
            folder / "metrics-1-step.json"
        ).read_bytes()
        assert not (tmp_path / "repository" / "metrics-other.json").exists()
        table = (
            "\n| metric | 1 step | 2 steps |\n|---|---|---|\n| FID (training images) |  | 7.5 |\n"
            "| Precision | 0.75 | 0.75 |\n| Class accuracy | 0.9 | 0.9 |\n\n"
        )
        assert table in (tmp_path / "repository" / "README.md").read_text()

    def test_full_disk_is_a_write_error(self, folder, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise SafetensorError("No space left on device")

        monkeypatch.setattr("diffusers.models.modeling_utils.safetensors.torch.save_file", fail)
        with pytest.raises(WriteError, match=r"Could not write .*: No space left on device"):
            make_repository(folder, REPO_ID, tmp_path / "repository")

    def test_license_is_written_to_the_card(self, folder, tmp_path):
        make_repository(folder, REPO_ID, tmp_path / "repository", license="cc0-1.0")
        assert "license: cc0-1.0" in (tmp_path / "repository" / "README.md").read_text()


class TestPush:
    def test_push_uploads_the_complete_repository(self, hub, folder):
        before = read_files(folder)
        assert push_pipeline(folder, REPO_ID) == f"{hub.endpoint}/{REPO_ID}"
        repository = hub.repositories[REPO_ID]
        assert set(repository.files) == {
            ".gitattributes",
            "README.md",
            "images/samples.png",
            "metrics.json",
            "model_index.json",
            "pipeline_fmnist.py",
            "scheduler/scheduler_config.json",
            "train_config.json",
            "unet/config.json",
            WEIGHTS,
            "unet/unet_fmnist.py",
        }
        assert repository.files["unet/unet_fmnist.py"] == Path(unet_fmnist.__file__).read_bytes()
        assert repository.files["pipeline_fmnist.py"] == Path(pipeline_fmnist.__file__).read_bytes()
        assert repository.files[WEIGHTS] == before[WEIGHTS]
        assert repository.lfs == {WEIGHTS, "images/samples.png"}
        assert not repository.private
        assert read_files(folder) == before

    def test_unchanged_files_make_no_commit(self, hub, folder):
        push_pipeline(folder, REPO_ID, tag="v1.0")
        commits = dict(hub.repositories[REPO_ID].commits)
        push_pipeline(folder, REPO_ID, tag="v1.0")
        assert hub.repositories[REPO_ID].commits == commits

    def test_files_of_an_earlier_upload_are_removed(self, hub, folder):
        hub.repositories[REPO_ID] = repository = Repository()
        stale = {"unet/fmnist_diffusion.models.unet_fmnist.py", "scheduler/old.json", "images/old.png"}
        stale |= {"metrics.json", "metrics-1-step.json"}
        repository.commit(dict.fromkeys((*stale, "notes.md", "metrics_by_class.json"), b"old"))
        (folder / "metrics.json").unlink()
        push_pipeline(folder, REPO_ID)
        assert not stale & set(repository.files)
        assert {"images/samples.png", "notes.md", "metrics_by_class.json"} <= set(repository.files)

    def test_user_name_is_added_to_the_repo_id(self, hub, folder):
        push_pipeline(folder, "tiny")
        assert b'from_pretrained("someone/tiny"' in hub.repositories[REPO_ID].files["README.md"]

    def test_private_creates_a_private_repository(self, hub, folder):
        push_pipeline(folder, REPO_ID, private=True)
        assert hub.repositories[REPO_ID].private

    def test_owner_determines_the_default_visibility(self, hub, folder, monkeypatch):
        visibilities = []

        def record(handler):
            visibilities.append(json.loads(handler.body).get("visibility"))
            return create_repo(handler)

        create_repo = HubRequestHandler.create_repo
        monkeypatch.setattr(HubRequestHandler, "create_repo", record)
        push_pipeline(folder, REPO_ID)
        assert visibilities == [None]

    def test_private_is_an_error_for_a_public_repository(self, hub, folder):
        push_pipeline(folder, REPO_ID)
        commits = dict(hub.repositories[REPO_ID].commits)
        with pytest.raises(HubError, match="someone/tiny already exists and is public"):
            push_pipeline(folder, REPO_ID, private=True)
        assert hub.repositories[REPO_ID].commits == commits

    def test_branch_and_tag_refer_to_the_new_commit(self, hub, folder):
        push_pipeline(folder, REPO_ID, revision="trial", tag="v0.1")
        repository = hub.repositories[REPO_ID]
        assert set(repository.files) == {".gitattributes"}
        assert repository.refs["trial"] == repository.refs["v0.1"] != repository.refs["main"]
        assert repository.tags == {"v0.1"}

    def test_tag_of_another_commit_is_an_error(self, hub, folder):
        push_pipeline(folder, REPO_ID, tag="v1.0")
        save_pipeline(folder, num_class_embeds=3)
        with pytest.raises(
            HubError, match=r"uploaded to someone/tiny, but the tag v1\.0 already points to a different commit"
        ):
            push_pipeline(folder, REPO_ID, tag="v1.0")

    def test_pull_request_does_not_change_main(self, hub, folder):
        hub.repositories[REPO_ID] = repository = Repository()
        repository.commit({"README.md": b"hello"})
        assert push_pipeline(folder, REPO_ID, create_pr=True) == f"{hub.endpoint}/{REPO_ID}/discussions/1"
        assert repository.files == {"README.md": b"hello"}
        assert "model_index.json" in repository.commits[repository.refs["refs/pr/1"]]

    @pytest.mark.parametrize("options", [{"tag": "v1"}, {"revision": "trial"}])
    def test_pull_request_with_branch_or_tag_is_an_error(self, hub, folder, options):
        with pytest.raises(ValueError, match="Cannot use `create_pr` with `revision` or `tag`"):
            push_pipeline(folder, REPO_ID, create_pr=True, **options)


class TestErrorsBeforeRequests:
    """Errors that are found before the first request to the Hub."""

    @pytest.fixture(autouse=True)
    def no_requests(self, hub):
        yield
        assert hub.requests == []

    def test_folder_without_a_pipeline_is_an_error(self, tmp_path):
        with pytest.raises(OSError, match=r"no model_index\.json"):
            push_pipeline(tmp_path, REPO_ID)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("metrics.json", "{", "is not valid JSON"),
            ("train_config.json", "[]", "must contain a JSON object"),
            (WEIGHTS, "version https://git-lfs.github.com/spec/v1", "Download or save it again"),
        ],
    )
    def test_damaged_file_is_an_error(self, folder, name, content, message):
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{Path(name).name} .*{message}"):
            push_pipeline(folder, REPO_ID)

    def test_missing_token_is_an_error(self, folder, monkeypatch):
        monkeypatch.setattr("fmnist_diffusion.hub_client.get_token", lambda: None)
        with pytest.raises(HubError, match="not logged in to the Hub"):
            push_pipeline(folder, REPO_ID)


class TestHubErrors:
    @pytest.mark.parametrize("token", ["hf_wrong", "hf_other"])
    def test_token_without_access_is_an_error(self, hub, folder, token):
        with pytest.raises(HubError, match="token"):
            push_pipeline(folder, REPO_ID, token=token)
        assert hub.repositories == {}

    def test_private_repository_of_another_user_is_an_error(self, hub, folder):
        push_pipeline(folder, REPO_ID, private=True)
        with pytest.raises(HubError, match="denied write access to someone/tiny"):
            push_pipeline(folder, REPO_ID, token="hf_other")

    @pytest.mark.parametrize(
        ("part", "status"), [("/commit/", 503), ("/create", None), ("/validate-yaml", 503), ("/preupload/", None)]
    )
    def test_failed_requests_are_retried(self, hub, folder, part, status):
        hub.faults = [Fault("POST", part, status)]
        push_pipeline(folder, REPO_ID)
        assert "model_index.json" in hub.repositories[REPO_ID].files

    @pytest.mark.parametrize(("method", "part"), [("POST", "/commit/"), ("PUT", "/lfs/")])
    def test_lost_response_makes_no_second_commit(self, hub, folder, method, part):
        hub.faults = [Fault(method, part, after=True)]
        push_pipeline(folder, REPO_ID)
        assert "model_index.json" in hub.repositories[REPO_ID].files
        assert len(hub.repositories[REPO_ID].commits) == 2

    def test_lost_response_opens_no_second_pull_request(self, hub, folder):
        hub.repositories[REPO_ID] = repository = Repository()
        repository.commit({})
        hub.faults = [Fault("POST", "/commit/", after=True)]
        with pytest.raises(HubError, match="Could not reach the Hub"):
            push_pipeline(folder, REPO_ID, create_pr=True)
        assert [ref for ref in repository.refs if ref.startswith("refs/pr")] == ["refs/pr/1"]

    @pytest.mark.parametrize(
        ("status", "message"),
        [
            (409, "Another commit to someone/tiny is in progress"),
            (503, r"unavailable \(HTTP 503\)"),
            (None, "Could not reach the Hub"),
            (400, "rejected the request .*a simulated fault"),
        ],
    )
    def test_push_succeeds_after_the_hub_recovers(self, hub, folder, status, message):
        before = read_files(folder)
        hub.faults = [Fault("POST", "/commit/", status, times=99)]
        with pytest.raises(HubError, match=message):
            push_pipeline(folder, REPO_ID)
        assert read_files(folder) == before
        hub.faults = []
        push_pipeline(folder, REPO_ID)
        assert "model_index.json" in hub.repositories[REPO_ID].files

    def test_offline_mode_is_an_error(self, hub, folder, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
            push_pipeline(folder, REPO_ID)


def test_latent_diffusion_pipeline_is_pushed_and_downloaded(hub, tmp_path):
    pipe = get_latent_pipeline()
    pipe.save_pretrained(tmp_path / "latent")
    push_pipeline(tmp_path / "latent", REPO_ID)
    again = load_pipeline(REPO_ID)
    again.set_progress_bar_config(disable=True)
    # Rounding errors depend on the alignment of the loaded weights in memory.
    assert_close(sample(again, ["Bag"]), sample(pipe, ["Bag"]), rtol=0, atol=1e-5)
    files = hub.repositories[REPO_ID].files
    assert "generates RGB images of 16x16 pixels" in files["README.md"].decode()
    assert "The component `vae` is a `AutoencoderKL`" in files["README.md"].decode()
    save_pipeline(tmp_path / "pixels")
    push_pipeline(tmp_path / "pixels", REPO_ID)
    assert not [name for name in hub.repositories[REPO_ID].files if name.startswith("vae/")]


def test_huggingface_command_line_downloads_the_pipeline(hub, folder, tmp_path):
    push_pipeline(folder, REPO_ID, tag="v1.0")
    command = [Path(sys.executable).with_name("hf"), "download", REPO_ID, "--revision", "v1.0"]
    command += ["--local-dir", str(tmp_path / "copy")]
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    env |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert load_pipeline(tmp_path / "copy").label_names[-1] == "Ankle boot"
