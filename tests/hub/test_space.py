import subprocess
import sys

import pytest
import yaml

from fake_hub import Fault, Repository
from fmnist_diffusion.files import find_source_folder
from fmnist_diffusion.hub.space import PACKAGE_DIR, make_space, push_space
from fmnist_diffusion.hub_client import HubError


REPO_ID = "someone/tiny"


@pytest.fixture
def model(hub) -> Repository:
    """A model repository on the Hub."""
    hub.repositories[REPO_ID] = repository = Repository()
    repository.commit({"model_index.json": b"{}"})
    return repository


def test_space_contains_the_demo_and_the_source_that_it_uses(tmp_path):
    make_space(REPO_ID, tmp_path)
    card = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert card["models"] == [REPO_ID]
    for path in ("__init__.py", "loading.py", "metadata.py", "models/unet_fmnist.py", "sampling.py"):
        assert (tmp_path / "fmnist_diffusion" / path).read_bytes() == (PACKAGE_DIR / path).read_bytes()
    for path in find_source_folder("space").glob("*.py"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    folders = {path.name for path in (tmp_path / "fmnist_diffusion").iterdir() if path.is_dir()}
    assert folders == {"data", "models", "pipelines"}
    assert not list(tmp_path.rglob("__pycache__"))
    # The browser page is not part of the demo.
    assert not (tmp_path / "browser").exists()


def test_push_uploads_the_demo_and_sets_its_model(hub, model):
    assert push_space("demo", "tiny") == f"{hub.endpoint}/spaces/someone/demo"
    space = hub.repositories["spaces/someone/demo"]
    assert space.variables == {"MODEL_ID": REPO_ID}
    assert {"README.md", "app.py", "requirements.txt", "examples/7-sneaker.png"} <= set(space.files)
    assert not space.private


def test_unchanged_files_make_no_commit(hub, model):
    push_space("demo", REPO_ID)
    commits = dict(hub.repositories["spaces/someone/demo"].commits)
    push_space("demo", REPO_ID)
    assert hub.repositories["spaces/someone/demo"].commits == commits


def test_missing_model_is_an_error(hub, model):
    with pytest.raises(HubError, match="Could not find someone/missing"):
        push_space("demo", "missing")
    assert list(hub.repositories) == [REPO_ID]


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_model_that_the_space_cannot_load_is_an_error(hub, model, kind):
    setattr(model, kind, True)
    with pytest.raises(HubError, match=f"someone/tiny is {kind}, so the Space could not load it"):
        push_space("demo", REPO_ID)
    assert list(hub.repositories) == [REPO_ID]


def test_accounts_without_a_paid_plan_need_other_hardware(hub, model):
    hub.requires_plan = True
    message = r"requires a payment for someone/demo \(.*PRO subscription\)\. .* use the hardware zero-a10g"
    with pytest.raises(HubError, match=message):
        push_space("demo", REPO_ID)
    assert list(hub.repositories) == [REPO_ID]
    push_space("demo", REPO_ID, space_hardware="zero-a10g")
    assert hub.repositories["spaces/someone/demo"].hardware == "zero-a10g"
    # The hardware of an existing Space does not matter.
    push_space("demo", REPO_ID)


def test_rejected_variable_is_an_error(hub, model):
    hub.faults = [Fault("POST", "/variables", 403, times=9)]
    with pytest.raises(HubError, match="denied write access to someone/demo"):
        push_space("someone/demo", REPO_ID)


@pytest.mark.slow
def test_space_runs_with_its_own_copy_of_the_source(tmp_path, folder):
    make_space(REPO_ID, tmp_path / "space")
    code = (
        "import sys, fmnist_diffusion; from handlers import Handlers; from layout import build;"
        "build(Handlers(sys.argv[1])); print(fmnist_diffusion.__file__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=tmp_path / "space",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path / "space" / "fmnist_diffusion" / "__init__.py")
