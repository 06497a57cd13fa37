from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.training_utils import EMAModel

from checkpoint import find_checkpoint, list_checkpoints, load_checkpoint


def make_checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)


def test_checkpoints_are_listed_by_step_without_unfinished_ones(tmp_path: Path):
    make_checkpoints(tmp_path, 10, 9, 100)
    (tmp_path / "checkpoint-200.unfinished").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert find_checkpoint("latest", tmp_path).name == "checkpoint-100"


def test_missing_checkpoints_raise(tmp_path: Path):
    with pytest.raises(ValueError, match=r"Could not find a checkpoint in .* Omit --resume"):
        find_checkpoint("latest", tmp_path)
    with pytest.raises(ValueError, match="must be latest or the folder of a checkpoint, got /nowhere"):
        find_checkpoint("/nowhere", tmp_path)


def test_older_checkpoint_needs_another_output_folder(tmp_path: Path):
    make_checkpoints(tmp_path / "run", 6, 12)
    older = str(tmp_path / "run" / "checkpoint-6")
    with pytest.raises(ValueError, match=r"already contains checkpoint-12\. Pass a different --output_dir"):
        find_checkpoint(older, tmp_path / "run")
    assert find_checkpoint(older, tmp_path / "branch") == Path(older)


def test_every_process_loads_the_same_moving_average(tmp_path: Path):
    weights = [torch.nn.Parameter(torch.ones(1))]
    ema = EMAModel(weights, decay=0.9)
    ema.step(weights)
    torch.save(ema.state_dict(), tmp_path / "ema_0.pt")
    second_process = SimpleNamespace(
        process_index=1, distributed_type=None, device=torch.device("cpu"), load_state=lambda path: None
    )
    loaded = EMAModel([torch.zeros(1)], decay=0.5)
    load_checkpoint(second_process, torch.optim.Adam(weights), loaded, tmp_path)  # pyright: ignore
    assert loaded.optimization_step == 1
    assert torch.equal(loaded.shadow_params[0], torch.ones(1))
    assert loaded.decay == 0.5


def test_settings_of_optimizer_and_average_come_from_the_command(launch: Callable[..., None], make_trainer: Callable):
    launch("--max_train_steps=2", "--ema.enabled=true", "--optimizer.name=adamw", "--optimizer.lr_warmup_steps=4")
    components = make_trainer(
        "--resume=latest",
        "--max_train_steps=8",
        "--ema.enabled=true",
        "--ema.max_decay=0.5",
        "--ema.power=1",
        "--optimizer.name=adamw",
        "--optimizer.learning_rate=0.008",
        "--optimizer.lr_warmup_steps=4",
        "--optimizer.adam_weight_decay=0.3",
        "--optimizer.adam_beta2=0.9",
    ).components
    (group,) = components.optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["lr"]) == (0.3, (0.9, 0.9), 0.004)
    assert (components.ema.decay, components.ema.power, components.ema.optimization_step) == (0.5, 1, 2)
    assert len(components.optimizer.state) > 0


def test_saved_config_resumes_its_run_and_no_other(
    tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable
):
    launch("--max_train_steps=2", "--ema.enabled=true")
    for option, name in {
        "--ema.enabled=false": "ema.enabled",
        "--model.act_fn=silu": "model",
        "--train_batch_size=8": "train_batch_size",
        "--gradient_accumulation_steps=2": "gradient_accumulation_steps",
    }.items():
        error = fail_to_launch("--ema.enabled=true", option, "--resume=latest")
        assert f"`{name}` must be the same as in the run to resume" in error
        assert f"--config={tmp_path / 'run' / 'config.yaml'}" in error


def test_run_cannot_be_resumed_after_its_end(launch: Callable[..., None], fail_to_launch: Callable):
    launch()
    for option, advice in (
        ("--num_epochs=1", "the run ends at step 6. Increase --num_epochs to train longer."),
        ("--max_train_steps=7", "the run ends at step 7. Increase --max_train_steps to train longer."),
    ):
        assert f"The checkpoint is at step 12, but {advice}" in fail_to_launch("--resume=latest", option)


def test_finished_run_is_not_overwritten(tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable):
    launch("--max_train_steps=1")
    losses = (tmp_path / "run" / "loss.csv").read_bytes()
    assert "--resume=latest to continue its run" in fail_to_launch("--max_train_steps=1")
    launch("--max_train_steps=2", f"--output_dir={tmp_path / 'other'}")
    checkpoint = tmp_path / "other" / "checkpoints" / "checkpoint-2"
    assert f"{tmp_path / 'run'} contains files" in fail_to_launch(f"--resume={checkpoint}")
    assert (tmp_path / "run" / "loss.csv").read_bytes() == losses
