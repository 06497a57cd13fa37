import json

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import save_file

from fmnist_diffusion import FashionMNISTPipeline, load_pipeline
from fmnist_diffusion.metadata import (
    Metric,
    count_parameters,
    flatten,
    format_number,
    has_same_weights,
    measured_metrics,
    read_metrics,
    read_train_config,
    stored_dtypes,
    weights_dtypes,
    weights_hash,
)
from saved_pipelines import METRICS, TRAIN_CONFIG
from text_pipelines import get_text_pipeline
from tiny_pipelines import get_pipeline, make_unet


def test_parameters_of_every_model_are_counted():
    pipe = get_text_pipeline()
    expected = {"unet": pipe.unet.num_parameters(), "text_encoder": pipe.text_encoder.num_parameters()}
    assert count_parameters(pipe) == expected
    assert count_parameters(get_pipeline()).keys() == {"unet"}


def test_weights_hash_depends_on_the_weights_only():
    unet = make_unet()
    expected = weights_hash(FashionMNISTPipeline(unet, DDPMScheduler()))
    assert weights_hash(FashionMNISTPipeline(unet, DDPMScheduler(beta_schedule="squaredcos_cap_v2"))) == expected
    torch.nn.init.zeros_(unet.conv_out.bias)
    assert weights_hash(FashionMNISTPipeline(unet, DDPMScheduler())) != expected


def test_metrics_may_be_measured_in_another_dtype(tmp_path):
    get_text_pipeline(norm_type="batch").save_pretrained(tmp_path)
    stored = load_pipeline(tmp_path)
    for dtype in ("float32", "float16", "bfloat16"):
        metrics = {
            "dtype": dtype,
            "weights_sha256": weights_hash(load_pipeline(tmp_path, dtype=getattr(torch, dtype))),
        }
        assert has_same_weights(metrics, stored)
        torch.nn.init.normal_(stored.unet.conv_out.bias)
        assert not has_same_weights(metrics, stored)
        stored = load_pipeline(tmp_path)
    assert not has_same_weights({}, stored)


@pytest.mark.parametrize(("read", "content"), [(read_train_config, TRAIN_CONFIG), (read_metrics, METRICS)])
def test_settings_and_metrics_are_read(tmp_path, read, content):
    (tmp_path / "file.json").write_text(json.dumps(content))
    assert read(tmp_path / "file.json") == content


def test_missing_files_give_none(tmp_path):
    assert read_train_config(tmp_path / "train_config.json") is None
    assert read_metrics(tmp_path / "metrics.json") is None


@pytest.mark.parametrize("content", [[], {"accuracy": 0.9}])
def test_metrics_of_another_program_are_ignored(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(content))
    assert read_metrics(path) is None


@pytest.mark.parametrize("read", [read_metrics, read_train_config])
def test_error_names_the_file_that_is_not_json(tmp_path, read):
    path = tmp_path / "file.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"file\.json is not valid JSON .*\. Fix or remove the file\."):
        read(path)


def test_settings_must_be_an_object(tmp_path):
    path = tmp_path / "train_config.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"train_config\.json must contain a JSON object, got list"):
        read_train_config(path)


def test_measured_metrics_use_the_mean_of_several_seeds():
    assert measured_metrics(METRICS) == [
        Metric("fid", "FID (training images)", 4.25, 2.5),
        Metric("precision", "Precision", 0.75, 0.8),
        Metric("accuracy", "Class accuracy", 0.9, 0.94),
    ]


def test_nested_settings_are_flattened():
    nested = {"seed": 7, "model": {"norm": {"groups": 8}, "levels": [1, 2]}}
    assert dict(flatten(nested)) == {"seed": 7, "model.norm.groups": 8, "model.levels": [1, 2]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.09700000286102295, "0.097"),
        (-1.399278608005261e-05, "-0.00001399"),
        (2.1767323194700907, "2.177"),
        (20.0, "20"),
        (1234567.8, "1235000"),
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (None, ""),
    ],
)
def test_numbers_are_rounded_to_four_digits(value, text):
    assert format_number(value) == text


class TestDtypes:
    @pytest.fixture
    def save(self, tmp_path):
        (tmp_path / "unet").mkdir()
        path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"

        def save(*dtypes):
            save_file({str(i): torch.zeros(1, dtype=dtype) for i, dtype in enumerate(dtypes)}, path)
            return path

        return save

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_dtype_of_the_weights_is_read(self, save, tmp_path, dtype):
        save(dtype, torch.int64)
        assert stored_dtypes(tmp_path) == {"unet": dtype}

    def test_mixed_dtypes_are_loaded_in_float32(self, save, tmp_path):
        assert weights_dtypes(save(torch.float16, torch.float32)) == {"F16", "F32"}
        assert stored_dtypes(tmp_path) == {"unet": torch.float32}

    def test_error_names_damaged_weights(self, save):
        path = save(torch.float32)
        path.write_text("version https://git-lfs.github.com/spec/v1")
        with pytest.raises(
            ValueError, match=r"safetensors is not a valid safetensors file .*Download or save it again"
        ):
            weights_dtypes(path)


REFERENCE_METRICS = {
    "num_samples": 500,
    "metrics": {"kid": 0.01, "precision": 0.5, "recall": 0.25, "fid": 40.0},
    "reference": {"name": "me/shoes", "num_images": 600},
    "real_metrics": {"num_images": 300, "kid": 0.001, "precision": 0.8, "recall": 0.7},
}


def test_metrics_of_another_reference_are_compared_with_the_floor(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(REFERENCE_METRICS))
    metrics = read_metrics(path)
    assert metrics == REFERENCE_METRICS
    measured = {metric.type: metric[2:] for metric in measured_metrics(metrics)}
    assert measured.pop("fid")[0] == 40.0
    assert measured == {"kid": (0.01, 0.001), "precision": (0.5, 0.8), "recall": (0.25, 0.7)}


@pytest.mark.parametrize(
    "damage",
    [
        {"metrics": 3},
        {"metrics": None},
        {"metrics": {"fid_train": "abc"}},
        {"metrics": {"fid_train": {}}},
        {"metrics": {"fid_train": {"mean": None}}},
        {"num_samples": "many"},
        {"num_samples": None},
        {"num_samples": -1},
        {"real_metrics": 3},
        {"real_metrics": {}},
        {"real_metrics": {"precision": "high"}},
        {"seeds": 3},
    ],
    ids=str,
)
def test_damaged_metrics_are_an_error(tmp_path, damage):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(METRICS | damage))
    with pytest.raises(ValueError, match=r"metrics\.json contains damaged metrics\. Remove the file"):
        read_metrics(path)
