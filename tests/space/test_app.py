"""The running demo, as programs see it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import anyio
import generation
import httpx2
import pytest
import yaml
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from fmnist_diffusion.data import FASHION_MNIST_LABELS


SPACE = Path(__file__).parents[2] / "space"


@pytest.fixture(scope="module")
def client(url, tmp_path_factory) -> Client:
    return Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def pictures(result) -> list[Image.Image]:
    return [Image.open(item["image"]).convert("L") for item in result]


def test_endpoints_are_typed_and_described(client):
    api = client.view_api(return_format="dict")["named_endpoints"]
    assert set(api) == {"/draw", "/morph", "/repaint", "/quality"}
    draw = {parameter["label"]: parameter["python_type"]["type"] for parameter in api["/draw"]["parameters"]}
    assert draw["Pictures"] == draw["Steps"] == draw["Guidance"] == "float"
    assert "Ankle boot" in draw["Classes"] and "UniPC" in draw["Scheduler"]
    assert all(endpoint["description"] for endpoint in api.values())


def test_draw(client):
    result, facts = client.predict(["Bag", "Coat"], 3, 4, "DDIM", 2, 11, api_name="/draw")
    assert [image.size for image in pictures(result)] == [(28, 28)] * 3
    assert facts["classes"] == ["Bag", "Coat", "Bag"]
    assert (facts["seed"], facts["evaluations_per_picture"], facts["scheduler"]) == (11, 8, "DDIM")
    again, _ = client.predict(["Bag", "Coat"], 3, 4, "DDIM", 2, 11, api_name="/draw")
    assert [image.tobytes() for image in pictures(result)] == [image.tobytes() for image in pictures(again)]


def test_morph(client):
    result, facts = client.predict("Bag", "Coat", 1, 2, 4, 3, "DDIM", api_name="/morph")
    assert len(pictures(result)) == 4
    # Both classes are asked at each step.
    assert facts["evaluations_per_picture"] == 6
    assert (facts["seed"], facts["second_seed"]) == (1, 2)


def test_morph_wants_both_classes(client):
    with pytest.raises(AppError, match="Choose a class to begin with and one to end with"):
        client.predict("Bag", None, 1, 2, 4, 3, "DDIM", api_name="/morph")


def test_repaint_an_example_and_an_upload(client, tmp_path):
    result, facts = client.predict(None, "bag", "all in turn", 0.5, 4, "DDIM", 1, 0, api_name="/repaint")
    assert facts["classes"] == list(FASHION_MNIST_LABELS)
    assert facts["evaluations_per_picture"] == 2
    Image.new("RGB", (300, 100), "white").save(tmp_path / "mine.jpg")
    upload = handle_file(tmp_path / "mine.jpg")
    result, facts = client.predict(upload, "bag", "Shirt", 0.5, 4, "DDIM", 1, 0, api_name="/repaint")
    assert len(pictures(result)) == 1
    assert facts["classes"] == ["Shirt"]


def test_quality_of_what_was_not_measured(client):
    assert client.predict(api_name="/quality") == {"model": "tiny", "num_samples": None}


@pytest.mark.parametrize(
    "arguments",
    [
        (["Bag"], 41, 4, "DDIM", 2, 11),
        (["Bag"], 10**9, 4, "DDIM", 2, 11),
        (["Bag"], 3, 0, "DDIM", 2, 11),
        (["Bag"], 3, 4, "Magic", 2, 11),
        (["Hat"], 3, 4, "DDIM", 2, 11),
        (["Bag"], 3, 4, "DDIM", 99, 11),
        (["Bag"], 3, 4, "DDIM", 2, -1),
        (["Bag"], 3, 4, "DDIM", 2, 2**40),
        (["Bag"], "many", 4, "DDIM", 2, 0),
        ("Bag", 3, 4, "DDIM", 2, 0),
        (None, None, None, None, None, None),
    ],
)
def test_bad_requests_are_answered_in_words(client, arguments):
    with pytest.raises(AppError) as caught:
        client.predict(*arguments, api_name="/draw")
    assert_polite(str(caught.value))


def test_bad_uploads_are_answered_in_words(client, tmp_path):
    (tmp_path / "mine.png").write_bytes(b"no picture")
    upload = handle_file(tmp_path / "mine.png")
    with pytest.raises(AppError, match="no picture that can be read"):
        client.predict(upload, "bag", "Shirt", 0.5, 4, "DDIM", 1, 0, api_name="/repaint")


def test_an_address_is_not_fetched(client):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)

    fetched: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        upload = {"path": f"http://127.0.0.1:{server.server_port}/x.png", "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(AppError, match="Send the picture itself"):
            client.predict(upload, "bag", "Shirt", 0.5, 4, "DDIM", 1, 0, api_name="/repaint")
        server.shutdown()
    assert fetched == []


def test_a_cancelled_request_stops_working(client, model_folder):
    evaluations = []
    unet = generation.get_studio(model_folder).unet
    hook = unet.register_forward_pre_hook(lambda *_: evaluations.append(1))
    try:
        job = client.submit(["Bag"], 40, 100, "DDIM", 1, 0, api_name="/draw")
        while len(evaluations) < 3:
            time.sleep(0.01)
        job.cancel()
        time.sleep(1.0)
        stopped_at = len(evaluations)
        time.sleep(0.5)
        assert len(evaluations) == stopped_at < 100
    finally:
        hook.remove()


def test_started_as_a_script(model_folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MODEL_ID": model_folder, "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, SPACE / "app.py"], env=environment, stdout=subprocess.PIPE) as server:
        try:
            while (line := server.stdout.readline()) and b"http://" not in line:
                pass
            assert b"Fashion from noise" in urllib.request.urlopen(f"http://127.0.0.1:{port}").read()
        finally:
            server.terminate()


def test_files_of_the_machine_cannot_be_named(url: str, tmp_path: Path):
    picture = tmp_path / "picture.png"
    Image.new("L", (28, 28)).save(picture)

    def repaint(path: str) -> str:
        # gradio_client would upload the file that it is given the name of.
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [file, "bag", "Shirt", 0.5, 4, "DDIM", 1, 0]}).encode()
        call = f"{url}gradio_api/call/repaint"
        request = urllib.request.Request(call, body, {"Content-Type": "application/json"})
        event = json.load(urllib.request.urlopen(request))["event_id"]
        return urllib.request.urlopen(f"{call}/{event}").read().decode()

    with picture.open("rb") as file:
        uploaded = httpx2.post(f"{url}gradio_api/upload", files={"files": file}).json()[0]
    assert "event: complete" in repaint(uploaded)
    for path in (str(picture), "/etc/passwd"):
        answer = repaint(path)
        assert "event: error" in answer
        assert "event: complete" not in answer


def assert_polite(message: str) -> None:
    assert message and "Traceback" not in message
    assert not re.search(r"/(root|home|tmp|usr|work)/|\.py\b", message), message


def test_page_needs_nothing_from_the_network_and_tells_no_path(url, model_folder):
    page = urllib.request.urlopen(url).read().decode()
    config = json.loads(urllib.request.urlopen(f"{url}config").read())
    assert model_folder not in page + json.dumps(config)
    # Of these, a browser without the network loads nothing and misses nothing.
    tags = re.sub(r"<link[^>]*preconnect[^>]*>", "", page)
    assert set(re.findall(r'(?:src|href)="https?://([\w.-]+)', tags)) <= {"127.0.0.1", "localhost"}


def test_tools_for_language_models(url):
    schema = json.loads(urllib.request.urlopen(f"{url}gradio_api/mcp/schema").read())
    tools = {tool["name"].rpartition("_")[2]: tool for tool in schema}
    assert {"draw", "morph", "repaint", "quality"} <= set(tools)
    assert "Draws Fashion-MNIST pictures" in tools["draw"]["description"]


def test_a_language_model_draws(url):
    async def call():
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tool = next(tool for tool in (await session.list_tools()).tools if tool.name.endswith("draw"))
            arguments = {"labels": ["Bag"], "num_images": 2, "steps": 3, "scheduler": "DDIM", "guidance": 1, "seed": 5}
            return tool, await session.call_tool(tool.name, arguments)

    tool, result = anyio.run(call)
    assert "SDE-DPM-Solver++ draws best" in tool.inputSchema["properties"]["scheduler"]["description"]
    assert not result.isError
    assert "'seed': 5" in str(result.content) or '"seed": 5' in str(result.content)


def test_front_matter():
    metadata = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    assert metadata["sdk"] == "gradio"
    assert (SPACE / metadata["app_file"]).is_file()
    assert isinstance(metadata["python_version"], str)
    assert len(metadata["short_description"]) <= 60
    assert metadata["colorFrom"] in ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


def test_requirements_are_the_versions_of_the_tests():
    constraints = dict(
        line.lower().split("==")
        for line in (SPACE.parent / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )
    for line in (SPACE / "requirements.txt").read_text().splitlines():
        name, _, version = re.sub(r"\[.*\]", "", line).partition("==")
        # ZeroGPU's own package is of no use elsewhere.
        assert name == "spaces" or version in (constraints.get(name), constraints.get(name.replace("-", "_"))), line
