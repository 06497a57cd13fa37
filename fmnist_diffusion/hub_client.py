"""Requests to the Hub: authentication, time limits, retries, a connectivity check and readable errors.

`huggingface_hub` has no time limit for most requests and retries some of them for minutes. [`call_hub`] sets these
limits:

- 10 seconds to connect, and 30 seconds without any data in either direction;
- 30 seconds in total, including retries, plus the time to transfer the files at 100 kB/s.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import close_session, get_session, httpx


DELAYS = (1.0, 4.0)  # seconds before the second and the third attempt
CONNECT_TIMEOUT = 10.0  # seconds
TIME_LIMIT = 30.0  # seconds
MIN_BYTES_PER_SECOND = 100_000
REACHABLE_TIMEOUT = 3.0  # seconds
# These are the status codes of conflicting commits, rate limits and server errors.
TEMPORARY_STATUS_CODES = (409, 412, 429, 500, 502, 503, 504)
# huggingface_hub raises JSONDecodeError if a proxy or the Hub returns HTML. hf_xet raises built-in exceptions.
NETWORK_ERRORS = (httpx.HTTPError, ConnectionError, TimeoutError, FileMetadataError, json.JSONDecodeError)
TIMEOUTS = (httpx.TimeoutException, TimeoutError)
# huggingface_hub raises these errors if a response is valid JSON with unexpected content.
RESPONSE_ERRORS = (AttributeError, LookupError, TypeError, ValueError)
# httpx raises ImportError if a SOCKS proxy requires a package that is not installed.
HUB_ERRORS = (*NETWORK_ERRORS, *RESPONSE_ERRORS, RuntimeError, EntryNotFoundError, ImportError)

Result = TypeVar("Result")


class HubError(OSError):
    """
    Raised if a request to the Hub fails. The message says how to fix the problem.

    Attributes:
        is_temporary (`bool`): Whether a cached copy may be used instead.
    """

    def __init__(self, message: str, is_temporary: bool = False):
        super().__init__(message)
        self.is_temporary = is_temporary


def is_repo_id(text: str) -> bool:
    """Returns whether `text` has the form of a repository id, `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) is not None


def connect(token: str | None = None) -> HfApi:
    """
    Creates a client that is logged in to the Hub.

    Args:
        token (`str`, *optional*): Access token. Defaults to the token from `hf auth login` or `HF_TOKEN`.

    Raises:
        `HubError`: If there is no token.
    """
    token = token or get_token()
    if token is None:
        raise HubError(f"You are not logged in to the Hub. Please {_get_login_advice('write')}.")
    return HfApi(token=token)


def get_full_repo_id(api: HfApi, repo_id: str) -> str:
    """Adds the name of the current user to `repo_id` if it has no namespace."""
    if "/" in repo_id:
        return repo_id
    return f"{call_hub(api.whoami, repo_id)['name']}/{repo_id}"


def get_folder_size(folder: Path) -> int:
    """Returns the number of bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_hub_reachable() -> bool:
    """Returns whether the Hub responds within 3 seconds; `False` in offline mode (`HF_HUB_OFFLINE`)."""
    try:
        session = get_session()
        run_with_time_limit(lambda: session.head(constants.ENDPOINT, timeout=REACHABLE_TIMEOUT), REACHABLE_TIMEOUT)
    # httpx raises ImportError and ValueError for a proxy that it does not support.
    except (httpx.HTTPError, OfflineModeIsEnabled, TimeoutError, ImportError, ValueError):
        return False
    return True


def run_with_time_limit(action: Callable[[], Result], seconds: float) -> Result:
    """
    Calls a function, and raises `TimeoutError` if it does not return in time.

    The timeouts of a request limit neither DNS lookups nor a server that sends one byte every few seconds. The
    function therefore runs in a daemon thread, which is abandoned after the time limit and does not keep the process
    alive.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(action())
        # The caller raises all errors of this thread.
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout=seconds)


def call_hub(
    action: Callable[[], Result],
    repo_id: str,
    *,
    retry: bool = True,
    num_bytes: int = 0,
    access: Literal["read", "write"] = "write",
) -> Result:
    """
    Calls a function that sends requests to the Hub, and retries it after temporary errors.

    `huggingface_hub` itself only retries some individual requests. Timeouts are not retried.

    Args:
        action (`Callable`): Function without arguments.
        repo_id (`str`): Repository id for error messages.
        retry (`bool`, defaults to `True`): Whether to retry after temporary errors, up to twice.
        num_bytes (`int`, defaults to 0): Size of the files to transfer, which extends the time limit of 30 seconds.
        access (`str`, defaults to `"write"`): The access that the token needs, for error messages.

    Returns:
        The return value of `action`.

    Raises:
        `HubError`: If the error is permanent, the last attempt fails, or the time limit is exceeded.
        `HFValidationError` (a `ValueError`): If a repository id or revision is invalid.
    """
    time_limit = TIME_LIMIT + num_bytes / MIN_BYTES_PER_SECOND
    end = time.monotonic() + time_limit
    delays = iter(DELAYS if retry else ())
    while True:
        try:
            with _limit_requests():
                return run_with_time_limit(action, max(end - time.monotonic(), 0))
        except HFValidationError:
            raise
        except HUB_ERRORS as raised:
            error = _get_cause(raised)
            if not isinstance(error, HUB_ERRORS):
                raise
            temporary = _is_temporary(error)
            delay = next(delays, None) if temporary and not isinstance(error, TIMEOUTS) else None
            if delay is None or time.monotonic() + delay > end:
                raise HubError(_explain(error, repo_id, time_limit, access), temporary) from error
        time.sleep(delay)


class _Call:
    """A call of [`call_hub`]. After its time limit, it is abandoned."""

    abandoned = False


_active_calls: list[_Call] = []
_lock = threading.Lock()
_thread = threading.local()


@contextmanager
def _limit_requests() -> Iterator[None]:
    """Sets the timeouts of all requests of `huggingface_hub`, including those of its threads."""
    call = _Call()
    with _lock:
        _active_calls.append(call)
    _add_request_hook()
    try:
        yield
    except TIMEOUTS:
        # Closing the connections ends requests of abandoned threads, which hold locks of files in the cache.
        call.abandoned = True
        close_session()
        _add_request_hook()
        raise
    finally:
        with _lock:
            _active_calls.remove(call)


def _add_request_hook() -> None:
    session = get_session()
    hooks = session.event_hooks["request"]
    if _prepare_request not in hooks:
        session.event_hooks = {**session.event_hooks, "request": [*hooks, _prepare_request]}


def _prepare_request(request: Any) -> None:
    call = getattr(_thread, "call", None)
    _thread.call = None
    if call is not None and call.abandoned:
        # The threads of an abandoned call must not retry, because Python waits for them when the process exits.
        raise TimeoutError("the request was abandoned")
    with _lock:
        _thread.call = _active_calls[-1] if _active_calls else None
    if _thread.call is not None:
        timeouts = {"connect": CONNECT_TIMEOUT, "read": TIME_LIMIT, "write": TIME_LIMIT, "pool": TIME_LIMIT}
        request.extensions = {**request.extensions, "timeout": timeouts, "trace": _raise_timeout}


def _raise_timeout(event: str, info: dict[str, Any]) -> None:
    # huggingface_hub retries the timeouts of httpx up to five times, but not this error.
    if event.endswith(".failed") and type(info["exception"]).__name__.endswith("Timeout"):
        seconds = CONNECT_TIMEOUT if "connect" in event else TIME_LIMIT
        raise TimeoutError(f"no data within {seconds:.0f} seconds") from info["exception"]


def _get_cause(error: Exception) -> BaseException:
    """Returns the error of the request that caused an error of `huggingface_hub`."""
    # huggingface_hub wraps errors of LFS uploads in a RuntimeError. A RuntimeError from hf_xet has no cause.
    if isinstance(error, RuntimeError):
        return error.__cause__ or error
    # huggingface_hub raises LocalEntryNotFoundError for every failed download of a file that is not cached.
    if isinstance(error, LocalEntryNotFoundError):
        return error.__cause__ or error
    return error


def _is_rejected_card(error: BaseException) -> bool:
    return isinstance(error, ValueError) and isinstance(error.__cause__, BadRequestError)


def _is_temporary(error: BaseException) -> bool:
    if _is_rejected_card(error):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TEMPORARY_STATUS_CODES
    return not isinstance(error, (OfflineModeIsEnabled, EntryNotFoundError))


def _get_login_advice(access: str) -> str:
    return f"run `hf auth login` with a token that has {access} access, or set HF_TOKEN to one"


def _explain(error: BaseException, repo_id: str, time_limit: float, access: str) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    advice = _get_login_advice(access)
    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub cannot be used, because HF_HUB_OFFLINE is set. Unset this variable."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision on the Hub. Check the branch, tag or commit."
    if isinstance(error, EntryNotFoundError):
        return f"Could not find a file of {repo_id} on the Hub ({reason}). Check the repository and the revision."
    if isinstance(error, TIMEOUTS):
        if not str(error):
            reason = f"the request for {repo_id} was not complete after {time_limit:.0f} seconds"
        return f"The Hub did not respond in time ({reason}). Check the network connection and try again."
    if _is_rejected_card(error):
        return f"The Hub rejected the model card of {repo_id} ({reason}). Check `license` and try again."
    if isinstance(error, ImportError):
        return (
            f"A proxy requires a package that is not installed ({reason}). Install it, or unset the proxy variables."
        )
    if isinstance(error, RESPONSE_ERRORS) and not isinstance(error, (*NETWORK_ERRORS, RuntimeError)):
        reason = f"{type(error).__name__}: {reason}"
        return f"The Hub sent an unexpected response ({reason}). Check HF_ENDPOINT and the proxy, and try again."
    if not isinstance(error, HfHubHTTPError):
        return f"Could not reach the Hub ({reason}). Check the network connection and try again."
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{repo_id}"
        return f"{repo_id} is gated. Request access at {page} and, with the same account, {advice}."
    if status == 404 or isinstance(error, RepositoryNotFoundError):
        return f"Could not find {repo_id}, or the token cannot access it. Check the name, or {advice}."
    if status == 401:
        return f"The Hub rejected the token. Please {advice}."
    # The status alone does not show whether a quota or billing is the reason, so the message of the Hub is included.
    details = f" ({' '.join(error.server_message.split()).rstrip('.')})" if error.server_message else ""
    if status == 402:
        return (
            f"The Hub requires a payment for {repo_id}{details}. Upgrade your plan, add credits or, for a Space, use"
            " the hardware zero-a10g or a static Space."
        )
    if status == 403:
        return f"The Hub denied {access} access to {repo_id}{details}. Use a repository of your own, or {advice}."
    if status in (409, 412):
        return f"Another commit to {repo_id} is in progress. Try again."
    if status == 429:
        return f"Too many requests to the Hub{details}. Try again later."
    if status in TEMPORARY_STATUS_CODES:
        return f"The Hub is unavailable (HTTP {status}). Try again later."
    return f"The Hub rejected the request ({reason}). Check the repository id {repo_id} and the branch and tag names."
