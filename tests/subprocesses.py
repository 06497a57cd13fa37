"""Runs Python code in new processes, with or without the package, and finds ports for servers in new processes."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import fmnist_diffusion


# Runs the code in the first argument; `import fmnist_diffusion` fails there even if the package is installed.
WITHOUT_PACKAGE = """
import sys

class BlockedPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "fmnist_diffusion":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, BlockedPackage())
exec(sys.argv[1])
"""


def run_python(code: str, package: bool, home: Path, **environment: str) -> list[str]:
    """Runs `code` in a new process whose caches are in `home`, and returns the lines that it prints."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    env |= {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    if package:
        env["PYTHONPATH"] = str(Path(fmnist_diffusion.__file__).parents[1])
        command = [sys.executable, "-c", textwrap.dedent(code)]
    else:
        command = [sys.executable, "-I", "-c", WITHOUT_PACKAGE, textwrap.dedent(code)]
    home.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def find_free_port(host: str) -> int:
    """Returns a port below the range from which the system assigns ports, so that no other process gets it."""
    # The seeds of the tests do not affect this generator.
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as server:
            server.bind((host, port))
            return port
    raise OSError(f"Could not find a free port of {host}.")
