import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import fmnist_diffusion
from fmnist_diffusion.commands import app, main
from subprocesses import run_python


COMMANDS = ("sample", "train", "evaluate", "likelihood", "info", "demo", "export", "push", "push-space")


def run(*args: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a new process, with `path` first in the module search path."""
    paths = [path] if path else []
    return subprocess.run(
        [sys.executable, "-c", "from fmnist_diffusion.commands import main; main()", *args],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [*paths, Path(fmnist_diffusion.__file__).parents[1]])),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_and_usage_errors_import_no_slow_modules(tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("torch", "diffusers", "huggingface_hub", "numpy", "PIL", "gradio", "rich"):
        (blocked / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')")
    assert run("--help", cwd=tmp_path, path=blocked).returncode == 0
    process = run("sample", "--help", cwd=tmp_path, path=blocked)
    assert process.returncode == 0
    for text in ("--class-labels", "--guidance-interval", "dpmsolver++", "[default: (the scheduler of"):
        assert text in process.stdout
    process = run("sample", "--num-images", "0", cwd=tmp_path, path=blocked)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("fmnist-diffusion: error: Invalid value for '--num-images' / '-n': ")
    assert process.stderr.count("\n") == 1
    process = run("sample", "--output-dir", str(blocked), cwd=tmp_path, path=blocked)
    assert "--output-dir must be a new or empty folder" in process.stderr


@pytest.mark.slow
def test_garbage_collection_is_only_paused_during_imports(tmp_path):
    code = """
    import gc
    from fmnist_diffusion.commands.command import import_libraries
    import_libraries()
    print(gc.isenabled(), gc.get_freeze_count() > 100_000)
    gc.unfreeze()
    import_libraries()
    print(gc.isenabled(), gc.get_freeze_count())
    """
    # The second call imports nothing, so it must not freeze the objects of the caller.
    assert run_python(code, package=True, home=tmp_path) == ["True True", "True 0"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_texts_are_short_phrases(command, capsys):
    main([command, "--help"])
    assert "Usage: fmnist-diffusion " in capsys.readouterr().out
    group = typer.main.get_command(app)
    assert set(group.commands) == set(COMMANDS)
    for param in group.commands[command].params:
        assert param.help
        assert not param.help.endswith(".")
        # Abbreviations such as FID may start with a capital letter.
        assert param.help[0].islower() or param.help.startswith("Inception")


def test_version_is_printed(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"fmnist-diffusion {fmnist_diffusion.__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing command."),
        (["sampel"], "No such command 'sampel'. Did you mean 'sample'?"),
        (["sample", "--nonsense"], "No such option: --nonsense"),
        (["sample", "base", "spec"], "Got unexpected extra argument(s) (spec)"),
    ],
)
def test_usage_errors_are_explained(get_error, args, message):
    assert get_error(*args).startswith(message)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("`seed` must be\n  positive."), "--seed must be positive."),
        (ValueError("`guidance_scale` and `other` are `epsilon`."), "--guidance-scale and `other` are `epsilon`."),
        (OSError("Could not find the `revision`."), "Could not find the `revision`."),
        (NotImplementedError("euler_a is not implemented."), "euler_a is not implemented."),
    ],
)
def test_errors_name_the_options_of_the_command_line(get_error, monkeypatch, error, message):
    def load_pipeline(*args, **kwargs):
        raise error

    monkeypatch.setattr("fmnist_diffusion.loading.load_pipeline", load_pipeline)
    assert get_error("sample") == message


def test_errors_of_the_program_keep_their_traceback(monkeypatch, tmp_path):
    def load_pipeline(*args, **kwargs):
        raise KeyError("bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fmnist_diffusion.loading.load_pipeline", load_pipeline)
    with pytest.raises(KeyError, match="bug"):
        main(["sample"])


def test_ctrl_c_exits_with_code_130(monkeypatch, capsys):
    def load_pipeline(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fmnist_diffusion.loading.load_pipeline", load_pipeline)
    with pytest.raises(SystemExit) as exit_info:
        main(["info", "base"])
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "fmnist-diffusion: interrupted\n"
