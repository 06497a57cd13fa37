"""Saving a pipeline and loading it again, with the classes of the package and with those that were saved."""

import copy
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.utils import logging as diffusers_logging
from torch.testing import assert_close

from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel
from fmnist_diffusion.models import unet_fmnist
from fmnist_diffusion.pipelines import pipeline_fmnist
from fmnist_diffusion.sampling import copy_pipeline, make_pipeline
from fmnist_diffusion.schedulers import get_scheduler_class
from latent_pipelines import get_latent_pipeline
from subprocesses import run_python
from text_pipelines import CAPTIONS, get_text_pipeline
from tiny_pipelines import get_pipeline, make_classifier, make_unet, sample


pytestmark = pytest.mark.usefixtures("dynamic_modules")

FILES = {
    "model_index.json",
    "pipeline_fmnist.py",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/unet_fmnist.py",
}


class MarkedPipeline(FashionMNISTPipeline):
    """A pipeline with an additional setting."""

    def __init__(self, unet, scheduler, num_inference_steps=20, timestep_power=None, watermark="none", **components):
        super().__init__(unet, scheduler, num_inference_steps, timestep_power, **components)
        self.register_to_config(watermark=watermark)


class RenamedPipeline(FashionMNISTPipeline):
    """A pipeline whose signature does not list the settings."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def make_default_pipeline(**config) -> FashionMNISTPipeline:
    pipe = make_pipeline(make_unet(**config), DDPMScheduler(), num_inference_steps=3)
    pipe.unet.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_dynamically(folder, **kwargs) -> DiffusionPipeline:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(folder, **kwargs) -> FashionMNISTPipeline:
    pipe = FashionMNISTPipeline.from_pretrained(folder, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_layout(folder: Path) -> None:
    """Checks the files of a saved pipeline, and that they do not contain local paths."""
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == FILES
    index = json.loads((folder / "model_index.json").read_text())
    assert index.pop("_diffusers_version")
    assert index == {
        "_class_name": ["pipeline_fmnist", "FashionMNISTPipeline"],
        "unet": ["unet_fmnist", "FashionMNISTUNet2DModel"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "num_inference_steps": 3,
        "timestep_power": 1.5,
        "auto_map": {"AutoModel": "unet_fmnist.FashionMNISTUNet2DModel"},
    }
    for name, module in (("pipeline_fmnist.py", pipeline_fmnist), ("unet/unet_fmnist.py", unet_fmnist)):
        assert (folder / name).read_bytes() == Path(str(module.__file__)).read_bytes()
    for path in folder.rglob("*.json"):
        assert "_name_or_path" not in path.read_text()
        assert str(folder.parent) not in path.read_text()


@pytest.fixture
def folder(tmp_path) -> Path:
    make_default_pipeline().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def expected() -> torch.Tensor:
    return sample(make_default_pipeline(), "Bag")


class TestRoundTrip:
    def test_round_trips_keep_files_and_images(self, folder, tmp_path, expected, diffusers_log):
        loaders = [load, load_dynamically, load_dynamically, load]
        for i, loader in enumerate(loaders):
            check_layout(folder)
            pipe = loader(folder)
            assert not pipe.unet.training
            assert torch.equal(sample(pipe, "Bag"), expected)
            folder = tmp_path / str(i)
            pipe.save_pretrained(folder)
        check_layout(folder)
        assert [record.message for record in diffusers_log.records] == []

    def test_auto_model_loads_the_unet(self, folder):
        unet = AutoModel.from_pretrained(str(folder), subfolder="unet", trust_remote_code=True)
        expected = load(folder).unet
        assert type(unet).__name__ == "FashionMNISTUNet2DModel" and not unet.training
        assert unet.state_dict().keys() == expected.state_dict().keys()
        assert all(torch.equal(tensor, unet.state_dict()[name]) for name, tensor in expected.state_dict().items())

    @pytest.mark.parametrize("from_package", [False, True])
    def test_unet_can_be_passed_to_from_pretrained(self, folder, from_package, expected, diffusers_log):
        if from_package:
            unet = FashionMNISTUNet2DModel.from_pretrained(folder, subfolder="unet")
        else:
            unet = AutoModel.from_pretrained(str(folder), subfolder="unet", trust_remote_code=True)
        diffusers_log.clear()
        pipe = load_dynamically(folder, unet=unet)
        assert pipe.unet is unet
        assert torch.equal(sample(pipe, "Bag"), expected)
        with pytest.raises(ValueError, match="but should be"):
            load_dynamically(folder, unet=DDPMScheduler())
        # The next load removes the stub of a failed load.
        assert "unet_fmnist" in sys.modules
        load_dynamically(folder)
        assert "unet_fmnist" not in sys.modules
        assert [record.message for record in diffusers_log.records] == []

    def test_subclass_that_is_defined_in_a_script_is_saved_as_its_base_class(self, folder, expected, diffusers_log):
        def make_subclass(base: type) -> type:
            # Python cannot find the source of this class, as in a notebook.
            return type("Custom", (base,), {"__module__": "__main__"})

        unet = make_subclass(FashionMNISTUNet2DModel).from_pretrained(folder, subfolder="unet")
        pipe = make_subclass(FashionMNISTPipeline).from_pretrained(folder, unet=unet)
        pipe.save_pretrained(folder)
        check_layout(folder)
        assert [record.message for record in diffusers_log.records] == [
            f"The saved pipeline contains {name} instead of Custom, which is defined in a notebook or a script. To"
            " save Custom, define it in a module."
            for name in ("FashionMNISTPipeline", "FashionMNISTUNet2DModel")
        ]
        for loader in (load, load_dynamically):
            assert torch.equal(sample(loader(folder), "Bag"), expected)

    def test_subclass_of_a_diffusers_model_is_saved_as_its_base_class(self, tmp_path, diffusers_log):
        custom = type("Custom", (UNet2DModel,), {"__module__": "__main__"})
        unet = custom(
            8,
            1,
            1,
            block_out_channels=(4, 8),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        )
        FashionMNISTPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
        [record] = diffusers_log.records
        assert record.message.startswith("The saved pipeline contains UNet2DModel instead of Custom")
        assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
        pipe = load_dynamically(tmp_path)
        assert type(pipe.unet) is UNet2DModel
        assert sorted(path.name for path in (tmp_path / "unet").iterdir()) == [
            "config.json",
            "diffusion_pytorch_model.safetensors",
        ]

    def test_auto_model_ignores_the_unet_if_there_are_other_models(self, tmp_path):
        pipe = make_default_pipeline()
        pipe.classifier = make_classifier()
        pipe.save_pretrained(tmp_path)
        # AutoModel would load the class of the U-Net from every folder.
        assert "auto_map" not in json.loads((tmp_path / "model_index.json").read_text())

    @pytest.mark.parametrize("name", ["unet", "text_encoder", "vae", "classifier"])
    def test_model_that_diffusers_cannot_save_is_an_error(self, tmp_path, name):
        pipe = get_latent_pipeline() if name == "vae" else get_text_pipeline()
        pipe.classifier = make_classifier()
        pipe.save_pretrained(tmp_path)
        index = (tmp_path / "model_index.json").read_bytes()
        model = getattr(pipe, name)
        setattr(pipe, name, torch.nn.Sequential(model))
        with pytest.raises(ValueError, match=f"`{name}` must be a diffusers or transformers model to be saved"):
            pipe.save_pretrained(tmp_path)
        # The pipeline in the folder is not damaged.
        assert (tmp_path / "model_index.json").read_bytes() == index
        setattr(pipe, name, model)
        pipe.save_pretrained(tmp_path)
        assert (tmp_path / "model_index.json").read_bytes() == index

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_new_weights_replace_those_of_an_earlier_model(self, tmp_path, variant):
        pipe = get_text_pipeline()
        models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
        for max_shard_size in (None, "2KB", None):
            pipe.save_pretrained(tmp_path, max_shard_size=max_shard_size, variant=variant)
            for loader in (load, load_dynamically):
                loaded = loader(tmp_path, variant=variant)
                for name, model in models.items():
                    state = getattr(loaded, name).state_dict()
                    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
            for model in models.values():
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter)

    @pytest.mark.slow
    def test_round_trips_work_without_the_package(self, folder, tmp_path, expected):
        code = f"""
        import numpy as np, torch
        from diffusers import DiffusionPipeline

        source, results = {str(folder)!r}, []
        for i in range(2):
            pipe = DiffusionPipeline.from_pretrained(source, trust_remote_code=True)
            pipe.set_progress_bar_config(disable=True)
            results.append(pipe("Bag", generator=torch.manual_seed(0), output_type="np").images)
            source = f"{tmp_path}/{{i}}"
            pipe.save_pretrained(source)
        np.save("{tmp_path}/images.npy", np.stack(results))
        try:
            import fmnist_diffusion
        except ModuleNotFoundError:
            print("blocked")
        """
        assert run_python(code, package=False, home=tmp_path / "home") == ["blocked"]
        for images in np.load(tmp_path / "images.npy"):
            assert_close(torch.from_numpy(images).permute(0, 3, 1, 2), expected, atol=1e-4, rtol=0)
        for name in ("0", "1"):
            check_layout(tmp_path / name)
            assert torch.equal(sample(load(tmp_path / name), "Bag"), expected)

    def test_pipeline_can_be_saved_over_itself(self, folder, expected):
        for loader in (load, load_dynamically):
            loader(folder).save_pretrained(folder)
            check_layout(folder)
        assert torch.equal(sample(load(folder), "Bag"), expected)

    @pytest.mark.parametrize("loader", [load, load_dynamically])
    def test_replaced_scheduler_is_saved(self, folder, tmp_path, loader):
        pipe = loader(folder)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        expected = sample(pipe)
        pipe.save_pretrained(tmp_path / "ddim")
        for again in (load(tmp_path / "ddim"), load_dynamically(tmp_path / "ddim")):
            assert type(again.scheduler) is DDIMScheduler
            assert torch.equal(sample(again), expected)

    def test_settings_of_a_subclass_are_saved_and_loaded(self, folder, tmp_path, diffusers_log):
        pipe = MarkedPipeline.from_pretrained(folder, watermark="first")
        assert pipe.config.watermark == "first"
        pipe.save_pretrained(tmp_path)
        assert MarkedPipeline.from_pretrained(tmp_path).config.watermark == "first"
        assert MarkedPipeline.from_pretrained(tmp_path, watermark="second").config.watermark == "second"
        assert copy_pipeline(pipe).config.watermark == "first"
        assert not diffusers_log.records
        MarkedPipeline.from_pretrained(tmp_path, other=1)
        assert "other are not expected by MarkedPipeline and will be ignored" in diffusers_log.records[0].message

    def test_subclass_without_named_arguments_is_loaded(self, folder):
        pipe = RenamedPipeline.from_pretrained(folder, num_inference_steps=7)
        for other in (pipe, copy_pipeline(pipe)):
            assert (other.config.num_inference_steps, other.config.timestep_power) == (7, 1.5)

    def test_variant_is_saved_and_loaded(self, folder, tmp_path):
        half = load(folder, dtype=torch.float16)
        half.save_pretrained(tmp_path / "half", variant="fp16")
        for loader in (load, load_dynamically):
            with pytest.raises(OSError, match="diffusion_pytorch_model"):
                loader(tmp_path / "half")
            pipe = loader(tmp_path / "half", variant="fp16", dtype=torch.float16)
            assert pipe.unet.dtype == torch.float16
            assert torch.equal(sample(pipe), sample(half))

    @pytest.mark.parametrize("variant", [None, "ema"])
    def test_sharded_weights_are_loaded(self, tmp_path, variant):
        pipe = make_default_pipeline(block_out_channels=(64, 128))
        expected = sample(pipe, "Bag")
        pipe.save_pretrained(tmp_path, variant=variant, max_shard_size="1MB")
        assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
        for loader in (load, load_dynamically):
            assert torch.equal(sample(loader(tmp_path, variant=variant), "Bag"), expected)

    def test_fused_projections_are_saved_and_loaded(self, tmp_path):
        pipe = make_default_pipeline()
        expected = sample(pipe, "Bag")
        pipe.unet.fuse_qkv_projections()
        pipe.save_pretrained(tmp_path)
        for loader in (load, load_dynamically):
            assert torch.equal(sample(loader(tmp_path), "Bag"), expected)

    def test_component_that_is_assigned_later_is_saved(self, tmp_path):
        pipe, classifier = make_default_pipeline(), make_classifier()
        pipe.classifier = classifier
        pipe.classifier = None
        pipe.save_pretrained(tmp_path / "without")
        assert load(tmp_path / "without").classifier is None
        pipe.classifier = classifier
        pipe.save_pretrained(tmp_path / "with")
        for loader in (load, load_dynamically):
            weights = loader(tmp_path / "with").classifier.state_dict()
            assert_close(weights, dict(classifier.state_dict()), atol=0, rtol=0)

    def test_model_in_training_mode_is_loaded_in_evaluation_mode(self, tmp_path, expected):
        pipe = make_default_pipeline()
        pipe.unet.train()
        pipe.save_pretrained(tmp_path)
        assert torch.equal(sample(load(tmp_path), "Bag"), expected)

    def test_compiled_model_is_saved_like_any_other(self, tmp_path, expected):
        pipe = make_default_pipeline()
        pipe.unet = torch.compile(pipe.unet, backend="eager")
        pipe.save_pretrained(tmp_path / "compiled")
        check_layout(tmp_path / "compiled")
        assert torch.equal(sample(load(tmp_path / "compiled"), "Bag"), expected)


class TestFromPretrained:
    def test_classes_of_the_package_are_loaded(self, folder):
        for path in (folder, str(folder)):
            pipe = load(path)
            assert type(pipe) is FashionMNISTPipeline
            assert type(pipe.unet) is FashionMNISTUNet2DModel
            assert type(pipe.scheduler) is DPMSolverMultistepScheduler

    @pytest.mark.parametrize("loader", [load, load_dynamically])
    def test_options_replace_the_stored_ones(self, folder, loader):
        scheduler = DDIMScheduler()
        pipe = loader(folder, scheduler=scheduler, num_inference_steps=5, timestep_power=None)
        assert pipe.scheduler is scheduler
        assert (pipe.config.num_inference_steps, pipe.config.timestep_power) == (5, None)

    @pytest.mark.parametrize("name", ["unet", "text_encoder", "tokenizer", "classifier", "vae"])
    @pytest.mark.parametrize("loader", [load, load_dynamically])
    def test_passed_component_is_used(self, tmp_path, loader, name):
        pipe = {
            "classifier": lambda: get_pipeline(classifier=make_classifier()),
            "vae": lambda: get_latent_pipeline(num_class_embeds=None),
        }.get(name, get_text_pipeline)()
        pipe.save_pretrained(tmp_path)
        component = copy.deepcopy(getattr(pipe, name))
        assert getattr(loader(tmp_path, **{name: component}), name) is component
        assert getattr(loader(tmp_path), name) not in (component, None)

    @pytest.mark.parametrize("loader", [load, load_dynamically])
    def test_optional_component_can_be_omitted(self, tmp_path, loader):
        get_pipeline(classifier=make_classifier()).save_pretrained(tmp_path)
        pipe = loader(tmp_path, classifier=None)
        assert pipe.classifier is None
        assert_close(sample(pipe, "Bag"), sample(get_pipeline(), "Bag"))

    @pytest.mark.parametrize("loader", [load, load_dynamically])
    def test_text_encoder_can_be_omitted(self, tmp_path, loader):
        pipe = get_text_pipeline()
        pipe.save_pretrained(tmp_path)
        prompt_embeds, _ = pipe.encode_prompt(CAPTIONS[0])
        expected = sample(pipe, prompt=CAPTIONS[0])
        for folder in (tmp_path, tmp_path / "again"):
            without = loader(folder, text_encoder=None, tokenizer=None)
            assert without.text_encoder is None
            assert_close(sample(without, prompt_embeds=prompt_embeds), expected, rtol=0, atol=1e-5)
            without.save_pretrained(tmp_path / "again")
        assert not (tmp_path / "again" / "text_encoder").exists()

    def test_tokenizer_is_not_loaded_without_text_encoder(self, tmp_path):
        get_text_pipeline().save_pretrained(tmp_path)
        assert load(tmp_path, text_encoder=None).tokenizer is None

    @pytest.mark.parametrize("name", ["unet", "text_encoder", "classifier", "vae"])
    @pytest.mark.parametrize("component", ["x", torch.nn.DataParallel(torch.nn.Linear(1, 1))], ids=["str", "wrapped"])
    def test_component_that_is_not_a_model_is_an_error(self, folder, name, component):
        got = type(component).__name__
        with pytest.raises(ValueError, match=f"`{name}` must be a model with a `config`, got {got}"):
            load(folder, **{name: component})

    def test_two_dtypes_are_an_error(self, folder):
        with pytest.raises(ValueError, match="Cannot use both `dtype` and `torch_dtype`"):
            load(folder, dtype=torch.float32, torch_dtype=torch.float16)

    @pytest.mark.parametrize("loader", [load, load_dynamically])
    @pytest.mark.parametrize("name", ["ddpm", "DDPMParallelScheduler", "ddim", "unipc", "euler", "LCMScheduler"])
    def test_scheduler_made_from_the_stored_one_is_loaded(self, folder, tmp_path, loader, name):
        scheduler_class, _ = get_scheduler_class(name)
        pipe = load(folder)
        pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
        pipe.save_pretrained(tmp_path / "again")
        again = loader(tmp_path / "again")
        assert type(again.scheduler) is scheduler_class
        assert_close(sample(again, "Bag"), sample(pipe, "Bag"), rtol=0, atol=1e-5)

    def test_verbosity_of_diffusers_applies(self, folder, diffusers_log):
        diffusers_logging.set_verbosity_error()
        try:
            load(folder, unexpected=1)
        finally:
            diffusers_logging.set_verbosity_warning()
        assert not diffusers_log.records
        load(folder, unexpected=1)
        assert [record.levelname for record in diffusers_log.records] == ["WARNING"]

    @pytest.mark.parametrize("scheduler", [DDIMScheduler, "ddim"], ids=str)
    def test_scheduler_that_is_not_an_object_is_an_error(self, folder, scheduler):
        with pytest.raises(ValueError, match=r"`scheduler` must be a scheduler object, got .*ddim"):
            load(folder, scheduler=scheduler)

    @pytest.mark.parametrize("method", ["from_pretrained", "from_pipe"])
    def test_passed_scheduler_behaves_like_an_assigned_one(self, folder, method):
        def replace_scheduler(scheduler: SchedulerMixin, **kwargs) -> FashionMNISTPipeline:
            if method == "from_pretrained":
                return load(folder, scheduler=scheduler, **kwargs)
            pipe = FashionMNISTPipeline.from_pipe(load(folder), scheduler=scheduler, **kwargs)
            pipe.set_progress_bar_config(disable=True)
            return pipe

        pipe = load(folder)
        config = pipe.scheduler.config
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
        passed = replace_scheduler(DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++"))
        assert passed.config.timestep_power is None
        assert torch.equal(sample(passed, "Bag"), sample(pipe, "Bag"))
        same = replace_scheduler(DPMSolverMultistepScheduler.from_config(config))
        assert same.config.timestep_power == 1.5
        assert replace_scheduler(DDIMScheduler(), timestep_power=1.1).config.timestep_power == 1.1
        with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler does not support this model"):
            replace_scheduler(FlowMatchEulerDiscreteScheduler())("Bag")

    def test_passed_scheduler_replaces_a_damaged_one(self, folder):
        (folder / "scheduler" / "scheduler_config.json").write_text("{")
        with pytest.raises(OSError, match=r"scheduler_config\.json"):
            load(folder)
        pipe = load(folder, scheduler=DPMSolverMultistepScheduler())
        assert type(pipe.scheduler) is DPMSolverMultistepScheduler
        assert pipe.config.timestep_power is None

    def test_passed_scheduler_belongs_to_a_passed_model(self, folder):
        model = make_default_pipeline().unet
        pipe = load(folder, unet=model, scheduler=FlowMatchEulerDiscreteScheduler())
        assert FashionMNISTPipeline.from_pipe(pipe, unet=model, scheduler=DDIMScheduler())("Bag").images
        assert pipe("Bag").images

    def test_unexpected_arguments_are_ignored_with_a_warning(self, folder, expected, caplog):
        pipe = load(folder, sample_size=16, safety_checker=None, trust_remote_code=True)
        assert torch.equal(sample(pipe, "Bag"), expected)
        (message,) = [record.message for record in caplog.records]
        assert message.startswith("Keyword arguments sample_size, safety_checker are not expected by")

    @pytest.mark.parametrize("use_safetensors", [None, True])
    def test_safetensors_are_loaded_by_default(self, folder, expected, use_safetensors):
        assert torch.equal(sample(load(folder, use_safetensors=use_safetensors), "Bag"), expected)

    def test_other_model_classes_are_an_error(self, tmp_path):
        class OtherModel(FashionMNISTUNet2DModel):
            pass

        unet = OtherModel(**make_unet().config)
        FashionMNISTPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
        with pytest.raises(OSError, match=r"`unet` in .* must be FashionMNISTUNet2DModel, got 'OtherModel'\."):
            load(tmp_path)
        assert load(tmp_path, unet=unet).unet is unet

    @pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
    @pytest.mark.parametrize("loader", [load, load_dynamically])
    @pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
    def test_dtype_applies_to_the_model(self, folder, loader, name, expected):
        pipe = loader(folder, **{name: torch.bfloat16})
        assert pipe.unet.dtype == torch.bfloat16
        images = sample(pipe, "Bag")
        assert images.dtype == torch.float32
        assert (images - expected).abs().mean() < 0.05

    def test_unknown_component_in_a_device_map_is_an_error(self, folder):
        with pytest.raises(ValueError, match=r"`device_map` must map component names, such as 'unet', got \[''\]\."):
            load(folder, device_map={"": "cpu"})

    @pytest.mark.parametrize("device_map", ["cpu", {"unet": "cpu"}], ids=str)
    def test_device_map_gives_the_same_images(self, folder, device_map, expected):
        pipe = load(folder, device_map=device_map)
        assert pipe.hf_device_map == device_map
        assert {str(device) for device in pipe.unet.hf_device_map.values()} == {"cpu"}
        assert_close(sample(pipe, "Bag"), expected, atol=1e-4, rtol=0)

    def test_custom_pipeline_may_be_named(self, folder, expected):
        pipe = load_dynamically(folder, custom_pipeline="pipeline_fmnist")
        assert type(pipe).__name__ == "FashionMNISTPipeline"
        assert torch.equal(sample(pipe, "Bag"), expected)

    def test_code_is_not_run_without_trust(self, folder):
        with pytest.raises(ValueError, match="trust_remote_code"):
            DiffusionPipeline.from_pretrained(folder)

    def test_missing_folder_is_an_error(self, tmp_path):
        with pytest.raises(OSError, match=r"model_index\.json"):
            load(tmp_path)


def test_from_pipe_keeps_model_and_options(folder, expected):
    for pipe in (load(folder), load_dynamically(folder)):
        again = FashionMNISTPipeline.from_pipe(pipe)
        again.set_progress_bar_config(disable=True)
        assert again.unet is pipe.unet
        assert (again.config.num_inference_steps, again.config.timestep_power) == (3, 1.5)
        assert torch.equal(sample(again, "Bag"), expected)
        changed = FashionMNISTPipeline.from_pipe(pipe, scheduler=DDIMScheduler(), num_inference_steps=4)
        assert type(changed.scheduler) is DDIMScheduler
        assert changed.config.num_inference_steps == 4


def test_components_are_the_arguments_of_the_class(folder):
    pipe = load(folder)
    again = FashionMNISTPipeline(**pipe.components, num_inference_steps=3, timestep_power=1.5)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(sample(again), sample(pipe))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_can_be_changed_after_loading(folder, dtype, expected):
    pipe = load(folder).to(dtype)
    assert pipe.dtype == dtype
    assert (sample(pipe, "Bag") - expected).abs().mean() < 0.05


@pytest.mark.parametrize(
    "offload",
    [
        lambda pipe: pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
        lambda pipe: pipe.enable_group_offload(
            torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
        ),
        lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    ],
    ids=["leaf_level", "block_level", "model"],
)
def test_offloading_gives_the_same_images(folder, offload, expected):
    pipe = load(folder)
    offload(pipe)
    for _ in range(2):
        assert_close(sample(pipe, "Bag"), expected, atol=1e-4, rtol=0)


class TestStockPipelines:
    @pytest.mark.parametrize(
        ("pipeline_class", "scheduler_class"), [(DDPMPipeline, DDPMScheduler), (DDIMPipeline, DDIMScheduler)]
    )
    def test_saved_components_work_in_stock_pipelines(self, folder, pipeline_class, scheduler_class):
        unet = FashionMNISTUNet2DModel.from_pretrained(folder, subfolder="unet")
        scheduler = scheduler_class.from_pretrained(folder, subfolder="scheduler")
        stock = pipeline_class(unet=unet, scheduler=scheduler)
        stock.set_progress_bar_config(disable=True)
        images = sample(stock, num_inference_steps=3, output_type="np")
        ours = load(folder, scheduler=scheduler_class.from_pretrained(folder, subfolder="scheduler"))
        assert np.abs(images - sample(ours, num_inference_steps=3, output_type="np")).max() < 1e-5

    def test_saved_stock_pipeline_can_be_loaded(self, tmp_path):
        DDPMPipeline(make_default_pipeline().unet, DDPMScheduler()).save_pretrained(tmp_path)
        stock = DiffusionPipeline.from_pretrained(tmp_path)
        assert type(stock) is DDPMPipeline
        assert type(stock.unet) is FashionMNISTUNet2DModel
        pipe = load(tmp_path)
        assert type(pipe.scheduler) is DDPMScheduler
        assert (pipe.config.num_inference_steps, pipe.config.timestep_power) == (20, None)

    @pytest.mark.slow
    def test_saved_stock_pipeline_can_be_loaded_in_another_process(self, tmp_path):
        DDPMPipeline(make_default_pipeline().unet, DDPMScheduler()).save_pretrained(tmp_path / "stock")
        code = f"""
        from diffusers import DiffusionPipeline

        try:
            DiffusionPipeline.from_pretrained({str(tmp_path / "stock")!r})
        except ValueError:
            print("refused")
        import fmnist_diffusion
        print(type(DiffusionPipeline.from_pretrained({str(tmp_path / "stock")!r}).unet).__name__)
        """
        printed = run_python(code, package=True, home=tmp_path / "home")
        assert printed == ["refused", "FashionMNISTUNet2DModel"]


def test_diffusers_logger_is_captured(diffusers_log):
    """The tests that check for an empty log depend on this."""
    logging.getLogger("diffusers.pipelines").warning("A warning.")
    assert [record.message for record in diffusers_log.records][:1] == ["A warning."]
