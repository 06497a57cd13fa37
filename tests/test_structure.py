"""The house: which file may import what."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fmnist_diffusion


ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("fmnist_diffusion", "training", "space")
SELF_CONTAINED = ["models/unet_fmnist.py", "pipelines/pipeline_fmnist.py"]


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Every import in a file, at any depth, as (absolute module, name taken from it or "")."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def ours(path: Path) -> list[str]:
    """What a file imports of ours, as dotted names."""
    return [f"{module}.{name}".rstrip(".") for module, name in imports(path) if module.split(".")[0] in ROOMS]


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_files_that_travel_to_the_hub_need_torch_and_diffusers_only(name):
    modules = {module.split(".")[0] for module, _ in imports(ROOT / "fmnist_diffusion" / name)}
    assert modules - sys.stdlib_module_names <= {"torch", "diffusers", "numpy", "PIL"}


@pytest.mark.parametrize("name", [*SELF_CONTAINED, "objectives.py", "data.py", "schedulers.py"])
def test_foundations_import_nothing_of_ours(name):
    assert ours(ROOT / "fmnist_diffusion" / name) == []


def test_plugin_never_imports_training_or_space():
    paths = sources("fmnist_diffusion/**/*.py")
    assert [path for path in paths if any(not name.startswith("fmnist_diffusion") for name in ours(path))] == []


def test_hub_and_evaluation_import_foundations_only():
    for path in sources("fmnist_diffusion/hub.py", "fmnist_diffusion/evaluation/**/*.py"):
        rooms = {name.split(".")[1] for name in ours(path)}
        assert rooms <= {
            "models",
            "pipelines",
            "objectives",
            "data",
            "schedulers",
            path.parent.name,
            "FashionMNISTPipeline",
        }


def test_training_and_space_import_public_names_only():
    for room, other in (("training", "space"), ("space", "training")):
        for path in sources(f"{room}/**/*.py"):
            names = ours(path)
            assert not any(part.startswith("_") for name in names for part in name.split(".")), path
            assert not any(name.split(".")[0] == other for name in names), path


def test_public_names_exist():
    for name in fmnist_diffusion.__all__:
        assert getattr(fmnist_diffusion, name).__name__ == name
