import base64
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import onnx
import pytest
import yaml

from fmnist_diffusion.export import METADATA_KEY
from fmnist_diffusion.files import find_source_folder
from fmnist_diffusion.hub import static_space
from fmnist_diffusion.hub.static_space import RUNTIME_FILES, download_runtime, push_static_space
from fmnist_diffusion.hub_client import HubError


pytest.importorskip("onnxscript")


@pytest.fixture
def npm(tmp_path, monkeypatch) -> Path:
    """A fake npm that copies a small package, whose SHA-512 hash is the expected one."""
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name in (*RUNTIME_FILES, "unused.js"):
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    monkeypatch.setattr(static_space, "RUNTIME_SHA512", digest)
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nfor folder; do :; done\ncp {package} "$folder"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_runtime_only_contains_the_used_files(npm, tmp_path):
    download_runtime(tmp_path / "runtime")
    assert {path.name: path.read_text() for path in (tmp_path / "runtime").iterdir()} == {n: n for n in RUNTIME_FILES}


def test_page_imports_the_downloaded_files():
    code = (find_source_folder("space") / "browser" / "main.js").read_text()
    assert all(f'"{name}"' in code for name in RUNTIME_FILES)


def test_unexpected_package_is_rejected(npm, tmp_path, monkeypatch):
    monkeypatch.setattr(static_space, "RUNTIME_SHA512", "A" * 88)
    with pytest.raises(ValueError, match=r"^The SHA-512 hash of onnxruntime-web@.* must be AAAAAAAAAAAA\.\.\., got"):
        download_runtime(tmp_path / "runtime")
    assert not (tmp_path / "runtime").exists()


def test_error_of_npm_is_reported(npm, tmp_path):
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    with pytest.raises(OSError, match=r"^npm could not download onnxruntime-web@.* \(npm error code ENOTFOUND\)"):
        download_runtime(tmp_path / "runtime")


def test_missing_npm_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(OSError, match=r"^Could not find npm"):
        download_runtime(tmp_path / "runtime")


@pytest.mark.slow
def test_push_uploads_the_page_once(hub, npm, folder):
    assert push_static_space("demo", [folder]) == f"{hub.endpoint}/spaces/someone/demo"
    space = hub.repositories["spaces/someone/demo"]
    runtime = {f"onnxruntime-web/{name}" for name in RUNTIME_FILES}
    page = {"README.md", "index.html", "main.js", "models.json", "service_worker.js", "style.css"}
    (model,) = json.loads(space.files["models.json"])
    assert re.fullmatch(r"run-pipeline-[0-9a-f]{8}\.onnx", model["file"])
    assert set(space.files) == {".gitattributes", *page, model["file"], *runtime}
    (metadata,) = onnx.load_from_string(space.files[model["file"]]).metadata_props
    assert metadata.key == METADATA_KEY
    assert model == {"file": model["file"], **json.loads(metadata.value)}
    assert (model["name"], model["num_inference_steps"], model["null_label"]) == ("run/pipeline", 20, 10)
    assert sorted(map(int, model["samplers"])) == list(range(1, 21))
    card = yaml.safe_load(space.files["README.md"].decode().split("---\n")[1])
    assert card["sdk"] == "static"
    # WebAssembly threads require these headers.
    assert card["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"
    assert card["custom_headers"]["cross-origin-opener-policy"] == "same-origin"
    commits = dict(space.commits)
    push_static_space("demo", [folder])
    assert space.commits == commits


def test_models_with_the_same_name_are_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"must name different pipelines, got cat, cat\. Omit or rename one of them\."
    ):
        static_space.make_static_space([Path("first/cat"), Path("second/cat")], tmp_path)


def test_missing_token_is_reported_before_the_page_is_built(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("fmnist_diffusion.hub_client.get_token", lambda: None)
    monkeypatch.setattr(static_space, "make_static_space", None)
    with pytest.raises(HubError, match="not logged in"):
        push_static_space("demo", [])
