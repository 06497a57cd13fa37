"""Measures how the demo handles many clients at the same time.

    python tests/benchmarks/load.py --clients 200 --seconds 600

Each client repeatedly generates one image with five steps. If the queue is full, it tries again after a second.
The exit code is 1 if there is an error other than a full queue.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO

import numpy as np
import psutil
from gradio_client import Client
from gradio_client.utils import QueueError


APP = Path(__file__).parents[2] / "space" / "app.py"
NUM_IMAGES, NUM_INFERENCE_STEPS, SCHEDULER, GUIDANCE_SCALE = 1, 5, "ddim", 1
NUM_REPORTS = 10


def start_server(log: IO[bytes]) -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port)}
    server = subprocess.Popen([sys.executable, str(APP)], env=environment, stdout=log, stderr=log)
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"http://127.0.0.1:{port}"
        time.sleep(0.2)
    raise SystemExit("The demo did not start.")


class Clients:
    """Simulated clients, which run in threads and share their statistics."""

    def __init__(self, url: str):
        self.url = url
        self.durations: list[float] = []
        self.responses: Counter[str] = Counter()
        self.lock, self.stopped = threading.Lock(), threading.Event()

    def run(self, seed: int) -> None:
        # The clients load the page one after another.
        time.sleep(0.1 * seed)
        try:
            client = Client(self.url, verbose=False, download_files=False)
        except Exception as error:  # Thread boundary: the error is counted and reported.
            with self.lock:
                self.responses[f"error {error!r}"] += 1
            return
        arguments = ([], NUM_IMAGES, NUM_INFERENCE_STEPS, SCHEDULER, GUIDANCE_SCALE, seed)
        while not self.stopped.is_set():
            start = time.perf_counter()
            try:
                client.predict(*arguments, api_name="/generate")
                response = "image"
            except QueueError:
                response = "queue is full"
            except Exception as error:  # Thread boundary: every other error of the server is counted and reported.
                response = f"error {error!r}"
            with self.lock:
                if self.stopped.is_set():
                    return
                self.responses[response] += 1
                if response == "image":
                    self.durations.append(time.perf_counter() - start)
            if response != "image":
                self.stopped.wait(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50, help="number of clients (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=120, help="duration of the test (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryFile() as log:
        server, url = start_server(log)
        try:
            clients, process = Clients(url), psutil.Process(server.pid)
            print(f"before the test: {process.memory_info().rss / 2**20:6.0f} MiB")
            threads = [threading.Thread(target=clients.run, args=(seed,)) for seed in range(options.clients)]
            for thread in threads:
                thread.start()
            for i in range(1, NUM_REPORTS + 1):
                time.sleep(options.seconds / NUM_REPORTS)
                memory = process.memory_info().rss / 2**20
                elapsed, count = i * options.seconds / NUM_REPORTS, sum(clients.responses.values())
                print(f"after {elapsed:4.0f} s: {memory:6.0f} MiB, {count} responses", flush=True)
            clients.stopped.set()
            for thread in threads:
                thread.join()
        finally:
            server.terminate()
            server.wait()
        print(f"{log.tell()} bytes of log")
    for response, count in clients.responses.most_common():
        print(f"{count:6} {response}")
    if clients.durations:
        p50, p95 = np.percentile(clients.durations, [50, 95])
        rate = len(clients.durations) / options.seconds
        print(f"{rate:.1f} images/s; time per request: median {p50:.2f} s, 95th percentile {p95:.2f} s")
    if clients.responses.keys() - {"image", "queue is full"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
