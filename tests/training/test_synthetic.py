from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images
from fmnist_diffusion.evaluation.generation import EvaluationSamples, save_batch
from fmnist_diffusion.sampling import Samples
from synthetic import main
from trainer import Trainer


def write_evaluation(folder: Path, labels: list[int] | None, num_images: int = 4) -> torch.Tensor:
    """Writes samples in two batches, like `fmnist-diffusion evaluate`, and returns the images."""
    images = torch.randint(256, (num_images, 1, 28, 28), dtype=torch.uint8)
    (folder / "seed-0").mkdir(parents=True)
    half = num_images // 2
    for start in (0, half):
        part = slice(start, start + half)
        samples = Samples(images[part], None if labels is None else torch.tensor(labels[part]))
        save_batch(EvaluationSamples(samples), folder / "seed-0" / f"{start:06d}.safetensors")
    return images


def test_unconditional_samples_get_the_null_label(tmp_path: Path):
    conditional = write_evaluation(tmp_path / "conditional", [3, 1, 9, 0])
    unconditional = write_evaluation(tmp_path / "unconditional", None, num_images=2)
    path = tmp_path / "synthetic.safetensors"
    main([str(tmp_path / "conditional"), str(tmp_path / "unconditional"), f"--output={path}"])
    tensors = load_images(train_data_dir=str(path))
    assert torch.equal(tensors.images, torch.cat([conditional, unconditional]))
    assert tensors.labels is not None
    assert tensors.labels.tolist() == [3, 1, 9, 0, 10, 10]
    assert tensors.label_names == FASHION_MNIST_LABELS


def test_null_label_is_trained(tmp_path: Path, make_trainer: Callable[..., Trainer]):
    write_evaluation(tmp_path / "conditional", [3] * 16, num_images=16)
    write_evaluation(tmp_path / "unconditional", None, num_images=16)
    path = tmp_path / "synthetic.safetensors"
    main([str(tmp_path / "conditional"), str(tmp_path / "unconditional"), f"--output={path}"])
    trainer = make_trainer(
        f"--data.train_data_dir={path}", "--model.num_class_embeds=10", "--objective.label_dropout=0"
    )
    embedding = trainer.components.unet.class_embedding
    before = embedding.weight.detach().clone()
    trainer.train()
    after = embedding.weight.detach()
    assert (after != before).any(dim=1).nonzero().flatten().tolist() == [3, 10]


def test_file_with_only_unconditional_samples_has_no_labels(tmp_path: Path):
    images = write_evaluation(tmp_path / "unconditional", None)
    path = tmp_path / "synthetic.safetensors"
    main([str(tmp_path / "unconditional"), f"--output={path}"])
    tensors = load_images(train_data_dir=str(path))
    assert torch.equal(tensors.images, images)
    assert tensors.labels is None


def test_label_noise_replaces_a_part_of_the_labels(tmp_path: Path):
    conditional = write_evaluation(tmp_path / "conditional", [3] * 400, num_images=400)
    write_evaluation(tmp_path / "unconditional", None)
    path = tmp_path / "synthetic.safetensors"
    main([str(tmp_path / "conditional"), str(tmp_path / "unconditional"), f"--output={path}", "--label_noise=0.5"])
    tensors = load_images(train_data_dir=str(path))
    assert torch.equal(tensors.images[:400], conditional)
    assert tensors.labels is not None
    counts = tensors.labels.bincount()
    assert counts[10] == 4
    # Half of the labels are kept, and a tenth of the random ones are the same: the mean is 220 of 400, the standard
    # deviation is 10.
    assert 180 < counts[3] < 260
    assert all(counts[:10] > 0)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([3, 1, 9, 0], ["--label_noise=20"], "`--label_noise` must be between 0 and 1, got 20.0."),
        (None, ["--label_noise=0.2"], "`--label_noise` requires conditional samples"),
    ],
)
def test_invalid_label_noise_exits_with_one_line(
    labels: list[int] | None, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_evaluation(tmp_path / "samples", labels)
    path = tmp_path / "synthetic.safetensors"
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "samples"), f"--output={path}", *options])
    assert message in capsys.readouterr().err
    assert not path.exists()


def test_samples_of_another_dataset_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_evaluation(tmp_path / "samples", [3, 1, 0, 0])
    (tmp_path / "samples" / "settings.json").write_text('{"reference": {"name": "stamps"}}')
    path = tmp_path / "synthetic.safetensors"
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "samples"), f"--output={path}"])
    assert capsys.readouterr().err == (
        f"synthetic.py: error: {tmp_path / 'samples'} contains samples that were evaluated with `--reference`, but"
        " only samples of Fashion-MNIST models are supported. Pass a different folder.\n"
    )
    assert not path.exists()


def test_unfinished_evaluation_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, path = tmp_path / "samples", tmp_path / "synthetic.safetensors"
    write_evaluation(folder, [3, 1, 0, 0])
    (folder / "settings.json").write_text('{"num_samples": 4, "seeds": [0, 1]}')
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), f"--output={path}"])
    assert capsys.readouterr().err == (
        f"synthetic.py: error: {folder} must contain 8 samples, got 4. Run the same `fmnist-diffusion evaluate` again"
        " to finish the evaluation.\n"
    )
    (folder / "settings.json").write_text('{"num_samples": 4, "seeds": [0]}')
    main([str(folder), f"--output={path}"])
    assert path.is_file()


def test_path_with_another_suffix_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "synthetic.pt"
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), f"--output={path}"])
    assert capsys.readouterr().err == f"synthetic.py: error: `--output` must end with .safetensors, got {path}.\n"


def test_folder_without_samples_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), f"--output={tmp_path / 'synthetic.safetensors'}"])
    assert capsys.readouterr().err.startswith("synthetic.py: error: ")
    assert not (tmp_path / "synthetic.safetensors").exists()


def test_missing_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_evaluation(tmp_path / "samples", [3, 1, 9, 0])
    path = tmp_path / "missing" / "synthetic.safetensors"
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "samples"), f"--output={path}"])
    assert capsys.readouterr().err.startswith(f"synthetic.py: error: Could not write {path}: ")


def test_existing_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_evaluation(tmp_path / "samples", [3, 1, 9, 0])
    path = tmp_path / "synthetic.safetensors"
    path.write_bytes(b"earlier file")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "samples"), f"--output={path}"])
    assert f"`--output` must be a new file, but {path} exists." in capsys.readouterr().err
    assert path.read_bytes() == b"earlier file"
