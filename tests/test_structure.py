"""Import rules between the parts of the package, and limits on the size of files."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import fmnist_diffusion


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fmnist_diffusion"
# These files are copied into saved pipelines.
SELF_CONTAINED = ("models/unet_fmnist.py", "pipelines/pipeline_fmnist.py")
MAX_LINES = 400

# The modules of each part may import these other parts of the package.
ALLOWED_IMPORTS = {
    "models": set(),
    "pipelines": {"models", "hub_client"},
    "objectives": set(),
    "images": set(),
    "files": set(),
    "hub_client": set(),
    "data": {"hub_client"},
    "captions": {"data"},
    "schedulers": {"pipelines"},
    "sampling": {"models", "pipelines", "data", "schedulers"},
    "loading": {"hub_client", "pipelines", "sampling", "schedulers"},
    "metadata": {"hub_client", "data", "pipelines"},
    "evaluation": {
        "pipelines",
        "sampling",
        "schedulers",
        "loading",
        "metadata",
        "data",
        "captions",
        "images",
        "files",
    },
    "export": {"pipelines", "models", "sampling", "files"},
    "hub": {
        "hub_client",
        "files",
        "models",
        "pipelines",
        "objectives",
        "sampling",
        "loading",
        "metadata",
        "data",
        "images",
        "export",
    },
    "commands": {
        "hub_client",
        "files",
        "sampling",
        "schedulers",
        "loading",
        "metadata",
        "data",
        "images",
        "hub",
        "evaluation",
        "export",
    },
}


def find_sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def read_imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yields every import of a file, at any depth, as the absolute module and the imported name (or "")."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((module, alias.name) for alias in node.names)


def read_package_imports(path: Path) -> set[str]:
    """Returns the parts of the package that a file imports, such as "data"."""
    parts = set()
    for module, name in read_imports(path):
        names = module.split(".")
        if names[0] != "fmnist_diffusion":
            continue
        names = [*names[1:], name]
        # Names in `fmnist_diffusion/__init__.py`, such as load_pipeline, are not parts.
        if (PACKAGE / names[0]).is_dir() or (PACKAGE / f"{names[0]}.py").is_file():
            parts.add(names[0])
    return parts


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_copied_files_only_need_torch_and_diffusers(name: str):
    modules = {module.split(".")[0] for module, _ in read_imports(PACKAGE / name)}
    assert modules - sys.stdlib_module_names <= {"torch", "diffusers", "PIL"}
    # diffusers looks for imports in the whole text and warns about packages that are not installed.
    assert "import fmnist_diffusion" not in (PACKAGE / name).read_text()


@pytest.mark.parametrize("part", ALLOWED_IMPORTS)
def test_import_directions(part: str):
    paths = find_sources(f"fmnist_diffusion/{part}.py", f"fmnist_diffusion/{part}/**/*.py")
    assert paths
    for path in paths:
        assert read_package_imports(path) <= ALLOWED_IMPORTS[part] | {part}, path


def test_every_module_has_import_rules():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert names - {"__init__", "pretrained"} == ALLOWED_IMPORTS.keys()


def test_package_does_not_import_training_or_space():
    others = {path.stem for path in find_sources("training/*.py", "space/*.py")} | {"training", "space"}
    for path in PACKAGE.rglob("*.py"):
        assert not {module.split(".")[0] for module, _ in read_imports(path)} & others, path


@pytest.mark.parametrize("folder", ["training", "space"])
def test_scripts_import_public_names_only(folder: str):
    for path in find_sources(f"{folder}/**/*.py"):
        for module, name in read_imports(path):
            assert not name.startswith("_") and not any(part.startswith("_") for part in module.split(".")[1:]), path


def test_script_modules_have_unique_names():
    """Scripts import the modules beside them by name, so these names must not shadow other modules."""
    names = [path.stem for path in find_sources("training/*.py", "space/*.py")]
    assert len(names) == len(set(names))
    assert not set(names) & (sys.stdlib_module_names | packages_distributions().keys())


@pytest.mark.parametrize("trick", ["sys.path.insert", "sys.path.append", "sys.argv", "runpy", "except Exception:\n"])
def test_no_import_tricks_and_no_hidden_errors(trick: str):
    for path in find_sources("fmnist_diffusion/**/*.py", "training/**/*.py", "space/**/*.py"):
        # Only the entry point of a script may read the arguments.
        text = path.read_text().replace('if __name__ == "__main__":\n    main(sys.argv[1:])\n', "")
        assert trick not in text, path


def test_files_are_short():
    for path in find_sources("fmnist_diffusion/**/*.py", "training/**/*.py", "space/**/*.py"):
        # The self-contained files and their copies in the bundled checkpoints may be longer.
        if path.name not in {Path(name).name for name in SELF_CONTAINED}:
            assert len(path.read_text().splitlines()) <= MAX_LINES, path


def test_public_names_exist():
    for name in fmnist_diffusion.__all__:
        assert getattr(fmnist_diffusion, name).__name__ == name
        assert name in dir(fmnist_diffusion)


def test_import_does_not_load_torch():
    code = "import sys, fmnist_diffusion; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=True)
