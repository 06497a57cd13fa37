"""A Hub that does not respond, resets connections, or sends wrong bytes."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fake_hub import FakeHub, Fault, Repository
from fmnist_diffusion import hub_client, load_pipeline
from fmnist_diffusion.hub.push import push_pipeline
from fmnist_diffusion.hub.space import push_space
from fmnist_diffusion.hub_client import HubError, is_hub_reachable, run_with_time_limit
from saved_pipelines import save_pipeline
from text_pipelines import get_text_pipeline


REPO_ID = "someone/tiny"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
KINDS = ("hang", "reset", "close", "drip", "garbage", "html", "json")
# Each entry is the method and a part of the path of a request of a push.
PUSH_REQUESTS = (
    ("POST", "/api/repos/create"),
    ("POST", "/branch/"),
    ("GET", "/tree/"),
    ("POST", "/validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/lfs/"),
    ("POST", "/commit/"),
    ("POST", "/tag/"),
    ("GET", "/refs"),
)
LOAD_REQUESTS = (
    ("HEAD", "/model_index.json"),
    ("GET", "/model_index.json"),
    ("HEAD", "/scheduler_config.json"),
    ("GET", "/scheduler_config.json"),
    ("HEAD", "/unet/config.json"),
    ("GET", "/unet/config.json"),
    ("HEAD", ".safetensors"),
    ("GET", ".safetensors"),
)
# No call may take longer than this, even with all retries of huggingface_hub.
HANG_LIMIT = 30  # seconds


@contextmanager
def short_time_limit() -> Iterator[None]:
    """Shortens the time limit while requests must fail. Other requests can take longer on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_client, "TIME_LIMIT", 1.0)
        yield


def push(folder: Path) -> str:
    return push_pipeline(folder, REPO_ID, revision="trial", tag="v1.0")


def check_error(error: BaseException) -> None:
    message = str(error)
    assert message.endswith(".") and "\n" not in message
    assert message.startswith(("The Hub ", "Could not reach the Hub ", "Could not find ")), message


def check_push(hub: FakeHub, folder: Path, method: str, part: str, kind: str) -> None:
    hub.faults = [Fault(method, part, kind=kind, times=999)]
    start = time.monotonic()
    with short_time_limit(), pytest.raises(HubError) as error:
        push(folder)
    assert time.monotonic() - start < HANG_LIMIT
    check_error(error.value)
    assert hub.faults[0].times < 999
    hub.faults = []
    push(folder)
    repository = hub.repositories[REPO_ID]
    assert "model_index.json" in repository.commits[repository.refs["trial"]]
    assert repository.refs["trial"] == repository.refs["v1.0"]


@pytest.mark.parametrize(("method", "part"), [PUSH_REQUESTS[0], PUSH_REQUESTS[6]])
def test_hanging_push_fails_and_can_be_retried(hub, folder, method, part):
    check_push(hub, folder, method, part, "hang")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "part"), PUSH_REQUESTS)
def test_failed_push_can_be_retried(hub, folder, method, part):
    kinds = ["hang", "reset", "close", "drip", "garbage"]
    # The content of the other responses is not used.
    if part not in ("/lfs/", "/branch/", "/validate-yaml"):
        kinds += ["html", "json"]
    # Each request is tested with two kinds of failures, so that all kinds are tested with several requests.
    first = PUSH_REQUESTS.index((method, part))
    for kind in (kinds[first % len(kinds)], kinds[(first + 3) % len(kinds)]):
        check_push(hub, folder, method, part, kind)
        hub.repositories.clear()
        hub.large.clear()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "reset", "html", "json"])
def test_space_push_fails_with_one_error(hub, kind):
    hub.repositories[REPO_ID] = Repository()
    hub.repositories[REPO_ID].commit({"model_index.json": b"{}"})
    for method, part in (("GET", "/api/models"), ("POST", "/variables"), ("POST", "/commit/")):
        hub.faults = [Fault(method, part, kind=kind, times=999)]
        with short_time_limit(), pytest.raises(HubError) as error:
            push_space("demo", REPO_ID)
        check_error(error.value)
    hub.faults = []
    assert push_space("demo", REPO_ID) == f"{hub.endpoint}/spaces/someone/demo"


class TestLoad:
    @pytest.fixture
    def repository(self, hub, folder) -> Repository:
        hub.repositories[REPO_ID] = Repository()
        hub.repositories[REPO_ID].commit_folder(folder)
        return hub.repositories[REPO_ID]

    @pytest.mark.parametrize(
        ("method", "part", "kind"),
        [(*LOAD_REQUESTS[0], kind) for kind in ("reset", "html")]
        + [(*LOAD_REQUESTS[-1], kind) for kind in ("hang", "json")],
    )
    def test_load_without_a_cached_copy_fails_and_can_be_retried(self, hub, repository, method, part, kind):
        self.check_load(hub, repository, method, part, kind)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("method", "part"), [LOAD_REQUESTS[i] for i in (0, 3, 6, 7)])
    def test_each_request_may_fail(self, hub, repository, method, part, kind):
        self.check_load(hub, repository, method, part, kind)

    def check_load(self, hub, repository, method, part, kind):
        hub.faults = [Fault(method, part, kind=kind, times=999)]
        start = time.monotonic()
        with short_time_limit(), pytest.raises(OSError) as error:
            load_pipeline(REPO_ID)
        assert time.monotonic() - start < HANG_LIMIT
        check_error(error.value)
        hub.faults = []
        assert load_pipeline(REPO_ID).unet.config.num_class_embeds == 10

    @pytest.mark.parametrize("kind", ["hang", "reset", "garbage", 500, 429])
    def test_cached_copy_is_used(self, hub, repository, caplog, kind):
        load_pipeline(REPO_ID)
        status, kind = (kind, "close") if isinstance(kind, int) else (None, kind)
        hub.faults = [Fault("HEAD", "", status, kind=kind, times=999)]
        with short_time_limit():
            assert load_pipeline(REPO_ID).unet.config.num_class_embeds == 10
        assert "Using the cached copy of someone/tiny." in caplog.text

    def test_older_cached_copy_is_used_if_a_new_one_is_incomplete(self, hub, repository, tmp_path, caplog):
        load_pipeline(REPO_ID)
        repository.commit_folder(save_pipeline(tmp_path / "new", num_class_embeds=4))
        hub.faults = [Fault("GET", ".safetensors", kind="reset", times=999)]
        assert load_pipeline(REPO_ID).unet.config.num_class_embeds == 10
        assert "Using the cached copy" in caplog.text
        hub.faults = []
        assert load_pipeline(REPO_ID).unet.config.num_class_embeds == 4

    @pytest.mark.parametrize("kind", ["reset", "close", "html", "corrupt", "truncated", "short"])
    def test_single_failure_is_retried(self, hub, repository, kind):
        hub.faults = [Fault("GET", ".safetensors", kind=kind)]
        assert load_pipeline(REPO_ID).unet.config.num_class_embeds == 10
        assert hub.faults[0].times == 0

    @pytest.mark.parametrize("kind", ["corrupt", "truncated", "short"])
    @pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json"])
    def test_damaged_downloads_are_an_error(self, hub, repository, kind, name):
        hub.faults = [Fault("GET", name, kind=kind, times=999)]
        with pytest.raises(OSError) as error:
            load_pipeline(REPO_ID)
        check_error(error.value)
        hub.faults = []
        assert load_pipeline(REPO_ID).unet.config.num_class_embeds == 10

    @pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json", "model_index.json"])
    @pytest.mark.parametrize("content", [b"", b"damaged", None])
    def test_damaged_file_in_the_cache_is_downloaded_again(self, hub, repository, tmp_path, caplog, name, content):
        load_pipeline(REPO_ID)
        (path,) = (tmp_path / "cache").glob(f"models--*/snapshots/*/{name}")
        original = path.read_bytes()
        path.write_bytes(original[:-1] + b"\0" if content is None else content)
        with pytest.raises(OSError, match=rf"The cached file .*{Path(name).name} is damaged\."):
            load_pipeline(REPO_ID, local_files_only=True)
        load_pipeline(REPO_ID)
        assert path.read_bytes() == original
        assert f"{name} is damaged. Downloading it again." in caplog.text

    def test_damaged_file_of_a_cached_commit_is_downloaded_again(self, hub, repository, tmp_path):
        commit = repository.refs["main"]
        load_pipeline(REPO_ID, revision=commit)
        (path,) = (tmp_path / "cache").glob(f"models--*/snapshots/*/{WEIGHTS}")
        original = path.read_bytes()
        path.write_bytes(b"damaged")
        load_pipeline(REPO_ID, revision=commit)
        assert path.read_bytes() == original

    @pytest.mark.parametrize(
        ("status", "message"),
        [
            (401, "The Hub rejected the token. Please run `hf auth login` with a token that has read access"),
            (403, "The Hub denied read access to someone/tiny"),
            (404, "Could not find someone/tiny, or the token cannot access it"),
            (500, r"The Hub is unavailable \(HTTP 500\)"),
        ],
    )
    def test_error_states_the_cause(self, hub, repository, status, message):
        hub.faults = [Fault("HEAD", "", status, times=999)]
        with pytest.raises(OSError, match=message):
            load_pipeline(REPO_ID)

    @pytest.mark.parametrize("token", ["", "hf_other"])
    def test_gated_repository_asks_to_request_access(self, hub, repository, monkeypatch, token):
        repository.gated = True
        monkeypatch.setenv("HF_TOKEN", token)
        message = r"someone/tiny is gated\. Request access at .*/someone/tiny and, with the same account, run"
        with pytest.raises(OSError, match=message):
            load_pipeline(REPO_ID)

    def test_commit_needs_no_requests_if_it_is_cached(self, hub, repository):
        commit = repository.refs["main"]
        load_pipeline(REPO_ID, revision=commit)
        hub.requests.clear()
        load_pipeline(REPO_ID, revision=commit)
        assert hub.requests == []

    def test_large_weights_are_not_downloaded(self, hub, repository, monkeypatch):
        monkeypatch.setattr("fmnist_diffusion.pipelines.download.MAX_WEIGHTS_BYTES", 10_000)
        with pytest.raises(OSError, match=r"safetensors of someone/tiny has \d+ bytes, more than the limit of 10000"):
            load_pipeline(REPO_ID)
        assert not [path for method, path in hub.requests if method == "GET" and path.endswith(".safetensors")]

    def test_large_text_encoders_are_not_downloaded_or_loaded(self, hub, tmp_path, monkeypatch):
        pipe = get_text_pipeline()
        pipe.save_pretrained(tmp_path / "text")
        hub.repositories[REPO_ID] = repository = Repository()
        repository.commit_folder(tmp_path / "text")
        for module in ("download", "files"):
            monkeypatch.setattr(f"fmnist_diffusion.pipelines.{module}.MAX_WEIGHTS_BYTES", 20_000)
        with pytest.raises(OSError, match=r"text_encoder/model.safetensors of someone/tiny has \d+ bytes, more than"):
            load_pipeline(REPO_ID, unet=pipe.unet)
        assert not [path for method, path in hub.requests if method == "GET" and path.endswith(".safetensors")]
        with pytest.raises(OSError, match=r"text_encoder/model.safetensors has more than 20000 bytes"):
            load_pipeline(tmp_path / "text")


def test_abandoned_threads_do_not_keep_the_process_alive():
    before, end = set(threading.enumerate()), threading.Event()
    try:
        with pytest.raises(TimeoutError):
            run_with_time_limit(end.wait, 0.01)
        (thread,) = set(threading.enumerate()) - before
        assert thread.daemon
    finally:
        end.set()


@pytest.mark.parametrize("kind", ["hang", "reset", "drip", "garbage"])
def test_faulty_hub_is_unreachable(hub, monkeypatch, kind):
    monkeypatch.setattr(hub_client, "REACHABLE_TIMEOUT", 0.5)
    hub.faults = [Fault("HEAD", "", kind=kind, times=999)]
    assert not is_hub_reachable()
