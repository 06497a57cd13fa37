"""The training loop: options, resuming and failures."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from crashes import train_until_crash
from PIL import Image
from run_files import assert_equal_weights, load_weights, read_losses
from safetensors.torch import load_file

from checkpoint import list_checkpoints
from fmnist_diffusion import load_pipeline
from losses import NoisyBatch
from train import main


TEXT = [
    "--text_encoder.num_hidden_layers=1",
    "--text_encoder.num_attention_heads=2",
    "--text_encoder.intermediate_size=16",
]


def test_run_writes_all_files(tmp_path: Path, tiny_args: list[str], reset_accelerate: Callable[[], None]):
    # The fixture `launch` would write empty plots.
    reset_accelerate()
    main([*tiny_args, "--report_to=tensorboard", "--save_images_epochs=1", "--checkpointing_steps=4"])
    run = tmp_path / "run"
    losses = read_losses(run)
    assert [int(row["step"]) for row in losses] == list(range(1, 13))
    assert [int(row["epoch"]) for row in losses] == [1] * 6 + [2] * 6
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["checkpoint-8", "checkpoint-12"]
    for name in ("loss.png", "progress.png", "samples/epoch-0001.png", "samples/epoch-0002.png"):
        with Image.open(run / name) as image:
            assert np.asarray(image).std() > 0
    assert list((run / "logs").rglob("events.out.tfevents.*"))
    assert (run / "config.yaml").is_file()

    folder = run / "pipeline"
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "images/samples.png"):
        assert (folder / name).is_file()
    assert json.loads((folder / "train_config.json").read_text())["progress"]["global_step"] == 12
    assert len(load_pipeline(folder)(num_images_per_prompt=2, num_inference_steps=2).images) == 2


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path: Path, launch: Callable[..., None]):
    launch("--num_epochs=20", "--optimizer.learning_rate=3e-3", "--save_images_epochs=100", "--save_model_epochs=100")
    losses = [float(row["loss"]) for row in read_losses(tmp_path / "run")]
    assert np.mean(losses[-12:]) < 0.5 * np.mean(losses[:6])


@pytest.mark.parametrize(
    "options",
    [
        ["--ema.enabled=true"],
        pytest.param(
            [
                "--objective.timestep_sampling=importance",
                "--scheduler.num_train_timesteps=3",
                "--model.dropout=0.2",
                "--optimizer.lr_scheduler=cosine",
                "--optimizer.lr_warmup_steps=3",
                "--gradient_accumulation_steps=2",
                "--data.augmentation=shift",
                "--num_epochs=4",
            ],
            marks=pytest.mark.slow,
        ),
        ["--data.streaming=true", "--data.dataloader_num_workers=0", "--model.num_class_embeds=10"],
        [
            "--scheduler.prediction_type=flow_prediction",
            "--scheduler.num_train_timesteps=3",
            "--objective.timestep_sampling=importance",
        ],
        [*TEXT, "--ema.enabled=true"],
    ],
    ids=["ema", "importance-cosine-accumulation", "streaming-classes", "flow", "text"],
)
def test_resumed_run_equals_an_uninterrupted_run(
    tmp_path: Path, launch: Callable[..., None], make_trainer: Callable, options: list[str]
):
    options = [*options, "--checkpointing_steps=4", "--save_images_epochs=1"]
    launch(*options)
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)

    trainer = make_trainer(*options)
    # The last batch is after a checkpoint and inside an epoch.
    train_until_crash(trainer, 22 if "--num_epochs=4" in options else 11)
    launch(*options, "--resume=latest")

    assert read_losses(tmp_path / "run") == read_losses(whole)
    assert_equal_weights(load_weights(tmp_path / "run"), load_weights(whole))
    last = list_checkpoints(whole / "checkpoints")[-1].name
    for name in ("model", "timestep_sampler"):
        paths = (run / "checkpoints" / last / f"{name}.safetensors" for run in (tmp_path / "run", whole))
        resumed, expected = map(load_file, paths)
        assert_equal_weights(resumed, expected)
    is_importance = trainer.config.objective.timestep_sampling == "importance"
    num_images = len(read_losses(whole)) * trainer.config.images_per_step
    assert resumed["counts"].sum() == (num_images if is_importance else 0)


def test_only_the_same_seed_gives_the_same_run(tmp_path: Path, launch: Callable[..., None]):
    launch("--max_train_steps=3", f"--output_dir={tmp_path / 'a'}")
    launch("--max_train_steps=3", f"--output_dir={tmp_path / 'b'}")
    launch("--max_train_steps=3", f"--output_dir={tmp_path / 'c'}", "--seed=1")
    assert read_losses(tmp_path / "a") == read_losses(tmp_path / "b") != read_losses(tmp_path / "c")


@pytest.mark.parametrize(
    "options",
    [
        ["--scheduler.beta_schedule=scaled_linear", "--objective.loss_type=l1"],
        ["--scheduler.beta_schedule=squaredcos_cap_v2", "--scheduler.prediction_type=v_prediction"],
        ["--scheduler.beta_schedule=sigmoid", "--scheduler.prediction_type=sample", "--objective.loss_type=huber"],
        [
            "--scheduler.rescale_betas_zero_snr=true",
            "--scheduler.prediction_type=v_prediction",
            "--scheduler.timestep_spacing=trailing",
            "--objective.snr_gamma=5",
        ],
        ["--objective.snr_gamma=5", "--objective.timestep_sampling=logit_normal", "--data.augmentation=flip"],
        [
            "--scheduler.prediction_type=flow_prediction",
            "--scheduler.shift=2",
            "--objective.timestep_sampling=mode",
            "--objective.weighting_scheme=cosmap",
        ],
        ["--mixed_precision=bf16", "--gradient_checkpointing=true", "--channels_last=true", "--ema.enabled=true"],
        ["--optimizer.name=adamw", "--optimizer.adam_weight_decay=0.01", "--optimizer.max_grad_norm=1"],
        ["--model.norm_type=group", "--model.norm_num_groups=4", "--model.time_conditioning=all"],
        ["--model.num_class_embeds=10", "--objective.label_dropout=0.5", "--samples.guidance_scale=2"],
        ["--samples.scheduler=ddim", "--samples.num_inference_steps=null", "--samples.seed=7"],
        ["--data.channels=3", "--data.resolution=16"],
    ],
    ids=lambda options: options[0].removeprefix("--"),
)
def test_each_option_trains_and_exports(tmp_path: Path, launch: Callable[..., None], options: list[str]):
    launch("--max_train_steps=2", *options)
    losses = [float(row["loss"]) for row in read_losses(tmp_path / "run")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert (tmp_path / "run" / "progress.png").is_file()
    pipeline = load_pipeline(tmp_path / "run" / "pipeline")
    size, channels = (16, 3) if "--data.channels=3" in options else (28, 1)
    images = pipeline(num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, channels, size, size)
    assert torch.isfinite(images).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch.compile uses it
@pytest.mark.usefixtures("cpp_compiler")
def test_compiled_training_takes_the_same_steps(tmp_path: Path, launch: Callable[..., None]):
    launch("--max_train_steps=2", f"--output_dir={tmp_path / 'eager'}")
    launch("--max_train_steps=2", f"--output_dir={tmp_path / 'compiled'}", "--compile=true")
    eager, compiled = ([float(row["loss"]) for row in read_losses(tmp_path / name)] for name in ("eager", "compiled"))
    np.testing.assert_allclose(compiled, eager, rtol=1e-3)


def test_accumulated_gradients_equal_those_of_the_whole_batch(make_trainer: Callable, tmp_path: Path):
    # GroupNorm does not mix images, so the mean over two half batches is the gradient of the whole batch.
    group = ["--model.norm_type=group", "--model.norm_num_groups=4", "--max_train_steps=1"]
    generator = torch.Generator().manual_seed(0)
    noisy, noise = torch.randn(2, 32, 1, 28, 28, generator=generator)
    timesteps, weights = torch.randint(1000, (32,), generator=generator), torch.rand(32, generator=generator)
    gradients = []
    for name, options in {
        "whole": ["--train_batch_size=32"],
        "halves": ["--train_batch_size=16", "--gradient_accumulation_steps=2"],
    }.items():
        trainer = make_trainer(*group, *options, f"--output_dir={tmp_path / name}")
        size, components = trainer.config.train_batch_size, trainer.components

        def record(*args, unet=components.unet):
            gradients.append([weight.grad for weight in unet.parameters()])

        components.optimizer.optimizer.register_step_pre_hook(record)
        parts = (tensor.split(size) for tensor in (noisy, timesteps, noise, weights))
        for images, steps, target, factors in zip(*parts, strict=True):
            batch = NoisyBatch(images, steps, None, target, factors)
            components.loss.prepare_batch = lambda *args, batch=batch: batch
            trainer._train_batch(images, None, generator)
    assert len(gradients) == 2
    for whole, halves in zip(*gradients, strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped(launch: Callable[..., None], gradient_norms: list[float]):
    launch("--max_train_steps=2", "--optimizer.max_grad_norm=0.01")
    # Clipping never increases a norm, so both norms exceeded the limit before clipping.
    assert gradient_norms == pytest.approx([0.01] * 2, rel=1e-3)


def test_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, make_trainer: Callable, launch: Callable[..., None]
):
    options = ["--checkpointing_steps=4", "--logging_steps=1"]
    trainer = make_trainer(*options)
    train_batch = trainer._train_batch

    def damage_state(*args):
        if trainer.progress.global_step == 6:
            torch.nn.init.constant_(trainer.components.unet.conv_out.weight, float("nan"))
        train_batch(*args)

    trainer._train_batch = damage_state
    with pytest.raises(FloatingPointError, match=r"The loss is nan at step 7\."):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-4"]
    launch(*options, "--resume=latest", "--optimizer.learning_rate=0.00005")
    rows = read_losses(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert {row["learning_rate"] for row in rows[4:]} == {"5e-05"}


def test_nan_weights_are_not_exported(tmp_path: Path, make_trainer: Callable):
    trainer = make_trainer("--num_epochs=1", "--logging_steps=100")
    train_batch = trainer._train_batch

    def change_weights_after_the_last_step(*args):
        train_batch(*args)
        if trainer.progress.global_step == trainer.total_steps:
            torch.nn.init.constant_(trainer.components.unet.conv_out.weight, float("nan"))

    trainer._train_batch = change_weights_after_the_last_step
    with pytest.raises(FloatingPointError, match=r"The weights are NaN or infinite at step 6\."):
        trainer.train()
    assert not (tmp_path / "run" / "pipeline").exists()


@pytest.mark.parametrize("epoch_steps", [6, 5])
def test_nan_ema_weights_are_neither_saved_nor_exported(tmp_path: Path, make_trainer: Callable, epoch_steps: int):
    trainer = make_trainer(
        "--num_epochs=1", f"--max_train_steps={epoch_steps}", "--logging_steps=100", "--ema.enabled=true"
    )
    train_batch = trainer._train_batch

    def damage_state(*args):
        train_batch(*args)
        if trainer.progress.global_step == 5:
            trainer.components.ema.shadow_params[0].fill_(float("inf"))

    trainer._train_batch = damage_state
    with pytest.raises(FloatingPointError, match=rf"The EMA weights are NaN or infinite at step {epoch_steps}\."):
        trainer.train()
    assert not (tmp_path / "run" / "pipeline").exists()
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_infinite_batch_norm_statistics_are_not_exported(
    tmp_path: Path, make_trainer: Callable, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer("--num_epochs=1", "--ema.enabled=true")

    def reestimate(unet, *args):
        unet.down_blocks[0].resnets[0].norm1.running_var.fill_(float("inf"))

    monkeypatch.setattr("trainer.reestimate_batch_norm", reestimate)
    with pytest.raises(FloatingPointError, match=r"The exported weights are NaN or infinite at step 6\."):
        trainer.train()
    assert not (tmp_path / "run" / "pipeline").exists()


def test_infinite_weights_are_not_saved(tmp_path: Path, make_trainer: Callable):
    trainer = make_trainer("--checkpointing_steps=2", "--logging_steps=100")
    train_batch = trainer._train_batch

    def make_weights_infinite(*args):
        train_batch(*args)
        if trainer.progress.global_step == 2:
            torch.nn.init.constant_(trainer.components.unet.conv_out.weight, float("inf"))

    trainer._train_batch = make_weights_infinite
    with pytest.raises(FloatingPointError, match=r"The weights are NaN or infinite at step 2\."):
        trainer.train()
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_run_that_crashed_after_its_last_step_is_finished_by_resume(
    tmp_path: Path, make_trainer: Callable, launch: Callable[..., None]
):
    trainer = make_trainer()
    trainer._write_outputs = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-12"]
    launch("--resume=latest")
    load_pipeline(tmp_path / "run" / "pipeline")
    assert (tmp_path / "run" / "progress.png").is_file()


@pytest.mark.parametrize("steps", [12, 7])
def test_finished_run_can_be_finished_again_in_another_folder(tmp_path: Path, launch: Callable[..., None], steps: int):
    launch(f"--max_train_steps={steps}")
    checkpoint = tmp_path / "run" / "checkpoints" / f"checkpoint-{steps}"
    launch(f"--max_train_steps={steps}", f"--resume={checkpoint}", f"--output_dir={tmp_path / 'branch'}")
    assert_equal_weights(load_weights(tmp_path / "branch"), load_weights(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "branch" / "samples").iterdir()] == ["epoch-0002.png"]


def test_older_checkpoint_can_be_resumed_in_another_folder(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    launch("--checkpointing_steps=6")
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    launch("--resume=checkpoint-6", f"--output_dir={tmp_path / 'branch'}", "--optimizer.learning_rate=1e-3")
    rows, expected = (read_losses(tmp_path / name) for name in ("branch", "run"))
    assert rows[:6] == expected[:6]
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    # The loss of a step is computed before its update, so the new learning rate first affects the next loss.
    assert rows[6]["loss"] == expected[6]["loss"]
    assert rows[-1]["loss"] != expected[-1]["loss"]
