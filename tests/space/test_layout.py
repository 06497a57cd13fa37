"""The running demo: endpoints, errors, the page and the MCP server."""

import base64
import io
import json
import re
import time
import urllib.request
from pathlib import Path

import anyio
import gradio as gr
import numpy as np
import pytest
from gradio.processing_utils import hash_base64
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from malformed_requests import INPUTS, META
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

import uploads
from fmnist_diffusion.data import FASHION_MNIST_LABELS
from server import make_file_folder


TOOLS = {"generate", "interpolate", "image_to_image", "quality"}
FAST = {"num_inference_steps": 4, "scheduler": "ddim"}


@pytest.fixture(scope="module")
def client(url, tmp_path_factory) -> Client:
    return Client(
        url,
        verbose=False,
        download_files=str(tmp_path_factory.mktemp("downloads")),
        httpx_kwargs={"timeout": 60},
    )


class TestEndpoints:
    def test_endpoints_have_descriptions_and_optional_parameters(self, client):
        endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        assert set(endpoints) == {f"/{name}" for name in TOOLS}
        for endpoint in endpoints.values():
            assert endpoint["description"].endswith(".")
            assert all(parameter["parameter_has_default"] for parameter in endpoint["parameters"])
        types = {p["parameter_name"]: p["python_type"]["type"] for p in endpoints["/generate"]["parameters"]}
        assert types["num_images"] == types["num_inference_steps"] == types["guidance_scale"] == "float"
        assert "Ankle boot" in types["labels"] and "unipc" in types["scheduler"]

    def test_generate_is_reproducible(self, client):
        kwargs = {"labels": ["Bag", "Coat"], "num_images": 3, "seed": 11, **FAST}
        first, second = (Image.open(client.predict(**kwargs, api_name="/generate")) for _ in range(2))
        assert first.size == (26 * 8, 8 * 8)
        assert first.tobytes() == second.tobytes()
        assert json.loads(first.info["parameters"])["seed"] == 11

    def test_ends_of_an_interpolation_equal_generated_images(self, client):
        labels = {"first_label": "Bag", "last_label": "Coat"}
        grid = client.predict(**labels, first_seed=3, last_seed=4, num_images=3, api_name="/interpolate")
        pixels = np.asarray(Image.open(grid)).astype(int)
        assert pixels.shape == (8 * 8, 26 * 8)
        for image, label, seed in ((pixels[:, : 8 * 8], "Bag", 3), (pixels[:, -8 * 8 :], "Coat", 4)):
            alone = Image.open(client.predict(labels=[label], num_images=1, seed=seed, api_name="/generate"))
            assert abs(image - np.asarray(alone)).max() <= 1

    def test_image_to_image_with_and_without_an_upload(self, client, tmp_path):
        grid = Image.open(client.predict(**FAST, api_name="/image_to_image"))
        assert json.loads(grid.info["parameters"])["num_images"] == len(FASHION_MNIST_LABELS)
        Image.new("RGB", (300, 100), "white").save(tmp_path / "upload.jpg")
        upload = handle_file(tmp_path / "upload.jpg")
        grid = Image.open(client.predict(upload=upload, label="Shirt", **FAST, api_name="/image_to_image"))
        assert json.loads(grid.info["parameters"])["labels"] == ["Shirt"]

    def test_image_to_image_with_a_mask(self, client):
        mask = "0" * 32 + "1" * 32
        same = Image.open(client.predict(mask="0" * 64, label="Shirt", **FAST, api_name="/image_to_image"))
        grid = Image.open(client.predict(mask=mask, label="Shirt", **FAST, api_name="/image_to_image"))
        changed = np.asarray(grid).astype(int) != np.asarray(same)
        assert changed[32:].mean() > 0.5 and not changed[:32].any()

    def test_quality_without_metrics_has_no_numbers(self, client):
        assert client.predict(api_name="/quality") == {"model": "tiny", "num_samples": None}

    def test_cancelled_request_ends(self, client, slow_evaluations):
        job = client.submit(num_images=1, num_inference_steps=100, api_name="/generate")
        while not job.outputs():
            assert not job.done()
            time.sleep(0.01)
        job.cancel()
        slow_evaluations[0].join(timeout=60)
        assert len(slow_evaluations) < 100


class TestInvalidInput:
    @pytest.mark.parametrize(
        "arguments",
        [
            {"num_images": 41},
            {"num_images": 10**9},
            {"num_images": "many"},
            {"num_inference_steps": 0},
            {"num_inference_steps": 2.5},
            {"scheduler": "magic"},
            {"labels": ["Hat"]},
            {"labels": "Bag"},
            {"guidance_scale": 99},
            {"seed": -1},
            {"seed": 3.7},
            {"seed": 2**40},
            {"labels": None, "num_images": None, "num_inference_steps": None, "scheduler": None, "seed": None},
        ],
    )
    def test_error_is_one_line_without_internals(self, client, arguments):
        with pytest.raises(AppError) as caught:
            client.predict(**arguments, api_name="/generate")
        message = str(caught.value)
        assert message and "\n" not in message and "upstream Gradio app" not in message
        assert not re.search(r"/(root|home|tmp|usr|work)/|\.py\b|Traceback", message), message

    def test_upload_that_is_no_image_is_an_error(self, client, tmp_path):
        (tmp_path / "upload.png").write_bytes(b"text")
        with pytest.raises(AppError, match="Could not read the image"):
            client.predict(upload=handle_file(tmp_path / "upload.png"), api_name="/image_to_image")

    @pytest.mark.parametrize("api_name, parameter", [("/image_to_image", "upload"), ("/generate", "labels")])
    @pytest.mark.parametrize("nested", [False, True])
    def test_urls_are_never_downloaded(self, client, monkeypatch, api_name, parameter, nested):
        downloads = []

        async def download(url, *args, **kwargs):
            downloads.append(url)

        monkeypatch.setattr(gr.processing_utils, "async_ssrf_protected_download", download)
        file = {"path": "https://example.com/x.png", "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(AppError, match="URLs are not downloaded"):
            client.predict(**{parameter: [{"file": file}] if nested else file}, api_name=api_name)
        assert downloads == []

    @pytest.mark.parametrize("path", ["/etc/passwd", str(uploads.EXAMPLES["Bag"])])
    def test_files_of_the_server_cannot_be_read(self, url, path):
        # gradio_client would upload the file of this name.
        inputs = INPUTS["image_to_image"] | {"upload": {"path": path, "meta": META}}
        body = json.dumps({"data": [*inputs.values()]}).encode()
        call = f"{url}gradio_api/call/image_to_image"
        request = urllib.request.Request(call, body, {"Content-Type": "application/json"})
        event = json.load(urllib.request.urlopen(request))["event_id"]
        answer = urllib.request.urlopen(f"{call}/{event}").read().decode()
        assert "event: error" in answer and "event: complete" not in answer
        assert "An input is malformed, or its file no longer exists." in answer


class TestPage:
    def test_page_needs_no_network_and_contains_no_local_path(self, url, model_folder):
        page = urllib.request.urlopen(url).read().decode()
        config = urllib.request.urlopen(f"{url}config").read().decode()
        assert "Fashion-MNIST diffusion" in page
        assert model_folder not in page + config
        # A browser downloads nothing for preconnect links.
        tags = re.sub(r"<link[^>]*preconnect[^>]*>", "", page)
        assert set(re.findall(r'(?:src|href)="https?://([\w.-]+)', tags)) <= {"127.0.0.1", "localhost"}


def call_tools(url: str, *calls: tuple[str, dict]) -> list:
    """Returns the tools of the MCP server and the results of `calls`."""

    async def run():
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            return [tools, *[await session.call_tool(name, arguments) for name, arguments in calls]]

    return anyio.run(run)


class TestMCP:
    def test_tools_return_images(self, url):
        buffer = io.BytesIO()
        Image.new("RGB", (60, 60), "white").save(buffer, "PNG")
        upload = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        tools, generated, uploaded = call_tools(
            url,
            ("generate", {"labels": ["Bag"], "num_images": 2, **FAST}),
            ("image_to_image", {"upload": upload, "label": "Bag", **FAST}),
        )
        tools = {tool.name: tool for tool in tools}
        assert set(tools) == TOOLS
        assert (
            "uses the scheduler stored with the checkpoint"
            in tools["generate"].inputSchema["properties"]["scheduler"]["description"]
        )
        for result, size in ((generated, (17 * 8, 8 * 8)), (uploaded, (8 * 8, 8 * 8))):
            assert not result.isError
            image = next(content for content in result.content if content.type == "image")
            assert Image.open(io.BytesIO(base64.b64decode(image.data))).size == size
        # Gradio stores the file of a tool call here before its client uploads it. The demo limits this folder.
        path = Path(make_file_folder().name) / hash_base64(upload) / "file.png"
        assert path.read_bytes() == buffer.getvalue()

    def test_errors_are_shown(self, url):
        _, result = call_tools(url, ("generate", {"seed": 0.5}))
        assert result.isError
        assert "The seed must be a whole number" in result.content[0].text
