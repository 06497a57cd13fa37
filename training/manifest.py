"""Manifest of a checkpoint: sizes and SHA-256 hashes of its files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from fmnist_diffusion.files import hash_file


MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**20
FORMAT_VERSION = 1


def write_manifest(folder: Path) -> None:
    """Writes `manifest.json` for all files in `folder`."""
    files = {path.name: {"size": path.stat().st_size, "sha256": hash_file(path)} for path in sorted(folder.iterdir())}
    content = {"format_version": FORMAT_VERSION, "files": files}
    content["sha256"] = hash_manifest(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")


def find_damage(folder: Path) -> str | None:
    """Returns which file of `folder` does not match its manifest, as a sentence without a full stop, or `None`."""
    path = folder / MANIFEST
    if not path.is_file():
        return f"{path} is missing"
    files = read_manifest(path)
    if files is None:
        return f"{path} is damaged"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        size = path.stat().st_size
        if size != expected["size"]:
            return f"{path} is damaged (it has {size:,} bytes instead of {expected['size']:,})"
        if hash_file(path) != expected["sha256"]:
            return f"{path} is damaged (its content does not match its SHA-256 hash)"
    return None


def read_manifest(path: Path) -> dict[str, dict[str, Any]] | None:
    """Returns the size and the hash of each file, or `None` if the manifest is invalid."""
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        return None
    try:
        content = json.loads(path.read_bytes())
        valid = (
            content.pop("sha256") == hash_manifest(content)
            and content["format_version"] == FORMAT_VERSION
            # The manifest must not refer to files outside the folder.
            and all(Path(name).name == name for name in content["files"])
            and all(type(file["size"]) is int and type(file["sha256"]) is str for file in content["files"].values())
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return content["files"] if valid else None


def hash_manifest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
