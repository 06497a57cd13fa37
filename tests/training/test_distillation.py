"""The distillation loss, and runs of distill.py with small models."""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crashes import train_until_crash
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image
from run_files import assert_equal_weights, load_weights, read_losses
from safetensors.torch import load_file
from test_consistency import MEAN, STD, denoise, solve

from checkpoint import list_checkpoints
from config import ObjectiveConfig
from distill import main
from distillation import ConsistencyLoss, DistillationBatch
from fmnist_diffusion import load_pipeline
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from losses import NoisyBatch
from parsing import parse_config
from resolve import resolve_config
from train import main as train
from trainer import Trainer


CPU = torch.device("cpu")
ZERO_SNR = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
DISTILLATION = ["--distillation.num_segments=32", "--ema.enabled=true"]
ADVERSARIAL = ["--distillation.adversarial_weight=5"]


class Output:
    def __init__(self, sample: torch.Tensor):
        self.sample = sample


class ExactModel(torch.nn.Module):
    """A v-prediction model that predicts the clean images that `function` returns."""

    def __init__(self, function: Callable, angles: torch.Tensor):
        super().__init__()
        self.function, self.angles = function, angles

    def forward(self, images: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> Output:
        angles = self.angles[timesteps + 1]
        cos, sin = angles.cos().view(-1, 1, 1, 1), angles.sin().view(-1, 1, 1, 1)
        return Output((cos * images - self.function(images, angles)) / sin)


class ConstantModel(torch.nn.Module):
    """A model whose output is always `output`."""

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output = output

    def forward(self, images: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None) -> Output:
        return Output(self.output.expand_as(images))


def make_loss(
    num_segments: int = 32,
    num_class_embeds: int | None = None,
    function: Callable = solve,
    scheduler: Any = None,
    label_dropout: float = 0.1,
    adversarial_loss: Any = None,
    **processes: int,
) -> ConsistencyLoss:
    loss = ConsistencyLoss(
        ObjectiveConfig(label_dropout=label_dropout),
        num_segments,
        scheduler or DDPMScheduler(**ZERO_SNR),
        num_class_embeds,
        CPU,
        torch.nn.Identity(),
        torch.nn.Identity(),
        torch.no_grad,
        adversarial_loss,
        **processes,
    )
    loss.target_unet, loss.teacher = ExactModel(function, loss.angles), ExactModel(denoise, loss.angles)
    return loss


def compute_gaussian_loss(num_segments: int, function: Callable) -> float:
    """Returns the mean loss of a model with the consistency function `function` for Gaussian data."""
    loss = make_loss(num_segments, function=function)
    generator = torch.Generator().manual_seed(0)
    images = MEAN + STD * torch.randn(512, 1, 4, 4, generator=generator)
    batch = loss.prepare_batch(images, None, generator)
    value = loss(ExactModel(function, loss.angles)(batch.images, batch.timesteps, None).sample, batch)
    torch.testing.assert_close(value.total, value.per_image.mean())
    return float(value.total)


def test_loss_of_the_exact_consistency_function_is_the_error_of_the_solver():
    exact = [compute_gaussian_loss(num_segments, solve) for num_segments in (16, 32, 64)]
    others = [compute_gaussian_loss(num_segments, denoise) for num_segments in (16, 64)]
    assert 0 < exact[2] < exact[1] / 2 < exact[0] / 4
    assert others[0] > 4 * exact[0] and others[1] > 15 * exact[2]


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_target_of_a_clean_image_is_the_prediction_of_the_teacher(prediction_type: str):
    loss = make_loss(1, scheduler=DDPMScheduler(**ZERO_SNR | {"prediction_type": prediction_type}))
    # The teacher always predicts this image. The model with the EMA weights must not change clean images.
    loss.target_unet = ConstantModel(torch.tensor(7.0))
    image = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    loss.teacher = ExactModel(lambda images, angles: image.expand_as(images), loss.angles)
    if prediction_type == "sample":
        loss.teacher = ConstantModel(image)
    batch = loss.prepare_batch(torch.rand(8, 1, 4, 4), None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.target, image.expand(8, 1, 4, 4))
    assert batch.timesteps.tolist() == [999] * 8


def test_target_is_clamped():
    loss = make_loss(function=lambda images, angles: images + 9)
    batch = loss.prepare_batch(torch.zeros(64, 1, 4, 4), None, torch.Generator().manual_seed(0))
    assert batch.target.max() == 1 and batch.target.min() >= -1


def test_noise_timesteps_of_the_discriminator_are_mostly_low():
    loss = make_loss(adversarial_loss=object())
    batch = loss.prepare_batch(torch.zeros(20_000, 1, 1, 1), None, torch.Generator().manual_seed(0))
    assert isinstance(batch, DistillationBatch)
    timesteps = batch.noise_timesteps
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    # The median of sigmoid(n) is the sigmoid of the mean of n.
    assert float(timesteps.float().median()) == pytest.approx(1000 / (1 + math.exp(2.5)), abs=3)


def test_terms_of_the_loss_with_an_adversarial_loss():
    losses = torch.tensor(0.3), torch.tensor(1.2)
    loss = make_loss(adversarial_loss=lambda real, generated, timesteps, class_labels: losses)
    batch = loss.prepare_batch(torch.zeros(8, 1, 4, 4), None, torch.Generator().manual_seed(0))
    value = loss(torch.zeros(8, 1, 4, 4), batch)
    terms = dict(zip(loss.term_names, value.terms, strict=True))
    torch.testing.assert_close(terms["consistency_loss"], value.per_image.mean())
    assert (terms["generator_loss"], terms["discriminator_loss"]) == losses
    torch.testing.assert_close(value.total, terms["consistency_loss"] + 1.5)
    assert make_loss().term_names == ()


@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_train_on_the_same_batches_as_one(num_processes: int):
    images, labels = torch.randn(16, 3, 4, 4).clamp(-1, 1), torch.arange(16) % 10

    def make_batch(part: slice, **processes: int) -> NoisyBatch:
        loss = make_loss(num_class_embeds=10, label_dropout=0.5, adversarial_loss=object(), **processes)
        return loss.prepare_batch(images[part], labels[part], torch.Generator().manual_seed(0))

    whole, size = make_batch(slice(None)), 16 // num_processes
    assert isinstance(whole, DistillationBatch)
    parts = [
        make_batch(slice(i * size, (i + 1) * size), process_index=i, num_processes=num_processes)
        for i in range(num_processes)
    ]
    assert whole.class_labels is not None and 0 < (whole.class_labels == 10).sum() < 16
    # Dropped labels depend on the position of the image in the whole batch.
    for name in (field.name for field in dataclasses.fields(whole)):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_noise_prediction_cannot_start_from_pure_noise():
    with pytest.raises(ValueError, match="v_prediction or sample"):
        make_loss(scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    make_loss(scheduler=DDPMScheduler())


# --- Runs ---


@pytest.fixture
def rgb_folder(tmp_path: Path) -> Path:
    """24 RGB images of 16x16 pixels in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "images" / ["cat", "dog"][i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


@pytest.fixture
def make_teacher(
    tmp_path: Path, tiny_args: list[str], reset_accelerate: Callable[[], None], empty_plots: None
) -> Callable[..., str]:
    """Trains a model for one step and returns the option that selects it as the teacher."""

    def make(*args: str) -> str:
        reset_accelerate()
        scheduler = [f"--scheduler.{name}={json.dumps(value).strip(chr(34))}" for name, value in ZERO_SNR.items()]
        train([*tiny_args, *scheduler, f"--output_dir={tmp_path / 'teacher'}", "--max_train_steps=1", *args])
        return f"--init_from={tmp_path / 'teacher' / 'pipeline'}"

    return make


@pytest.fixture
def distill(tiny_args: list[str], reset_accelerate: Callable[[], None]) -> Callable[..., None]:
    def run(*args: str) -> None:
        reset_accelerate()
        main([*tiny_args, "--samples.num_inference_steps=null", *args])

    return run


@pytest.mark.parametrize("teacher", ["conditional", "unconditional", "rgb", "epsilon", "text"])
def test_each_kind_of_checkpoint_can_be_distilled(
    tmp_path: Path,
    make_teacher: Callable[..., str],
    distill: Callable[..., None],
    rgb_folder: Path,
    diffusers_log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    teacher: str,
):
    options = {
        "conditional": ["--model.num_class_embeds=10"],
        "unconditional": [],
        "rgb": [f"--data.train_data_dir={rgb_folder}", "--model.num_class_embeds=2", "--num_epochs=4"],
        "epsilon": [
            "--scheduler.prediction_type=epsilon",
            "--scheduler.beta_schedule=linear",
            "--scheduler.rescale_betas_zero_snr=false",
            "--model.norm_type=group",
            "--model.norm_num_groups=4",
        ],
        "text": ["--text_encoder.num_hidden_layers=1", "--text_encoder.intermediate_size=16"],
    }[teacher]
    init_from = make_teacher(*options)
    monkeypatch.setattr("resolve.choose_mixed_precision", lambda device_type: "bf16")
    distill(
        init_from,
        "--mixed_precision=auto",
        *DISTILLATION,
        *ADVERSARIAL,
        *[option for option in options if option.startswith(("--data", "--num"))],
    )
    # The division by almost zero amplifies the rounding errors of predicted noise.
    config = json.loads((tmp_path / "run" / "pipeline" / "train_config.json").read_text())
    assert config["mixed_precision"] == ("no" if teacher == "epsilon" else "bf16")
    rows = read_losses(tmp_path / "run")
    losses = [float(row["loss"]) for row in rows]
    terms = ("consistency_loss", "generator_loss", "discriminator_loss")
    assert losses == pytest.approx([sum(float(row[name]) for name in terms) for row in rows])
    assert np.isfinite(losses).all() and min(losses) > 0
    assert not torch.equal(
        load_weights(tmp_path / "run")["conv_out.weight"], load_weights(tmp_path / "teacher")["conv_out.weight"]
    )

    # DiffusionPipeline loads the exported pipeline, which generates images without warnings or further settings.
    diffusers_log.clear()
    folder = str(tmp_path / "run" / "pipeline")
    with diffusers_log.at_level(logging.WARNING):
        pipe: Any = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        conditions = {
            "conditional": {"class_labels": "Bag"},
            "rgb": {"class_labels": "dog"},
            "text": {"prompt": "a bag"},
        }
        condition = conditions.get(teacher, {})
        for steps, timesteps in {1: [999], 2: [999, 249], 4: [999, 562, 249, 62]}.items():
            images = pipe(**condition, num_inference_steps=steps, output_type="np").images
            assert pipe.scheduler.timesteps.tolist() == timesteps
            assert images.shape == ((1, 16, 16, 3) if teacher == "rgb" else (1, 28, 28, 1))
        pipe(**condition)
        assert pipe.num_function_evaluations == 4
    assert not diffusers_log.records
    assert type(pipe.scheduler).__name__ == "LCMScheduler"


@pytest.mark.parametrize("loss", ["consistency", "adversarial"])
def test_resumed_run_equals_an_uninterrupted_run(
    tmp_path: Path,
    tiny_args: list[str],
    make_teacher: Callable[..., str],
    distill: Callable[..., None],
    reset_accelerate: Callable[[], None],
    loss: str,
):
    model = ["--model.num_class_embeds=10", "--model.dropout=0.2"]
    options = [
        *model,
        make_teacher(*model),
        *DISTILLATION,
        "--checkpointing_steps=4",
        "--optimizer.lr_scheduler=cosine",
    ]
    options += ADVERSARIAL if loss == "adversarial" else []
    distill(*options)
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)

    reset_accelerate()
    arguments = [*tiny_args, "--samples.num_inference_steps=null", *options]
    trainer = Trainer(resolve_config(parse_config(arguments, "distill.py")))
    # The last batch comes after a checkpoint and in the middle of an epoch.
    train_until_crash(trainer, 10)
    distill(*options, "--resume=latest")
    assert read_losses(tmp_path / "run") == read_losses(whole)
    assert_equal_weights(load_weights(tmp_path / "run"), load_weights(whole))
    last = list_checkpoints(whole / "checkpoints")[-1].name
    names = [path.name for path in (whole / "checkpoints" / last).glob("*.safetensors")]
    assert ("discriminator_optimizer.safetensors" in names) == (loss == "adversarial")
    for name in names:
        first, second = (load_file(run / "checkpoints" / last / name) for run in (tmp_path / "run", whole))
        assert_equal_weights(first, second)


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (["--data.resolution=32"], "size 28x28 to 32x32"),
        (["--data.channels=3"], "channels 1 to 3"),
        (["--data.resolution=28", "--data.channels=1", "IMAGES"], "2 new classes"),
    ],
)
def test_images_that_do_not_match_the_teacher_are_an_error(
    make_teacher: Callable[..., str],
    distill: Callable[..., None],
    rgb_folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    changes: str,
):
    init_from = make_teacher("--model.num_class_embeds=10")
    capsys.readouterr()
    if options[-1] == "IMAGES":
        for label in range(2, 10):
            shutil.copytree(rgb_folder / "cat", rgb_folder / FASHION_MNIST_LABELS[label].replace("/", "-"))
        options = [*options[:-1], f"--data.train_data_dir={rgb_folder}"]
    with pytest.raises(SystemExit, match="2"):
        distill(init_from, *DISTILLATION, *options)
    folder = init_from.partition("=")[2]
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"distill.py: error: {folder} was not trained on such images ({changes}), so it cannot be the teacher."
        " Fine-tune it on these images with train.py first."
    )


def test_conditional_teacher_can_be_distilled_without_classes(
    tmp_path: Path, make_teacher: Callable[..., str], distill: Callable[..., None]
):
    init_from = make_teacher("--model.num_class_embeds=10")
    distill(init_from, *DISTILLATION, "--model.num_class_embeds=null", "--max_train_steps=1")
    assert load_pipeline(tmp_path / "run" / "pipeline").label_names is None


def test_non_finite_discriminator_weights_are_not_saved(
    tmp_path: Path, tiny_args: list[str], make_teacher: Callable[..., str], reset_accelerate: Callable[[], None]
):
    init_from = make_teacher()
    reset_accelerate()
    options = [*tiny_args, init_from, *DISTILLATION, *ADVERSARIAL, "--samples.num_inference_steps=null"]
    trainer = Trainer(resolve_config(parse_config([*options, "--max_train_steps=2"], "distill.py")))
    train_batch = trainer._train_batch

    def set_weights_to_nan_after_the_last_step(*args: Any) -> None:
        train_batch(*args)
        if trainer.progress.global_step == 2:
            next(trainer.components.discriminator.parameters()).data.fill_(float("nan"))

    trainer._train_batch = set_weights_to_nan_after_the_last_step
    with pytest.raises(FloatingPointError, match=r"The weights of the discriminator are NaN or infinite at step 2\."):
        trainer.train()
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


def test_target_model_has_the_ema_weights(
    tiny_args: list[str], make_teacher: Callable[..., str], reset_accelerate: Callable[[], None]
):
    options = [
        *tiny_args,
        make_teacher(),
        *DISTILLATION,
        *ADVERSARIAL,
        "--samples.num_inference_steps=null",
        "--max_train_steps=2",
    ]
    options += ["--mixed_precision=bf16", "--channels_last=true", "--gradient_accumulation_steps=2"]
    reset_accelerate()
    trainer = Trainer(resolve_config(parse_config(options, "distill.py")))
    components: Any = trainer.components
    before = [parameter.clone() for parameter in components.loss.teacher.parameters()]
    trainer.train()
    targets = list(components.loss.target_unet.parameters())
    for target, ema, weight in zip(targets, components.ema.shadow_params, components.unet.parameters(), strict=True):
        assert torch.equal(target, ema)
        assert target.data_ptr() != weight.data_ptr()
    assert any(not torch.equal(target, old) for target, old in zip(targets, before, strict=True))
    for parameter, old in zip(components.loss.teacher.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "`--distillation.num_segments` must be an integer in distill.py, got null. Pass --config="),
        (DISTILLATION, "`--init_from` must be the pipeline to distill, got null."),
        (["--init_from=base", DISTILLATION[0]], "`--ema.enabled` must be true"),
        (
            ["--init_from=base", *DISTILLATION, "--distillation.num_segments=1001"],
            "`--distillation.num_segments` must be at most `--scheduler.num_train_timesteps` (1000), got 1001.",
        ),
        (["--distillation.num_segments=0"], "`--distillation.num_segments` must be between 1 and 100,000, got 0."),
        (
            ["--distillation.num_segments=[32]"],
            "`--distillation.num_segments` must be an integer or null, got [32].",
        ),
        (
            ["--init_from=spec", *DISTILLATION, "--mixed_precision=bf16"],
            "`--mixed_precision` must be 'no' to distill a pipeline with epsilon prediction, got 'bf16'.",
        ),
        (
            ["--init_from=base", *DISTILLATION, "--samples.num_inference_steps=1001"],
            "`--samples.num_inference_steps` must be at most `--scheduler.num_train_timesteps` (1000), got 1001.",
        ),
    ],
)
def test_invalid_settings_are_reported(
    tmp_path: Path,
    fashion_mnist_folder: Path,
    reset_accelerate: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
):
    reset_accelerate()
    data = [f"--data.train_data_dir={fashion_mnist_folder}", "--data.max_train_samples=96", "--report_to=none"]
    with pytest.raises(SystemExit) as error:
        main([*data, f"--output_dir={tmp_path / 'run'}", *options])
    assert error.value.code == 2
    text = capsys.readouterr().err
    assert "distill.py: error: " in text and message in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distillation.num_segments=32"], "num_segments` must be null in train.py, got 32."),
        (["--init_from=base", *DISTILLATION], "num_segments` must be null in train.py, got 32."),
        (ADVERSARIAL, "adversarial_weight` must be 0 in train.py, got 5."),
    ],
)
def test_train_refers_to_distill(capsys: pytest.CaptureFixture[str], options: list[str], message: str):
    with pytest.raises(SystemExit):
        train(options)
    assert capsys.readouterr().err.strip() == f"train.py: error: `--distillation.{message} Run distill.py."


def test_help_describes_distillation(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: distill.py" in text and "one to four steps" in text
    assert "--distillation.num_segments" in text
