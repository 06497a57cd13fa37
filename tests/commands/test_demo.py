import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fmnist_diffusion
from fmnist_diffusion.commands import demo, main


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Replaces the demo with a short program."""

    def write_app(source: str) -> Path:
        (tmp_path / "app.py").write_text(source)
        monkeypatch.setattr(demo, "find_source_folder", lambda name: tmp_path)
        monkeypatch.setattr(demo.signal, "signal", lambda *args: None)
        return tmp_path

    return write_app


@pytest.mark.parametrize(("args", "expected"), [([], "[]"), (["me/model"], "['me/model']")])
def test_passes_the_pipeline_to_the_demo(app, capfd, args, expected):
    app("import sys; print(sys.argv[1:])")
    main(["demo", *args])
    assert capfd.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize(
    ("source", "exit_code"),
    [("raise SystemExit(3)", 3), ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143)],
)
def test_returns_the_exit_code_of_the_demo(app, source, exit_code):
    app(source)
    with pytest.raises(SystemExit) as exit_info:
        main(["demo"])
    assert exit_info.value.code == exit_code


def test_missing_gradio_is_an_error(get_error, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert get_error("demo") == "The demo requires gradio. Run `pip install 'fmnist-diffusion[space]'`."


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_the_demo(tmp_path, number, exit_code):
    started, stopped = tmp_path / "started", tmp_path / "stopped"
    (tmp_path / "app.py").write_text(f"""
import signal, sys, time

def stop(number, frame):
    open({str(stopped)!r}, "w").close()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)

signal.signal(signal.SIGTERM, stop)
open({str(started)!r}, "w").close()
time.sleep(60)
""")
    code = (
        "from pathlib import Path; from fmnist_diffusion.commands import demo, main; demo.SHUTDOWN_TIMEOUT = 0.1;"
        f" demo.find_source_folder = lambda name: Path({str(tmp_path)!r}); main(['demo'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(fmnist_diffusion.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background ignores SIGINT, and child processes inherit this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not started.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert stopped.exists()
    assert errors == ("fmnist-diffusion: interrupted\n" if number == signal.SIGINT else "")
