"""Checks how the project handles random inputs, and reports the failures.

The inputs are those of tests/generated_inputs: image folders, labels, images, settings and model folders. An input
fails if its result is wrong, if it raises an undocumented exception, or if it takes more than 30 seconds.

Example: PYTHONPATH=tests:training python tests/benchmarks/campaign.py --inputs 20000
"""

import argparse
import json
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from typing import Any

from peak_memory import get_peak_memory


MAX_SECONDS = 30
MAX_MEMORY = 4096  # MiB
BATCH_SIZE = 250


class TooSlowError(Exception):
    """Raised if an input takes too long."""


def stop(signal_number: int, frame: Any) -> None:
    raise TooSlowError(f"the input takes more than {MAX_SECONDS} s")


class Campaign:
    """Counts inputs and collects failures."""

    def __init__(self):
        self.counts = Counter[str]()
        self.failures: list[str] = []
        self.longest = dict[str, float]()

    def run(self, kind: str, number: int, seed: int) -> None:
        """Checks random inputs. After a failure, the other inputs of its batch are used to find a minimal example."""
        import hypothesis

        from generated_inputs import KINDS, check_input

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=number,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            print_blob=False,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )
        @hypothesis.given(KINDS[kind].strategy)
        def check(value: Any) -> None:
            self.counts[kind] += 1
            started = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
            try:
                check_input(kind, value)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self.longest[kind] = max(self.longest.get(kind, 0), time.monotonic() - started)

        try:
            check()
        except Exception as error:
            errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]
            for error in errors:
                self.failures.append("".join([f"{kind}: ", *traceback.format_exception(error, limit=-3)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20000, help="total number of inputs (default: 20000)")
    parser.add_argument("--kinds", nargs="+", help="kinds of inputs (default: all)")
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: random)")
    args = parser.parse_args()
    home = tempfile.TemporaryDirectory(prefix="campaign-")
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": home.name}
    seed = int.from_bytes(os.urandom(4), "big") if args.seed is None else args.seed

    import datasets
    import torch

    from generated_inputs import KINDS

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, stop)
    kinds = args.kinds or list(KINDS)
    campaign = Campaign()
    started = time.monotonic()
    for kind in kinds:
        remaining = args.inputs // len(kinds)
        while remaining > 0:
            campaign.run(kind, min(remaining, BATCH_SIZE), seed)
            remaining -= BATCH_SIZE
            seed += 1
    peak_memory = get_peak_memory() // 2**20
    print("\n\n".join(campaign.failures))
    results = {
        "inputs": campaign.counts,
        "failures": len(campaign.failures),
        "longest time of an input (s)": {kind: round(seconds, 2) for kind, seconds in campaign.longest.items()},
        "peak memory (MiB)": peak_memory,
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(results))
    raise SystemExit(bool(campaign.failures) or peak_memory > MAX_MEMORY)


if __name__ == "__main__":
    main()
