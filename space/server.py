"""Limits requests to the server, answers invalid ones with a short message, and deletes temporary files."""

import asyncio
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from mcp.types import CallToolRequest, CallToolResult, ContentBlock, ServerResult, TextContent
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uploads import MAX_UPLOAD_BYTES


logger = logging.getLogger(__name__)

# The page, API clients and MCP clients only use these routes. Gradio has more, which can, for example, download URLs.
ROUTES = re.compile(
    r"/(|config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(static|assets)/.*|login_check/?"
    r"|gradio_api/(info/?|openapi\.json|startup-events|app_id/?|theme\.css|reset/?|cancel|heartbeat/[^/]*"
    r"|upload|upload_progress|queue/(join|data|status)|call/.*|file=(?!https?:).*|mcp(/schema)?/?))"
)
UPLOAD_ROUTE, MCP_ROUTE = "/gradio_api/upload", "/gradio_api/mcp"
EVENT_ROUTES = ("/gradio_api/call/", "/gradio_api/queue/data")
MAX_BODY_BYTES, MAX_QUERY_BYTES = 100_000, 2_000
# An upload is a multipart form with one file. A request of an MCP client can contain a file as base64; the MCP library
# has the same limit.
MAX_UPLOAD_BODY_BYTES, MAX_MCP_BODY_BYTES = MAX_UPLOAD_BYTES + MAX_BODY_BYTES, 4_000_000
MAX_PARALLEL_UPLOADS, MAX_STORED_BYTES, MAX_STORED_FILES = 8, 200_000_000, 10_000
MAX_UPLOAD_SECONDS = 60
# These times are in seconds: between two cleanups, until files are deleted, and until results that nobody reads are
# deleted.
CLEANUP_INTERVAL, MAX_FILE_AGE, MAX_RESULT_AGE = 30, 900, 120
# Gradio keeps a copy of the page's configuration, about 0.2 MB, for each session. It only needs those of running and
# waiting requests.
MAX_SESSIONS = 50

INVALID = "The request is invalid. The API page describes the endpoints and their inputs."
ERRORS = {
    403: "The file does not exist or is not accessible.",
    404: "The server has no such address. The API page lists the endpoints.",
    405: "The server does not support this method at this address.",
    408: f"The upload took more than {MAX_UPLOAD_SECONDS} seconds. Upload a smaller file.",
    413: f"The request is too large. The limits are {MAX_BODY_BYTES // 1000} kB, {MAX_UPLOAD_BYTES // 10**6} MB for"
    f" uploads, and {MAX_MCP_BODY_BYTES // 10**6} MB for MCP.",
    414: f"The query string must have at most {MAX_QUERY_BYTES:,} bytes.",
}
BUSY = "The server has received too many files. Try again in a few minutes."
INVALID_TOOL_CALL = "The call does not match the schema of a tool. List the tools to see their arguments."
MAX_ERROR_LENGTH = 400
UNKNOWN_EVENT = "There is no request with this id. Results can be read once, within two minutes."


@cache
def make_file_folder() -> tempfile.TemporaryDirectory:
    """Creates the folder for uploads and generated files, which Python deletes when the process exits."""
    folder = tempfile.TemporaryDirectory(prefix="fmnist-diffusion-", ignore_cleanup_errors=True)
    # Gradio only reads these settings from the environment. Without a limit, it analyzes the last 10,000 requests
    # after each request. Without a backend, its first request imports pyplot, which takes a second.
    os.environ |= {"GRADIO_TEMP_DIR": folder.name, "GRADIO_ANALYTICS_MAX_EVENTS": "100", "MPLBACKEND": "agg"}
    # Gradio stores the files of MCP clients in this folder. It only reads GRADIO_TEMP_DIR for it at import.
    gr.mcp.DEFAULT_TEMP_DIR = folder.name
    return folder


def make_error(message: str, title: str = "Invalid request") -> gr.Error:
    return gr.Error(message, title=title, print_exception=False)


def reject_url(file: dict[str, Any]) -> None:
    if is_http_url_like(file["path"]):
        raise make_error("URLs are not downloaded. Upload the image itself.")


class SafeBlocks(gr.Blocks):
    """
    A subclass of `gr.Blocks` that rejects URLs in file inputs and explains malformed inputs.

    By default, Gradio downloads any URL that is passed as a file, for every input and without a size limit.
    """

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        expected = len(block_fn.inputs)
        if block_fn.fn is None:
            raise make_error("This event only runs in the browser.")
        if len(inputs) != expected:
            raise make_error(f"This endpoint has {expected} inputs, but the request has {len(inputs)}.")
        try:
            traverse(inputs, reject_url, is_file_obj_with_meta)
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error:
            raise
        # Every other error at this point is caused by the inputs.
        except Exception as error:
            raise make_error(
                "An input is malformed, or its file no longer exists. The API page describes the inputs."
            ) from error

    async def process_api(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        # Without this error, Gradio would respond with `{"error": null}`.
        except Exception as error:
            logger.exception("A request failed.")
            raise make_error("The request failed because of an error in the demo.", "Internal error") from error


class RequestFilter:
    """
    ASGI middleware that limits requests and answers every invalid request with a short message.

    The message is in the field `detail` of a JSON object.

    Args:
        app: The application to protect.
        folder: Folder of the uploaded files.
    """

    def __init__(self, app: ASGIApp, folder: Path):
        self.app, self.folder = app, folder
        self.uploads: set[object] = set()
        self.logged: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif ROUTES.fullmatch(scope["path"]) is None:
            await send_error(send, 404)
        elif len(scope["query_string"]) > MAX_QUERY_BYTES:
            await send_error(send, 414)
        elif scope["path"] == UPLOAD_ROUTE:
            await self.handle_file(scope, receive, send, MAX_UPLOAD_BODY_BYTES)
        # An MCP tool call can contain a file.
        elif scope["path"].startswith(MCP_ROUTE) and scope["method"] == "POST":
            await self.handle_file(scope, receive, send, MAX_MCP_BODY_BYTES)
        else:
            await self.handle(scope, receive, send, MAX_BODY_BYTES)

    async def handle_file(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Passes a file to the application, unless there are too many simultaneous uploads or stored files."""
        if len(self.uploads) >= MAX_PARALLEL_UPLOADS:
            await send_error(send, 503, BUSY)
            return
        # The upload is counted before the first `await`, so that simultaneous requests cannot exceed the limit.
        upload = object()
        self.uploads.add(upload)

        def end_upload() -> None:
            # An MCP tool call continues after its file has been received.
            if scope["path"] != UPLOAD_ROUTE:
                self.uploads.discard(upload)

        try:
            if await run_sync(is_full, self.folder):
                await send_error(send, 503, BUSY)
            else:
                await self.handle(scope, receive, send, limit, MAX_UPLOAD_SECONDS, end_upload)
        finally:
            self.uploads.discard(upload)

    async def handle(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        limit: int,
        seconds: float | None = None,
        on_received: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs the application with limits on the size of the request body, in bytes, and on its transfer time."""
        size, status, is_complete, is_received = 0, 0, False, False
        timer = asyncio.timeout(seconds)

        async def receive_limited() -> Message:
            nonlocal size, is_received
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise ValueError(ERRORS[413])
            if not is_received and not message.get("more_body", False):
                is_received = True
                timer.reschedule(None)
                on_received()
            return message

        async def send_checked(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
                if is_replaced(status):
                    return
            if is_replaced(status):
                if not is_complete:
                    is_complete = True
                    await send_error(send, 413 if size > limit else status)
                return
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            if scope["path"].startswith(EVENT_ROUTES) and message.get("body"):
                # This is the only error of Gradio itself that is sent as an event.
                message["body"] = message["body"].replace(b"404: Not Found", UNKNOWN_EVENT.encode())
            await send(message)

        if get_content_length(scope) > limit:
            await send_error(send, 413)
            return
        try:
            async with timer:
                await self.app(scope, receive_limited, send_checked)
        # Gradio's routes raise many types of exceptions for malformed requests.
        except Exception as error:
            is_timeout = timer.expired()
            if size <= limit and not is_timeout:
                self.log(scope["path"], error)
            if not status:
                await send_error(send, 413 if size > limit else 408 if is_timeout else 400)
            elif not is_complete:
                await send({"type": "http.response.body"})

    def log(self, path: str, error: Exception) -> None:
        """Logs an exception without the content of the request, and only once per route and type."""
        key = "/".join(path.split("/")[:3])[:40].partition("=")[0], type(error).__name__
        if key not in self.logged and len(self.logged) < 100:
            self.logged.add(key)
            logger.warning("Gradio could not handle a request to %s: %s", *key)


def is_replaced(status: int) -> bool:
    """Returns whether Gradio's error of this HTTP status is replaced, because it can repeat parts of the request."""
    return 400 <= status < 500


def get_content_length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() and len(value) < 20 else 0


async def send_error(send: Send, status: int, message: str | None = None) -> None:
    """Sends a JSON response with a short message."""
    status = 400 if status == 422 else status
    body = json.dumps({"detail": message or ERRORS.get(status, INVALID)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def find_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root, name)
            try:
                found.append((path, path.stat()))
            except FileNotFoundError:
                continue
    return found


def is_full(folder: Path) -> bool:
    sizes = [stat.st_size for _, stat in find_files(folder)]
    return sum(sizes) > MAX_STORED_BYTES or len(sizes) > MAX_STORED_FILES


def delete_old_files(folder: Path, max_age: float) -> None:
    """Deletes files that are older than `max_age` seconds, and empty folders of that age."""
    oldest = time.time() - max_age
    for path, stat in find_files(folder):
        if stat.st_mtime < oldest:
            path.unlink(missing_ok=True)
    for path in folder.iterdir():
        # The folder can contain newer files, or it may no longer exist.
        with suppress(OSError):
            if path.is_dir() and path.stat().st_mtime < oldest:
                path.rmdir()


class Cleanup:
    """
    Deletes old files, and results that no client has read.

    Gradio keeps the messages and ids of abandoned requests without a limit.

    Args:
        page (`gr.Blocks`): The running page.
        folder: Folder of the files.
    """

    def __init__(self, page: gr.Blocks, folder: Path):
        self.page, self.folder = page, folder
        # This dictionary maps each session without a running request to its state and the time it entered this state.
        self.ended: dict[str, tuple[Any, float]] = {}

    async def run(self) -> None:
        while True:
            await asyncio.sleep(CLEANUP_INTERVAL)
            try:
                await run_sync(delete_old_files, self.folder, MAX_FILE_AGE)
            # If the cleanup stopped, the folder would fill up, and the server would reject all uploads.
            except OSError:
                logger.exception("Old files could not be deleted.")
            self.forget_files()
            self.forget_results(time.monotonic())

    def forget_files(self) -> None:
        for files in self.page.temp_file_sets:
            files -= {file for file in files if not os.path.exists(file)}

    def forget_results(self, now: float) -> None:
        """Deletes the messages of requests that ended at least two minutes before the time `now`, in seconds."""
        queue = self.page._queue
        messages, event_ids = queue.pending_messages_per_session, queue.pending_event_ids_session
        ended = {}
        for key in messages:
            ids = event_ids.get(key, set())
            if not ids & queue.event_ids_to_events.keys():
                state = frozenset(ids), messages[key].qsize()
                previous, start = self.ended.get(key, (None, now))
                ended[key] = state, start if state == previous else now
        self.ended = ended
        for key, (_, start) in ended.items():
            if now - start >= MAX_RESULT_AGE:
                del messages[key]
        for key in event_ids.keys() - messages.keys():
            del event_ids[key]


def explain_tool_errors(page: gr.Blocks) -> None:
    """Replaces errors of MCP tool calls that are not errors of the demo, because they repeat parts of the request."""
    server: Any = page.mcp_server_obj
    handlers = server.mcp_server.request_handlers
    call_tool = handlers[CallToolRequest]

    async def call_tool_and_explain(request: CallToolRequest) -> ServerResult:
        response = await call_tool(request)
        result = response.root
        if isinstance(result, CallToolResult) and result.isError and not is_own_error(result.content[0]):
            result.content = [TextContent(type="text", text=INVALID_TOOL_CALL)]
        return response

    handlers[CallToolRequest] = call_tool_and_explain


def is_own_error(content: ContentBlock) -> bool:
    text = content.text if isinstance(content, TextContent) else ""
    return text.endswith(".") and len(text) < MAX_ERROR_LENGTH and "\n" not in text


def silence_libraries() -> None:
    """Hides the log messages of Gradio's dependencies about malformed requests, which contain these requests."""
    for name in ("mcp", "python_multipart", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(lambda record: "mcp" not in Path(record.pathname).parts)


def get_launch_options(page: gr.Blocks) -> dict[str, Any]:
    """Returns the options of `launch` that install the filter and the cleanup."""
    folder = Path(make_file_folder().name)

    @asynccontextmanager
    async def clean_up(app: Any) -> AsyncIterator[None]:
        explain_tool_errors(page)
        silence_libraries()
        task = asyncio.create_task(Cleanup(page, folder).run())
        yield
        task.cancel()

    return {
        "app_kwargs": {"middleware": [Middleware(RequestFilter, folder=folder)], "lifespan": clean_up},
        "max_file_size": MAX_UPLOAD_BYTES,
        "state_session_capacity": MAX_SESSIONS,
        "run_history": False,
    }
