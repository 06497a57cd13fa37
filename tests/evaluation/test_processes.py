import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist_diffusion.evaluation import Processes, connect_processes
from saved_pipelines import save_pipeline


ACCELERATE_CONFIG = Path(__file__).parents[2] / "training" / "accelerate_configs" / "multi_cpu.yaml"


def test_items_are_distributed_over_the_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Processes, "wait_for_everyone", lambda self: None)
    items = [Processes(index, 3).select(range(8)) for index in range(3)]
    assert [list(part) for part in items] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [Processes(index, 3).is_main_process for index in range(3)] == [True, False, False]


def test_a_single_process_does_not_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    processes = connect_processes()
    processes.wait_for_everyone()
    assert (processes, list(processes.select([1, 2]))) == (Processes(0, 1), [1, 2])


def test_missing_results_of_other_processes_are_an_error(tmp_path: Path):
    paths = [tmp_path / "0", tmp_path / "1"]
    assert Processes.check_results(paths, [3, 4]) == [3, 4]
    with pytest.raises(ValueError, match=f"Could not read {paths[1]}. If the processes run on several machines"):
        Processes.check_results(paths, [3, None])


def evaluate(launcher: list[str], *args: str | Path, cwd: Path, cache: Path) -> str:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    command = [sys.executable, "-m", *launcher, "evaluate", *map(str, args), "--device", "cpu"]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path: Path, inception_weights: Path):
    pipeline = save_pipeline(tmp_path / "pipeline", in_channels=3, out_channels=3)
    (tmp_path / "reference").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(image).save(tmp_path / "reference" / f"{i:02d}.png")
    args = [
        pipeline, "--reference", "reference", "-n", "50", "--seeds", "0,1", "--batch-size", "20",
        "--num-inference-steps", "2", "--inception-weights", inception_weights, "-o",
    ]  # fmt: skip
    results, outputs = [], []
    for name, launcher in (
        ("one", ["fmnist_diffusion.commands"]),
        (
            "two",
            ["accelerate.commands.launch", f"--config_file={ACCELERATE_CONFIG}", "-m", "fmnist_diffusion.commands"],
        ),
    ):
        outputs.append(evaluate(launcher, *args, name, cwd=tmp_path, cache=tmp_path / f"cache-{name}"))
        results.append(json.loads((tmp_path / name / "metrics.json").read_text()))
        del results[-1]["metrics"]["images_per_second"]
    assert results[0] == results[1]
    assert outputs[1].count("Saved metrics.json") == 1
    parts = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.safetensors"))
        for name in ("one", "two")
    ]
    assert len(parts[0]) == 6
    assert parts[0] == parts[1]
