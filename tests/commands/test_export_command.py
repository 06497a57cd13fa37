import importlib.util
import re

import pytest

from fmnist_diffusion.commands import main
from fmnist_diffusion.export import onnx_file


def test_export(pipeline, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    args = ["export", pipeline, "--format", "onnx", "-o", str(tmp_path / "new" / "onnx")]
    main([*args, "--num-inference-steps", "2"])
    (path,) = (tmp_path / "new" / "onnx").iterdir()
    output = capsys.readouterr()
    assert output.err == ""
    saved, compared = output.out.splitlines()
    assert re.fullmatch(rf"Saved {re.escape(str(path))} \(\d\.\d MB\)\.", saved)
    (difference,) = re.fullmatch(
        r"The maximum difference from the predictions of PyTorch is (.*)\.", compared
    ).groups()
    assert float(difference) < 1e-5
    assert onnxruntime.InferenceSession(path).get_inputs()[0].shape == ["batch", 1, 8, 8]
    with pytest.raises(SystemExit):
        main(args)
    assert f"{path} already exists. Remove it, or pass a different --output-dir." in capsys.readouterr().err


@pytest.mark.usefixtures("fake_onnx_model")
def test_difference_above_the_tolerance(pipeline, monkeypatch, get_error, tmp_path):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(onnx_file, "compare", lambda *args: 1.1e-4)
    message = get_error("export", pipeline, "-o", tmp_path / "onnx", exit_code=1)
    assert message.startswith("The predictions of the exported model differ from PyTorch by up to 1.1e-04")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_unknown_checkpoint(get_error):
    assert get_error("export", "nothing", "-o", "onnx").startswith("Could not find the folder nothing")


def test_invalid_number_of_steps(pipeline, get_error):
    message = get_error("export", pipeline, "-o", "onnx", "--num-inference-steps", "2000")
    assert message.startswith("--num-inference-steps must be between 1 and 1000")


def test_output_dir_is_a_file(pipeline, get_error, tmp_path):
    (tmp_path / "file").touch()
    assert get_error("export", pipeline, "-o", "file") == "Could not write file: File exists."


def test_missing_packages(pipeline, monkeypatch, get_error):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    message = get_error("export", pipeline, "-o", "onnx")
    assert message == "The export requires onnxscript. Run `pip install 'fmnist-diffusion[onnx]'`."


def test_unknown_format(pipeline, get_error):
    message = get_error("export", pipeline, "-o", "onnx", "--format", "tflite")
    assert message == "Invalid value for '--format': 'tflite' is not one of 'onnx'."
