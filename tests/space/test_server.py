"""Limits on requests, one-sentence errors and the deletion of temporary files."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
import httpx
import pytest
from gradio_client import Client
from malformed_requests import find_private_text
from starlette.requests import Request
from starlette.responses import JSONResponse

import server
from handlers import Handlers
from layout import build, launch
from server import Cleanup, RequestFilter, SafeBlocks, delete_old_files


async def read_body(scope: Any, receive: Any, send: Any) -> None:
    """An application that responds with the size of the request body."""
    body = await Request(scope, receive).body()
    await JSONResponse(len(body))(scope, receive, send)


async def fail(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError("a part of the request")


async def wait(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(60)


def respond(status: int):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"detail": "a part of the request"}, status)(scope, receive, send)

    return app


def request(app: Any, folder: Path, path: str, method: str = "POST", **kwargs: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(RequestFilter(app, folder))
        async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
            return await client.request(method, path, **kwargs)

    return anyio.run(run)


def get_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Returns the records of the demo, without those of the running servers of other tests."""
    return [record for record in caplog.records if record.name == "server"]


async def make_chunks(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 1000):
        yield bytes(1000)


class TestRequestFilter:
    @pytest.mark.parametrize(
        "path, limit",
        [
            ("/gradio_api/call/generate", server.MAX_BODY_BYTES),
            ("/gradio_api/queue/join", server.MAX_BODY_BYTES),
            ("/gradio_api/upload", server.MAX_UPLOAD_BODY_BYTES),
            ("/gradio_api/mcp/", server.MAX_MCP_BODY_BYTES),
        ],
    )
    @pytest.mark.parametrize("chunked", [False, True])
    def test_request_bodies_are_limited(self, tmp_path, path, limit, chunked):
        limit -= limit % 1000
        for size, status in ((limit, 200), (limit + 1000, 413)):
            content = make_chunks(size) if chunked else bytes(size)
            response = request(read_body, tmp_path, path, content=content)
            assert response.status_code == status
        assert response.json()["detail"].startswith("The request is too large. The limits are")

    @pytest.mark.parametrize(
        "path", ["/x", "/gradio_api/component_server", "/gradio_api/file=https://example.com", "/monitoring"]
    )
    def test_other_routes_of_gradio_do_not_exist(self, tmp_path, path):
        response = request(read_body, tmp_path, path)
        assert response.status_code == 404
        assert "no such address" in response.json()["detail"]

    @pytest.mark.parametrize("status, expected", [(400, 400), (403, 403), (404, 404), (405, 405), (422, 400)])
    def test_errors_do_not_repeat_the_request(self, tmp_path, status, expected):
        response = request(respond(status), tmp_path, "/config")
        assert response.status_code == expected
        assert response.json()["detail"].endswith(".") and "part" not in response.text

    def test_full_queue_is_explained_by_gradio(self, tmp_path):
        assert request(respond(503), tmp_path, "/config").json() == {"detail": "a part of the request"}

    def test_exception_is_logged_once_without_the_request(self, tmp_path, caplog):
        filtered = RequestFilter(fail, tmp_path)

        async def run() -> list[httpx.Response]:
            transport = httpx.ASGITransport(filtered)
            async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
                return [await client.post(f"/gradio_api/call/{i}") for i in range(5)]

        for response in anyio.run(run):
            assert response.status_code == 400
            assert response.json() == {"detail": server.INVALID}
        [record] = get_records(caplog)
        assert record.message == "Gradio could not handle a request to /gradio_api/call: KeyError"
        assert record.exc_info is None

    def test_long_query_is_rejected(self, tmp_path):
        assert request(read_body, tmp_path, "/config?" + "q" * 3000).status_code == 414

    def test_slow_upload_ends(self, tmp_path, monkeypatch):
        monkeypatch.setattr(server, "MAX_UPLOAD_SECONDS", 0.05)
        assert request(wait, tmp_path, "/gradio_api/upload").status_code == 408

    @pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/data"])
    def test_timeout_after_the_start_of_a_response_does_not_start_another_one(self, tmp_path, path):
        messages = []

        async def start_and_fail(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise TimeoutError

        async def send(message: Any) -> None:
            messages.append(message["type"])

        scope = {"type": "http", "path": path, "query_string": b"", "headers": [], "method": "POST"}
        anyio.run(RequestFilter(start_and_fail, tmp_path), scope, None, send)
        assert messages == ["http.response.start", "http.response.body"]

    @pytest.mark.parametrize("name, value", [("MAX_STORED_BYTES", 9), ("MAX_STORED_FILES", 1)])
    @pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/mcp/"])
    def test_stored_uploads_are_limited(self, tmp_path, monkeypatch, path, name, value):
        assert request(read_body, tmp_path, path).status_code == 200
        for i in range(2):
            (tmp_path / f"{i}.png").write_bytes(bytes(5))
        monkeypatch.setattr(server, name, value)
        response = request(read_body, tmp_path, path)
        assert response.status_code == 503
        assert response.json() == {"detail": server.BUSY}

    @pytest.mark.parametrize("path", [server.UPLOAD_ROUTE, server.MCP_ROUTE])
    def test_parallel_uploads_are_limited(self, tmp_path, path):
        limit, count, statuses = server.MAX_PARALLEL_UPLOADS, 0, []

        async def upload(scope: Any, receive: Any, send: Any) -> None:
            nonlocal count
            count += 1
            await read_body(scope, receive, send)

        async def run() -> None:
            # Without a limit, the test would wait forever.
            with anyio.fail_after(30):
                await post_all()

        async def post_all() -> None:
            all_rejected = asyncio.Event()

            async def send_body() -> AsyncIterator[bytes]:
                yield b"start"
                await all_rejected.wait()

            async def post(client: httpx.AsyncClient) -> None:
                statuses.append((await client.post(path, content=send_body())).status_code)
                if statuses.count(503) == 2 * limit:
                    all_rejected.set()

            transport = httpx.ASGITransport(RequestFilter(upload, tmp_path))
            async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
                await asyncio.gather(*[post(client) for _ in range(3 * limit)])

        anyio.run(run)
        assert sorted(statuses) == [200] * limit + [503] * (2 * limit)
        assert count == limit

    def test_running_tool_calls_are_not_uploads(self, tmp_path):
        async def call(scope: Any, receive: Any, send: Any) -> None:
            await Request(scope, receive).body()
            running.append(1)
            while len(running) < 3 * server.MAX_PARALLEL_UPLOADS:
                await asyncio.sleep(0.001)
            await respond(200)(scope, receive, send)

        async def run() -> None:
            transport = httpx.ASGITransport(RequestFilter(call, tmp_path))
            async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
                calls = []
                with anyio.fail_after(30):
                    for count in range(3 * server.MAX_PARALLEL_UPLOADS):
                        calls.append(asyncio.create_task(client.post(server.MCP_ROUTE)))
                        while len(running) <= count:
                            await asyncio.sleep(0.001)
                    assert {(await call).status_code for call in calls} == {200}

        running: list[int] = []
        anyio.run(run)

    def test_time_limit_only_applies_to_the_transfer(self, tmp_path, monkeypatch):
        async def respond_slowly(scope: Any, receive: Any, send: Any) -> None:
            await Request(scope, receive).body()
            await asyncio.sleep(0.3)
            await respond(200)(scope, receive, send)

        monkeypatch.setattr(server, "MAX_UPLOAD_SECONDS", 0.2)
        assert request(respond_slowly, tmp_path, server.MCP_ROUTE).status_code == 200


class TestCleanup:
    def test_only_old_files_and_empty_folders_are_deleted(self, tmp_path):
        for name, age in (("old/a.png", 200), ("new/b.png", 20), ("mixed/c.png", 200), ("mixed/d.png", 20)):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
            os.utime(path, (time.time() - age,) * 2)
        delete_old_files(tmp_path, 100)
        os.utime(tmp_path / "old", (time.time() - 200,) * 2)
        delete_old_files(tmp_path, 100)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.png", "d.png", "mixed", "new"]

    def test_cleanup_continues_after_an_error(self, tmp_path, monkeypatch, caplog):
        calls = []

        def delete(folder: Path, max_age: float) -> None:
            # The cleanup tasks of other tests' demos can still be running and call this function.
            if folder != tmp_path:
                return
            calls.append(folder)
            if len(calls) == 1:
                raise OSError("unreadable")
            if len(calls) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(server, "delete_old_files", delete)
        monkeypatch.setattr(server, "CLEANUP_INTERVAL", 0)
        with gr.Blocks() as page:
            pass
        page.queue()
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(Cleanup(page, tmp_path).run())
        assert [record.exc_text.splitlines()[-1] for record in get_records(caplog)] == ["OSError: unreadable"]

    def test_deleted_files_are_forgotten(self, tmp_path):
        with gr.Blocks() as page:
            pass
        (tmp_path / "a.png").write_bytes(b"")
        page.temp_file_sets.append({str(tmp_path / "a.png"), str(tmp_path / "b.png")})
        Cleanup(page, tmp_path).forget_files()
        assert page.temp_file_sets[-1] == {str(tmp_path / "a.png")}

    def test_results_that_nobody_reads_are_forgotten(self, tmp_path):
        with gr.Blocks() as page:
            pass
        page.queue()
        queue, cleanup = page._queue, Cleanup(page, tmp_path)
        for session in ("running", "ended", "active"):
            queue.pending_messages_per_session[session] = asyncio.Queue()
            queue.pending_event_ids_session[session] = {f"{session} event"}
        queue.event_ids_to_events["running event"] = object()  # pyright: ignore[reportArgumentType]
        queue.pending_event_ids_session["lost"] = set()
        for now in (0, 60, 120):
            queue.pending_event_ids_session["active"] = {f"event at {now} s"}
            cleanup.forget_results(now)
        assert set(queue.pending_messages_per_session) == {"running", "active"}
        cleanup.forget_results(130)
        assert set(queue.pending_event_ids_session) == {"running", "active"}


def test_requests_do_not_add_components_to_the_session(model_folder):
    page = build(Handlers(model_folder))
    _, url, _ = launch(page, prevent_thread_lock=True, quiet=True)
    with httpx.Client(base_url=url, timeout=60) as client:
        try:
            fns = {fn.api_name: fn for fn in page.fns.values()}
            counts = []
            for _ in range(3):
                for name in (
                    "generate",
                    "on_generate",
                    "on_generate_change",
                    "on_interpolate",
                    "on_interpolate_change",
                    "on_image_to_image",
                    "on_compare",
                ):
                    values = {"Steps": 2, "Number of images": 3}
                    data = [values.get(item.label, item.value) for item in fns[name].inputs]
                    body = {"data": data, "fn_index": fns[name]._id, "session_hash": "session"}
                    client.post("/gradio_api/queue/join", json=body).raise_for_status()
                    answer = client.get("/gradio_api/queue/data", params={"session_hash": "session"}).text
                    assert '"success":true' in answer
                counts.append(len(page.state_holder["session"].blocks_config.blocks))
        finally:
            page.close(verbose=False)
    assert counts[0] == counts[2]


class TestSafeBlocks:
    def test_internal_error_is_one_sentence_for_the_client_and_a_traceback_in_the_log(self, caplog):
        def divide(number: float) -> float:
            return 1 / number

        with SafeBlocks() as page:
            gr.Button().click(divide, gr.Number(), gr.Number(), api_name="divide")
        _, url, _ = launch(page, prevent_thread_lock=True, quiet=True)
        try:
            with pytest.raises(Exception, match="The request failed because of an error in the demo"):
                Client(url, verbose=False, httpx_kwargs={"timeout": 60}).predict(0, api_name="/divide")
        finally:
            page.close(verbose=False)
        record = get_records(caplog)[0]
        assert record.levelno == logging.ERROR and record.exc_info is not None


@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "gradio_api/openapi.json", "gradio_api/mcp/schema"])
def test_published_documents_contain_no_local_path(url, model_folder, path):
    text = httpx.get(url + path, timeout=60).raise_for_status().text
    assert "tiny" in text or "generate" in text
    assert find_private_text(text) is None
    assert model_folder not in text
