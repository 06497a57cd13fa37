"""Runs that are killed again and again end like a run without interruptions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_runs_end_like_an_uninterrupted_run():
    number = int(os.environ.get("FMNIST_DIFFUSION_TEST_KILLS", "12"))
    result = subprocess.run(
        [sys.executable, "tests/benchmarks/kills.py", f"--kills={number}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'training'}"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads(result.stdout.splitlines()[-1])
    assert sum(results["kills"].values()) >= number
    assert results["failures"] == 0
