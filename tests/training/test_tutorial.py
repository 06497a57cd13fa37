"""The tutorial notebook runs from top to bottom, and its results support its text."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest


nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[2] / "training" / "tutorial.ipynb"
# This cell runs after the notebook and prints values that the notebook computed.
RESULTS_CELL = """
import json

print(json.dumps({
    "losses": losses,
    "ddim_difference": ddim_difference,
    "distances": distances,
    "accuracies": accuracies,
    "kept_pixels_differ": any(
        generated.crop((0, 0, 28, 14)).tobytes() != image.crop((0, 0, 28, 14)).tobytes() for generated in inpainted
    ),
}))
"""


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_is_saved_without_outputs():
    notebook = read_notebook()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, complete_fashion_mnist_folder: Path, monkeypatch: pytest.MonkeyPatch):
    # The kernel inherits the environment variables.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The plots appear even if the environment selects another backend.
    monkeypatch.setenv("MPLBACKEND", "agg")
    # With several threads, small models train much more slowly on a busy machine.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    folder = tmp_path / "work"
    folder.mkdir()
    notebook = read_notebook()
    num_cells = len(notebook.cells)
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS_CELL))
    # On a busy machine, the kernel answers late and can split the printed text into several outputs.
    client = nbclient.NotebookClient(
        notebook,
        timeout=1200,
        startup_timeout=600,
        iopub_timeout=600,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    # Unlike `execute`, `asyncio.run` closes its event loop.
    asyncio.run(client.async_execute())
    assert list(folder.iterdir()) == []

    for cell in notebook.cells[:num_cells]:
        if cell.cell_type == "code":
            images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
            has_plot = any(line.startswith(("show_images(", "plt.show()")) for line in cell.source.splitlines())
            assert len(images) == has_plot, cell.id
    (text,) = (output.text for output in notebook.cells[-1].outputs if output.output_type == "stream")
    results = json.loads(text)
    assert sum(results["losses"][-50:]) < 0.5 * sum(results["losses"][:50])
    assert results["ddim_difference"] < 1e-4
    assert not results["kept_pixels_differ"]
    distances, accuracies = results["distances"], results["accuracies"]
    assert max(distances[name] for name in ("test images", "base", "fast")) < 0.2 * distances["one minute"]
    assert accuracies["one minute"] < accuracies["base"]
    # The accuracy of random images is 10%.
    assert accuracies["one minute"] > 0.3
