import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_files import assert_equal_weights, load_weights, read_losses

from checkpoint import (
    Progress,
    check_progress,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from manifest import find_damage, hash_manifest, write_manifest
from states import copy_tensors, get_optimizer_tensors, set_optimizer_tensors


def make_checkpoints(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer.json").write_text("{}")
        (checkpoint / "model.safetensors").write_bytes(bytes(100))
        write_manifest(checkpoint)


def test_checkpoints_are_listed_by_step_without_incomplete_ones(tmp_path: Path):
    make_checkpoints(tmp_path, 10, 9, 100)
    for name in (".incomplete-7-checkpoint-200", ".deleted-checkpoint-300", "checkpoint-400.copy"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-500").touch()
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


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, empty, flip_bit, os.remove, replace_by_folder])
@pytest.mark.parametrize("name", ["manifest.json", "trainer.json", "model.safetensors"])
def test_damaged_file_is_named_and_the_previous_checkpoint_is_offered(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
):
    make_checkpoints(tmp_path, 3, 6, 9, 12)
    flip_bit(tmp_path / "checkpoint-9" / "model.safetensors")
    damage(tmp_path / "checkpoint-12" / name)
    previous = tmp_path / "checkpoint-6"
    for resume in ("latest", str(tmp_path / "checkpoint-12")):
        with pytest.raises(ValueError) as error:
            find_checkpoint(resume, tmp_path)
        message = str(error.value)
        assert message.startswith(f"{tmp_path / 'checkpoint-12' / name} is ")
        assert message.endswith(f". Pass --resume={previous} to resume from the previous checkpoint.")
        assert "\n" not in message
    assert find_checkpoint(str(previous), tmp_path) == previous


def test_only_damaged_checkpoint_offers_a_new_run(tmp_path: Path):
    make_checkpoints(tmp_path, 3)
    flip_bit(tmp_path / "checkpoint-3" / "trainer.json")
    with pytest.raises(
        ValueError, match=r"There is no earlier checkpoint, so start again with a different --output_d"
    ):
        find_checkpoint("latest", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        "{}",
        '{"sha256": 3}',
        "[" * 100_000,
        '{"files": {}}',
        '{"format_version": 1, "files": {"../../secret": {"size": 0, "sha256": ""}}}',
        '{"format_version": 1, "files": {"a": null}}',
        '{"format_version": 1, "files": {"a": {"size": "1", "sha256": ""}}}',
        '{"format_version": 1, "files": [1]}',
        '{"format_version": 2, "files": {}}',
        " " * 2**21,
    ],
)
def test_malformed_manifest_is_damaged(tmp_path: Path, content: str):
    if content.endswith("}"):
        values = json.loads(content)
        content = json.dumps(values | {"sha256": values.get("sha256", hash_manifest(values))})
    (tmp_path / "manifest.json").write_text(content)
    assert find_damage(tmp_path) == f"{tmp_path / 'manifest.json'} is damaged"


def test_adding_a_file_does_not_invalidate_the_manifest(tmp_path: Path):
    make_checkpoints(tmp_path, 3)
    (tmp_path / "checkpoint-3" / "notes.txt").touch()
    assert find_damage(tmp_path / "checkpoint-3") is None


class Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def test_nothing_in_a_checkpoint_is_unpickled(
    tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable[..., str]
):
    launch("--max_train_steps=2", "--ema.enabled=true")
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    names = [path.name for path in checkpoint.iterdir()]
    assert sorted(names) == [
        "ema.safetensors",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "timestep_sampler.safetensors",
        "trainer.json",
    ]
    marker = tmp_path / "executed"
    payload = pickle.dumps(Malicious(marker))
    backup = tmp_path / "backup"
    shutil.copytree(checkpoint, backup)
    for name in [*names, "custom_checkpoint_0.pkl"]:
        (checkpoint / name).write_bytes(payload)
        # An attacker can write a valid manifest.
        if name != "manifest.json":
            (checkpoint / "manifest.json").unlink()
            write_manifest(checkpoint)
        if name in names:
            error = fail_to_launch("--resume=latest", "--ema.enabled=true")
            assert str(checkpoint / name) in error
        else:
            launch("--resume=latest", "--ema.enabled=true", "--max_train_steps=2")
        assert not marker.exists()
        shutil.rmtree(checkpoint)
        shutil.copytree(backup, checkpoint)


def test_wrong_values_with_a_valid_manifest_are_an_error_that_names_the_file(
    tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable[..., str]
):
    launch("--max_train_steps=1", "--ema.enabled=true")
    path = tmp_path / "run" / "checkpoints" / "checkpoint-1" / "trainer.json"
    content = path.read_text()
    edits: list[tuple[Callable[[dict], object], str]] = [
        (lambda state: state.pop("progress"), "'progress'"),
        (lambda state: state["progress"].update(batch=-1), "the progress is invalid"),
        (lambda state: state["progress"].update(global_step=10**30), f"it belongs to step {10**30}"),
        (lambda state: state["progress"].update(epoch="1"), "the progress is invalid"),
        (lambda state: state["progress"].update(path="x"), "unexpected keyword argument 'path'"),
        (lambda state: state.update(ema_step=[]), "not 'list'"),
    ]
    for edit, reason in edits:
        state = json.loads(content)
        edit(state)
        path.write_text(json.dumps(state))
        (path.parent / "manifest.json").unlink()
        write_manifest(path.parent)
        error = fail_to_launch("--resume=latest", "--ema.enabled=true")
        assert f"Could not resume from {path}: " in error and error.endswith(f"{reason}."), error


def test_gradient_scaler_is_restored(tmp_path: Path, make_trainer: Callable):
    trainer = make_trainer()
    accelerator, components = trainer.accelerator, trainer.components
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8)
    save_checkpoint(accelerator, components, Progress(), tmp_path, total_limit=1)
    accelerator.scaler = torch.amp.GradScaler("cpu")
    load_checkpoint(accelerator, components, tmp_path / "checkpoint-0")
    assert accelerator.scaler.get_scale() == 8


def test_changed_number_of_images_is_an_error():
    check_progress(Progress(7, 1, 1), 6, 6)
    with pytest.raises(
        ValueError, match="the training images have changed, because an epoch had 6 batches and now has 5"
    ):
        check_progress(Progress(7, 1, 1), 6, 5)


def test_damaged_checkpoint_is_replaced_when_the_run_continues_from_the_previous_one(
    tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable[..., str]
):
    options = ["--checkpointing_steps=4", "--checkpoints_total_limit=3", "--ema.enabled=true"]
    launch(*options, f"--output_dir={tmp_path / 'expected'}")
    launch(*options)
    folder = tmp_path / "run" / "checkpoints"
    flip_bit(folder / "checkpoint-12" / "ema.safetensors")
    error = fail_to_launch(*options, "--resume=latest")
    previous = f"--resume={folder / 'checkpoint-8'}"
    assert previous in error
    launch(*options, previous)
    for path in list_checkpoints(folder):
        assert find_damage(path) is None
        for file in path.iterdir():
            assert file.read_bytes() == (tmp_path / "expected" / "checkpoints" / path.name / file.name).read_bytes()
    assert len(list_checkpoints(folder)) == 3
    assert_equal_weights(load_weights(tmp_path / "run"), load_weights(tmp_path / "expected"))
    assert read_losses(tmp_path / "run") == read_losses(tmp_path / "expected")


def test_only_checkpoint_exists_at_every_time(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    """With a limit of one checkpoint, the old one is removed after the new one is complete."""
    folder = tmp_path / "run" / "checkpoints"
    rename, complete = Path.rename, []

    def record(path: Path, target: Path) -> Path:
        result = rename(path, target)
        complete.append([other.name for other in list_checkpoints(folder) if find_damage(other) is None])
        return result

    monkeypatch.setattr(Path, "rename", record)
    launch("--checkpointing_steps=6", "--checkpoints_total_limit=1")
    assert complete.index(["checkpoint-6"]) < complete.index(["checkpoint-6", "checkpoint-12"])
    assert all(complete[complete.index(["checkpoint-6"]) :])
    assert [path.name for path in folder.iterdir()] == ["checkpoint-12"]


def test_optimizer_state_keeps_its_memory_format():
    parameters = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(parameters.parameters(), fused=True)
    parameters(torch.randn(2, 4, 8, 8)).square().sum().backward()
    optimizer.step()
    saved = {name: value.contiguous().clone() for name, value in get_optimizer_tensors(optimizer, parameters).items()}
    other = torch.optim.Adam(parameters.parameters(), fused=True)
    set_optimizer_tensors(other, parameters, saved)
    for parameter in parameters.parameters():
        for key, value in optimizer.state[parameter].items():
            restored = other.state[parameter][key]
            assert torch.equal(restored, value)
            assert restored.stride() == value.stride()


def test_tensors_of_another_model_are_an_error():
    target = {"a": torch.zeros(2)}
    with pytest.raises(ValueError, match="a has the shape \\(3,\\) instead of \\(2,\\)"):
        copy_tensors({"a": torch.ones(3)}, target)
    with pytest.raises(ValueError, match="the tensor a is missing or unexpected"):
        copy_tensors({"b": torch.ones(2)}, target)
    copy_tensors({"a": torch.ones(2)}, target)
    assert target["a"].tolist() == [1, 1]


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
        "--model.act_fn=silu": "model.act_fn",
        "--data.augmentation=flip": "data.augmentation",
        "--train_batch_size=8": "train_batch_size",
        "--gradient_accumulation_steps=2": "gradient_accumulation_steps",
    }.items():
        error = fail_to_launch("--ema.enabled=true", option, "--resume=latest")
        assert f"`--{name}` must be the same as in the run to resume" in error
        assert f"--config={tmp_path / 'run' / 'config.yaml'}" in error


def test_resumed_run_keeps_model_arguments(tmp_path: Path, launch: Callable[..., None]):
    """The config of a run contains all arguments of the model, also those that `init_from` determines."""
    launch("--max_train_steps=1", "--model.act_fn=silu", f"--output_dir={tmp_path / 'start'}")
    config = tmp_path / "config.yaml"
    config.write_text("model:\n  block_out_channels: [8, 16]\n")
    options = [f"--config={config}", f"--init_from={tmp_path / 'start' / 'pipeline'}"]
    launch(*options, "--max_train_steps=1")
    launch(*options, "--max_train_steps=2", "--resume=latest")
    assert len(read_losses(tmp_path / "run")) == 2


def test_changed_classes_are_an_error(tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable[..., str]):
    for i in range(24):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), i).save(path)
    options = [f"--data.train_data_dir={tmp_path / 'images'}", "--model.num_class_embeds=2", "--train_batch_size=4"]
    launch(*options, "--max_train_steps=1")
    (tmp_path / "images" / "d").mkdir()
    (tmp_path / "images" / "a" / "0.png").rename(tmp_path / "images" / "d" / "0.png")
    assert fail_to_launch(*options, "--resume=latest").endswith(
        "The training images must have 2 classes, like those of the run to resume, got 3. Restore the original data,"
        " or start a new run."
    )
    (tmp_path / "images" / "d" / "0.png").rename(tmp_path / "images" / "a" / "0.png")
    (tmp_path / "images" / "a").rename(tmp_path / "images" / "c")
    assert fail_to_launch(*options, "--resume=latest").endswith(
        "the class names of the training images changed, so restore the original data or start a new run."
    )


def test_failed_start_leaves_an_empty_folder(
    tmp_path: Path, launch: Callable[..., None], fail_to_launch: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: object):
        raise ValueError("The tracker cannot be started.")

    with monkeypatch.context() as context:
        context.setattr("trainer.start_tracker", fail)
        assert "The tracker cannot be started." in fail_to_launch("--max_train_steps=1")
    launch("--max_train_steps=1")


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
    assert "--resume=latest to resume the run in this folder" in fail_to_launch("--max_train_steps=1")
    launch("--max_train_steps=2", f"--output_dir={tmp_path / 'other'}")
    checkpoint = tmp_path / "other" / "checkpoints" / "checkpoint-2"
    assert f"{tmp_path / 'run'} contains files" in fail_to_launch(f"--resume={checkpoint}")
    assert (tmp_path / "run" / "loss.csv").read_bytes() == losses
