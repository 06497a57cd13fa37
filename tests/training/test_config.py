import dataclasses
from pathlib import Path

import pytest

from config import DataConfig, DistillationConfig, ResolvedConfig, TextEncoderConfig, TrainingConfig
from parsing import parse_config


CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def test_spec_yaml_contains_the_numbers_of_the_specification():
    config = parse_config(["--config", str(CONFIGS / "spec.yaml")])
    assert config.num_epochs == 50
    assert config.train_batch_size == 32
    assert config.save_images_epochs == 10
    assert config.scheduler.num_train_timesteps == 1000
    assert (config.scheduler.beta_schedule, config.scheduler.beta_start, config.scheduler.beta_end) == (
        "linear",
        1e-4,
        0.02,
    )
    assert config.scheduler.prediction_type == "epsilon"
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adam", 1e-4)
    assert config.objective.loss_type == "mse"
    assert config.model == {}
    # Everything else is a default.
    assert dataclasses.replace(config, output_dir=TrainingConfig.output_dir) == TrainingConfig()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_files_are_valid_and_start_with_a_comment(path: Path):
    program = "distill.py" if path.stem == "distill" else "train.py"
    config = parse_config(["--config", str(path)], program)
    assert config.output_dir == f"output/{path.stem}"
    assert path.read_text().startswith("# ")


def test_command_line_overrides_yaml(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("num_epochs: 3\nmodel:\n  norm_type: group\noptimizer:\n  learning_rate: 0.5\n")
    config = parse_config(["--config", str(path), "--optimizer.learning_rate=1e-3", "--model.act_fn=silu"])
    assert config.num_epochs == 3
    assert config.optimizer.learning_rate == 1e-3
    assert config.model == {"norm_type": "group", "act_fn": "silu"}


def test_saved_config_can_be_read(tmp_path: Path):
    config = parse_config(
        [
            "--model.block_out_channels=[8, 16]",
            "--data.augmentation=shift",
            "--ema.enabled=true",
            "--samples.scheduler=ddim",
            "--eval.guidance_interval=[0.2, 0.7]",
        ]
    )
    assert config.eval.guidance_interval == (0.2, 0.7)
    config.save(tmp_path / "config.yaml")
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


def test_help_describes_every_field(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        parse_config(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for name, value in vars(TrainingConfig()).items():
        fields = (
            [f"{name}.{field.name}" for field in dataclasses.fields(value)]
            if dataclasses.is_dataclass(value)
            else [name]
        )
        for field in fields:
            help_text = " ".join(text.split(f"\n  --{field} ", 1)[1].split("\n  --", 1)[0].split())
            assert "(type: " in help_text, field
            # The help of a field without a description only contains a placeholder for the value and the type.
            assert len(help_text.partition("(type: ")[0].split()) > 1, field


@pytest.mark.parametrize(
    ("args", "batches", "steps"),
    [([], 6, 300), (["--max_train_steps=7"], 6, 7), (["--gradient_accumulation_steps=3", "--num_epochs=3"], 6, 6)],
)
def test_total_steps_depend_on_epochs_accumulation_and_limit(args: list[str], batches: int, steps: int):
    assert ResolvedConfig(**vars(parse_config(args))).get_total_steps(batches) == steps


def test_resumed_run_accepts_images_that_have_moved(tmp_path: Path):
    path = tmp_path / "config.yaml"
    config = ResolvedConfig(data=DataConfig(train_data_dir="images"))
    config.save(path)
    dataclasses.replace(config, data=DataConfig(train_data_dir="moved/images")).check_resumable(path)
    for data in (DataConfig(), DataConfig(train_data_dir="moved/images", split="test")):
        with pytest.raises(ValueError, match=r"`--data\.(train_data_dir|split)` must be the same"):
            dataclasses.replace(config, data=data).check_resumable(path)


@pytest.mark.parametrize(
    ("section", "is_compared"),
    [
        ({}, False),
        ({"distillation": DistillationConfig(num_segments=4)}, True),
        ({"text_encoder": TextEncoderConfig(num_hidden_layers=1)}, True),
    ],
)
def test_resumed_run_keeps_the_pretrained_pipeline_that_it_needs(tmp_path: Path, section: dict, is_compared: bool):
    path = tmp_path / "config.yaml"
    config = ResolvedConfig(init_from="base", **section)
    config.save(path)
    config.check_resumable(path)
    other = dataclasses.replace(config, init_from="other")
    if not is_compared:
        other.check_resumable(path)
        return
    with pytest.raises(ValueError, match=r"`--init_from` must be the same .* \(base\), got other"):
        other.check_resumable(path)
