from collections.abc import Callable
from pathlib import Path

import pytest

from config import EvalConfig, TrainingConfig
from fmnist_diffusion import FashionMNISTPipeline
from outputs import get_due_outputs


def test_due_outputs_depend_on_the_epoch():
    config = TrainingConfig(save_images_epochs=2, save_model_epochs=3, eval=EvalConfig(every_n_epochs=4))
    assert get_due_outputs(config, 1, finished=False) == set()
    assert get_due_outputs(config, 6, finished=False) == {"samples", "pipeline"}
    assert get_due_outputs(config, 4, finished=False) == {"samples", "evaluation"}


def test_everything_that_is_enabled_is_due_at_the_end():
    assert get_due_outputs(TrainingConfig(), 1, finished=True) == {"samples", "pipeline"}
    config = TrainingConfig(push_to_hub=True, eval=EvalConfig(every_n_epochs=4))
    assert get_due_outputs(config, 1, finished=True) == {"samples", "pipeline", "push", "evaluation"}
    assert "push" not in get_due_outputs(config, 1, finished=False)


def test_pushes_are_due_every_n_epochs():
    config = TrainingConfig(push_to_hub=True, push_to_hub_epochs=2)
    assert ["push" in get_due_outputs(config, epoch, finished=False) for epoch in (1, 2)] == [False, True]


def test_failed_sampling_does_not_end_the_run(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*args, **kwargs):
        raise ValueError("Sampling produced NaN or infinite pixels.")

    monkeypatch.setattr(FashionMNISTPipeline, "__call__", fail)
    launch("--num_epochs=1")
    output = "".join(capsys.readouterr())
    assert "Epoch 1: could not generate samples. Sampling produced NaN or infinite pixels." in output
    assert (tmp_path / "run" / "pipeline").is_dir()
