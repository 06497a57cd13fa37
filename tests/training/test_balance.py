import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from balance import main
from fmnist_diffusion import FashionMNISTUNet2DModel, load_pipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from fmnist_diffusion.metadata import weights_hash
from fmnist_diffusion.sampling import make_pipeline


SHARES = [0.05, 0.15, *[0.1] * 8]


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    torch.manual_seed(0)
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8, num_class_embeds=10)
    make_pipeline(unet, DDPMScheduler(), num_inference_steps=7).save_pretrained(tmp_path / "pipeline")
    (tmp_path / "pipeline" / "train_config.json").write_text('{"progress": {"global_step": 7}}')
    return str(tmp_path / "pipeline")


def write_evaluation(pipeline: str, folder: Path, **changes: object) -> str:
    """Writes the part of `metrics.json` that the script reads."""
    folder.mkdir()
    metrics = {
        "conditional": False,
        "dtype": "float32",
        "weights_sha256": weights_hash(load_pipeline(pipeline)),
        "num_samples": 100,
        "metrics": {"class_shares": SHARES},
        "real_metrics": {},
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))
    return str(folder)


def test_only_the_null_label_changes(pipeline: str, tmp_path: Path):
    evaluation = write_evaluation(pipeline, tmp_path / "evaluation")
    main([pipeline, evaluation, f"--output_dir={tmp_path / 'new'}", "--strength=0.2"])
    assert load_pipeline(tmp_path / "new").config["num_inference_steps"] == 7
    before, after = (load_pipeline(name).unet.state_dict() for name in (pipeline, tmp_path / "new"))
    old, new = (state.pop("class_embedding.weight") for state in (before, after))
    assert torch.equal(new[:10], old[:10])
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    # The factors are log(2) and -log(1.5), times the strength.
    expected = old[10] + 0.13863 * (old[0] - old[:10].mean(0)) - 0.08109 * (old[1] - old[:10].mean(0))
    torch.testing.assert_close(new[10], expected, rtol=0, atol=1e-4)


def test_train_config_lists_all_steps(pipeline: str, tmp_path: Path):
    first = write_evaluation(pipeline, tmp_path / "first")
    main([pipeline, first, f"--output_dir={tmp_path / 'new'}", "--strength=0.2"])
    second = write_evaluation(str(tmp_path / "new"), tmp_path / "second")
    main([str(tmp_path / "new"), second, f"--output_dir={tmp_path / 'newer'}"])
    settings = json.loads((tmp_path / "newer" / "train_config.json").read_text())
    assert settings["progress"] == {"global_step": 7}
    assert [step["strength"] for step in settings["balanced"]] == [0.2, 0.15]
    assert settings["balanced"][0] == {
        "class_shares": SHARES,
        "strength": 0.2,
        "weights_sha256": weights_hash(load_pipeline(pipeline)),
    }


def test_evaluation_may_use_half_precision(pipeline: str, tmp_path: Path, diffusers_log: pytest.LogCaptureFixture):
    half = {"dtype": "bfloat16", "weights_sha256": weights_hash(load_pipeline(pipeline, dtype=torch.bfloat16))}
    evaluation = write_evaluation(pipeline, tmp_path / "evaluation", **half)
    main([pipeline, evaluation, f"--output_dir={tmp_path / 'new'}"])
    assert diffusers_log.records == []
    assert load_pipeline(tmp_path / "new").unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditional": True}, "must be an evaluation of unconditional samples"),
        ({"num_samples": None}, "damaged"),
        ({"weights_sha256": "0" * 64}, "must be an evaluation of unconditional samples"),
        (
            {"metrics": {"fid": 3.0}, "reference": {"name": "shoes"}},
            r"must be an evaluation of unconditional samples of .* against Fashion-MNIST\.",
        ),
        ({"metrics": {"class_shares": [0.5, 0.5]}}, r"must have the 2 classes of the evaluation, got 10\. Pass"),
        ({"metrics": {"class_shares": [0.0, 0.2, *[0.1] * 8]}}, "Evaluate more samples"),
    ],
)
def test_unsuitable_evaluations_exit_with_one_line(
    changes: dict, message: str, pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    evaluation = write_evaluation(pipeline, tmp_path / "evaluation", **changes)
    with pytest.raises(SystemExit, match="2"):
        main([pipeline, evaluation, f"--output_dir={tmp_path / 'new'}"])
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "new").exists()


def test_other_json_file_exits_with_one_line(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "metrics.json").write_text('{"conditional": false}')
    with pytest.raises(SystemExit, match="2"):
        main([pipeline, str(tmp_path), f"--output_dir={tmp_path / 'new'}"])
    assert "must be an evaluation of unconditional samples" in capsys.readouterr().err


def test_folder_with_files_is_not_overwritten(pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main([pipeline, write_evaluation(pipeline, tmp_path / "evaluation"), f"--output_dir={pipeline}"])
    assert "`--output_dir` must be new or empty" in capsys.readouterr().err


def test_other_order_of_the_classes_exits_with_one_line(
    pipeline: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = Path(pipeline) / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_names": sorted(FASHION_MNIST_LABELS)}))
    with pytest.raises(SystemExit, match="2"):
        main([pipeline, write_evaluation(pipeline, tmp_path / "evaluation"), f"--output_dir={tmp_path / 'new'}"])
    assert "original order, got Ankle boot, Bag, Coat, Dress, Pullover and 5 more." in capsys.readouterr().err
