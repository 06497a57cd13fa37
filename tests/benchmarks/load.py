"""How the demo bears a crowd: `python tests/benchmarks/load.py --clients 50 --seconds 120`.

Every client draws one picture after the other in five steps; turned away by the queue, it comes back after a second.
"""

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from gradio_client import Client


APP = Path(__file__).parents[2] / "space" / "app.py"
PICTURES, STEPS = 1, 5
# What the queue says when it is full.
FULL = "Queue is full"


def serve() -> tuple[subprocess.Popen, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"GRADIO_SERVER_PORT": str(port)}
    server = subprocess.Popen([sys.executable, str(APP)], env=environment, stdout=subprocess.DEVNULL)
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"http://127.0.0.1:{port}"
        time.sleep(0.2)
    raise SystemExit("the demo did not start")


class Crowd:
    def __init__(self, url: str):
        self.url = url
        self.waits: list[float] = []
        self.answers: Counter[str] = Counter()
        self.lock, self.over = threading.Lock(), threading.Event()

    def client(self, seed: int) -> None:
        # One after the other: a crowd does not load a page at the same instant.
        time.sleep(0.1 * seed)
        client = Client(self.url, verbose=False, download_files=False)
        while not self.over.is_set():
            began = time.perf_counter()
            try:
                client.predict([], PICTURES, STEPS, "DDIM", 1, seed, api_name="/draw")
                answer = "drawn"
            except Exception as error:
                answer = "turned away, the queue is full" if FULL in str(error) else f"ERROR {error!r}"
                if FULL not in str(error):
                    print(answer)
            with self.lock:
                if self.over.is_set():
                    return
                self.answers[answer] += 1
                if answer == "drawn":
                    self.waits.append(time.perf_counter() - began)
            if answer != "drawn":
                self.over.wait(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=120)
    args = parser.parse_args()
    server, url = serve()
    try:
        crowd, process = Crowd(url), psutil.Process(server.pid)
        threads = [threading.Thread(target=crowd.client, args=(seed,)) for seed in range(args.clients)]
        for thread in threads:
            thread.start()
        for part in range(1, 7):
            time.sleep(args.seconds / 6)
            memory = process.memory_info().rss / 2**20
            print(f"after {part * args.seconds // 6:4} s: {memory:6.0f} MiB, {sum(crowd.answers.values())} answers")
        crowd.over.set()
        for thread in threads:
            thread.join()
    finally:
        server.terminate()
        server.wait()
    for answer, number in crowd.answers.most_common():
        print(f"{number:6} {answer}")
    p50, p95 = np.percentile(crowd.waits, [50, 95])
    print(
        f"{len(crowd.waits) / args.seconds:.1f} drawn a second; from press to picture p50 {p50:.2f} s, p95 {p95:.2f} s"
    )


if __name__ == "__main__":
    main()
