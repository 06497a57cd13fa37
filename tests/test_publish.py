"""Pushing to the Hub, with the real clients against a stand-in."""

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from huggingface_hub import ModelCard, constants

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, export_pipeline, load_pipeline, publish
from fmnist_diffusion.cli import main
from fmnist_diffusion.hub import PRETRAINED_DIR
from fmnist_diffusion.models import unet_fmnist
from fmnist_diffusion.pipelines import pipeline_fmnist
from fmnist_diffusion.publish import SCHEDULE, PublishError, make_repository, make_space, push_pipeline, push_space
from hub_stand_in import Fault, Repository, card_problems
from training.config import SchedulerConfig, parse_config
from training.model import check_fine_tuning, make_scheduler


REPO_ID = "someone/tiny"
TRAIN_CONFIG = {
    "seed": 7,
    "data": {"dataset_name": "zalando-datasets/fashion_mnist", "train_data_dir": None},
    "optimizer": {"learning_rate": 0.0001},
}
REAL = {
    "inception": {"test": {"frechet_distance": 2.5, "kernel_distance": 0.0, "precision": 0.8, "recall": 0.7}},
    "classifier": {"test": {"frechet_distance": 0.01}},
    "classifier_accuracy": {"test": 0.94},
}
METRICS = {
    "num_samples": 12345,
    "seeds": [0, 1],
    "num_inference_steps": 18,
    "guidance_scale": 1.5,
    "conditional": True,
    "scheduler": "DDPMScheduler",
    "protocol": "as the papers do",
    "metrics": {
        "fid_train": {"mean": 4.25, "min": 4.0, "seeds": [4.0, 4.5]},
        "precision": {"mean": 0.75, "min": 0.7, "seeds": [0.7, 0.8]},
        "class_agreement": {"mean": 0.9, "min": 0.8, "seeds": [0.8, 1.0]},
    },
    "real": REAL,
}


def get_unet(**config) -> FashionMNISTUNet2DModel:
    torch.manual_seed(0)
    return FashionMNISTUNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_type="group",
        norm_num_groups=4,
        attention_head_dim=8,
        time_embedding_dim=16,
        **config,
    ).eval()


@pytest.fixture
def folder(tmp_path):
    """A pipeline's folder as a run leaves it, among what shall stay at home."""
    folder = tmp_path / "run" / "pipeline"
    export_pipeline(get_unet(num_class_embeds=10), DDPMScheduler(), folder, train_config=TRAIN_CONFIG)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "images").mkdir()
    (folder / "images" / "samples.png").write_bytes(b"\x89PNG\0")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.bin").write_bytes(b"state")
    (folder / "loss.csv").write_text("step,loss\n")
    (folder / "unet" / "optimizer.pt").write_bytes(b"state")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestPush:
    def test_what_is_pushed(self, hub, folder):
        before = contents(folder)
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
            "unet/diffusion_pytorch_model.safetensors",
            "unet/fmnist_diffusion.models.unet_fmnist.py",
        }
        assert (
            repository.files["unet/fmnist_diffusion.models.unet_fmnist.py"] == Path(unet_fmnist.__file__).read_bytes()
        )
        assert repository.files["pipeline_fmnist.py"] == Path(pipeline_fmnist.__file__).read_bytes()
        assert repository.lfs == {"unet/diffusion_pytorch_model.safetensors", "images/samples.png"}
        assert not repository.private
        assert contents(folder) == before

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_weights_are_pushed_as_they_are(self, hub, folder, dtype):
        export_pipeline(load_pipeline(folder, dtype=dtype).unet, DDPMScheduler(), folder)
        push_pipeline(folder, REPO_ID)
        name = "unet/diffusion_pytorch_model.safetensors"
        assert hub.repositories[REPO_ID].files[name] == (folder / name).read_bytes()

    def test_again_makes_no_commit(self, hub, folder):
        push_pipeline(folder, REPO_ID, tag="v1.0")
        commits = dict(hub.repositories[REPO_ID].commits)
        push_pipeline(folder, REPO_ID, tag="v1.0")
        assert hub.repositories[REPO_ID].commits == commits

    def test_again_with_fewer_files_removes_the_others(self, hub, folder):
        (folder / "images" / "old.png").write_bytes(b"\x89PNG\0")
        push_pipeline(folder, REPO_ID)
        (folder / "images" / "old.png").unlink()
        (folder / "metrics.json").unlink()
        push_pipeline(folder, REPO_ID)
        assert "images/old.png" not in hub.repositories[REPO_ID].files
        assert "metrics.json" not in hub.repositories[REPO_ID].files
        assert "images/samples.png" in hub.repositories[REPO_ID].files

    def test_own_name_is_filled_in(self, hub, folder):
        push_pipeline(folder, "tiny")
        assert b'from_pretrained("someone/tiny"' in hub.repositories[REPO_ID].files["README.md"]

    def test_private(self, hub, folder):
        push_pipeline(folder, REPO_ID, private=True)
        assert hub.repositories[REPO_ID].private

    def test_private_never_goes_public(self, hub, folder):
        push_pipeline(folder, REPO_ID)
        before = dict(hub.repositories[REPO_ID].commits)
        with pytest.raises(PublishError, match="someone/tiny exists and is public: leave out --private"):
            push_pipeline(folder, REPO_ID, private=True)
        assert hub.repositories[REPO_ID].commits == before

    @pytest.mark.parametrize("content", ["[]", '{"accuracy": 0.9}'])
    def test_measurements_of_another_program_are_left_out(self, hub, folder, content):
        (folder / "metrics.json").write_text(content)
        push_pipeline(folder, REPO_ID)
        assert "metrics.json" not in hub.repositories[REPO_ID].files
        assert b"Not measured yet" in hub.repositories[REPO_ID].files["README.md"]

    def test_a_broken_file_is_named(self, hub, folder):
        (folder / "metrics.json").write_text("{")
        with pytest.raises(ValueError, match=r"metrics\.json is no JSON .*: mend it, or remove it"):
            push_pipeline(folder, REPO_ID)

    def test_settings_of_another_program_are_named(self, hub, folder):
        (folder / "train_config.json").write_text("[]")
        with pytest.raises(ValueError, match=r"train_config\.json holds no settings by name: mend it, or remove it"):
            push_pipeline(folder, REPO_ID)

    def test_weights_that_were_not_fetched(self, hub, folder):
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1"
        )
        with pytest.raises(ValueError, match=r"holds no weights .*: fetch or export it again"):
            push_pipeline(folder, REPO_ID)

    def test_branch_and_tag(self, hub, folder):
        push_pipeline(folder, REPO_ID, revision="trial", tag="v0.1")
        repository = hub.repositories[REPO_ID]
        assert set(repository.files) == {".gitattributes"}
        assert repository.refs["trial"] == repository.refs["v0.1"] != repository.refs["main"]
        assert repository.tags == {"v0.1"}

    def test_tag_of_another_commit(self, hub, folder):
        push_pipeline(folder, REPO_ID, tag="v1.0")
        export_pipeline(get_unet(num_class_embeds=3), DDPMScheduler(), folder)
        with pytest.raises(PublishError, match=r"the files are in someone/tiny, but v1.0 is the tag of another"):
            push_pipeline(folder, REPO_ID, tag="v1.0")

    def test_pull_request(self, hub, folder):
        hub.repositories[REPO_ID] = Repository()
        hub.repositories[REPO_ID].commit({"README.md": b"hello"})
        assert push_pipeline(folder, REPO_ID, create_pr=True) == f"{hub.endpoint}/{REPO_ID}/discussions/1"
        assert hub.repositories[REPO_ID].files == {"README.md": b"hello"}
        assert "model_index.json" in hub.repositories[REPO_ID].commits[hub.repositories[REPO_ID].refs["refs/pr/1"]]

    @pytest.mark.parametrize("options", [{"tag": "v1"}, {"revision": "trial"}])
    def test_pull_request_has_no_branch_or_tag(self, hub, folder, options):
        with pytest.raises(ValueError, match="leave out --revision and --tag"):
            push_pipeline(folder, REPO_ID, create_pr=True, **options)

    def test_nothing_is_asked_of_the_hub_for_a_folder_without_a_pipeline(self, hub, tmp_path):
        with pytest.raises(OSError, match=r"no model_index\.json"):
            push_pipeline(tmp_path, REPO_ID)
        assert hub.requests == []

    def test_native_save_of_our_pipeline(self, hub, tmp_path):
        FashionMNISTPipeline(get_unet(), DDPMScheduler()).save_pretrained(tmp_path / "native")
        push_pipeline(tmp_path / "native", REPO_ID)
        index = json.loads(hub.repositories[REPO_ID].files["model_index.json"])
        assert index["_class_name"] == "DDPMPipeline"

    def test_a_scheduler_to_sample_with_is_pushed_as_that_of_the_training(self, hub, folder, tmp_path):
        load_pipeline(folder).save_pretrained(tmp_path / "native")
        push_pipeline(tmp_path / "native", REPO_ID)
        files = hub.repositories[REPO_ID].files
        assert json.loads(files["model_index.json"])["scheduler"] == ["diffusers", "DDPMScheduler"]
        config, trained = (
            DDPMScheduler.from_config(json.loads(text)).config
            for text in (
                files["scheduler/scheduler_config.json"],
                (folder / "scheduler" / "scheduler_config.json").read_text(),
            )
        )
        assert config == trained

    def test_schedulers_of_other_models_are_refused(self, hub, tmp_path):
        FashionMNISTPipeline(get_unet(), FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "native")
        with pytest.raises(TypeError, match="must be a DDPMScheduler"):
            push_pipeline(tmp_path / "native", REPO_ID)


class TestTrouble:
    def test_without_a_token(self, hub, folder, monkeypatch):
        monkeypatch.setattr(publish, "get_token", lambda: None)
        with pytest.raises(PublishError, match="you are not logged in to the Hub: run `hf auth login`"):
            push_pipeline(folder, REPO_ID)
        assert hub.requests == []

    @pytest.mark.parametrize(
        ("token", "words"),
        [("hf_wrong", "does not accept your token"), ("hf_other", "your token may not write to someone/tiny")],
    )
    def test_wrong_token(self, hub, folder, token, words):
        with pytest.raises(PublishError, match=words):
            push_pipeline(folder, REPO_ID, token=token)
        assert hub.repositories == {}

    def test_somebody_elses_private_repository(self, hub, folder):
        push_pipeline(folder, REPO_ID, private=True)
        with pytest.raises(PublishError, match="give a --repo-id of your own"):
            push_pipeline(folder, REPO_ID, token="hf_other")

    @pytest.mark.parametrize("status", [409, 412, 429, 500, 503, None])
    @pytest.mark.parametrize("part", ["/commit/", "/create", "/validate-yaml", "/preupload/"])
    def test_what_passes_is_tried_again(self, hub, folder, status, part):
        if status == 409 and part == "/create":
            pytest.skip("means that the repository exists")
        hub.faults = [Fault("POST", part, status)]
        push_pipeline(folder, REPO_ID)
        assert "model_index.json" in hub.repositories[REPO_ID].files

    @pytest.mark.parametrize("part", ["/commit/", "/lfs/"])
    def test_an_answer_that_is_lost(self, hub, folder, part):
        """The Hub has done what was asked, but the client does not hear of it."""
        hub.faults = [Fault("PUT" if part == "/lfs/" else "POST", part, after=True)]
        push_pipeline(folder, REPO_ID)
        repository = hub.repositories[REPO_ID]
        assert "model_index.json" in repository.files
        assert len(repository.commits) == 2

    def test_a_lost_answer_does_not_make_two_pull_requests(self, hub, folder):
        hub.repositories[REPO_ID] = Repository()
        hub.repositories[REPO_ID].commit({})
        hub.faults = [Fault("POST", "/commit/", after=True)]
        with pytest.raises(PublishError, match="could not be reached"):
            push_pipeline(folder, REPO_ID, create_pr=True)
        assert [ref for ref in hub.repositories[REPO_ID].refs if ref.startswith("refs/pr")] == ["refs/pr/1"]

    @pytest.mark.parametrize(
        ("status", "words"),
        [
            (409, "somebody else is writing to someone/tiny: run the same command again"),
            (503, "the Hub has trouble .HTTP 503.: run the same command again later"),
            (None, "the Hub could not be reached .*: run the same command again"),
            (400, "the Hub refused someone/tiny .*a fault of the test.*: check --repo-id"),
        ],
    )
    def test_what_does_not_pass(self, hub, folder, status, words):
        before = contents(folder)
        hub.faults = [Fault("POST", "/commit/", status, times=99)]
        with pytest.raises(PublishError, match=words):
            push_pipeline(folder, REPO_ID)
        assert contents(folder) == before
        hub.faults = []
        push_pipeline(folder, REPO_ID)
        assert "model_index.json" in hub.repositories[REPO_ID].files

    def test_nobody_listens(self, hub, folder, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(PublishError, match=r"could not be reached \(.*refused.*\)"):
            push_pipeline(folder, REPO_ID)

    @pytest.mark.parametrize("error", [ConnectionError("cut"), TimeoutError("slow"), RuntimeError("data processing")])
    def test_of_xet(self, hub, folder, monkeypatch, error):
        """What uploads through it raise where the Hub is away."""

        def upload_folder(*args, **kwargs):
            raise error

        monkeypatch.setattr(publish.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(publish.HfApi, "upload_folder", upload_folder)
        with pytest.raises(PublishError, match=rf"could not be reached \({error}\): run the same command again"):
            push_pipeline(folder, REPO_ID)

    def test_offline(self, hub, folder, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set"):
            push_pipeline(folder, REPO_ID)


class TestCard:
    def card(self, folder, tmp_path, license=None) -> ModelCard:
        make_repository(folder, REPO_ID, tmp_path / "repository", license)
        return ModelCard.load(tmp_path / "repository" / "README.md")

    @pytest.mark.parametrize("license", [None, "cc-by-4.0"])
    def test_licence_of_a_model_of_other_pictures(self, folder, tmp_path, license):
        config = json.loads((folder / "train_config.json").read_text())
        config["data"]["dataset_name"] = "me/own"
        (folder / "train_config.json").write_text(json.dumps(config))
        card = self.card(folder, tmp_path, license)
        assert card.data.get("license") == license
        assert (
            f"the weights are under `{license}`" if license else "for the weights no licence is named"
        ) in card.text

    def test_metadata(self, folder, tmp_path):
        card = self.card(folder, tmp_path)
        data = card.data
        assert data.license == "mit"
        assert "and so are the weights" in card.text
        assert data.library_name == "diffusers"
        assert data.pipeline_tag == "unconditional-image-generation"
        assert data.datasets == ["zalando-datasets/fashion_mnist"]
        assert data.widget == [{"text": "samples", "output": {"url": "images/samples.png"}}]
        results = {result.metric_type: result for result in data.eval_results}
        assert set(results) == set(data.metrics) == {"fid", "precision", "accuracy"}
        assert results["fid"].metric_value == 4.25
        assert results["fid"].metric_name == "FID against the training images (12,345 samples)"
        assert results["fid"].dataset_type == "zalando-datasets/fashion_mnist"

    def test_text(self, folder, tmp_path):
        text = self.card(folder, tmp_path).text
        for part in (
            "![Pictures that the model drew](images/samples.png)",
            "<Gallery />",
            f'DiffusionPipeline.from_pretrained("{REPO_ID}", trust_remote_code=True)',
            f'load_pipeline("{REPO_ID}")',
            'class_labels="Ankle boot"',
            "| `optimizer.learning_rate` | 0.0001 |",
            "| `block_out_channels` | 8, 16 |",
            "12,345 samples with each of 2 seeds (means), drawn by DDPMScheduler in 18 steps with guidance scale 1.5",
            "| FID against the training images | 4.25 | 2.5 |",
            "as the papers do",
        ):
            assert part in text
        assert "{{" not in text and "{%" not in text

    def test_of_little(self, tmp_path):
        """A pipeline without classes, training settings, measurements or pictures."""
        export_pipeline(get_unet(), DDPMScheduler(), tmp_path / "pipeline")
        card = self.card(tmp_path / "pipeline", tmp_path)
        assert card.data.datasets is card.data.eval_results is card.data.get("widget") is None
        assert "Not measured yet" in card.text
        assert "does not say how the model was trained" in card.text
        assert "class_labels" not in card.text and "<Gallery" not in card.text and "zalando" not in card.text

    def test_of_other_images(self, tmp_path):
        config = {"data": {"dataset_name": "zalando-datasets/fashion_mnist", "train_data_dir": "my-images"}}
        export_pipeline(get_unet(), DDPMScheduler(), tmp_path / "pipeline", train_config=config)
        card = self.card(tmp_path / "pipeline", tmp_path)
        assert card.data.datasets is None
        assert "fashion-mnist" not in card.data.tags

    def test_tells_nothing_of_this_machine(self, folder, tmp_path):
        make_repository(folder, REPO_ID, tmp_path / "repository")
        for content in contents(tmp_path / "repository").values():
            assert str(tmp_path).encode() not in content
            assert str(Path.home()).encode() + b"/" not in content

    def test_of_the_bundled_checkpoint(self, tmp_path):
        card = self.card(PRETRAINED_DIR / "spec", tmp_path)
        assert card_problems(str(card), "model") == []
        assert "13,246,913 parameters, in float16" in card.text
        assert "--data.train_data_dir=path/to/images\n```" in card.text

    def test_its_command_knows_every_setting_of_the_schedule(self):
        assert tuple(field.name for field in dataclasses.fields(SchedulerConfig)) == SCHEDULE

    @pytest.mark.parametrize("with_settings", [True, False])
    def test_fine_tuning_by_the_card_goes_on_with_the_noise_schedule(self, tmp_path, with_settings):
        folder = PRETRAINED_DIR / "base"
        if not with_settings:
            folder = tmp_path / "saved"
            load_pipeline("base", scheduler=None).save_pretrained(folder)
        text = self.card(folder, tmp_path / "repository").text
        command = text.partition("accelerate launch training/train.py")[2].partition("```")[0]
        config = parse_config(command.replace("\\\n", " ").split())
        assert config.init_from == REPO_ID
        pretrained = load_pipeline("base", scheduler=None)
        check_fine_tuning(
            config, pretrained.unet.config, make_scheduler(config.scheduler), pretrained.scheduler.config
        )


class TestSpace:
    @pytest.fixture(autouse=True)
    def model(self, hub):
        hub.repositories[REPO_ID] = Repository()
        hub.repositories[REPO_ID].commit({"model_index.json": b"{}"})

    def test_push(self, hub):
        assert push_space("demo", "tiny") == f"{hub.endpoint}/spaces/someone/demo"
        space = hub.repositories["spaces/someone/demo"]
        assert space.variables == {"MODEL_ID": REPO_ID}
        card = yaml.safe_load(space.files["README.md"].decode().split("---\n")[1])
        assert card["models"] == [REPO_ID]
        assert card["sdk_version"] == importlib.metadata.version("gradio")
        source = publish.PACKAGE_DIR
        for path in ("publish.py", "models/unet_fmnist.py"):
            assert space.files[f"fmnist_diffusion/{path}"] == (source / path).read_bytes()
        assert {"app.py", "generation.py", "style.css", "requirements.txt", "examples/7-sneaker.png"} <= set(
            space.files
        )
        assert not [path for path in space.files if "pretrained" in path or "evaluation" in path or "pyc" in path]

    def test_again_makes_no_commit(self, hub):
        push_space("demo", REPO_ID)
        commits = dict(hub.repositories["spaces/someone/demo"].commits)
        push_space("demo", REPO_ID)
        assert hub.repositories["spaces/someone/demo"].commits == commits

    def test_a_model_that_the_space_could_not_read(self, hub):
        with pytest.raises(PublishError, match="someone/missing is not there"):
            push_space("demo", "missing")
        hub.repositories[REPO_ID].private = True
        with pytest.raises(PublishError, match="someone/tiny is private, and the Space could not read it"):
            push_space("demo", REPO_ID)
        assert list(hub.repositories) == [REPO_ID]

    def test_what_is_pushed_runs_without_the_package(self, tmp_path, folder):
        """Up to its first picture, in a process where the Space's own copy of the source is all there is."""
        make_space(REPO_ID, tmp_path / "space")
        code = "import app, fmnist_diffusion; print(len(app.App(sys.argv[1]).shown.images), fmnist_diffusion.__file__)"
        result = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); {code}", str(folder)],
            cwd=tmp_path / "space",
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.split() == ["10", str(tmp_path / "space" / "fmnist_diffusion" / "__init__.py")]

    def test_trouble_is_said(self, hub):
        hub.faults = [Fault("POST", "/variables", 403, times=9)]
        with pytest.raises(PublishError, match="your token may not write to someone/demo"):
            push_space("someone/demo", REPO_ID)


class TestCommand:
    def test_push_space(self, hub, folder, capsys):
        push_pipeline(folder, REPO_ID)
        main(["push-space", "--repo-id", "demo", "--model", REPO_ID])
        assert capsys.readouterr().out == f"The demo is at {hub.endpoint}/spaces/someone/demo\n"

    def test_push(self, hub, folder, capsys):
        main(["push", str(folder), "--repo-id", REPO_ID, "--tag", "v1.0", "--private"])
        assert capsys.readouterr().out == f"The pipeline is at {hub.endpoint}/{REPO_ID}\n"
        assert hub.repositories[REPO_ID].private
        assert hub.repositories[REPO_ID].tags == {"v1.0"}

    def test_of_no_folder(self, hub, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(["push", "nowhere", "--repo-id", REPO_ID])
        assert stopped.value.code == 2
        assert "nowhere is no folder" in capsys.readouterr().err

    def test_trouble_is_one_line(self, hub, folder):
        """In a process of its own, as people run it."""
        hub.faults = [Fault("POST", "/create", 403, times=9)]
        code = "from fmnist_diffusion.cli import main; main()"
        command = [sys.executable, "-c", code, "push", str(folder), "--repo-id", REPO_ID]
        env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_someone", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.splitlines()[-1].startswith("fmnist-diffusion: error: your token may not write to")
        assert len(result.stderr.splitlines()) == 1


def test_command_line_of_huggingface_hub_sees_the_same(hub, folder, tmp_path):
    push_pipeline(folder, REPO_ID, tag="v1.0")
    command = [Path(sys.executable).with_name("hf"), "download", REPO_ID, "--revision", "v1.0"]
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    env |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    command += ["--local-dir", str(tmp_path / "copy")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert load_pipeline(tmp_path / "copy").label_names[-1] == "Ankle boot"
