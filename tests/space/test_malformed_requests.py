import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from malformed_requests import find_fault, find_message, find_private_text, get_answer, make_calls


APP = Path(__file__).parents[2] / "space" / "app.py"


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def client(model_folder, log, app_environment) -> Iterator[httpx.Client]:
    """A client of a demo in a separate process, whose complete output is in a file."""
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, str(APP), model_folder], env=app_environment, stdout=output, stderr=output
        ) as app,
        httpx.Client(base_url=f"http://127.0.0.1:{app_environment['GRADIO_SERVER_PORT']}", timeout=60) as client,
    ):
        deadline = time.monotonic() + 240
        try:
            while True:
                assert app.poll() is None and time.monotonic() < deadline, log.read_text()
                try:
                    client.get("/robots.txt")
                    break
                except httpx.ConnectError:
                    time.sleep(0.2)
            yield client
        finally:
            app.terminate()


@pytest.mark.slow
def test_every_malformed_request_is_answered_with_one_sentence(client, log):
    calls = list(make_calls(len(client.get("/config").json()["dependencies"])))
    assert len(calls) >= 855
    faults, num_errors = [], 0
    for call in calls:
        status, body = get_answer(client, call)
        num_errors += find_message(status, body) is not None
        fault = find_fault(status, body)
        if fault is not None:
            faults.append((fault, call.method, call.path, call.body[:100], status, body[:300]))
    assert faults == []
    # The other requests are valid; for example, `null` selects all classes.
    assert num_errors > 0.8 * len(calls)
    assert "Traceback" not in log.read_text() and find_private_text(log.read_text()) is None
    assert log.stat().st_size < 5000


@pytest.mark.parametrize(
    "status, body, fault",
    [
        (200, 'event: error\ndata: {"error": "The seed must be a whole number.", "title": "Error"}', None),
        (200, 'event: error\ndata: {"error": null}', "internals"),
        (200, 'data: {"msg":"process_completed","output":{"error":"a b"},"success":false}', "not a sentence"),
        (400, '{"detail": "Line 1.\\nLine 2."}', "not a short message"),
        (400, '{"detail": [{"input": 3}]}', "not a short message"),
        (404, '{"detail": "Not Found"}', "not a sentence"),
        (500, '{"detail": "The request is invalid."}', "status 500"),
        (200, f'{{"path": "{APP}"}}', "internals"),
        (200, f'{{"path": "{APP.parent}"}}', "private text"),
    ],
)
def test_faulty_answers_are_found(status, body, fault):
    assert find_fault(status, body) == fault
