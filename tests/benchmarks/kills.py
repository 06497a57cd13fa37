"""Kills training runs and resumes them: each one must end like a run without interruptions.

Half of the kills happen directly before a change of the file system in the output folder. New runs are killed before
each of these changes once, in random order. The other half happen at random times. A run is killed several times
before it may end. Then its loss.csv, its exported pipeline and its last checkpoint must be byte-identical to those of
an uninterrupted run.

Example: PYTHONPATH=training python tests/benchmarks/kills.py --kills 200
"""

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path


REPOSITORY = Path(__file__).parents[2]
SETTINGS = [
    "--model.block_out_channels=[8]",
    "--model.layers_per_block=1",
    "--model.attention_head_dim=8",
    "--model.dropout=0.1",
    f"--data.train_data_dir={REPOSITORY / 'tests' / 'fixtures'}",
    "--data.max_train_samples=64",
    "--data.augmentation=shift",
    "--num_epochs=3",
    "--train_batch_size=16",
    "--checkpointing_steps=3",
    "--checkpoints_total_limit=1",
    "--logging_steps=2",
    "--save_images_epochs=1",
    "--save_model_epochs=1",
    "--samples.num_images=4",
    "--samples.num_inference_steps=1",
    "--ema.enabled=true",
    "--report_to=none",
]
KILLS_PER_RUN = 4
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def start(output_dir: Path, options: list[str], kill_at: int | None = None, count_to: Path | None = None) -> int:
    """Starts a run in a forked process, which has already imported the trainer, and returns the process id.

    Args:
        kill_at: The process kills itself before this change of the file system, counted from 1.
        count_to: File to write the number of changes to.
    """
    process = os.fork()
    if process:
        return process
    log = os.open(output_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    changes = 0

    def count_changes(event: str, arguments: tuple) -> None:
        nonlocal changes
        if event == "open":
            path, mode, _ = arguments
            # `os.open` has no mode. Here, it opens files that are written, or files and folders for fsync.
            counted = isinstance(path, str | os.PathLike) and (mode is None or not str(mode).startswith("r"))
        else:
            counted = event in CHANGES
            path = arguments[0] if counted else None
        # `shutil.rmtree` removes files relative to an open folder.
        relative = event in ("os.remove", "os.rmdir") and counted and arguments[1] != -1
        if not counted or not (relative or str(path).startswith(str(output_dir))):
            return
        changes += 1
        if changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count_changes)
    code = 1
    try:
        from run import run

        run([*SETTINGS, f"--output_dir={output_dir}", *options], "train.py")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        if count_to is not None:
            count_to.write_text(str(changes))
        sys.stderr.flush()
        # The interpreter of the parent must not be finalized here.
        os._exit(code)


def wait(process: int) -> int:
    """Returns the exit code, which is negative if a signal ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def find_differences(run: Path, expected: Path) -> list[str]:
    """Returns the names of the files that differ between two finished runs."""
    folders = ["pipeline", "pipeline/unet", "pipeline/scheduler", "pipeline/images"]
    folders += [str(path.relative_to(expected)) for path in (expected / "checkpoints").iterdir()]
    names = [str(Path(folder) / path.name) for folder in folders for path in (expected / folder).iterdir()]
    names = ["loss.csv", *(name for name in names if (expected / name).is_file())]
    different = [
        name
        for name in names
        if not (run / name).is_file() or not filecmp.cmp(run / name, expected / name, shallow=False)
    ]
    leftovers = [str(path.relative_to(run)) for path in run.rglob(".*") if path.name != ".lock"]
    return different + leftovers


class KillTest:
    """Kills runs in `folder` and collects the failures.

    Args:
        folder: Empty folder for the runs.
        seed: Random seed of the positions and times of the kills.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.expected = folder / "expected"
        started = time.monotonic()
        assert wait(start(self.expected, [], count_to=folder / "changes")) == 0, self.read_log(self.expected)
        self.seconds = time.monotonic() - started
        self.changes = int((folder / "changes").read_text())
        # Runs are killed once before each change of an uninterrupted run, in random order.
        self.positions = self.random.sample(range(1, self.changes + 1), self.changes)
        self.kills = {"before a change": 0, "at a random time": 0}
        self.num_runs = self.num_starts = 0
        self.failures: list[str] = []

    def read_log(self, run: Path) -> str:
        return run.with_suffix(".log").read_text()[-2000:]

    def test_run(self) -> None:
        """Starts a run, kills it several times, lets it end and compares it with the uninterrupted run."""
        run = self.folder / f"run-{self.num_runs}"
        self.num_runs += 1
        history = []
        for attempt in range(KILLS_PER_RUN + 1):
            checkpoints = (run / "checkpoints").glob("checkpoint-*")
            options = ["--resume=latest"] if any(checkpoints) else []
            if not options:
                if any("resume" in entry for entry in history):
                    self.failures.append(f"{history}: the checkpoint is lost")
                    return
                shutil.rmtree(run, ignore_errors=True)
            self.num_starts += 1
            code = self.kill_run(run, options, history) if attempt < KILLS_PER_RUN else wait(start(run, options))
            if code not in (0, -signal.SIGKILL):
                self.failures.append(f"{history}: exit code {code}: {self.read_log(run)}")
                return
            if code == 0:
                break
        if different := find_differences(run, self.expected):
            self.failures.append(f"{history}: {', '.join(different)} differ")
        shutil.rmtree(run)

    def kill_run(self, run: Path, options: list[str], history: list[str]) -> int:
        """Starts a run, kills it, and returns its exit code, which is 0 if it ended before."""
        kind = min(self.kills, key=lambda kind: self.kills[kind])
        if kind == "before a change":
            if not options and self.positions:
                position = self.positions.pop()
            else:
                position = self.random.randint(1, self.changes // 2)
            history.append(f"{options} before change {position}")
            code = wait(start(run, options, position))
        else:
            delay = self.random.uniform(0, self.seconds)
            history.append(f"{options} after {delay:.2f} s")
            process = start(run, options)
            time.sleep(delay)
            os.kill(process, signal.SIGKILL)
            code = wait(process)
        if code == -signal.SIGKILL:
            self.kills[kind] += 1
        return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    import torch

    # The forked processes inherit the imported modules.
    import run  # noqa: F401

    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        test = KillTest(Path(folder), args.seed)
        while sum(test.kills.values()) < args.kills:
            test.test_run()
    print("\n".join(test.failures))
    results = {
        "kills": test.kills,
        "runs": test.num_runs,
        "starts": test.num_starts,
        "changes of an uninterrupted run": test.changes,
        "failures": len(test.failures),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(results))
    raise SystemExit(bool(test.failures))


if __name__ == "__main__":
    main()
