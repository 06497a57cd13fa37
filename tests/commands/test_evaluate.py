import json
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from fmnist_diffusion import evaluation
from fmnist_diffusion.commands import main
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.sampling import SamplingConfig
from saved_pipelines import save_pipeline
from tiny_pipelines import get_pipeline, make_classifier


RESULT = {
    "num_samples": 300,
    "metrics": {
        "class_accuracy": 0.09700000286102295,
        "kid_train": -1.399278608005261e-05,
        "class_shares": [0.1, 1 / 3],
    },
    "real_metrics": {
        "num_images": 10000,
        "fid_train": 1.4930330891230597,
        "kid_train": 0.000123,
        "classifier_frechet_distance_train": 0.008549199784049222,
        "class_accuracy": 0.9406999945640564,
    },
    "inception": False,
}


class FakeInception:
    def __init__(self, weights: Path, device: torch.device):
        self.weights, self.device = weights, device


@pytest.fixture
def calls(monkeypatch, tmp_path) -> list[tuple]:
    """Replaces the evaluation; returns the list of its calls."""
    calls = []

    def record(subject, folder, *config, **kwargs):
        calls.append((subject, folder, *config, kwargs))
        return RESULT | {"inception": kwargs["reference"].inception is not None}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "evaluate_pipeline", record)
    monkeypatch.setattr(evaluation, "evaluate_samples", record)
    monkeypatch.setattr(evaluation, "InceptionFeatures", FakeInception)
    return calls


@pytest.fixture
def images(tmp_path) -> Path:
    """An .npz file with 300 images."""
    path = tmp_path / "noise.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8))
    return path


def test_default_options_reach_the_evaluation(calls, pipeline):
    main(["evaluate", pipeline, "--fast"])
    ((pipe, folder, config, kwargs),) = calls
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert folder == Path(f"evaluation/{Path(pipeline).parent.name}-pipeline")
    reference = kwargs.pop("reference")
    assert isinstance(reference, evaluation.FashionMNISTReference)
    assert (reference.inception, reference.train_data_dir) == (None, None)
    assert config == evaluation.EvaluationConfig(
        sampling=SamplingConfig(),
        conditional=True,
        num_samples=None,
        seeds=(0,),
        batch_size=100,
        cas=False,
        classifier_guidance_scale=0.0,
    )
    assert kwargs == {"name": f"{Path(pipeline).parent.name}/pipeline", "processes": evaluation.Processes()}


def test_options_reach_the_evaluation(calls, tmp_path):
    get_pipeline(classifier=make_classifier()).save_pretrained("guided")
    (tmp_path / "inception.pt").touch()
    options = {
        "-n": "300",
        "--seeds": "0, 7",
        "--num-inference-steps": "5",
        "--scheduler": "ddim",
        "--guidance-scale": "2",
        "--classifier-guidance-scale": "0.5",
        "--batch-size": "50",
        "--dtype": "bfloat16",
        "--inception-weights": "inception.pt",
        "--train-data-dir": "images",
        "-o": "results",
    }
    args = [arg for option in options.items() for arg in option]
    main(["evaluate", "guided", *args, "--guidance-interval", "0.2", "1", "--cas"])
    ((pipe, folder, config, kwargs),) = calls
    assert pipe.unet.dtype == torch.bfloat16
    assert folder == Path("results")
    reference = kwargs.pop("reference")
    assert reference.inception.weights == Path("inception.pt")
    assert reference.train_data_dir == "images"
    assert config == evaluation.EvaluationConfig(
        sampling=SamplingConfig("ddim", 5, 2.0, (0.2, 1.0)),
        conditional=True,
        num_samples=300,
        seeds=(0, 7),
        batch_size=50,
        cas=True,
        classifier_guidance_scale=0.5,
    )
    assert kwargs == {"name": "guided", "processes": evaluation.Processes()}


def test_unconditional_samples_are_evaluated(calls, pipeline):
    main(["evaluate", pipeline, "--fast", "--unconditional"])
    ((_, _, config, _),) = calls
    assert not config.conditional


def test_printed_metrics_are_rounded(calls, pipeline, capsys):
    main(["evaluate", pipeline, "--fast"])
    assert capsys.readouterr().out.splitlines() == [
        "                              samples    test",
        "Images                            300  10,000",
        "KID (training images) x 1000   -0.014   0.123",
        "Class accuracy                  0.097   0.941",
        "",
        "Compared 300 samples with the training images of Fashion-MNIST. The last column shows the metrics of its test"
        " images.",
        f"Saved metrics.json and report.png to evaluation/{Path(pipeline).parent.name}-pipeline.",
    ]


def test_missing_fid_is_explained(calls, pipeline, tmp_path, capsys):
    (tmp_path / "inception.pt").touch()
    main(["evaluate", pipeline, "--inception-weights", "inception.pt"])
    assert "FID requires at least 2,049 samples. Use KID to compare models.\n" in capsys.readouterr().out


def test_images_of_a_file_are_evaluated(calls, images):
    main(["evaluate", str(images), "--fast", "-n", "260", "--device", "cpu:0"])
    ((samples, folder, kwargs),) = calls
    assert len(samples) == 260
    assert folder == Path("evaluation/noise")
    reference = kwargs.pop("reference")
    assert isinstance(reference, evaluation.FashionMNISTReference)
    assert reference.device == torch.device("cpu:0")
    assert kwargs == {"name": "noise", "cas": False, "processes": evaluation.Processes()}


def test_folder_of_a_training_run_is_not_read_as_images(calls, pipeline, tmp_path, get_error):
    shutil.copytree(pipeline, tmp_path / "run" / "pipeline")
    (tmp_path / "run" / "samples").mkdir()
    PIL.Image.new("L", (56, 56)).save(tmp_path / "run" / "samples" / "epoch-0001.png")
    message = get_error("evaluate", tmp_path / "run", "--fast", "--seeds", "1")
    assert str(tmp_path / "run" / "pipeline") in message
    assert calls == []


@pytest.mark.parametrize(
    "option",
    [
        ["--num-inference-steps", "50"],
        ["--guidance-scale", "1.0"],
        ["--seeds", "1"],
        ["--batch-size", "100"],
        ["--dtype", "float32"],
        ["--unconditional"],
        ["--unconditional", "--cas"],
    ],
)
def test_sampling_options_only_apply_to_a_pipeline(calls, images, get_error, option):
    message = get_error("evaluate", images, "--fast", *option)
    assert message == f"{option[0]} only applies to a pipeline, but {images} contains images. Omit {option[0]}."
    assert calls == []


def test_default_folder_contains_the_name_of_the_run(calls, pipeline, tmp_path):
    run = tmp_path / "mine" / "best"
    shutil.copytree(pipeline, run)
    main(["evaluate", str(run), "--fast"])
    ((_, folder, _, kwargs),) = calls
    assert folder == Path("evaluation/mine-best")
    assert kwargs["name"] == "mine/best"


def test_interrupted_evaluation_says_how_to_resume(calls, pipeline, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate_pipeline", interrupt)
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", pipeline, "--fast"])
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "fmnist-diffusion: interrupted; run the same command again to resume\n"


def test_download_prints_the_path_of_the_network(monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "download_inception", lambda: Path("cache/inception.pt"))
    main(["evaluate", "--download-inception"])
    assert capsys.readouterr().out == "The Inception network is at cache/inception.pt.\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "SOURCE is missing. Pass a pipeline, a folder of images or an .npz file."),
        (
            ["base", "--fast", "--inception-weights", "x.pt"],
            "Cannot use both --fast and --inception-weights. Pass only one of them.",
        ),
        (
            ["base", "--fast", "--reference", "images"],
            "--fast only applies to Fashion-MNIST. Pass only one of --fast and --reference.",
        ),
        (
            ["base", "--train-data-dir", "x", "--reference", "images"],
            "--train-data-dir only applies to Fashion-MNIST. Pass only one of --train-data-dir and --reference.",
        ),
        (["base", "--fast", "--label-column", "none"], "--label-column requires --reference. Pass"),
        (["nowhere", "--fast"], "Could not find a pipeline at 'nowhere'"),
        (["base", "--fast", "--seeds", "0 1"], "--seeds must be comma-separated integers, got '0 1'."),
        (["base", "--fast", "--seeds", "1,0,1"], "--seeds must not contain duplicates, got 1, 0, 1."),
        (["base", "--fast", "--seeds", "4096"], "--seeds must be between 0 and 4095, got 4096."),
        (["base", "--fast", "-n", "256"], "The Fréchet distance requires at least 257 samples, got 256."),
        (["base", "--reference", ".", "-n", "49"], "The metrics require at least 50 samples, got 49."),
        (["base", "--fast", "-n", "1048577"], "--num-samples must be between 1 and 1048576, got 1048577."),
        (
            ["base", "--fast", "--unconditional", "--guidance-scale", "2"],
            "--guidance-scale must be 1.0 for unconditional sampling, got 2.0. Omit it, or evaluate conditional"
            " samples.",
        ),
        (["base", "--fast", "--unconditional", "--cas"], "--cas requires labeled samples. Pass a class-conditional"),
        (["base", "--fast", "--dtype", "float16", "--device", "cpu"], "--dtype must be float32 or bfloat16 on a CPU"),
        (["base", "--fast", "--device", "nothing"], "--device must be auto or an available torch device"),
        (["base", "--fast", "--scheduler", "nothing"], "Could not find the scheduler 'nothing'"),
        (["base", "--fast", "--scheduler", "RePaintScheduler"], "RePaintScheduler"),
        (["base", "--fast", "--num-inference-steps", "1001"], "--num-inference-steps must be between 1 and 1000"),
        (["base", "--fast", "--num-inference-steps", "3", "--scheduler", "pndm"], "--num-inference-steps must be at"),
    ],
)
def test_invalid_options_are_errors_before_images_are_loaded(no_slow_steps, get_error, args, message):
    assert get_error("evaluate", *args).startswith(message)


@pytest.mark.parametrize("label_names", [None, FASHION_MNIST_LABELS])
def test_cas_is_checked_before_images_are_loaded(no_slow_steps, get_error, tmp_path, monkeypatch, label_names):
    monkeypatch.setattr(evaluation, "InceptionFeatures", FakeInception)
    save_pipeline(tmp_path / "pipeline", num_class_embeds=label_names and len(label_names), label_names=label_names)
    folder = tmp_path / "images" / "other"
    folder.mkdir(parents=True)
    for index in range(50):
        PIL.Image.new("L", (28, 28), index).save(folder / f"{index}.png")
    (tmp_path / "inception.pt").touch()
    options = ["--cas", "--reference", folder.parent, "--inception-weights", tmp_path / "inception.pt"]
    message = get_error("evaluate", tmp_path / "pipeline", *options)
    assert message.startswith("--cas requires " + ("samples of all classes" if label_names else "labeled samples"))


def test_columns_of_the_reference_are_selected(calls, get_error, tmp_path, pipeline, request):
    images = [PIL.Image.new("L", (8, 8), index) for index in range(50)]
    labels = datasets.ClassLabel(names=["a", "b"])
    features = {"front": datasets.Image(), "back": datasets.Image(), "fine": labels, "coarse": labels}
    columns = {"front": images, "back": images[::-1], "fine": [0] * 50, "coarse": [1] * 50}
    path = tmp_path / "images.parquet"
    request.addfinalizer(datasets.enable_progress_bars)
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)
    (tmp_path / "inception.pt").touch()
    command = ["evaluate", pipeline, "--reference", str(path), "--inception-weights", str(tmp_path / "inception.pt")]
    assert get_error(*command) == f"Found several image columns in {path}. Set --image-column to one of: front, back."
    command += ["--image-column", "back"]
    assert get_error(*command).endswith("Set --label-column to one of: fine, coarse.")
    main([*command, "--label-column", "coarse"])
    main([*command, "--label-column", "none"])
    coarse, unlabeled = (kwargs["reference"] for *_, kwargs in calls)
    assert coarse.source.summary.class_counts == (0, 50) and unlabeled.label_names is None
    assert coarse.real_images.images[0].max() == 49


def test_missing_inception_network_is_an_error(get_error, pipeline, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "find_inception", lambda weights: None)
    command = "fmnist-diffusion evaluate --download-inception"
    message = f"The evaluation requires the Inception network. Run `{command}` once"
    assert get_error("evaluate", pipeline) == f"{message}, or pass --fast to skip the metrics that require it."
    assert get_error("evaluate", pipeline, "--reference", tmp_path) == f"{message}."


@pytest.mark.parametrize("name", ["datasets", "transformers"])
def test_missing_packages_are_an_error(get_error, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    assert get_error("evaluate", "base", "--fast") == (
        f"The evaluation requires {name}. Run `pip install 'fmnist-diffusion[eval]'`."
    )


@pytest.mark.slow
def test_evaluation_of_a_file_writes_metrics_and_report(images, fashion_mnist_folder, tmp_path, capsys):
    folder = tmp_path / "out"
    main(["evaluate", str(images), "--fast", "--train-data-dir", str(fashion_mnist_folder), "-o", str(folder)])
    assert json.loads((folder / "metrics.json").read_text())["num_samples"] == 300
    assert (folder / "report.png").is_file()
    assert "FD-classifier" in capsys.readouterr().out
