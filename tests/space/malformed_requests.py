"""Malformed requests to the demo, and a check of its answers."""

import json
import re
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import fmnist_diffusion


API = "/gradio_api/"
JSON_TYPE = {"content-type": "application/json"}
# These are valid inputs for each endpoint that has inputs.
INPUTS: dict[str, dict[str, Any]] = {
    "generate": {
        "labels": ["Bag"],
        "num_images": 1,
        "num_inference_steps": 1,
        "scheduler": "ddim",
        "guidance_scale": 1,
        "seed": 0,
        "prompt": "",
    },
    "interpolate": {
        "first_label": "Bag",
        "last_label": "Coat",
        "first_seed": 0,
        "last_seed": 1,
        "num_images": 3,
        "num_inference_steps": 1,
        "scheduler": "ddim",
        "first_prompt": "",
        "last_prompt": "",
    },
    "image_to_image": {
        "example": "Bag",
        "label": "Coat",
        "strength": 0.5,
        "num_inference_steps": 2,
        "scheduler": "ddim",
        "guidance_scale": 1,
        "seed": 0,
        "upload": None,
        "mask": "",
        "prompt": "",
    },
}
META = {"_type": "gradio.FileData"}
DEEP_LIST = json.loads("[" * 60 + "]" * 60)
VALUES: list[Any] = [
    None, True, "", "x", "1", "NaN", "../../etc/passwd", "<script>alert(1)</script>", "\u0000", "猫" * 50,
    "y" * 90_000, -1, 0.5, 1e308, float("nan"), float("inf"), -float("inf"), 10**400, 2**63, [], [None], ["x"],
    [["Bag"]], [1, 2], DEEP_LIST, {}, {"a": {"b": 1}}, {"path": "x"}, {"path": None, "meta": META},
    {"path": "/etc/passwd", "meta": META}, {"path": "https://example.com/x.png", "meta": META},
    {"path": "x.png", "meta": META}, {"path": ["x"], "meta": META}, {"path": "x", "meta": None},
    {"path": "/tmp", "meta": META, "is_stream": True}, {"__type__": "update", "value": 1},
]  # fmt: skip
BODIES = [
    b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe", b"<xml/>", b'{"data": 3}', b'{"data": null}', b"{}",
    b'{"data": {"a": 1}}', b'{"data": []}', b'{"data": [' + b"[" * 5000 + b"]" * 5000 + b"]}",
    b'{"data": [], "session_hash": []}', b'{"data": [], "fn_index": 99999, "session_hash": "a"}',
    b'{"data": [], "fn_index": "x", "session_hash": "a"}', b'{"data": [], "fn_index": -1, "session_hash": "a"}',
    b'{"data": [1' + b"0" * 5000 + b"]}", b'{"data": ["' + b"z" * 200_000 + b'"]}',
    b'{"data": [], "trigger_id": 10000, "event_data": [1], "session_hash": "a"}',
]  # fmt: skip
POST_PATHS = [
    "call/generate", "call/interpolate", "call/quality", "call/v2/generate", "call/missing", "call/v2/missing",
    "queue/join", "cancel", "reset", "upload", "mcp/",
]  # fmt: skip
UNKNOWN_PATHS = [
    "/nothing", "/gradio_api/nothing", "/gradio_api/call", "/gradio_api/component_server", "/gradio_api/vibe-edit",
    # These routes would skip the queue.
    "/gradio_api/run/generate", "/gradio_api/run/on_compare", "/gradio_api/api/generate",
    "/gradio_api/process_recording", "/gradio_api/proxy=https://example.com", "/gradio_api/stream/x",
    "/gradio_api/run-history/records", "/gradio_api/deep_link?session_hash=x", "/gradio_api/dev/reload",
    "/gradio_api/custom_component/x/client/x/x", "/monitoring", "/monitoring/x", "/svelte/x", "/.env", "/%00",
    "/gradio_api/file=", "/gradio_api/file=/etc/passwd", "/gradio_api/file=https://example.com/x.png",
    "/gradio_api/file=../../etc/passwd", "/gradio_api/file=%2Fetc%2Fhostname", "/gradio_api/file=/proc/self/environ",
    "/gradio_api/file=/tmp", "/gradio_api/file=%00", "/assets/../../etc/passwd", "/assets/x", "/static/", "/static/x",
    "/assets/%2e%2e/%2e%2e/routes.py", "/gradio_api/call/generate/missing", "/gradio_api/queue/data",
    "/gradio_api/queue/data?session_hash=missing", "/gradio_api/upload_progress", "/?" + "q" * 3000,
    "/gradio_api/call/v2/generate/missing", "/gradio_api/mcp/missing", "/gradio_api/mcp/sse",
]  # fmt: skip
TOOL_ARGUMENTS = [
    {"seed": 0.5}, {"seed": "x"}, {"seed": None}, {"labels": "Bag"}, {"labels": [1]}, {"missing": 1}, [], None, "x",
    {"scheduler": "magic"}, {"upload": "x"}, {"upload": "https://example.com/x.png"}, {"upload": "data:,"},
    {"upload": "data:image/png;base64,!!!"}, {"upload": {"path": "/etc/passwd"}}, {"labels": "z" * 150_000},
]  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A malformed HTTP request. `kind` names its class of faults."""

    kind: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def make_calls(num_events: int) -> Iterator[Call]:
    """Yields malformed requests to a demo with `num_events` event handlers."""
    for name, inputs in INPUTS.items():
        for position, parameter in enumerate(inputs):
            for value in VALUES:
                data = list(inputs.values())
                data[position] = value
                yield Call("value", "POST", f"{API}call/{name}", json.dumps({"data": data}).encode(), JSON_TYPE)
                if position % 3 == 0:
                    body = json.dumps(inputs | {parameter: value}).encode()
                    yield Call("keyword", "POST", f"{API}call/v2/{name}", body, JSON_TYPE)
        data = list(inputs.values())
        for wrong in (data[:-2], data[:1], [*data, 1], [*data, *data], data[::-1]):
            yield Call("arguments", "POST", f"{API}call/{name}", json.dumps({"data": wrong}).encode(), JSON_TYPE)
        yield Call("arguments", "POST", f"{API}call/v2/{name}", json.dumps(inputs | {"x": 1}).encode(), JSON_TYPE)
    for index in range(num_events):
        for data in ([], [None] * 3, [None] * 12, ["x"] * 7, [{}] * 8, [["x"]] * 2, [1], [DEEP_LIST]):
            body = {"data": data, "fn_index": index, "session_hash": uuid.uuid4().hex}
            yield Call("event", "POST", f"{API}queue/join", json.dumps(body).encode(), JSON_TYPE)
    for path in POST_PATHS:
        for body in BODIES:
            yield Call("body", "POST", f"{API}{path}", body, JSON_TYPE)
        for content_type in ("text/plain", "multipart/form-data", "application/xml", "x", ""):
            yield Call("content type", "POST", f"{API}{path}", b'{"data": []}', {"content-type": content_type})
        for method in ("PUT", "DELETE", "PATCH"):
            yield Call("method", method, f"{API}{path}")
    for path in UNKNOWN_PATHS:
        yield from (Call("path", method, path) for method in ("GET", "POST"))
    yield from make_uploads()
    for tool in (*INPUTS, "missing"):
        for arguments in TOOL_ARGUMENTS:
            body = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": tool, "arguments": arguments},
            }
            headers = JSON_TYPE | {"accept": "application/json, text/event-stream"}
            yield Call("tool", "POST", f"{API}mcp/", json.dumps(body).encode(), headers)


def make_uploads() -> Iterator[Call]:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    disposition = b'Content-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n'
    start, end = b"--b\r\n" + disposition % (b"files", b"x.png"), b"\r\n--b--\r\n"
    for body in (
        b"", b"--b", b"--b--", b"--b\r\n\r\n\r\n--b--\r\n", start, start + b"text", b"text" + end,
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx" + end, b"--b\r\n" + b"h" * 20_000 + b": x\r\n\r\nx" + end,
        b'--b\r\nContent-Disposition: form-data; name="files"\r\n\r\nx' + end,
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx' + end, (start + b"x\r\n") * 1200 + end,
        start + bytes(6_000_000) + end, b"\r\n" * 50_000,
    ):  # fmt: skip
        yield Call("upload", "POST", f"{API}upload", body, headers)
        yield Call("upload", "POST", f"{API}upload?upload_id=x", body, headers)
    for name in (b"../../x.png", b"/etc/passwd", b"..", b".", b"", b"a\x00b", b"n" * 5000, b"\xff"):
        body = b"--b\r\n" + disposition % (b"files", name) + b"x" + end
        yield Call("upload", "POST", f"{API}upload", body, headers)


def get_answer(client: httpx.Client, call: Call) -> tuple[int, str]:
    """Sends a request, reads its events if there are any, and returns the status and the body of the last answer."""
    response = client.request(call.method, call.path, content=call.body, headers=call.headers)
    if response.status_code == 200 and "/call/" in call.path and call.method == "POST":
        events = client.get(f"{API}call/generate/{response.json()['event_id']}").text.split("\n\n")
        return 200, events[-2]
    if response.status_code == 200 and call.path == f"{API}queue/join":
        session = json.loads(call.body)["session_hash"]
        events = client.get(f"{API}queue/data", params={"session_hash": session}).text.split("\n\n")
        return 200, next(event for event in events if "process_completed" in event or "unexpected_error" in event)
    return response.status_code, response.text


def find_message(status: int, body: str) -> Any:
    """Returns the error of an answer, or `None` if it is not an error."""
    if "event: error" in body:
        error = json.loads(body.partition("data: ")[2])
        return error["error"] if isinstance(error, dict) else error
    if '"process_completed"' in body and '"success":false' in body:
        return json.loads(body.partition("data: ")[2])["output"]["error"]
    if '"unexpected_error"' in body:
        return json.loads(body.partition("data: ")[2])["message"]
    if status >= 400:
        error = json.loads(body)
        return error["detail"] if "detail" in error else error["error"]
    if '"isError":true' in body:
        answer = next(line for line in body.splitlines() if line.startswith("data: "))
        return json.loads(answer.removeprefix("data: "))["result"]["content"][0]["text"]
    return None


def find_fault(status: int, body: str) -> str | None:
    """Returns what is wrong with an answer, or `None`."""
    if re.search(r'"error": ?null|Traceback|File "|\.py\b', body):
        return "internals"
    if find_private_text(body):
        return "private text"
    if status >= 500 and status != 503 and '"title"' not in body:
        return f"status {status}"
    message = find_message(status, body)
    if message is None:
        return None
    if not isinstance(message, str) or "\n" in message or len(message) > 300:
        return "not a short message"
    return None if re.fullmatch(r"[A-Z].*\.", message) else "not a sentence"


def find_private_text(text: str) -> str | None:
    """Returns a local path or the host name if `text` contains one."""
    private = [str(Path(fmnist_diffusion.__file__).parents[1]), str(Path.home()), str(Path(httpx.__file__).parents[1])]
    return next((item for item in [*private, socket.gethostname()] if len(item) > 3 and item in text), None)
