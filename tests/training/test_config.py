import dataclasses
from pathlib import Path

import pytest
import yaml

from training.config import TrainingConfig, parse_config


CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def test_spec_yaml_holds_the_numbers_of_the_specification():
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
    # and nothing more
    assert dataclasses.replace(config, output_dir=TrainingConfig.output_dir) == TrainingConfig()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read_and_says_what_it_is_for(path: Path):
    config = parse_config(["--config", str(path)])
    assert config.output_dir == f"output/{path.stem}"
    assert path.read_text().startswith("# ")


def test_command_line_wins_over_yaml(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("num_epochs: 3\nmodel:\n  norm_type: group\noptimizer:\n  learning_rate: 0.5\n")
    config = parse_config(["--config", str(path), "--optimizer.learning_rate=1e-3", "--model.act_fn=silu"])
    assert config.num_epochs == 3
    assert config.optimizer.learning_rate == 1e-3
    assert config.model == {"norm_type": "group", "act_fn": "silu"}


def test_saved_config_reads_back_the_same(tmp_path: Path):
    config = parse_config(["--model.block_out_channels=[8, 16]", "--data.augmentation=shift", "--ema.enabled=true"])
    config.save(tmp_path / "config.yaml")
    assert parse_config(["--config", str(tmp_path / "config.yaml")]) == config


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--num_epoch=3"], "num_epoch"),
        (["--optimizer.lr=3"], "optimizer.lr"),
        (["--objective.loss_type=l3"], "'mse', 'l1', 'huber'"),
        (["--num_epochs=none"], "num_epochs"),
        (["--config=missing.yaml"], "missing.yaml"),
        (["--train_batch_size=0"], "train_batch_size is 0; give a number from 1 on"),
        (["--data.resolution=4"], "data.resolution is 4; give a number from 8 on"),
        (["--data.max_train_samples=0"], "data.max_train_samples is 0"),
        (["--samples.num_inference_steps=20", "--scheduler.num_train_timesteps=10"], "num_train_timesteps, 10"),
        (["--objective.label_dropout=1.5"], "share in [0, 1]"),
        (["--ema.inv_gamma=0"], "ema.inv_gamma is 0"),
        (["--objective.snr_gamma=0"], "objective.snr_gamma is 0"),
        (["--optimizer.max_grad_norm=-1"], "give a number above 0"),
        (["--samples.guidance_scale=.nan"], "samples.guidance_scale is nan; give a finite number"),
        (["--scheduler.rescale_betas_zero_snr=true"], "v_prediction"),
    ],
)
def test_wrong_settings_are_refused_in_words(args: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        parse_config(args)
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.startswith("train.py: error: ")
    assert line.count("\n") == 1


def test_unknown_key_in_yaml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": {"resolutoin": 28}}))
    with pytest.raises(SystemExit) as error:
        parse_config(["--config", str(path)])
    assert error.value.code == 2
    assert "resolutoin" in capsys.readouterr().err


def test_every_field_has_its_line_in_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        parse_config(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for group in (
        TrainingConfig,
        *(type(value) for value in vars(TrainingConfig()).values() if dataclasses.is_dataclass(value)),
    ):
        assert group.__doc__ is not None
        for field in dataclasses.fields(group):
            assert field.name in text
            assert f"        {field.name}: " in group.__doc__
