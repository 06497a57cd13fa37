import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fmnist_diffusion
from fmnist_diffusion.commands import main, train
from fmnist_diffusion.files import find_source_folder


CONFIG = "configs/finetune.yaml"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Replaces the trainer with a short program."""

    def write_script(source: str) -> Path:
        (tmp_path / "train.py").write_text(source)
        monkeypatch.setattr(train, "find_source_folder", lambda name: tmp_path)
        monkeypatch.setattr(train.signal, "signal", lambda *args: None)
        return tmp_path

    return write_script


def run(*args: str) -> object:
    with pytest.raises(SystemExit) as exit_info:
        main(["train", *args])
    return exit_info.value.code


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], ["--init_from=base", "--output_dir=output/finetune"]),
        (
            ["--from", "me/model", "--output-dir", "out", "--num_epochs=3", "--optimizer.learning_rate", "1e-4"],
            ["--init_from=me/model", "--output_dir=out", "--num_epochs=3", "--optimizer.learning_rate", "1e-4"],
        ),
        # The last value of a setting counts, so all settings of finetune.yaml can be replaced.
        (
            ["--config=my.yaml", "--resume=latest"],
            ["--init_from=base", "--output_dir=output/finetune", "--config=my.yaml", "--resume=latest"],
        ),
    ],
)
def test_settings_are_passed_to_the_trainer(script, capfd, args, expected):
    folder = script("import sys; print(sys.argv[1:])")
    main(["train", str(folder), *args])
    data = f"--data.train_data_dir={folder}"
    assert capfd.readouterr().out == f"{[f'--config={folder / CONFIG}', data, *expected]}\n"


def test_hub_dataset_is_passed_to_the_trainer(script, capfd):
    script("import sys; print(sys.argv[2])")
    main(["train", "uoft-cs/cifar10"])
    assert capfd.readouterr().out == "--data.dataset_name=uoft-cs/cifar10\n"


def test_file_of_another_type_is_an_error(get_error, tmp_path):
    path = tmp_path / "images.csv"
    path.touch()
    assert get_error("train", path) == f"DATA must be a folder, a .parquet file or a .safetensors file, got {path}."


@pytest.mark.parametrize(
    "path", ["images", "./images", "/nowhere/images", "a/b/c", "images.parquet", "a/b.safetensors"]
)
def test_missing_path_is_an_error(get_error, path):
    assert get_error("train", path) == (
        f"Could not find {path}. Pass an existing folder or file, or the id of a dataset on the Hub (owner/name)."
    )


def test_setting_before_the_data_is_an_error(get_error, tmp_path):
    assert get_error("train", "--num_epochs=1", tmp_path) == (
        "DATA must be the first argument, got --num_epochs=1. Pass the settings of the trainer after it."
    )


def test_missing_packages_are_an_error(get_error, monkeypatch, tmp_path):
    monkeypatch.setattr(train, "REQUIRED_PACKAGES", ("tqdm", "no_such_package"))
    assert get_error("train", tmp_path) == (
        "The trainer requires no_such_package. Run `pip install 'fmnist-diffusion[train]'`."
    )


@pytest.mark.parametrize(
    ("source", "exit_code"),
    [("raise SystemExit(3)", 3), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137)],
)
def test_returns_the_exit_code_of_the_trainer(script, source, exit_code):
    assert run(str(script(source))) == exit_code


def test_several_gpus_are_used_with_accelerate(script, monkeypatch):
    folder = script("")
    commands = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(train, "run", lambda command: commands.append(command) or 0)
    main(["train", str(folder)])
    launcher = commands[0][: commands[0].index(str(folder / "train.py"))]
    assert launcher[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert "--num_processes=4" in launcher


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("nohup", [False, True])
def test_the_trainer_finishes_after_one_signal(tmp_path, number, exit_code, nohup):
    started = tmp_path / "started"
    (tmp_path / "train.py").write_text(f"""
import signal, sys, time

signals = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: signals.append(number))
open({str(started)!r}, "w").close()
while not signals:
    time.sleep(0.05)
# The trainer writes a checkpoint in this time.
time.sleep(0.5)
assert len(signals) == 1
print("saved", flush=True)
sys.exit(128 + signals[0])
""")
    code = (
        "from pathlib import Path; from fmnist_diffusion.commands import main, train;"
        f" train.find_source_folder = lambda name: Path({str(tmp_path)!r}); main(['train', {str(tmp_path)!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(fmnist_diffusion.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Background processes of a shell ignore SIGINT, and nohup makes a process ignore SIGHUP. Child processes
        # inherit both.
        preexec_fn=lambda: [
            signal.signal(signal.SIGINT, signal.SIG_DFL),
            signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL),
        ],
    )
    deadline = time.monotonic() + 120
    while not started.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    # A terminal sends Ctrl-C to the whole foreground process group.
    os.killpg(process.pid, number)
    if nohup and number == signal.SIGHUP:
        time.sleep(1)
        assert process.poll() is None
        number, exit_code = signal.SIGTERM, 143
        os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (exit_code, "saved\n", "")


def test_training_folder_contains_the_trainer():
    folder = find_source_folder("training")
    assert (folder / "train.py").is_file()
    assert (folder / CONFIG).is_file()
