"""A Hub for tests: serves repositories from memory to the real clients, without the network."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


class Repository:
    """Commits (sha to files, path to content) and the branches and tags that name them."""

    def __init__(self):
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        parts = [self.refs.get(ref, "").encode()] + [part for f in sorted(files) for part in (f.encode(), files[f])]
        sha = hashlib.sha1(b"\0".join(parts)).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha

    def commit_folder(self, folder: Path, ref: str = "main") -> str:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return self.commit({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}, ref)


class HubError(Exception):
    def __init__(self, status: int, code: str):
        self.status, self.code = status, code


class HubRequestHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> "HubStandIn":
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        try:
            match path.strip("/").split("/"):
                case ["api", "models", owner, name]:
                    self.send_info(f"{owner}/{name}", "main")
                case ["api", "models", owner, name, "revision", revision]:
                    self.send_info(f"{owner}/{name}", revision)
                case ["api", "models", owner, name, "tree", revision]:
                    self.send_tree(f"{owner}/{name}", revision)
                case [owner, name, "resolve", revision, *file]:
                    self.send_file(f"{owner}/{name}", revision, "/".join(file))
                case _:
                    raise HubError(404, "EntryNotFound")
        except HubError as error:
            self.send(error.status, b"", {"X-Error-Code": error.code})

    do_HEAD = do_GET

    def send(self, status: int, body: bytes, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_info(self, repo_id: str, revision: str):
        sha, files = self.hub.find(repo_id, revision)
        self.send_json({"id": repo_id, "sha": sha, "siblings": [{"rfilename": path} for path in files]})

    def send_tree(self, repo_id: str, revision: str):
        _, files = self.hub.find(repo_id, revision)
        self.send_json(
            [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
        )

    def send_file(self, repo_id: str, revision: str, path: str):
        sha, files = self.hub.find(repo_id, revision)
        if path not in files:
            raise HubError(404, "EntryNotFound")
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        self.send(200, files[path], {"ETag": etag, "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"})


class HubStandIn:
    """`with HubStandIn() as hub:` serves `hub.repositories` (id to [`Repository`]) at `hub.endpoint`.

    `hub.requests` lists the method and path of each request.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), HubRequestHandler)
        self.server.hub = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubStandIn":
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def find(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        if repo_id not in self.repositories:
            raise HubError(404, "RepoNotFound")
        repository = self.repositories[repo_id]
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise HubError(404, "RevisionNotFound")
        return sha, repository.commits[sha]
