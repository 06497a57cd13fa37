import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx

from fmnist_diffusion import hub_client
from fmnist_diffusion.hub_client import HubError, call_hub, connect, get_full_repo_id, is_hub_reachable, is_repo_id


def get_http_error(status, server_message=None):
    response = httpx.Response(status, request=httpx.Request("POST", "https://huggingface.co"))
    return HfHubHTTPError("the reason", response=response, server_message=server_message)


def get_upload_error(cause):
    """The error of an LFS upload."""
    error = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    error.__cause__ = cause
    return error


def get_card_error():
    """The error of huggingface_hub if the Hub rejects the metadata of a card."""
    error = ValueError('Invalid metadata in README.md.\n- "license" must be one of [mit]')
    response = httpx.Response(400, request=httpx.Request("POST", "https://huggingface.co"))
    error.__cause__ = BadRequestError("the reason", response=response)
    return error


class Action:
    """Raises the given errors in turn, then returns "done"."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.num_calls = 0

    def __call__(self):
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture(autouse=True)
def delays(monkeypatch):
    """Records the delays instead of waiting."""
    delays = []
    monkeypatch.setattr(hub_client.time, "sleep", delays.append)
    return delays


class TestCallHub:
    @pytest.mark.parametrize(
        "error",
        [
            *(get_http_error(status) for status in hub_client.TEMPORARY_STATUS_CODES),
            httpx.ConnectError("refused"),
            ConnectionError("reset"),
            json.JSONDecodeError("Expecting value", "<html>", 0),
            RuntimeError("Xet error"),
            get_upload_error(get_http_error(503)),
        ],
        ids=repr,
    )
    def test_temporary_errors_are_retried(self, error, delays):
        action = Action(error, error)
        assert call_hub(action, "me/model") == "done"
        assert action.num_calls == 3
        assert delays == list(hub_client.DELAYS)

    @pytest.mark.parametrize(
        "error", [get_http_error(400), get_http_error(404), get_card_error(), OfflineModeIsEnabled()], ids=repr
    )
    def test_permanent_errors_are_not_retried(self, error, delays):
        action = Action(error)
        with pytest.raises(HubError) as raised:
            call_hub(action, "me/model")
        assert raised.value.__cause__ is error
        assert action.num_calls == 1
        assert delays == []

    def test_error_is_raised_after_the_last_attempt(self):
        action = Action(*[ConnectionError("reset")] * 3)
        with pytest.raises(HubError):
            call_hub(action, "me/model")
        assert action.num_calls == 3

    def test_a_call_is_not_retried_without_retry(self, delays):
        action = Action(ConnectionError("reset"))
        with pytest.raises(HubError):
            call_hub(action, "me/model", retry=False)
        assert action.num_calls == 1
        assert delays == []

    @pytest.mark.parametrize("error", [OSError("disk full"), get_upload_error(OSError("disk full")), MemoryError()])
    def test_other_errors_are_not_hidden(self, error):
        with pytest.raises(type(error)) as raised:
            call_hub(Action(error), "me/model")
        assert raised.value is error

    @pytest.mark.parametrize("error", [httpx.ReadTimeout("slow"), TimeoutError("slow")])
    def test_timeouts_are_not_retried(self, error):
        action = Action(error)
        with pytest.raises(HubError, match=r"The Hub did not respond in time \(slow\)"):
            call_hub(action, "me/model")
        assert action.num_calls == 1

    def test_time_limit_includes_the_transfer(self, monkeypatch):
        monkeypatch.setattr(hub_client, "TIME_LIMIT", 0.01)
        end = threading.Event()
        with pytest.raises(HubError, match="the request for me/model was not complete after 0 seconds"):
            call_hub(end.wait, "me/model")
        end.set()
        assert call_hub(lambda: threading.Event().wait(0.1), "me/model", num_bytes=10_000_000) is False

    @pytest.mark.parametrize("error", [KeyError("url"), TypeError("bytes"), ValueError("commit")])
    def test_unexpected_responses_are_errors(self, error):
        with pytest.raises(HubError, match=f"The Hub sent an unexpected response \\({type(error).__name__}"):
            call_hub(Action(*[error] * 3), "me/model")

    def test_invalid_repository_id_is_an_error(self):
        with pytest.raises(ValueError, match="Repo id must"):
            call_hub(lambda: HfApi().model_info("a/b/c/d"), "a/b/c/d")

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (OfflineModeIsEnabled(), "HF_HUB_OFFLINE is set"),
            (get_http_error(401), "The Hub rejected the token. Please run `hf auth login`"),
            (
                get_http_error(402, "Please upgrade to PRO."),
                r"The Hub requires a payment for me/model \(Please upgrade to PRO\)\. Upgrade your plan, add credits",
            ),
            (
                get_http_error(403, "Private repository storage limit reached."),
                r"denied write access to me/model \(Private repository storage limit reached\)\. Use a repository",
            ),
            (get_http_error(403), "The Hub denied write access to me/model. Use a repository of your own"),
            (get_http_error(404), "Could not find me/model, or the token cannot access it."),
            (get_http_error(409), "Another commit to me/model is in progress."),
            (get_http_error(429), "Too many requests to the Hub. Try again later."),
            (get_http_error(503), r"The Hub is unavailable \(HTTP 503\)"),
            (
                get_card_error(),
                r'me/model \(Invalid metadata in README\.md\. - "license" must be one of \[mit\]\)\. Check `l',
            ),
            (ImportError("no socksio"), r"requires a package that is not installed \(no socksio\)\. Install it"),
            (get_http_error(400), r"The Hub rejected the request \(the reason\)"),
            (ConnectionError("connection\nreset"), r"Could not reach the Hub \(connection reset\)"),
            (TimeoutError(), r"The Hub did not respond in time \(the request for me/model was not complete after 30"),
            (get_upload_error(httpx.ConnectError("refused")), r"Could not reach the Hub \(refused\)"),
        ],
        ids=repr,
    )
    def test_messages_say_what_to_do(self, error, message):
        with pytest.raises(HubError, match=message) as raised:
            call_hub(Action(error), "me/model", retry=False)
        assert str(raised.value).endswith(".")


class TestConnect:
    def test_explicit_token_is_used(self):
        assert connect("hf_explicit").token == "hf_explicit"

    def test_stored_token_is_the_default(self, monkeypatch):
        monkeypatch.setattr(hub_client, "get_token", lambda: "hf_stored")
        assert connect().token == "hf_stored"

    def test_missing_token_is_an_error(self, monkeypatch):
        monkeypatch.setattr(hub_client, "get_token", lambda: None)
        with pytest.raises(HubError, match=r"^You are not logged in to the Hub\. Please run `hf auth login`"):
            connect()


def test_user_name_is_added_to_a_short_repo_id(monkeypatch):
    monkeypatch.setattr(HfApi, "whoami", lambda self: {"name": "me"})
    assert get_full_repo_id(HfApi(), "model") == "me/model"
    assert get_full_repo_id(HfApi(), "other/model") == "other/model"


class TestIsHubReachable:
    @pytest.mark.parametrize("status", [200, 404, 503])
    def test_any_response_means_reachable(self, monkeypatch, status):
        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, format, *args):
                pass

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.handle_request, daemon=True)
            thread.start()
            # The machine can be busy.
            monkeypatch.setattr(hub_client, "REACHABLE_TIMEOUT", 60)
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
            assert is_hub_reachable()
            thread.join()

    def test_refused_connection_means_unreachable(self, monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert not is_hub_reachable()

    @pytest.mark.parametrize("error", [ImportError("no socksio"), ValueError("Unknown scheme for proxy URL")])
    def test_unsupported_proxy_means_unreachable(self, monkeypatch, error):
        monkeypatch.setattr(hub_client, "get_session", Action(error))
        assert not is_hub_reachable()

    def test_offline_mode_means_unreachable(self, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not is_hub_reachable()

    def test_request_that_hangs_means_unreachable(self, monkeypatch):
        end = threading.Event()
        monkeypatch.setattr(hub_client, "REACHABLE_TIMEOUT", 0.01)
        monkeypatch.setattr(get_session(), "head", lambda *args, **kwargs: end.wait())
        try:
            assert not is_hub_reachable()
        finally:
            end.set()

    def test_programming_errors_are_not_hidden(self, monkeypatch):
        monkeypatch.setattr(get_session(), "head", lambda *args: None)
        with pytest.raises(TypeError):
            is_hub_reachable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", True),
        ("me_2/a.b-c", True),
        ("name", False),
        ("a/b/c", False),
        ("./name", False),
        ("../name", False),
        ("~/name", False),
        ("/name", False),
        ("my models/name", False),
    ],
)
def test_repository_ids_are_recognized(text, expected):
    assert is_repo_id(text) == expected
