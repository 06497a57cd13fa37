"""Requests to the Hub: authentication, retries, a connectivity check and readable errors."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx


DELAYS = (1.0, 4.0)  # seconds before the second and the third attempt
TIMEOUT = 3.0  # seconds
# These are the status codes of conflicting commits, rate limits and server errors.
TEMPORARY_STATUS_CODES = (409, 412, 429, 500, 502, 503, 504)
# huggingface_hub raises JSONDecodeError if a proxy or the Hub returns HTML. hf_xet raises built-in exceptions.
NETWORK_ERRORS = (httpx.HTTPError, ConnectionError, TimeoutError, json.JSONDecodeError)
LOGIN_ADVICE = "run `hf auth login` with a token that has write access, or set HF_TOKEN to one"

Result = TypeVar("Result")


class HubError(Exception):
    """Raised if a request to the Hub fails. The message says how to fix the problem."""


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
        raise HubError(f"You are not logged in to the Hub. Please {LOGIN_ADVICE}.")
    return HfApi(token=token)


def get_full_repo_id(api: HfApi, repo_id: str) -> str:
    """Adds the name of the current user to `repo_id` if it has no namespace."""
    if "/" in repo_id:
        return repo_id
    return f"{call_hub(api.whoami, repo_id)['name']}/{repo_id}"


def is_hub_reachable() -> bool:
    """Returns whether the Hub responds within 3 seconds; `False` in offline mode (`HF_HUB_OFFLINE`)."""
    # A thread is necessary, because the request timeout does not limit DNS lookups or the number of addresses to try.
    executor = ThreadPoolExecutor(max_workers=1)
    response = executor.submit(get_session().head, constants.ENDPOINT, timeout=TIMEOUT)
    executor.shutdown(wait=False)
    try:
        response.result(timeout=TIMEOUT)
    except (httpx.HTTPError, OfflineModeIsEnabled, TimeoutError):
        return False
    return True


def call_hub(action: Callable[[], Result], repo_id: str, delays: tuple[float, ...] = DELAYS) -> Result:
    """
    Calls a function that sends requests to the Hub, and retries it after temporary errors.

    `huggingface_hub` itself only retries some individual requests.

    Args:
        action (`Callable`): Function without arguments.
        repo_id (`str`): Repository id for error messages.
        delays (`tuple[float, ...]`, defaults to `(1.0, 4.0)`): Seconds to wait before each retry.

    Returns:
        The return value of `action`.

    Raises:
        `HubError`: If the error is permanent or the last attempt fails.
    """
    remaining_delays = iter(delays)
    while True:
        try:
            return action()
        except (*NETWORK_ERRORS, RuntimeError) as raised:
            # huggingface_hub wraps errors from LFS uploads in a RuntimeError. A RuntimeError from hf_xet has no cause.
            error = (raised.__cause__ or raised) if isinstance(raised, RuntimeError) else raised
            if not isinstance(error, (*NETWORK_ERRORS, RuntimeError)):
                raise
            delay = next(remaining_delays, None) if _is_temporary(error) else None
            if delay is None:
                raise HubError(_explain(error, repo_id)) from error
        time.sleep(delay)


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TEMPORARY_STATUS_CODES
    return not isinstance(error, OfflineModeIsEnabled)


def _explain(error: Exception, repo_id: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "The Hub cannot be used, because HF_HUB_OFFLINE is set. Unset this variable."
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, HfHubHTTPError):
        return f"Could not reach the Hub ({reason}). Check the network connection and try again."
    status = error.response.status_code
    if status == 401:
        return f"The Hub rejected the token. Please {LOGIN_ADVICE}."
    if status == 403:
        return f"The token has no write access to {repo_id}. Use a repository of your own, or {LOGIN_ADVICE}."
    if status == 404:
        return f"Could not find {repo_id}, or the token cannot access it. Check the name, or {LOGIN_ADVICE}."
    if status in (409, 412):
        return f"Another commit to {repo_id} is in progress. Try again."
    if status in TEMPORARY_STATUS_CODES:
        return f"The Hub is unavailable (HTTP {status}). Try again later."
    return f"The Hub rejected the request ({reason}). Check the repository id {repo_id} and the branch and tag names."
