"""Export, and loading in every way that `diffusers` offers, with the package and without it."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    PNDMScheduler,
)
from torch.testing import assert_close

import fmnist_diffusion
from fmnist_diffusion import (
    FashionMNISTPipeline,
    FashionMNISTUNet2DModel,
    SDEDPMSolverScheduler,
    export_pipeline,
    load_pipeline,
)
from fmnist_diffusion import hub as hub_module
from fmnist_diffusion.models import unet_fmnist
from fmnist_diffusion.pipelines import pipeline_fmnist
from fmnist_diffusion.publish import push_pipeline


REPO_ID = "someone/tiny"

# Runs the code in `sys.argv[1]` where `import fmnist_diffusion` fails, installed or not.
WITHOUT_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "fmnist_diffusion":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
exec(sys.argv[1])
"""


def get_unet(num_class_embeds: int | None = 10, seed: int = 0) -> FashionMNISTUNet2DModel:
    torch.manual_seed(seed)
    return FashionMNISTUNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_type="group",
        norm_num_groups=4,
        attention_head_dim=8,
        time_embedding_dim=16,
        num_class_embeds=num_class_embeds,
    ).eval()


def draw(pipe: DiffusionPipeline, **kwargs) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    output = pipe(num_inference_steps=2, generator=torch.manual_seed(0), output_type="np", **kwargs)
    return torch.from_numpy(output.images)


def run_python(code: str, package: bool, home: Path, **environment: str) -> str:
    """Runs `code` in a new Python whose caches are below `home`, and returns what it prints."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    env |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", **environment}
    if package:
        env["PYTHONPATH"] = str(Path(fmnist_diffusion.__file__).parents[1])
        command = [sys.executable, "-c", textwrap.dedent(code)]
    else:
        command = [sys.executable, "-I", "-c", WITHOUT_PACKAGE, textwrap.dedent(code)]
    home.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(autouse=True)
def dynamic_modules(tmp_path, monkeypatch):
    """Keeps the copies that `trust_remote_code=True` makes out of the user's cache."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers_modules"]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path):
    export_pipeline(get_unet(), DDPMScheduler(), tmp_path / "export", train_config={"num_epochs": 1})
    return tmp_path / "export"


class TestExportPipeline:
    def test_layout(self, folder):
        assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
            "model_index.json",
            "pipeline_fmnist.py",
            "scheduler/scheduler_config.json",
            "train_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/fmnist_diffusion.models.unet_fmnist.py",
        }
        index = json.loads((folder / "model_index.json").read_text())
        assert index["_class_name"] == "DDPMPipeline"
        assert index["unet"] == ["fmnist_diffusion.models.unet_fmnist", "FashionMNISTUNet2DModel"]
        assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
        assert json.loads((folder / "train_config.json").read_text()) == {"num_epochs": 1}
        model_copy = folder / "unet" / "fmnist_diffusion.models.unet_fmnist.py"
        assert model_copy.read_bytes() == Path(unet_fmnist.__file__).read_bytes()
        assert (folder / "pipeline_fmnist.py").read_bytes() == Path(pipeline_fmnist.__file__).read_bytes()

    def test_ddim(self, tmp_path):
        export_pipeline(get_unet(), DDIMScheduler(), tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "DDIMPipeline"
        assert not (tmp_path / "train_config.json").exists()

    def test_of_a_loaded_model_does_not_tell_its_path(self, folder, tmp_path):
        pipe = load_pipeline(folder, scheduler=None)
        export_pipeline(pipe.unet, pipe.scheduler, tmp_path / "again")
        for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
            assert (tmp_path / "again" / name).read_text() == (folder / name).read_text()
            assert str(tmp_path) not in (tmp_path / "again" / name).read_text()

    def test_keeps_dtype(self, tmp_path):
        export_pipeline(get_unet().to(torch.float16), DDPMScheduler(), tmp_path / "half")
        export_pipeline(get_unet(), DDPMScheduler(), tmp_path / "full")
        half, full = (
            (tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
            for name in ("half", "full")
        )
        assert half < 0.6 * full

    def test_refuses_a_dynamically_loaded_model(self, folder, tmp_path):
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        with pytest.raises(TypeError, match="load_pipeline"):
            export_pipeline(pipe.unet, pipe.scheduler, tmp_path / "again")

    def test_refuses_other_schedulers(self, tmp_path):
        with pytest.raises(TypeError, match=r"PNDMScheduler.*DDPMScheduler or a DDIMScheduler"):
            export_pipeline(get_unet(), PNDMScheduler(), tmp_path)  # type: ignore[arg-type]


class TestLocalFolder:
    def test_load_pipeline(self, folder):
        pipe = load_pipeline(folder, scheduler=None)
        assert type(pipe) is FashionMNISTPipeline
        assert type(pipe.unet) is FashionMNISTUNet2DModel
        assert not pipe.unet.training
        expected = FashionMNISTPipeline(get_unet(), DDPMScheduler())
        assert_close(draw(pipe, class_labels="bag"), draw(expected, class_labels="bag"))
        assert load_pipeline(str(folder), dtype=torch.float16).unet.dtype == torch.float16

    def test_load_pipeline_samples_with_the_scheduler_that_is_asked_for(self, folder):
        stored = load_pipeline(folder, scheduler=None).scheduler
        assert type(load_pipeline(folder).scheduler) is SDEDPMSolverScheduler
        asked = load_pipeline(folder, scheduler="DDIMScheduler").scheduler
        assert type(asked) is DDIMScheduler
        assert torch.equal(asked.betas, stored.betas)
        with pytest.raises(ValueError, match="no scheduler 'ddim'"):
            load_pipeline(folder, scheduler="ddim")

    def test_load_pipeline_of_a_native_save(self, tmp_path):
        DDPMPipeline(get_unet(), DDPMScheduler()).save_pretrained(tmp_path / "stock")  # type: ignore[arg-type]
        FashionMNISTPipeline(get_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ours")
        for name in ("stock", "ours"):
            assert type(load_pipeline(tmp_path / name)) is FashionMNISTPipeline

    def test_a_save_with_the_default_sampler_loads_in_another_process(self, folder, tmp_path):
        load_pipeline(folder).save_pretrained(tmp_path / "saved")
        code = f"""
            from fmnist_diffusion import FashionMNISTPipeline
            print(type(FashionMNISTPipeline.from_pretrained({str(tmp_path / "saved")!r}).scheduler).__name__)
        """
        assert run_python(code, package=True, home=tmp_path / "home").strip() == "SDEDPMSolverScheduler"

    def test_an_error_of_the_machine_is_told_as_it_is(self, monkeypatch):
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(hub_module, "_load", full)
        with pytest.raises(OSError, match="No space left on device"):
            load_pipeline(REPO_ID)

    def test_load_pipeline_of_a_variant(self, tmp_path):
        DDPMPipeline(get_unet(), DDPMScheduler()).save_pretrained(tmp_path, variant="fp16")  # type: ignore[arg-type]
        load_pipeline(tmp_path, variant="fp16")
        with pytest.raises(OSError, match="diffusion_pytorch_model"):
            load_pipeline(tmp_path)

    def test_load_pipeline_by_bundled_name(self, folder, monkeypatch):
        monkeypatch.setattr(hub_module, "PRETRAINED_DIR", folder.parent)
        assert fmnist_diffusion.bundled_pipelines() == ("export",)
        with pytest.raises(OSError, match="There is no pipeline 'export'"):
            load_pipeline(Path("export"))
        assert type(load_pipeline("export")) is FashionMNISTPipeline

    @pytest.mark.parametrize("name", ["nothing", "./nothing", "/no/such/folder", "a/b/c"])
    def test_load_pipeline_of_nothing(self, name):
        with pytest.raises(OSError, match=f"There is no pipeline '{name}': give a bundled one"):
            load_pipeline(name)

    def test_load_pipeline_of_another_folder(self, tmp_path):
        with pytest.raises(OSError, match=r"no model_index\.json"):
            load_pipeline(tmp_path)

    def test_stock_and_ours_with_the_real_class(self, folder):
        unet = FashionMNISTUNet2DModel.from_pretrained(folder, subfolder="unet")
        for pipeline_class in (DDPMPipeline, DDIMPipeline, FashionMNISTPipeline):
            pipe = pipeline_class.from_pretrained(folder, unet=unet)
            assert type(pipe) is pipeline_class
            assert pipe.unet is unet
            assert draw(pipe).shape == (1, 8, 8, 1)

    def test_remote_code(self, folder):
        with pytest.raises(ValueError, match="trust_remote_code"):
            DiffusionPipeline.from_pretrained(folder)
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        assert type(pipe) is DDPMPipeline
        assert type(pipe.unet).__module__.startswith("diffusers_modules")
        assert_close(draw(pipe), draw(DDPMPipeline(get_unet(), DDPMScheduler())))  # type: ignore[arg-type]

    def test_native_save_needs_no_trust(self, tmp_path):
        DDPMPipeline(get_unet(), DDPMScheduler()).save_pretrained(tmp_path)  # type: ignore[arg-type]
        assert type(DiffusionPipeline.from_pretrained(tmp_path).unet) is FashionMNISTUNet2DModel

    def test_auto_model(self, folder):
        assert type(AutoModel.from_pretrained(str(folder), subfolder="unet")) is FashionMNISTUNet2DModel


WITHOUT_PACKAGE_CODE = """
from diffusers import DiffusionPipeline

def refused(source):
    try:
        DiffusionPipeline.from_pretrained(source)
    except ValueError:
        return True
    return False

def load(source, **kwargs):
    pipe = DiffusionPipeline.from_pretrained(source, trust_remote_code=True, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe

try:
    import fmnist_diffusion
except ModuleNotFoundError:
    print("absent")
print(refused({native!r}))
for source in ({folder!r}, {repo_id!r}):
    print(refused(source))
    pipe = load(source)
    print(type(pipe).__name__, pipe(num_inference_steps=2).images[0].mode)
    pipe = load(source, custom_pipeline="pipeline_fmnist")
    images = pipe(class_labels=["Bag", 1], guidance_scale=2.0, num_inference_steps=2).images
    print(type(pipe).__name__, len(images))
print(load({repo_id!r}, revision="v1.0").unet.config.num_class_embeds)
print(load({repo_id!r}, local_files_only=True).unet.config.num_class_embeds)
"""


class TestPushed:
    """Loading from a repository that was pushed twice, in new processes that know nothing but its id."""

    @pytest.fixture
    def hub(self, hub, tmp_path):
        for tag, num_class_embeds in (("v1.0", 4), ("v2.0", 10)):
            export_pipeline(get_unet(num_class_embeds), DDPMScheduler(), tmp_path / tag)
            push_pipeline(tmp_path / tag, REPO_ID, tag=tag)
        return hub

    def test_without_the_package(self, hub, folder, tmp_path):
        native = tmp_path / "native"
        DDPMPipeline(get_unet(), DDPMScheduler()).save_pretrained(native)  # type: ignore[arg-type]
        code = WITHOUT_PACKAGE_CODE.format(native=str(native), folder=str(folder), repo_id=REPO_ID)
        printed = run_python(code, package=False, home=tmp_path / "home", HF_ENDPOINT=hub.endpoint).splitlines()
        loaded = ["True", "DDPMPipeline L", "FashionMNISTPipeline 2"]
        assert printed == ["absent", "True", *loaded, *loaded, "4", "10"]

    def test_with_the_package(self, hub, tmp_path):
        code = f"""
        from diffusers import AutoModel, DDPMPipeline, DiffusionPipeline
        from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, load_pipeline

        def describe(pipe):
            print(type(pipe).__name__, type(pipe.unet) is FashionMNISTUNet2DModel, pipe.unet.config.num_class_embeds)

        describe(load_pipeline({REPO_ID!r}))
        describe(load_pipeline({REPO_ID!r}, revision="v1.0"))
        describe(load_pipeline({REPO_ID!r}, local_files_only=True))
        unet = FashionMNISTUNet2DModel.from_pretrained({REPO_ID!r}, subfolder="unet")
        describe(DDPMPipeline.from_pretrained({REPO_ID!r}, unet=unet))
        describe(FashionMNISTPipeline.from_pretrained({REPO_ID!r}, unet=unet))
        describe(DiffusionPipeline.from_pretrained({REPO_ID!r}, trust_remote_code=True))
        describe(DiffusionPipeline.from_pretrained(
            {REPO_ID!r}, trust_remote_code=True, custom_pipeline="pipeline_fmnist"
        ))
        print(type(AutoModel.from_pretrained({REPO_ID!r}, subfolder="unet")) is FashionMNISTUNet2DModel)
        for name, kwargs in (("someone/else", {{}}), ({REPO_ID!r}, {{"revision": "v9"}})):
            try:
                load_pipeline(name, **kwargs)
            except OSError as error:
                print(error)
        try:
            DiffusionPipeline.from_pretrained({REPO_ID!r})
        except ValueError as error:
            print("trust_remote_code" in str(error))
        """
        printed = run_python(code, package=True, home=tmp_path / "home", HF_ENDPOINT=hub.endpoint).splitlines()
        assert printed[:8] == [
            "FashionMNISTPipeline True 10",
            "FashionMNISTPipeline True 4",
            "FashionMNISTPipeline True 10",
            "DDPMPipeline True 10",
            "FashionMNISTPipeline True 10",
            "DDPMPipeline False 10",
            "FashionMNISTPipeline False 10",
            "True",
        ]
        assert printed[8].startswith("There is no pipeline 'someone/else': give a bundled one")
        assert printed[9].startswith(f"There is no pipeline {REPO_ID!r}: give a bundled one")
        assert printed[10] == "True"


def test_import_is_no_heavier_than_a_model_of_diffusers(tmp_path):
    code = """
    import sys, time
    start = time.perf_counter()
    from diffusers import UNet2DModel
    middle = time.perf_counter()
    before = set(sys.modules)
    import fmnist_diffusion
    print(middle - start, time.perf_counter() - middle)
    print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
    print(fmnist_diffusion.__version__, "fmnist_diffusion.models.unet_fmnist" in sys.modules)
    print(set(fmnist_diffusion.__all__) <= set(dir(fmnist_diffusion)))
    """
    times, modules, version, listed = run_python(code, package=True, home=tmp_path).splitlines()
    of_diffusers, of_ours = map(float, times.split())
    assert of_ours < 0.5 * of_diffusers
    assert not {"datasets", "transformers", "accelerate", "gradio", "matplotlib"} & set(modules.split())
    assert version == f"{fmnist_diffusion.__version__} True"
    assert listed == "True"


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fmnist_diffusion.nothing  # noqa: B018
