import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fmnist_diffusion
from fmnist_diffusion import load_pipeline
from fmnist_diffusion.export import METADATA_KEY, ExportError, export_onnx, onnx_file
from fmnist_diffusion.sampling import make_generators
from tiny_pipelines import get_pipeline


onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

GUIDE = Path(fmnist_diffusion.__file__).parent / "export" / "README.md"


def generate(*args):
    """Runs the function of the export guide, which only imports NumPy and ONNX Runtime."""
    (code,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"^import (\w+)", code, re.MULTILINE)) == {"json", "numpy", "onnxruntime"}
    namespace = {}
    exec(code, namespace)
    return namespace["generate"](*args)


def make_noise(image_shape: list[int], seed: int, batch_size: int, num_steps: int) -> list[np.ndarray]:
    """Returns the initial noise and the noise of each step that a pipeline samples with `make_generators`."""
    generators, shape = make_generators(seed, batch_size), (1, *image_shape)
    return [
        torch.cat([torch.randn(shape, generator=generator) for generator in generators]).numpy()
        for _ in range(num_steps + 1)
    ]


def read_metadata(path: Path) -> dict:
    session = onnxruntime.InferenceSession(path)
    return json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])


def assert_same_images(pipe, path: Path, class_labels: list[int] | None, batch_size: int):
    num_steps = pipe.config.num_inference_steps
    noise = make_noise(read_metadata(path)["image_shape"], 5, batch_size, num_steps)
    images = generate(path, noise[0], noise[1:], class_labels)
    kwargs = {"num_images_per_prompt": batch_size} if class_labels is None else {"class_labels": class_labels}
    expected = pipe(generator=make_generators(5, batch_size), output_type="pt", **kwargs).images
    assert images.shape == expected.shape
    expected = (expected * 255).round().numpy()
    assert np.abs(images - expected).max() <= 1
    assert (images != expected).mean() < 0.01


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    pipe = get_pipeline(label_names=tuple("abcdefghij"))
    path = tmp_path_factory.mktemp("conditional") / "tiny.onnx"
    difference = export_onnx(pipe, path, name="tiny", num_inference_steps=[2, 3], license="mit")
    return pipe, path, difference


def test_conditional_model(conditional):
    pipe, path, difference = conditional
    assert 0 < difference < 1e-5
    assert [file.name for file in path.parent.iterdir()] == ["tiny.onnx"]
    for batch_size in (1, 3):
        assert_same_images(pipe, path, [1, 9, 0][:batch_size], batch_size)
    assert_same_images(pipe, path, None, 2)


def test_metadata(conditional):
    metadata = read_metadata(conditional[1])
    assert list(metadata.pop("samplers")) == ["2", "3"]
    assert metadata == {
        "name": "tiny",
        "source": f"fmnist-diffusion {fmnist_diffusion.__version__}",
        "license": "mit",
        "image_shape": [1, 8, 8],
        "prediction_type": "epsilon",
        "label_names": list("abcdefghij"),
        "null_label": 10,
        "num_inference_steps": 2,
    }


def test_file_contains_no_local_paths(conditional):
    content = conditional[1].read_bytes()
    assert str(Path(torch.__file__).parent).encode() not in content
    assert str(Path(fmnist_diffusion.__file__).parent).encode() not in content


def test_unconditional_color_model(tmp_path):
    pipe = get_pipeline(num_class_embeds=None, in_channels=3, out_channels=3, sample_size=(8, 12), norm_type="batch")
    path = tmp_path / "tiny.onnx"
    export_onnx(pipe, path, name="tiny")
    assert [node.name for node in onnxruntime.InferenceSession(path).get_inputs()] == ["sample", "timestep"]
    metadata = read_metadata(path)
    assert metadata["image_shape"] == [3, 8, 12]
    assert metadata["null_label"] is metadata["label_names"] is metadata["license"] is None
    assert_same_images(pipe, path, None, 3)


@pytest.mark.slow
def test_base_reproduces_images(tmp_path):
    pipe = load_pipeline("base")
    pipe.set_progress_bar_config(disable=True)
    assert export_onnx(pipe, tmp_path / "base.onnx", name="base") < 2e-5
    assert_same_images(pipe, tmp_path / "base.onnx", [8, 9], 2)


@pytest.mark.usefixtures("fake_onnx_model")
def test_nan_difference_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_file, "compare", lambda *args: float("nan"))
    with pytest.raises(ExportError, match="differ from PyTorch by up to"):
        export_onnx(get_pipeline(), tmp_path / "tiny.onnx", name="tiny")
    assert list(tmp_path.iterdir()) == []
