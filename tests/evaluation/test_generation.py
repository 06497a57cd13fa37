from pathlib import Path

import pytest
import torch

from fmnist_diffusion.evaluation import EvaluationConfig, Processes, load_batches
from fmnist_diffusion.evaluation.generation import (
    EvaluationSamples,
    generate_samples,
    load_batch,
    plan_batches,
    save_batch,
)
from fmnist_diffusion.sampling import Samples, SamplingConfig
from tiny_pipelines import get_pipeline


IMAGES = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)


@pytest.mark.parametrize("with_labels", [True, False])
def test_batches_are_saved_and_loaded(tmp_path: Path, with_labels: bool):
    labels = torch.arange(4) if with_labels else None
    samples = Samples(IMAGES, labels, num_function_evaluations=80, seconds=1.5)
    batch = EvaluationSamples(samples, torch.rand(4, 2048) if with_labels else None)
    save_batch(batch, tmp_path / "seed-0" / "0000000.safetensors")
    loaded = load_batch(tmp_path / "seed-0" / "0000000.safetensors")
    assert torch.equal(loaded.samples.images, samples.images)
    assert (loaded.samples.num_function_evaluations, loaded.samples.seconds) == (80, 1.5)
    if with_labels:
        assert torch.equal(loaded.samples.labels, labels)
        assert torch.equal(loaded.inception_features, batch.inception_features)
    else:
        assert loaded.samples.labels is None and loaded.inception_features is None


def test_parts_of_a_run_are_loaded_in_order(tmp_path: Path):
    for i, path in enumerate(("seed-0/0000000", "seed-0/0000002", "seed-2/0000000", "seed-10/0000000")):
        save_batch(EvaluationSamples(Samples(IMAGES[i : i + 1])), tmp_path / f"{path}.safetensors")
    assert torch.equal(torch.cat([samples.images for samples in load_batches(tmp_path)]), IMAGES[:4])
    with pytest.raises(ValueError, match="Could not find any samples in"):
        list(load_batches(tmp_path / "seed-0"))


def test_damaged_batches_are_reported(tmp_path: Path):
    path = tmp_path / "seed-0" / "0000000.safetensors"
    save_batch(EvaluationSamples(Samples(IMAGES)), path)
    path.write_bytes(path.read_bytes()[:-3])
    assert load_batch(path) is None
    with pytest.raises(ValueError, match=r"Could not read .*0000000\.safetensors"):
        list(load_batches(tmp_path))


def test_batches_fill_the_gaps_between_saved_batches(tmp_path: Path):
    assert plan_batches(tmp_path, 7, 3) == [(0, 3, False), (3, 3, False), (6, 1, False)]
    save_batch(EvaluationSamples(Samples(IMAGES[:2])), tmp_path / "0000004.safetensors")
    assert plan_batches(tmp_path, 9, 3) == [(0, 3, False), (3, 1, False), (4, 2, True), (6, 3, False)]


def test_batches_are_limited_by_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipe = get_pipeline()
    monkeypatch.setattr(
        "fmnist_diffusion.sampling.MAX_BATCH_BYTES", 3 * 80 * 8 * 8 * pipe.unet.config.block_out_channels[0]
    )
    config = EvaluationConfig(SamplingConfig(num_inference_steps=1), num_samples=8, batch_size=64)
    run = generate_samples(pipe, config, 0, {}, tmp_path, None, Processes())
    assert [path.stem for path in sorted(tmp_path.iterdir())] == ["0000000", "0000003", "0000006"]
    assert len(run.samples) == 8
