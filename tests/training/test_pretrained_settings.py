"""Defaults of fine-tuned and resumed runs."""

import json
from pathlib import Path

import pytest

from config import ObjectiveConfig, SchedulerConfig, TrainingConfig
from fake_hub import FakeHub, Fault, Repository
from fmnist_diffusion import FashionMNISTUNet2DModel, load_pipeline
from fmnist_diffusion.sampling import make_pipeline
from noise_schedule import get_betas, make_noise_scheduler
from parsing import parse_config
from pretrained import find_defaults, find_train_config, load_pretrained
from yaml_files import dump_yaml, load_yaml


def save_pretrained(folder: Path, scheduler: SchedulerConfig, train_config: dict | None = None) -> str:
    unet = FashionMNISTUNet2DModel(block_out_channels=(8, 16), attention_head_dim=8)
    make_pipeline(unet, make_noise_scheduler(scheduler)).save_pretrained(folder)
    if train_config is not None:
        (folder / "train_config.json").write_text(json.dumps(train_config))
    return str(folder)


@pytest.mark.parametrize(
    "scheduler",
    [
        SchedulerConfig(
            prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True
        ),
        SchedulerConfig(num_train_timesteps=50, beta_end=0.1, timestep_spacing="trailing"),
        SchedulerConfig(beta_schedule="sigmoid", prediction_type="sample"),
        SchedulerConfig(prediction_type="flow_prediction", num_train_timesteps=50, shift=3.0),
    ],
)
def test_noise_schedule_of_a_saved_pipeline_is_read(tmp_path: Path, scheduler: SchedulerConfig):
    settings = load_pretrained(save_pretrained(tmp_path / "pipeline", scheduler))
    assert SchedulerConfig(**settings.scheduler) == scheduler
    assert settings.betas == get_betas(make_noise_scheduler(scheduler))
    assert settings.model["block_out_channels"] == [8, 16]
    assert settings.objective == {}


def test_missing_scheduler_options_have_the_defaults_of_the_scheduler_class(tmp_path: Path):
    load_pipeline("fast").save_pretrained(tmp_path / "fast")
    path = tmp_path / "fast" / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    for name in ("beta_start", "beta_end", "beta_schedule"):
        del config[name]
    path.write_text(json.dumps(config))
    pipe = load_pipeline(tmp_path / "fast")
    assert pipe.scheduler.config.beta_schedule == "scaled_linear"
    settings = load_pretrained(str(tmp_path / "fast"))
    assert settings.betas == pipe.scheduler.betas.tolist()
    assert settings.scheduler["beta_schedule"] == "scaled_linear"


def test_settings_that_cannot_be_downloaded_are_not_used(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    settings = {"objective": {"label_dropout": 0.3}}
    for name, train_config in (("someone/with", settings), ("someone/without", None)):
        folder = save_pretrained(tmp_path / name, SchedulerConfig(), train_config)
        hub.repositories[name] = Repository()
        hub.repositories[name].commit_folder(Path(folder))
    hub.faults = [Fault("HEAD", "train_config.json", 503, times=99)]
    assert find_train_config("someone/with") is None
    assert "Could not download train_config.json of someone/with" in caplog.text
    hub.faults = []
    caplog.clear()
    assert find_train_config("someone/with") == settings
    assert find_train_config("someone/without") is None
    assert not caplog.records


def test_one_setting_overrides_that_of_the_checkpoint():
    config = parse_config(
        ["--init_from=base", "--objective.label_dropout=0.25", "--scheduler.timestep_spacing=leading"]
    )
    assert config.objective == ObjectiveConfig(
        timestep_sampling="logit_normal", logit_mean=-0.6, logit_std=1.2, label_dropout=0.25
    )
    assert config.scheduler == SchedulerConfig(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="leading",
    )


def test_checkpoint_without_objective_uses_the_class_defaults(tmp_path: Path):
    folder = save_pretrained(tmp_path / "pipeline", SchedulerConfig(), {"seed": 3})
    config = parse_config([f"--init_from={folder}"])
    assert config.objective == ObjectiveConfig()
    assert config.seed == 0


def test_missing_checkpoint_is_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as error:
        parse_config(["--init_from=/nowhere"])
    assert error.value.code == 2
    assert "Could not find a pipeline at '/nowhere'" in capsys.readouterr().err


def test_resumed_run_has_the_settings_of_the_run(tmp_path: Path):
    saved = TrainingConfig(seed=5, model={"act_fn": "silu"}, objective=ObjectiveConfig(label_dropout=0.3))
    (tmp_path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    saved.save(tmp_path / "config.yaml")
    for resume, output_dir in (("latest", tmp_path), (str(tmp_path / "checkpoints" / "checkpoint-3"), "other")):
        config = parse_config([f"--resume={resume}", f"--output_dir={output_dir}", "--num_epochs=9"])
        assert config.output_dir == str(output_dir)
        assert config.num_epochs == 9
        assert (config.seed, config.model, config.objective) == (5, {"act_fn": "silu"}, saved.objective)


def test_settings_missing_from_an_older_run_have_their_defaults(tmp_path: Path):
    path = tmp_path / "config.yaml"
    TrainingConfig(seed=5, model={"act_fn": "silu"}).save(path)
    settings = load_yaml(path.read_text())
    del settings["vae"], settings["distillation"], settings["ema"]["power"], settings["data"]["caption_column"]
    path.write_text(dump_yaml(settings))
    args = ["--resume=latest", f"--output_dir={tmp_path}"]
    config = parse_config([f"--config={path}", *args])
    expected = TrainingConfig(str(tmp_path), resume="latest", seed=5, model={"act_fn": "silu"})
    assert config == parse_config(args) == expected
    config.check_resumable(path)
    with pytest.raises(ValueError, match=r"`--vae` must be the same as in the run to resume \(None\), got other"):
        parse_config([*args, "--vae=other"]).check_resumable(path)


def test_run_without_saved_settings_has_the_usual_defaults(tmp_path: Path):
    assert find_defaults(None, "latest", str(tmp_path)) == {}
