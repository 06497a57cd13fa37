"""Training images made of an evaluation's samples."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmnist_diffusion.data import FASHION_MNIST_LABELS, load_images
from fmnist_diffusion.evaluation import Samples
from fmnist_diffusion.evaluation.evaluate import save_part
from training.synthetic import main
from training.train import Trainer


def write_evaluation(folder: Path, labels: list[int] | None, num_images: int = 4) -> torch.Tensor:
    """Samples of two batches, as `evaluate` leaves them; returns the images."""
    images = torch.randint(256, (num_images, 1, 28, 28), dtype=torch.uint8)
    (folder / "seed-0").mkdir(parents=True)
    for start in range(0, num_images, 2):
        part = Samples(images[start : start + 2], None if labels is None else torch.tensor(labels[start : start + 2]))
        save_part(part, folder / "seed-0" / f"{start:06d}.safetensors")
    return images


def test_samples_of_no_class_get_the_null_label(tmp_path: Path):
    of_classes = write_evaluation(tmp_path / "labels", [3, 1, 9, 0])
    of_none = write_evaluation(tmp_path / "none", None, num_images=2)
    path = tmp_path / "synthetic.safetensors"
    main([str(tmp_path / "labels"), str(tmp_path / "none"), f"--output={path}"])
    tensors = load_images(train_data_dir=str(path))
    assert torch.equal(tensors.images, torch.cat([of_classes, of_none]))
    assert tensors.labels is not None
    assert tensors.labels.tolist() == [3, 1, 9, 0, 10, 10]
    assert tensors.label_names == FASHION_MNIST_LABELS


def test_the_null_label_is_trained_as_such(tmp_path: Path, make_trainer: Callable[..., Trainer]):
    write_evaluation(tmp_path / "labels", [3] * 16, num_images=16)
    write_evaluation(tmp_path / "none", None, num_images=16)
    path = tmp_path / "synthetic.safetensors"
    main([str(tmp_path / "labels"), str(tmp_path / "none"), f"--output={path}"])
    trainer = make_trainer(
        f"--data.train_data_dir={path}", "--model.num_class_embeds=10", "--objective.label_dropout=0"
    )
    before = trainer.unet.class_embedding.weight.detach().clone()
    trainer.train()
    after = trainer.unet.class_embedding.weight.detach()
    assert (after != before).any(dim=1).nonzero().flatten().tolist() == [3, 10]


def test_samples_of_a_model_without_classes_have_no_labels(tmp_path: Path):
    images = write_evaluation(tmp_path / "none", None)
    path = tmp_path / "synthetic.safetensors"
    main([str(tmp_path / "none"), f"--output={path}"])
    tensors = load_images(train_data_dir=str(path))
    assert torch.equal(tensors.images, images)
    assert tensors.labels is None


def test_a_folder_without_samples_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), f"--output={tmp_path / 'synthetic.safetensors'}"])
    assert "holds no samples; give a folder that fmnist-diffusion evaluate wrote." in capsys.readouterr().err
    assert not (tmp_path / "synthetic.safetensors").exists()


def test_label_noise_draws_a_share_of_the_labels_anew(tmp_path: Path):
    of_classes = write_evaluation(tmp_path / "labels", [3] * 400, num_images=400)
    write_evaluation(tmp_path / "none", None)
    path = tmp_path / "synthetic.safetensors"
    main([str(tmp_path / "labels"), str(tmp_path / "none"), f"--output={path}", "--label_noise=0.5"])
    tensors = load_images(train_data_dir=str(path))
    assert torch.equal(tensors.images[:400], of_classes)
    assert tensors.labels is not None
    counts = tensors.labels.bincount()
    assert counts[10] == 4
    # Half keep theirs, and a tenth of the others draw the same again: 220 of 400 expected, standard deviation 10.
    assert 180 < counts[3] < 260
    assert all(counts[:10] > 0)


def test_label_noise_that_is_no_probability_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_evaluation(tmp_path / "labels", [3, 1, 9, 0])
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "labels"), f"--output={tmp_path / 'synthetic.safetensors'}", "--label_noise=20"])
    assert "--label_noise is 20.0; give a probability from 0 to 1." in capsys.readouterr().err


def test_label_noise_without_labels_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_evaluation(tmp_path / "none", None)
    path = tmp_path / "synthetic.safetensors"
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none"), f"--output={path}", "--label_noise=0.2"])
    assert "none of the samples has a label; leave out --label_noise." in capsys.readouterr().err
    assert not path.exists()


def test_a_file_that_exists_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    write_evaluation(tmp_path / "labels", [3, 1, 9, 0])
    path = tmp_path / "synthetic.safetensors"
    path.write_bytes(b"made before")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "labels"), f"--output={path}"])
    assert "exists already; give another --output." in capsys.readouterr().err
    assert path.read_bytes() == b"made before"
