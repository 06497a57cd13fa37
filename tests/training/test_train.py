import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from diffusers import DDPMPipeline
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file

import fmnist_diffusion
from fmnist_diffusion import FashionMNISTPipeline, FashionMNISTUNet2DModel, load_pipeline
from training.checkpoint import list_checkpoints, load_checkpoint
from training.config import parse_config
from training.train import main, public_name


ROOT = Path(__file__).parents[2]
WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"


def read_losses(folder: Path) -> list[dict[str, str]]:
    with (folder / "loss.csv").open() as file:
        return list(csv.DictReader(file))


def picture_bytes(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (28, 28), value).save(file, "PNG")
    return file.getvalue()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "pipeline" / WEIGHTS)


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def test_a_run_leaves_all_that_it_promises(tmp_path: Path, launch: Callable[..., None]):
    launch("--report_to=tensorboard", "--save_images_epochs=1", "--checkpointing_steps=4")
    run = tmp_path / "run"
    losses = read_losses(run)
    assert [int(row["step"]) for row in losses] == list(range(1, 13))
    assert [int(row["epoch"]) for row in losses] == [1] * 6 + [2] * 6
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["checkpoint-8", "checkpoint-12"]
    for name in ("loss.png", "progress.png", "samples/epoch-0001.png", "samples/epoch-0002.png"):
        with Image.open(run / name) as picture:
            assert np.asarray(picture).std() > 0
    assert list((run / "logs").rglob("events.out.tfevents.*"))
    assert (run / "config.yaml").is_file()

    folder = run / "pipeline"
    for name in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "images/samples.png"):
        assert (folder / name).is_file()
    assert json.loads((folder / "train_config.json").read_text())["progress"]["global_step"] == 12
    images = DDPMPipeline.from_pretrained(
        folder, unet=FashionMNISTUNet2DModel.from_pretrained(folder, subfolder="unet")
    )(num_inference_steps=2).images
    assert images[0].size == (28, 28)
    assert len(load_pipeline(folder)(num_images_per_prompt=2, num_inference_steps=2).images) == 2


def test_training_lowers_the_loss(tmp_path: Path, launch: Callable[..., None]):
    launch("--num_epochs=20", "--optimizer.learning_rate=3e-3", "--save_images_epochs=100", "--save_model_epochs=100")
    losses = [float(row["loss"]) for row in read_losses(tmp_path / "run")]
    assert np.mean(losses[-12:]) < 0.5 * np.mean(losses[:6])


@pytest.mark.parametrize(
    "options",
    [
        ["--ema.enabled=true"],
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
        ["--data.streaming=true", "--data.dataloader_num_workers=0", "--model.num_class_embeds=10"],
    ],
    ids=["ema", "importance-cosine-accumulation", "streaming-classes"],
)
def test_a_resumed_run_is_the_run_that_never_stopped(
    tmp_path: Path, launch: Callable[..., None], make_trainer: Callable, options: list[str]
):
    options = [*options, "--checkpointing_steps=4", "--save_images_epochs=1"]
    launch(*options)
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)

    trainer = make_trainer(*options)
    train_batch, batches = trainer._train_batch, iter(range(100))

    def crash(*args):
        train_batch(*args)
        # Behind a checkpoint and inside an epoch.
        if next(batches) == (21 if "--num_epochs=4" in options else 10):
            raise RuntimeError("power cut")

    trainer._train_batch = crash
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.train()
    launch(*options, "--resume=latest")

    assert read_losses(tmp_path / "run") == read_losses(whole)
    assert_same_weights(weights(tmp_path / "run"), weights(whole))
    last = list_checkpoints(whole / "checkpoints")[-1].name
    assert_same_weights(
        load_file(tmp_path / "run" / "checkpoints" / last / "model.safetensors"),
        load_file(whole / "checkpoints" / last / "model.safetensors"),
    )


def test_same_seed_same_run_and_other_seed_another(tmp_path: Path, launch: Callable[..., None]):
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
        ["--mixed_precision=bf16", "--gradient_checkpointing=true", "--channels_last=true", "--ema.enabled=true"],
        ["--optimizer.name=adamw", "--optimizer.adam_weight_decay=0.01", "--optimizer.max_grad_norm=1"],
        ["--model.norm_type=group", "--model.norm_num_groups=4", "--model.time_conditioning=all"],
        ["--model.num_class_embeds=10", "--objective.label_dropout=0.5", "--samples.guidance_scale=2"],
        ["--data.channels=3", "--data.resolution=16"],
    ],
    ids=lambda options: options[0].removeprefix("--"),
)
def test_each_option_trains_and_exports(tmp_path: Path, launch: Callable[..., None], options: list[str]):
    launch("--max_train_steps=2", *options)
    losses = [float(row["loss"]) for row in read_losses(tmp_path / "run")]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    pipeline = load_pipeline(tmp_path / "run" / "pipeline")
    size, channels = (16, 3) if "--data.channels=3" in options else (28, 1)
    images = pipeline(num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, channels, size, size)
    assert torch.isfinite(images).all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own compiler uses it
@pytest.mark.usefixtures("cpp_compiler")
def test_compiled_training_takes_the_same_steps(tmp_path: Path, launch: Callable[..., None]):
    launch("--max_train_steps=2", f"--output_dir={tmp_path / 'eager'}")
    launch("--max_train_steps=2", f"--output_dir={tmp_path / 'compiled'}", "--compile=true")
    eager, compiled = ([float(row["loss"]) for row in read_losses(tmp_path / name)] for name in ("eager", "compiled"))
    np.testing.assert_allclose(compiled, eager, rtol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_from_the_target_a_sampler_gets_the_clean_image(make_trainer: Callable, prediction_type: str):
    trainer = make_trainer(f"--scheduler.prediction_type={prediction_type}")
    images = torch.randint(256, (8, 1, 28, 28), dtype=torch.uint8)
    noisy, timesteps, _, target, _ = trainer._make_inputs(images, None)
    for image, picture, timestep, prediction in zip(images, noisy, timesteps, target, strict=True):
        step = trainer.scheduler.step(prediction[None], int(timestep), picture[None])
        torch.testing.assert_close(step.pred_original_sample[0], image / 127.5 - 1, rtol=0, atol=2e-3)


def test_accumulated_gradients_are_those_of_the_whole_batch(make_trainer: Callable, tmp_path: Path):
    """GroupNorm sees one image at a time, so that the sum of half batches is the gradient of the whole."""
    group = ["--model.norm_type=group", "--model.norm_num_groups=4", "--max_train_steps=1"]
    gradients = []
    for name, options in {
        "whole": ["--train_batch_size=32"],
        "halves": ["--train_batch_size=16", "--gradient_accumulation_steps=2"],
    }.items():
        trainer = make_trainer(*group, *options, f"--output_dir={tmp_path / name}")
        fixed = torch.Generator().manual_seed(0)
        images = torch.randint(256, (32, 1, 28, 28), generator=fixed, dtype=torch.uint8)
        noise = torch.randn(32, 1, 28, 28, generator=fixed)
        timesteps = torch.randint(1000, (32,), generator=fixed)
        size = trainer.config.train_batch_size
        for start in range(0, 32, size):
            part = slice(start, start + size)
            clean = images[part].float() / 127.5 - 1
            noisy = trainer.scheduler.add_noise(clean, noise[part], timesteps[part])
            with trainer.accelerator.accumulate(trainer.unet):
                prediction = trainer.unet(noisy, timesteps[part]).sample
                trainer.accelerator.backward((prediction - noise[part]).square().mean())
        gradients.append([weight.grad for weight in trainer.unet.parameters()])
    for whole, halves in zip(*gradients, strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-6)


def test_averaged_weights_are_what_is_exported(tmp_path: Path, launch: Callable[..., None]):
    launch("--ema.enabled=true", "--optimizer.learning_rate=1e-2", "--max_train_steps=6")
    raw = load_file(tmp_path / "run" / "checkpoints" / "checkpoint-6" / "model.safetensors")
    exported = weights(tmp_path / "run")
    assert not torch.allclose(exported["conv_out.weight"], raw["conv_out.weight"])
    # Batch normalization is measured anew on the averaged weights.
    name = "down_blocks.0.resnets.0.norm1.running_mean"
    assert not torch.allclose(exported[name], raw[name])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, make_trainer: Callable, capsys: pytest.CaptureFixture[str], launch: Callable[..., None]
):
    options = ["--checkpointing_steps=4", "--logging_steps=1"]
    trainer = make_trainer(*options)
    train_batch = trainer._train_batch

    def poison(*args):
        if trainer.progress.global_step == 6:
            with torch.no_grad():
                trainer.unet.conv_out.weight[:] = float("nan")
        train_batch(*args)

    trainer._train_batch = poison
    with pytest.raises(FloatingPointError, match="loss is nan at step 7"):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-4"]
    launch(*options, "--resume=latest", "--optimizer.learning_rate=0.00005")
    rows = read_losses(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert {row["learning_rate"] for row in rows[4:]} == {"5e-05"}


def test_importance_sampling_survives_a_loss_that_is_not_finite(make_trainer: Callable):
    trainer = make_trainer(
        "--objective.timestep_sampling=importance",
        "--scheduler.num_train_timesteps=2",
        "--optimizer.learning_rate=1e38",
    )
    with pytest.raises(FloatingPointError):
        trainer.train()


def test_a_run_that_crashed_behind_its_last_step_is_finished_by_resume(
    tmp_path: Path, make_trainer: Callable, launch: Callable[..., None]
):
    trainer = make_trainer("--checkpointing_steps=4")
    trainer._draw_samples = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    launch("--checkpointing_steps=4", "--resume=latest")
    load_pipeline(tmp_path / "run" / "pipeline")
    assert (tmp_path / "run" / "progress.png").is_file()


def test_the_saved_config_resumes_its_run_and_no_other_does(
    tmp_path: Path,
    launch: Callable[..., None],
    fresh_accelerate: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
):
    launch("--max_train_steps=2", "--ema.enabled=true")
    config = f"--config={tmp_path / 'run' / 'config.yaml'}"
    for option, words in {
        "--ema.enabled=false": "ema.enabled is not that of the run to resume",
        "--model.act_fn=silu": "model is not that of the run",
        "--train_batch_size=8": "train_batch_size is not that of the run",
        "--gradient_accumulation_steps=2": "gradient_accumulation_steps is not that of the run",
    }.items():
        with pytest.raises(SystemExit) as error:
            launch("--ema.enabled=true", option, "--resume=latest")
        assert error.value.code == 2
        assert words in capsys.readouterr().err
    fresh_accelerate()
    main([config, "--resume=latest", "--max_train_steps=null"])
    assert len(read_losses(tmp_path / "run")) == 12
    assert parse_config([config]).resume is None


@pytest.mark.parametrize("steps", [12, 7])
def test_a_run_at_its_end_is_finished_again_elsewhere(tmp_path: Path, launch: Callable[..., None], steps: int):
    launch(f"--max_train_steps={steps}")
    checkpoint = tmp_path / "run" / "checkpoints" / f"checkpoint-{steps}"
    launch(f"--max_train_steps={steps}", f"--resume={checkpoint}", f"--output_dir={tmp_path / 'branch'}")
    assert_same_weights(weights(tmp_path / "branch"), weights(tmp_path / "run"))
    grids = [sorted(path.name for path in (tmp_path / run / "samples").iterdir()) for run in ("run", "branch")]
    assert grids[1] == ["epoch-0002.png"] and set(grids[1]) <= set(grids[0])


def test_a_run_behind_its_end_is_refused(launch: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    launch()
    for option, advice in (
        ("--num_epochs=1", "at 6; give more --num_epochs"),
        ("--max_train_steps=7", "at 7; give more --max_train_steps"),
    ):
        with pytest.raises(SystemExit) as error:
            launch("--resume=latest", option)
        assert error.value.code == 2
        assert f"the run to resume is at step 12 and would end {advice}" in capsys.readouterr().err


def test_advice_without_a_checkpoint_is_to_begin_anew(
    launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(trainer: object):
        raise FloatingPointError("the loss is nan at step 1")

    monkeypatch.setattr("training.train.Trainer.train", fail)
    with pytest.raises(SystemExit) as error:
        launch()
    assert error.value.code == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "there is no checkpoint yet; begin anew with another --output_dir and a lower" in message


def test_compile_without_a_compiler_is_refused(
    launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit) as error:
        launch("--compile=true")
    assert error.value.code == 2
    assert "install g++ and python3-dev, or give --compile=false" in capsys.readouterr().err


def test_an_older_checkpoint_goes_on_in_another_folder(
    tmp_path: Path,
    launch: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    launch("--checkpointing_steps=6")
    older = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    with pytest.raises(SystemExit) as error:
        launch(f"--resume={older}")
    assert error.value.code == 2
    assert "another --output_dir" in capsys.readouterr().err
    monkeypatch.chdir(older.parent)
    launch("--resume=checkpoint-6", f"--output_dir={tmp_path / 'branch'}", "--optimizer.learning_rate=1e-3")
    rows = read_losses(tmp_path / "branch")
    assert rows[:6] == read_losses(tmp_path / "run")[:6]
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert rows[-1] != read_losses(tmp_path / "run")[-1]


def test_a_run_in_another_folder_is_not_overwritten(
    tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    launch("--checkpointing_steps=6")
    branch = tmp_path / "branch"
    launch(f"--output_dir={branch}", "--max_train_steps=3")
    losses = (branch / "loss.csv").read_bytes()
    with pytest.raises(SystemExit):
        launch(f"--output_dir={branch}", f"--resume={tmp_path / 'run' / 'checkpoints' / 'checkpoint-12'}")
    assert f"{branch} holds files already; give another --output_dir" in capsys.readouterr().err
    assert (branch / "loss.csv").read_bytes() == losses


def test_settings_of_a_resumed_run_are_those_of_its_command(launch: Callable[..., None], make_trainer: Callable):
    launch("--max_train_steps=2", "--ema.enabled=true", "--optimizer.name=adamw")
    trainer = make_trainer(
        "--resume=latest",
        "--ema.enabled=true",
        "--ema.max_decay=0.5",
        "--ema.power=1",
        "--optimizer.name=adamw",
        "--optimizer.adam_weight_decay=0.3",
        "--optimizer.adam_beta2=0.9",
    )
    (group,) = trainer.optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.9, 0.9))
    assert (trainer.ema.decay, trainer.ema.power, trainer.ema.optimization_step) == (0.5, 1, 2)
    assert len(trainer.optimizer.state) > 0


def test_every_process_loads_the_one_average(launch: Callable[..., None], tmp_path: Path):
    launch("--max_train_steps=2", "--ema.enabled=true")
    second = SimpleNamespace(
        process_index=1, distributed_type=None, device=torch.device("cpu"), load_state=lambda path: None
    )
    ema = EMAModel([torch.zeros(1)])
    load_checkpoint(second, ema, tmp_path / "run" / "checkpoints" / "checkpoint-2")  # pyright: ignore
    assert ema.optimization_step == 2


def test_where_there_is_no_checkpoint_resume_says_how_to_begin_anew(
    tmp_path: Path, make_trainer: Callable, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    make_trainer()
    with pytest.raises(SystemExit):
        launch("--resume=latest")
    assert "leave out --resume and give a new --output_dir" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_picture_ends_a_streaming_run_with_one_sentence(
    tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str], num_workers: int
):
    for i in range(16):
        Image.new("L", (28, 28), i).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit) as error:
        launch(
            f"--data.train_data_dir={tmp_path}",
            "--data.streaming=true",
            f"--data.dataloader_num_workers={num_workers}",
        )
    assert error.value.code == 2
    assert f"train.py: error: {tmp_path / '3.png'} is not a readable picture" in capsys.readouterr().err


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_integer_labels_count_to_the_highest_of_the_whole_set(tmp_path: Path, make_trainer: Callable, streaming: str):
    pictures = [{"bytes": picture_bytes(i), "path": None} for i in range(48)]
    data = datasets.Dataset.from_dict(
        {"image": pictures, "label": [0] * 40 + [5] * 8},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    data.to_parquet(tmp_path / "data.parquet")
    trainer = make_trainer(
        f"--data.train_data_dir={tmp_path / 'data.parquet'}",
        f"--data.streaming={streaming}",
        "--data.max_train_samples=32",
        "--model.num_class_embeds=6",
    )
    assert list(trainer.unet.config.label_names) == ["0", "1", "2", "3", "4", "5"]


def test_weights_that_are_not_finite_are_never_exported(tmp_path: Path, make_trainer: Callable):
    trainer = make_trainer("--num_epochs=1", "--logging_steps=100")
    train_batch = trainer._train_batch

    def poison_behind_the_last(*args):
        train_batch(*args)
        if trainer.progress.global_step == trainer.total_steps:
            torch.nn.init.constant_(trainer.unet.conv_out.weight, float("nan"))

    trainer._train_batch = poison_behind_the_last
    with pytest.raises(FloatingPointError, match="weights are not finite at step 6"):
        trainer.train()
    assert not (tmp_path / "run" / "pipeline").exists()


def test_samples_that_cannot_be_drawn_do_not_end_the_run(
    tmp_path: Path, launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def draw(*args, **kwargs):
        raise ValueError("The model draws pixels that are not finite")

    monkeypatch.setattr(FashionMNISTPipeline, "__call__", draw)
    launch("--num_epochs=1")
    assert "epoch 1: no samples: The model draws pixels that are not finite" in "".join(capsys.readouterr())
    assert (tmp_path / "run" / "pipeline").is_dir()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, make_trainer: Callable):
    trainer = make_trainer("--checkpointing_steps=2", "--optimizer.learning_rate=1e38", "--logging_steps=100")
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_ctrl_c_loses_nothing(tmp_path: Path, make_trainer: Callable, launch: Callable[..., None]):
    trainer = make_trainer()
    train_batch = trainer._train_batch

    def interrupt(*args):
        train_batch(*args)
        if trainer.progress.global_step == 3:
            os.kill(os.getpid(), 2)

    trainer._train_batch = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["checkpoint-3"]
    launch("--resume=latest")
    assert len(read_losses(tmp_path / "run")) == 12


def test_ctrl_c_before_the_first_step_is_said_in_one_line(
    launch: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*args: object, **kwargs: object):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.train.load_images", interrupt)
    with pytest.raises(SystemExit) as error:
        launch()
    assert error.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "train.py: stopped before training began."


def test_fine_tuning_begins_with_the_given_weights(
    tmp_path: Path, launch: Callable[..., None], make_trainer: Callable
):
    launch("--max_train_steps=1")
    (tmp_path / "run").rename(tmp_path / "first")
    trainer = make_trainer(f"--init_from={tmp_path / 'first' / 'pipeline'}")
    assert_same_weights(dict(trainer.unet.state_dict()), weights(tmp_path / "first"))


def test_fine_tuning_takes_other_classes_and_channels(
    tmp_path: Path, launch: Callable[..., None], make_trainer: Callable
):
    launch("--max_train_steps=1", "--model.num_class_embeds=10")
    (tmp_path / "run").rename(tmp_path / "first")
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(16):
            pixels = np.random.default_rng(i).integers(256, size=(20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / label / f"{i}.png")
    first = tmp_path / "first" / "pipeline"
    trainer = make_trainer(f"--init_from={first}", f"--data.train_data_dir={tmp_path / 'pets'}", "--data.channels=3")
    old, new = weights(tmp_path / "first"), trainer.unet.state_dict()
    assert trainer.unet.config.num_class_embeds == 2
    assert list(trainer.unet.config.label_names) == ["cat", "dog"]
    assert new["class_embedding.weight"].shape[0] == 3
    assert torch.equal(new["class_embedding.weight"][-1], old["class_embedding.weight"][-1])
    assert new["conv_out.weight"].shape[0] == 3
    assert torch.equal(new["down_blocks.1.conv.weight"], old["down_blocks.1.conv.weight"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.train_data_dir=/nowhere"], "/nowhere"),
        (["--model.norm_typ=group"], "norm_type"),
        (["--model.norm_type=layer"], "'batch', 'group'"),
        (["--model.sample_size=32"], "data.resolution"),
        (["--model.num_class_embeds=7"], "--model.num_class_embeds=10"),
        (["--resume=latest"], "no checkpoint"),
        (["--resume=/nowhere"], "/nowhere"),
        (["--init_from=/nowhere"], "/nowhere"),
        (["--train_batch_size=1000"], "--train_batch_size"),
        (["--gradient_accumulation_steps=7"], "an epoch has 6 batches"),
        (["--data.image_column=picture"], "picture"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_input_ends_with_one_sentence(
    launch: Callable[..., None], capsys: pytest.CaptureFixture[str], options: list[str], words: str
):
    with pytest.raises(SystemExit) as error:
        launch(*options)
    assert error.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("train.py: error: ")
    assert words in last


def test_fine_tuning_refuses_what_does_not_fit(
    tmp_path: Path, launch: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    launch("--max_train_steps=1")
    (tmp_path / "run").rename(tmp_path / "first")
    first = f"--init_from={tmp_path / 'first' / 'pipeline'}"
    for option, words in {
        "--model.act_fn=silu": "has model.act_fn=relu, which can't be changed",
        "--scheduler.prediction_type=sample": "--scheduler.prediction_type=epsilon",
        "--scheduler.beta_schedule=squaredcos_cap_v2": "has another noise schedule",
    }.items():
        with pytest.raises(SystemExit) as error:
            launch(first, option)
        assert error.value.code == 2
        assert words in capsys.readouterr().err


def test_what_is_of_older_weights_does_not_stay_beside_new_ones(make_trainer: Callable, tmp_path: Path):
    trainer, folder = make_trainer(), tmp_path / "pipeline"
    grid = trainer.grid_path(1)
    grid.write_bytes(b"a grid of the first epoch")
    trainer._export(trainer._sampling_unet(), folder, epoch=1)
    shown, metrics = folder / "images" / "samples.png", folder / "metrics.json"
    assert shown.read_bytes() == grid.read_bytes()
    metrics.write_text("{}")
    trainer._export(trainer._sampling_unet(), folder, epoch=2)
    assert not shown.exists()
    assert not metrics.exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("zalando-datasets/fashion_mnist", "zalando-datasets/fashion_mnist"),
        ("spec", "spec"),
        ("/home/somebody/secret/pets", "pets"),
        ("./secret/pets", "pets"),
        ("~/pets", "pets"),
        ("secret/project/pets", "pets"),
    ],
)
def test_what_is_exported_names_no_path(source: str, name: str):
    assert public_name(source) == name


def test_a_finished_run_is_not_overwritten(launch: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    launch("--max_train_steps=1")
    with pytest.raises(SystemExit) as error:
        launch("--max_train_steps=1")
    assert error.value.code == 2
    assert "--resume=latest" in capsys.readouterr().err


def accelerate_launch(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_two_processes_share_the_batch_draw_their_own_noise_and_resume(tmp_path: Path, tiny_args: list[str]):
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch\n"
        "from training.config import parse_config\n"
        "from training.train import Trainer\n"
        "trainer = Trainer(parse_config(sys.argv[1:]))\n"
        "images, labels = next(trainer.batches.epoch(0))\n"
        "with torch.random.fork_rng():\n"
        "    noise = torch.randn(4)\n"
        "rank = trainer.accelerator.process_index\n"
        f"torch.save((trainer.accelerator.num_processes, images, noise), f'{tmp_path}/{{rank}}.pt')\n"
        "trainer.train()\n"
    )
    config = ROOT / "training" / "accelerate" / "multi_cpu.yaml"
    options = ["--checkpointing_steps=4", "--ema.enabled=true", "--model.dropout=0.1"]
    result = accelerate_launch("--config_file", str(config), str(probe), *tiny_args, *options)
    assert result.returncode == 0, result.stderr
    (processes, first, noise), (_, second, other_noise) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert processes == 2
    assert len(first) == len(second) == 8
    assert not torch.equal(first, second)
    assert not torch.equal(noise, other_noise)
    run = tmp_path / "run"
    assert [int(row["step"]) for row in read_losses(run)] == list(range(1, 13))
    checkpoint = list_checkpoints(run / "checkpoints")[-1]
    assert len(list(checkpoint.glob("random_states_*"))) == 2
    assert [path.name for path in checkpoint.glob("ema_*")] == ["ema_0.pt"]

    # The same in two goes.
    again = [*tiny_args, f"--output_dir={tmp_path / 'again'}", *options]
    for more in (["--max_train_steps=8"], ["--resume=latest"]):
        result = accelerate_launch("--config_file", str(config), "training/train.py", *again, *more)
        assert result.returncode == 0, result.stderr
    assert read_losses(tmp_path / "again") == read_losses(run)
    assert_same_weights(weights(tmp_path / "again"), weights(run))


def test_accelerate_launch_of_spec_yaml(tmp_path: Path, fashion_mnist_folder: Path):
    """The specification itself, for one step."""
    result = accelerate_launch(
        "--num_processes=1", "--cpu", "training/train.py", "--config=training/configs/spec.yaml",
        f"--data.train_data_dir={fashion_mnist_folder}", f"--output_dir={tmp_path / 'run'}", "--max_train_steps=1",
        "--samples.num_images=2", "--samples.num_inference_steps=1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    pipeline = load_pipeline(tmp_path / "run" / "pipeline")
    assert pipeline.unet.num_parameters() == 13_246_913
    defaults = json.loads(fmnist_diffusion.FashionMNISTUNet2DModel().to_json_string())
    assert json.loads((tmp_path / "run" / "pipeline" / "unet" / "config.json").read_text()) == defaults


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_files_are_read_by_accelerate(path: Path):
    config = load_config_from_file(str(path))
    arguments = vars(launch_command_parser().parse_args(["script.py"])).keys()
    assert config.fsdp_config.keys() <= arguments
    assert config.num_processes == (1 if path.stem in ("cpu", "single_gpu") else 2)


def test_a_tracker_that_is_not_installed_is_named(
    launch: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        launch("--report_to=wandb")
    assert error.value.code == 2
    assert "pip install wandb" in capsys.readouterr().err
