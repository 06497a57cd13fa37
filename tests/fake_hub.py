"""A local HTTP server that behaves like the Hub, for tests without a network. It can also simulate faults."""

import base64
import hashlib
import json
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


DAMAGES = ("corrupt", "truncated", "short")
KINDS = ("models", "datasets", "spaces")
MAX_REGULAR_BYTES = 10_000_000


class Repository:
    """The commits of a repository (files by SHA) and its branches, tags and pull requests (SHA by name)."""

    def __init__(self, private: bool = False):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.tags: set[str] = set()
        # Paths of LFS files, which have a different ETag.
        self.lfs: set[str] = set()
        self.variables: dict[str, str] = {}
        # Everyone can read the metadata of a gated repository, but only the owner can read its files.
        self.gated = False
        self.hardware: str | None = None

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        parts = [self.refs.get(ref, "").encode()] + [part for f in sorted(files) for part in (f.encode(), files[f])]
        sha = hashlib.sha1(b"\0".join(parts)).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def commit_folder(self, folder: Path, ref: str = "main") -> str:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return self.commit({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, ref)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """
    A simulated failure of the next `times` requests with this `method` and with `part` in the path.

    Attributes:
        status: Status code of the response; `None` closes the connection without a response.
        after: Whether the request is processed before it fails.
        kind: The failure if there is no `status`: "close"; "reset" of the connection; "hang", which sends nothing;
            "drip", which sends one byte of the headers every 50 ms; "garbage", which is not HTTP; "html" or "json", a
            valid response with unexpected content; or a damaged response: "corrupt", with one wrong byte, "truncated",
            or "short", with a wrong length.
    """

    method: str
    part: str
    status: int | None = None
    times: int = 1
    after: bool = False
    kind: str = "close"


class ErrorResponse(Exception):
    """An HTTP error with the code and message that the Hub sends."""

    def __init__(self, status: int, code: str = "", message: str = "", **fields: str):
        self.status, self.code = status, code
        self.fields = {"error": message or code, **fields}


class ConnectionClosed(Exception):
    """The connection must be closed without a response."""


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class HubRequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> "FakeHub":
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format, *args):
        pass

    def handle_request(self):
        url = urlsplit(self.path)
        # A quoted slash is part of a name, such as the branch of a pull request.
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((self.command, unquote(url.path)))
        fault = self.hub.next_fault(self.command, unquote(url.path))
        try:
            if fault is not None and not fault.after and fault.kind not in DAMAGES:
                return self.fail(fault)
            with self.hub.lock:
                response = self.route(parts)
            content, headers = response
            if fault is not None and fault.kind in DAMAGES:
                self.send_damaged(fault.kind, content, headers)
            elif fault is not None:
                self.fail(fault)
            else:
                self.send(200, content, headers)
        except ErrorResponse as error:
            body = b"<html>error</html>" if error.status >= 500 else json.dumps(error.fields).encode()
            self.send(error.status, body, {"X-Error-Code": error.code} if error.code else {})
        except ConnectionClosed:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def fail(self, fault: Fault):
        if fault.status is not None:
            raise ErrorResponse(fault.status, message="a simulated fault")
        if fault.kind == "hang":
            self.hub.closing.wait()
        elif fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
        elif fault.kind == "garbage":
            self.connection.sendall(b"\x00\xff garbage\r\n" * 99)
        elif fault.kind in ("html", "json"):
            self.send(200, b"<html>Log in</html>" if fault.kind == "html" else b'{"unexpected": [1]}', {})
            return
        elif fault.kind == "drip":
            self.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            with suppress(OSError):
                while not self.hub.closing.wait(0.05):
                    self.connection.sendall(b"x")
        raise ConnectionClosed

    def send_damaged(self, kind: str, content: bytes, headers: dict[str, str]):
        if kind == "corrupt" and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        elif kind == "short":
            content = content[:-1]
        if kind != "truncated":
            return self.send(200, content, headers)
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2])
        raise ConnectionClosed

    def send(self, status: int, body: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self, parts: list[str]) -> tuple[bytes, dict[str, str]]:
        match self.command, *parts:
            case "GET", "api", "whoami-v2":
                return as_json({"type": "user", "name": self.user(), "orgs": [], "auth": {"type": "access_token"}})
            case "POST", "api", "repos", "create":
                return self.create_repo()
            case "POST", "api", "validate-yaml":
                return self.validate_yaml()
            case (("GET" | "HEAD" | "POST"), "api", kind, owner, name, *rest) if kind in KINDS:
                return self.route_repo(kind, f"{owner}/{name}", rest)
            case "POST", *prefix, owner, name, "info", "lfs", "objects", "batch":
                return self.lfs_batch(repo_key(prefix, owner, name.removesuffix(".git")))
            case "PUT", "lfs", oid:
                if sha256(self.body) != oid:
                    raise ErrorResponse(400, message="content and oid differ")
                self.hub.large[oid] = self.body
                return b"", {}
            case (("GET" | "HEAD"), *rest) if "resolve" in rest:
                at = rest.index("resolve")
                key = repo_key(rest[: at - 2], rest[at - 2], rest[at - 1])
                return self.file(key, rest[at + 1], "/".join(rest[at + 2 :]))
        raise ErrorResponse(404, "EntryNotFound")

    def route_repo(self, kind: str, repo_id: str, rest: list[str]) -> tuple[bytes, dict[str, str]]:
        key = repo_id if kind == "models" else f"{kind}/{repo_id}"
        match self.command, *rest:
            case ("GET" | "HEAD",):
                return self.info(key, repo_id, "main")
            case (("GET" | "HEAD"), "revision", revision):
                return self.info(key, repo_id, revision)
            case "GET", "tree", revision:
                return self.tree(key, revision)
            case "GET", "refs":
                return self.refs(self.find(key))
            case "POST", *_:
                repository = self.find(key, write=True)
                body = self.body
                match rest:
                    case "preupload", revision:
                        return self.preupload(repository, revision, json.loads(body))
                    case "commit", revision:
                        return self.commit(key, repository, revision, [json.loads(line) for line in body.splitlines()])
                    case "tag", revision:
                        return self.create_ref(repository, json.loads(body)["tag"], revision, repository.tags)
                    case "branch", name:
                        return self.create_ref(repository, name, json.loads(body).get("startingPoint", "main"))
                    case ("variables",):
                        variable = json.loads(body)
                        repository.variables[variable["key"]] = variable["value"]
                        return as_json({key: {"value": value} for key, value in repository.variables.items()})
        raise ErrorResponse(404, "EntryNotFound")

    def user(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.users:
            raise ErrorResponse(401, message="Invalid username or password.")
        return self.hub.users[token]

    def find(self, key: str, write: bool = False) -> Repository:
        """Returns a repository that the user can read or, with `write=True`, write to."""
        owner = key.split("/")[-2]
        if write and self.user() != owner:
            raise ErrorResponse(403, message="Forbidden: you don't have the rights to write here.")
        repository = self.hub.repositories.get(key)
        if repository is None or (repository.private and self.user() != owner):
            raise ErrorResponse(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        return repository

    def revision(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise ErrorResponse(404, "RevisionNotFound")
        return sha, repository.commits[sha]

    def create_repo(self):
        request = json.loads(self.body)
        user = self.user()
        owner = request.get("organization") or user
        if owner != user:
            raise ErrorResponse(403, message=f"You don't have the rights to create a model under {owner}.")
        kind = request.get("type", "model") + "s"
        if kind == "spaces" and request.get("sdk") not in ("gradio", "static"):
            raise ErrorResponse(400, message="no such sdk")
        hardware = request.get("hardware")
        if self.hub.requires_plan and request.get("sdk") == "gradio" and hardware in (None, "cpu-basic"):
            raise ErrorResponse(402, message="Gradio Spaces on cpu-basic require a PRO subscription.")
        key = "/".join(([] if kind == "models" else [kind]) + [owner, request["name"]])
        if key in self.hub.repositories:
            raise ErrorResponse(409, message="You already created this repo", url=f"{self.hub.endpoint}/{key}")
        repository = self.hub.repositories[key] = Repository(private=request.get("visibility") == "private")
        repository.hardware = hardware
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return as_json({"url": f"{self.hub.endpoint}/{key}", "name": f"{owner}/{request['name']}", "id": key})

    def validate_yaml(self):
        request = json.loads(self.body)
        errors = find_card_errors(request["content"], request["repoType"])
        if errors:
            raise ErrorResponse(400, message="; ".join(errors))
        return as_json({"errors": [], "warnings": []})

    def preupload(self, repository: Repository, revision: str, request: dict[str, Any]):
        _, files = self.revision(repository, revision)
        response = []
        for file in request["files"]:
            path, old = file["path"], files.get(file["path"])
            large = file["size"] > MAX_REGULAR_BYTES or b"\0" in base64.b64decode(file["sample"])
            oid = None if old is None else sha256(old) if path in repository.lfs else git_oid(old)
            mode = "lfs" if large else "regular"
            response.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | ({"oid": oid} if oid else {}))
        return as_json({"files": response})

    def lfs_batch(self, key: str):
        self.find(key, write=True)
        objects = []
        for request in json.loads(self.body)["objects"]:
            known = request["oid"] in self.hub.large
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{request['oid']}", "header": {}}}
            objects.append({"oid": request["oid"], "size": request["size"]} | ({} if known else {"actions": upload}))
        return as_json({"transfer": "basic", "objects": objects})

    def commit(self, key: str, repository: Repository, revision: str, lines: list[dict[str, Any]]):
        sha, files = self.revision(repository, revision)
        files = dict(files)
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit") not in (None, sha):
                        raise ErrorResponse(412, message="A commit has happened since.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    repository.lfs.discard(value["path"])
                case "lfsFile":
                    if value["oid"] not in self.hub.large:
                        raise ErrorResponse(400, message="the large file was not uploaded")
                    files[value["path"]] = self.hub.large[value["oid"]]
                    repository.lfs.add(value["path"])
                case "deletedFile":
                    del files[value["path"]]
        kind = "space" if key.startswith("spaces/") else "model"
        if "README.md" in files and (errors := find_card_errors(files["README.md"].decode(), kind)):
            raise ErrorResponse(400, message="; ".join(errors))
        response: dict[str, Any] = {"success": True}
        ref = revision
        if "create_pr" in self.query:
            ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.refs)}"
            response["pullRequestUrl"] = f"{self.hub.endpoint}/{key}/discussions/{ref.rpartition('/')[2]}"
        sha = repository.commit(files, ref)
        return as_json(response | {"commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{key}/commit/{sha}"})

    def create_ref(self, repository: Repository, name: str, revision: str, names: set[str] | None = None):
        if name in repository.refs:
            raise ErrorResponse(409, message=f"{name} exists")
        repository.refs[name], _ = self.revision(repository, revision)
        if names is not None:
            names.add(name)
        return as_json({})

    def refs(self, repository: Repository):
        found: dict[str, list] = {"branches": [], "tags": [], "converts": []}
        for name, sha in repository.refs.items():
            kind, folder = ("tags", "tags") if name in repository.tags else ("branches", "heads")
            found[kind].append({"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": sha})
        return as_json(found)

    def info(self, key: str, repo_id: str, revision: str):
        repository = self.find(key)
        sha, files = self.revision(repository, revision)
        return as_json(
            {
                "id": repo_id,
                "sha": sha,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "siblings": [{"rfilename": path} for path in files],
            }
        )

    def tree(self, key: str, revision: str):
        _, files = self.revision(self.find(key), revision)
        return as_json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                for path, content in files.items()
            ]
        )

    def file(self, key: str, revision: str, path: str):
        repository = self.find(key)
        has_token = bool(self.headers.get("Authorization"))
        if repository.gated and not (has_token and self.user() == key.split("/")[-2]):
            raise ErrorResponse(403 if has_token else 401, "GatedRepo", "Access is restricted.")
        sha, files = self.revision(repository, revision)
        if path not in files:
            raise ErrorResponse(404, "EntryNotFound")
        oid = sha256(files[path]) if path in repository.lfs else git_oid(files[path])
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"}
        if path in repository.lfs:
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(files[path]))}
        return files[path], headers


def as_json(value: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def repo_key(prefix: list[str], owner: str, name: str) -> str:
    return "/".join([*prefix, owner, name])


def find_card_errors(text: str, kind: str) -> list[str]:
    """Returns the errors that the Hub finds in the front matter of a card."""
    if not text.startswith("---\n"):
        return []
    try:
        metadata = yaml.safe_load(text.split("---\n")[1])
    except yaml.YAMLError as error:
        return [str(error)]
    errors = []
    if kind == "space":
        errors += [f"{name} is missing" for name in ("title", "sdk") if name not in metadata]
        if len(metadata.get("short_description", "")) > 60:
            errors.append("short_description is too long")
    lists = {"tags": str, "datasets": str, "metrics": str, "models": str}
    for name, entry in lists.items():
        value = metadata.get(name, [])
        if not isinstance(value, list) or not all(isinstance(part, entry) for part in value):
            errors.append(f"{name} must be a list of strings")
    for model in metadata.get("model-index", []):
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= result.keys():
                errors.append("model-index is incomplete")
    return errors


@dataclass
class FakeHub:
    """
    A local Hub, used as `with FakeHub() as hub:`. It serves `hub.repositories` at `hub.endpoint`.

    Attributes:
        users: Names of the users by token. Users have write access to their own repositories.
        repositories: Repositories by id; the id of a Space starts with `spaces/`.
        large: Content of uploaded LFS files by SHA-256.
        requests: Method and path of each request.
        faults: Failures to simulate.
        requires_plan: Whether Gradio Spaces on cpu-basic require a paid plan.
    """

    users: dict[str, str] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    requires_plan: bool = False

    def __post_init__(self):
        self.lock, self.closing = Lock(), Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), HubRequestHandler)
        self.server.hub = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeHub":
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None
