"""`load_pipeline`, the Hub, and what `import fmnist_diffusion` imports."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from huggingface_hub import constants, create_repo, hf_hub_download, upload_folder
from torch.testing import assert_close

import fmnist_diffusion
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, bundled_pipelines, load_pipeline, loading
from fmnist_diffusion.loading import get_pipeline_folder, get_short_name
from latent_pipelines import get_latent_pipeline, make_vae
from saved_pipelines import save_pipeline
from subprocesses import run_python
from text_pipelines import CAPTIONS, get_text_pipeline
from tiny_pipelines import get_pipeline, make_classifier, sample


REPO_ID = "someone/tiny"
NOT_FOUND = "Could not find a pipeline at {!r}: pass the name of a bundled checkpoint"


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_pipeline(tmp_path / "saved", num_class_embeds=10)


def load(name_or_path, **kwargs) -> FashionMNISTPipeline:
    pipe = load_pipeline(name_or_path, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TestLocalFolder:
    def test_classes_of_the_package_are_loaded(self, folder):
        for path in (folder, str(folder)):
            pipe = load_pipeline(path)
            assert type(pipe) is FashionMNISTPipeline
            assert type(pipe.unet) is FashionMNISTUNet2DModel
            assert type(pipe.scheduler) is DPMSolverMultistepScheduler
            assert not pipe.unet.training

    @pytest.mark.parametrize("scheduler", ["ddim", "DDIM", "DDIMScheduler", DDIMScheduler])
    def test_scheduler_argument_replaces_the_stored_scheduler(self, folder, scheduler):
        stored = load_pipeline(folder)
        pipe = load_pipeline(folder, scheduler=scheduler)
        assert type(pipe.scheduler) is DDIMScheduler
        assert torch.equal(pipe.scheduler.betas, stored.scheduler.betas)
        assert (stored.config.timestep_power, pipe.config.timestep_power) == (1.5, None)

    def test_scheduler_object_replaces_the_stored_scheduler(self, folder):
        scheduler = DDIMScheduler()
        pipe = load_pipeline(folder, scheduler=scheduler)
        assert pipe.scheduler is scheduler
        assert pipe.config.timestep_power is None
        with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler does not support this model"):
            load_pipeline(folder, scheduler=FlowMatchEulerDiscreteScheduler())()
        with pytest.raises(ValueError, match="`scheduler` must be a name or a class, got an instance of int"):
            load_pipeline(folder, scheduler=3)

    def test_scheduler_object_and_timesteps_can_be_passed_together(self, folder):
        pipe = load_pipeline(folder, scheduler=DPMSolverMultistepScheduler(), timestep_power=1.3)
        assert pipe.config.timestep_power == 1.3

    def test_base_class_is_not_a_scheduler(self, folder):
        with pytest.raises(ValueError, match="Could not find the scheduler 'SchedulerMixin'"):
            load_pipeline(folder, scheduler="SchedulerMixin")

    @pytest.mark.parametrize("scheduler", ["sde-dpmsolver++", DPMSolverMultistepScheduler])
    def test_equal_scheduler_keeps_the_timesteps(self, folder, scheduler):
        assert load_pipeline(folder, scheduler=scheduler).config.timestep_power == 1.5

    def test_unknown_scheduler_is_an_error(self, folder):
        with pytest.raises(ValueError, match=r"Could not find the scheduler 'DDIN': pass one of ddpm, ddim"):
            load_pipeline(folder, scheduler="DDIN")

    @pytest.mark.parametrize("kwargs", [{"dtype": "float16"}, {"torch_dtype": "half"}, {"dtype": {"unet": "float16"}}])
    def test_name_of_a_dtype_is_an_error(self, folder, kwargs):
        with pytest.raises(ValueError, match=r"dtype` must be a `torch.dtype` or a dictionary of dtypes, got '"):
            load_pipeline(folder, **kwargs)

    def test_arguments_are_passed_to_from_pretrained(self, folder):
        pipe = load_pipeline(folder, dtype=torch.float16, num_inference_steps=4, timestep_power=2.0)
        assert pipe.unet.dtype == torch.float16
        assert (pipe.config.num_inference_steps, pipe.config.timestep_power) == (4, 2.0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_auto_dtype_is_measured(self, folder, dtype, monkeypatch):
        monkeypatch.setattr("fmnist_diffusion.sampling.select_dtype", lambda pipe: dtype)
        assert load_pipeline(folder, dtype="auto").unet.dtype == dtype

    @pytest.mark.parametrize("dtype", [{"unet": torch.bfloat16}, {"default": torch.bfloat16}])
    def test_dtype_can_be_given_by_component(self, folder, dtype):
        assert load_pipeline(folder, dtype=dtype, output_loading_info=True).unet.dtype == torch.bfloat16

    def test_stock_pipeline_keeps_its_scheduler(self, tmp_path):
        unet = load_pipeline(save_pipeline(tmp_path / "saved")).unet
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "stock")  # type: ignore[arg-type]
        assert type(load_pipeline(tmp_path / "stock").scheduler) is DDPMScheduler

    def test_missing_variant_is_an_error(self, folder):
        with pytest.raises(OSError, match="diffusion_pytorch_model"):
            load_pipeline(folder, variant="fp16")

    def test_folder_without_a_pipeline_is_an_error(self, tmp_path):
        with pytest.raises(
            OSError, match=r"Could not find a pipeline in the folder .*: it contains no model_index\.json"
        ):
            load_pipeline(tmp_path)
        save_pipeline(tmp_path / "pipeline")
        with pytest.raises(OSError, match=re.escape(f"model_index.json. Pass {tmp_path / 'pipeline'}.")):
            load_pipeline(tmp_path)

    @pytest.mark.parametrize(
        "name", ["nothing", "./nothing", "/no/such/folder", "a/b/c", "~/nothing", "my models/nothing"]
    )
    def test_missing_folder_is_an_error(self, name):
        with pytest.raises(OSError, match=NOT_FOUND.format(name)):
            load_pipeline(name)


def test_bundled_checkpoints_are_loaded_by_name(folder, monkeypatch):
    monkeypatch.setattr(loading, "PRETRAINED_DIR", folder.parent)
    assert bundled_pipelines() == ("saved",)
    assert get_pipeline_folder("saved") == folder
    assert get_pipeline_folder("./saved") == Path("saved")
    assert type(load_pipeline("saved")) is FashionMNISTPipeline
    with pytest.raises(OSError, match=NOT_FOUND.format("saved")):
        load_pipeline(Path("saved"))


class TestHub:
    @pytest.fixture
    def expected(self, folder) -> torch.Tensor:
        return sample(load(folder), "Bag")

    @pytest.fixture
    def repository(self, hub, folder):
        load(folder).push_to_hub(REPO_ID)
        return hub.repositories[REPO_ID]

    def count_downloads(self, hub) -> int:
        return sum(method == "GET" and path.endswith(".safetensors") for method, path in hub.requests)

    def test_push_writes_the_complete_layout(self, repository, folder):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        saved = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        assert repository.files.keys() - saved.keys() == {".gitattributes", "README.md"}
        assert {name: repository.files[name] for name in saved} == saved

    def test_loaded_pipeline_generates_the_same_images(self, repository, expected, diffusers_log):
        for pipe in (load(REPO_ID), FashionMNISTPipeline.from_pretrained(REPO_ID)):
            pipe.set_progress_bar_config(disable=True)
            assert type(pipe.unet) is FashionMNISTUNet2DModel
            assert torch.equal(sample(pipe, "Bag"), expected)
        assert [record.message for record in diffusers_log.records] == []

    def test_pushing_a_loaded_pipeline_uploads_the_same_files(self, repository, hub):
        load(REPO_ID).push_to_hub("someone/copy")
        assert hub.repositories["someone/copy"].files == repository.files

    def test_revision_selects_a_commit(self, repository, hub, tmp_path):
        repository.refs["v1.0"] = repository.refs["main"]
        load(save_pipeline(tmp_path / "other", num_class_embeds=4)).push_to_hub(REPO_ID)
        assert load(REPO_ID).unet.config.num_class_embeds == 4
        assert load(REPO_ID, revision="v1.0").unet.config.num_class_embeds == 10
        assert load(REPO_ID, revision=repository.refs["v1.0"]).unet.config.num_class_embeds == 10
        with pytest.raises(OSError, match=r"someone/tiny has no such revision on the Hub\."):
            load(REPO_ID, revision="v9")

    def test_commit_during_the_download_is_ignored(self, repository, tmp_path, monkeypatch):
        other = save_pipeline(tmp_path / "other", num_class_embeds=4)

        def download_and_commit(repo_id, name, **kwargs):
            path = hf_hub_download(repo_id, name, **kwargs)
            if name.endswith(".safetensors"):
                repository.commit_folder(other)
            return path

        monkeypatch.setattr("fmnist_diffusion.pipelines.download.hf_hub_download", download_and_commit)
        assert load(REPO_ID).unet.config.num_class_embeds == 10
        assert load(REPO_ID).unet.config.num_class_embeds == 4

    def test_local_files_only_makes_no_requests(self, repository, hub, expected):
        with pytest.raises(OSError, match="Could not find someone/tiny with revision main in the cache, and `local"):
            load(REPO_ID, local_files_only=True)
        load(REPO_ID)
        requests = len(hub.requests)
        assert torch.equal(sample(load(REPO_ID, local_files_only=True), "Bag"), expected)
        assert len(hub.requests) == requests

    def test_offline_mode_uses_the_cached_copy(self, repository, hub, expected, monkeypatch):
        load(REPO_ID)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        hub.requests.clear()
        assert torch.equal(sample(load(REPO_ID), "Bag"), expected)
        message = "Could not find someone/other with revision main in the cache, and HF_HUB_OFFLINE is set"
        with pytest.raises(OSError, match=message):
            load("someone/other")
        assert hub.requests == []

    def test_cache_dir_and_force_download_are_respected(self, repository, hub, tmp_path):
        for options, downloads in (({}, 1), ({}, 1), ({"force_download": True}, 2)):
            load(REPO_ID, cache_dir=tmp_path / "elsewhere", **options)
            assert self.count_downloads(hub) == downloads
        assert list((tmp_path / "elsewhere").rglob("*.safetensors"))
        assert not list((tmp_path / "cache").rglob("*.safetensors"))

    def test_private_repository_needs_a_token_with_access(self, repository):
        repository.private = True
        load(REPO_ID, token="hf_someone")
        with pytest.raises(OSError, match="Could not find someone/tiny, or the token cannot access it"):
            load(REPO_ID, token="hf_other", force_download=True)

    def test_variant_is_downloaded(self, repository, folder, hub):
        load(folder, dtype=torch.float16).push_to_hub(REPO_ID, variant="fp16")
        pipe = load(REPO_ID, variant="fp16", dtype=torch.float16)
        assert pipe.unet.dtype == torch.float16
        assert [path for _, path in hub.requests if "resolve" in path and "fp16.safetensors" in path]
        with pytest.raises(OSError, match=r"find unet/diffusion_pytorch_model\.bf16\.safetensors in someone/tiny"):
            load(REPO_ID, variant="bf16")

    def test_device_map_gives_the_same_images(self, repository, expected):
        assert_close(sample(load(REPO_ID, device_map="cpu"), "Bag"), expected, atol=1e-4, rtol=0)

    def test_passed_components_are_not_downloaded(self, repository, folder, hub):
        unet = load(folder).unet
        pipe = FashionMNISTPipeline.from_pretrained(
            REPO_ID, unet=unet, scheduler=DDIMScheduler(), num_inference_steps=5, timestep_power=None
        )
        assert pipe.unet is unet
        assert type(pipe.scheduler) is DDIMScheduler
        assert (pipe.config.num_inference_steps, pipe.config.timestep_power) == (5, None)
        assert self.count_downloads(hub) == 0

    def test_text_pipeline_is_downloaded(self, hub, diffusers_log):
        pipe = get_text_pipeline()
        expected = sample(pipe, prompt=CAPTIONS[0])
        pipe.push_to_hub("someone/text")
        loaded = load("someone/text")
        # Rounding errors depend on the alignment of the loaded weights in memory.
        assert_close(sample(loaded, prompt=CAPTIONS[0]), expected, rtol=0, atol=1e-5)
        assert (sample(loaded, prompt=CAPTIONS[1]) - expected).abs().max() > 0.01
        # Both models are downloaded once, and the second call uses the cache.
        assert self.count_downloads(hub) == 2
        cached = load("someone/text", local_files_only=True)
        assert_close(sample(cached, prompt=CAPTIONS[0]), expected, rtol=0, atol=1e-5)
        assert self.count_downloads(hub) == 2
        assert not diffusers_log.records

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_sharded_weights_are_downloaded(self, hub, tmp_path, variant):
        pipe = get_text_pipeline(in_channels=2, out_channels=2)
        pipe.register_modules(classifier=make_classifier(in_channels=2), vae=make_vae())
        pipe.save_pretrained(tmp_path / "sharded", max_shard_size="2KB", variant=variant)
        create_repo(REPO_ID)
        upload_folder(repo_id=REPO_ID, folder_path=tmp_path / "sharded")
        for options in ({}, {"local_files_only": True}):
            loaded = load(REPO_ID, variant=variant, **options)
            for name in ("unet", "text_encoder", "classifier", "vae"):
                assert len(list((tmp_path / "sharded" / name).glob("*.safetensors"))) > 1
                weights = getattr(loaded, name).state_dict()
                assert all(torch.equal(value, weights[key]) for key, value in getattr(pipe, name).state_dict().items())

    def test_shards_take_precedence(self, repository, tmp_path):
        """A repository can contain a single file of an earlier upload. diffusers also prefers the shards."""
        pipe = get_pipeline(num_class_embeds=4)
        pipe.save_pretrained(tmp_path / "sharded", max_shard_size="2KB")
        upload_folder(repo_id=REPO_ID, folder_path=tmp_path / "sharded")
        assert "unet/diffusion_pytorch_model.safetensors" in repository.files
        for options in ({}, {}, {"local_files_only": True}):
            assert torch.equal(load(REPO_ID, **options).unet.conv_out.weight, pipe.unet.conv_out.weight)

    def test_passed_optional_components_are_not_downloaded(self, hub):
        pipe = get_latent_pipeline()
        pipe.push_to_hub(REPO_ID)
        loaded = load(REPO_ID, vae=pipe.vae, unet=pipe.unet)
        assert loaded.vae is pipe.vae
        assert self.count_downloads(hub) == 0

    def test_missing_repository_is_an_error(self, hub):
        with pytest.raises(OSError, match="Could not find someone/else, or the token cannot access it"):
            load("someone/else")

    def test_operating_system_errors_are_not_hidden(self, repository, monkeypatch):
        def raise_error(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fmnist_diffusion.pipelines.download.hf_hub_download", raise_error)
        with pytest.raises(OSError, match="No space left on device"):
            load(REPO_ID)

    @pytest.mark.slow
    def test_diffusers_loads_the_repository_without_the_package(self, repository, hub, folder, tmp_path):
        repository.refs["v1.0"] = repository.refs["main"]
        load(save_pipeline(tmp_path / "other", num_class_embeds=4)).push_to_hub(REPO_ID)
        code = f"""
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

        def load(**kwargs):
            pipe = DiffusionPipeline.from_pretrained({REPO_ID!r}, trust_remote_code=True, **kwargs)
            pipe.set_progress_bar_config(disable=True)
            images = pipe(3, num_images_per_prompt=2, generator=torch.manual_seed(0)).images
            print(type(pipe).__name__, pipe.unet.config.num_class_embeds, len(images), pipe.num_timesteps)
            return pipe

        try:
            import fmnist_diffusion
        except ModuleNotFoundError:
            print("blocked")
        try:
            DiffusionPipeline.from_pretrained({REPO_ID!r})
        except ValueError as error:
            print("trust_remote_code" in str(error))
        load()
        load(local_files_only=True)
        load(custom_pipeline="pipeline_fmnist")
        load(revision="v1.0", num_inference_steps=3).push_to_hub("someone/copy", token="hf_someone")
        """
        printed = run_python(code, package=False, home=tmp_path / "home", HF_ENDPOINT=hub.endpoint)
        assert printed == ["blocked", "True", *["FashionMNISTPipeline 4 2 20"] * 3, "FashionMNISTPipeline 10 2 3"]
        copy = load("someone/copy")
        assert copy.config.num_inference_steps == 3
        assert torch.equal(sample(copy, num_inference_steps=20), sample(load(folder)))

    @pytest.mark.slow
    def test_another_process_loads_the_repository_with_the_package(self, repository, hub, tmp_path):
        code = f"""
        import torch
        from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
        from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, load_pipeline

        def describe(pipe):
            print(type(pipe).__name__, type(pipe.unet) is FashionMNISTUNet2DModel, type(pipe.scheduler).__name__)

        describe(load_pipeline({REPO_ID!r}))
        describe(FashionMNISTPipeline.from_pretrained({REPO_ID!r}, local_files_only=True))
        describe(DiffusionPipeline.from_pretrained({REPO_ID!r}, trust_remote_code=True))
        unet = FashionMNISTUNet2DModel.from_pretrained({REPO_ID!r}, subfolder="unet")
        scheduler = DDPMScheduler.from_pretrained({REPO_ID!r}, subfolder="scheduler")
        describe(DDPMPipeline(unet, scheduler))
        """
        printed = run_python(code, package=True, home=tmp_path / "home", HF_ENDPOINT=hub.endpoint)
        assert printed == [
            "FashionMNISTPipeline True DPMSolverMultistepScheduler",
            "FashionMNISTPipeline True DPMSolverMultistepScheduler",
            "FashionMNISTPipeline False DPMSolverMultistepScheduler",
            "DDPMPipeline True DDPMScheduler",
        ]


class TestImport:
    @pytest.mark.slow
    def test_import_is_lazy(self, tmp_path):
        code = """
        import sys
        import fmnist_diffusion
        from importlib.util import find_spec
        assert find_spec("fmnist_diffusion.models.unet_fmnist").origin.endswith("unet_fmnist.py")
        print("torch" in sys.modules, "diffusers" in sys.modules, fmnist_diffusion.__version__)
        print(set(fmnist_diffusion.__all__) <= set(dir(fmnist_diffusion)))
        from diffusers import DiffusionPipeline
        before = set(sys.modules)
        from fmnist_diffusion import FashionMNISTUNet2DModel
        print(sys.modules["fmnist_diffusion.models.unet_fmnist"].FashionMNISTUNet2DModel is FashionMNISTUNet2DModel)
        fmnist_diffusion.load_pipeline
        print(*{"datasets", "gradio", "matplotlib", "scipy"} & (sys.modules.keys() - before))
        # This pipeline has no text encoder.
        fmnist_diffusion.load_pipeline("base")
        print("transformers.models.clip.modeling_clip" in sys.modules)
        """
        printed = run_python(code, package=True, home=tmp_path)
        assert printed == [f"False False {fmnist_diffusion.__version__}", "True", "True", "", "False"]

    def test_unknown_attribute_is_an_error(self):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            fmnist_diffusion.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("path", "name"),
    [("output/mine/pipeline", "mine/pipeline"), ("run/best", "run/best"), ("data/shoes", "shoes"), ("/", "")],
)
def test_short_name_of_a_pipeline_contains_the_name_of_the_run(path: str, name: str):
    assert get_short_name(Path(path)) == name
