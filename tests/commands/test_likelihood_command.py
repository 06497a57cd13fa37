import json
from pathlib import Path

import pytest
import torch

from fmnist_diffusion import evaluation
from fmnist_diffusion.commands import main


def test_command_measures_and_continues(pipeline: str, fashion_mnist_folder: Path, tmp_path: Path, capsys):
    args = ["likelihood", pipeline, "--num-steps", "1", "--train-data-dir", str(fashion_mnist_folder)]
    args += ["--output-dir", str(tmp_path / "run")]
    main([*args, "-n", "4"])
    output = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "run" / "likelihood.json").read_text())
    assert result["conditional"]
    assert output[0] == f"Bits per dimension  {result['bits_per_dim']:.3f}"
    assert output[-2:] == ["NFE per image       4", f"Saved likelihood.json to {tmp_path / 'run'}."]
    main([*args, "-n", "6"])
    assert json.loads((tmp_path / "run" / "likelihood.json").read_text())["num_images"] == 6


def test_options_reach_the_measurement(pipeline: str, fashion_mnist_folder: Path, tmp_path: Path, monkeypatch):
    calls = []

    def record(pipe, images, folder, **kwargs):
        calls.append((images, folder, kwargs))
        return {"bits_per_dim": 3.0, "standard_error": 0.1, "num_images": 2, "num_function_evaluations": 4}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "measure_likelihood", record)
    main(["likelihood", pipeline, "--unconditional", "--seed", "3", "--train-data-dir", str(fashion_mnist_folder)])
    ((images, folder, kwargs),) = calls
    assert images.images.shape == (128, 1, 8, 8)
    assert images.images.dtype == torch.uint8
    name = f"{Path(pipeline).parent.name}/pipeline"
    assert folder == Path("likelihood", name.replace("/", "-"))
    assert kwargs == {
        "name": name,
        "conditional": False,
        "num_images": 2000,
        "num_steps": 20,
        "seed": 3,
        "batch_size": 100,
    }


def test_errors_name_the_options(pipeline: str, fashion_mnist_folder: Path, get_error):
    message = get_error("likelihood", pipeline, "--train-data-dir", fashion_mnist_folder)
    assert message == "--num-images must be between 2 and 128, the number of images, got 2000."


def test_interruptions_say_how_to_resume(pipeline: str, fashion_mnist_folder: Path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "measure_likelihood", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        main(["likelihood", pipeline, "--train-data-dir", str(fashion_mnist_folder)])
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "fmnist-diffusion: interrupted; run the same command again to resume\n"
