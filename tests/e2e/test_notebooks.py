"""Every notebook runs without errors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

# What the text output of each must contain.
EXPECTED = {
    "quickstart": ("M parameters",),
    "your_own_images": ("M parameters",),
    "your_photos": ("uncertain by",),
    "metric_depth": ("depth in meters = ", "half of all pixels"),
    "new_modality": ("MODALITY = Edges", "M parameters"),
    "scaling_law": ("54 cells", "gamma", "best:", "share  25%"),
}
FEW = {"STEPS": 4, "RESAMPLES": 20}  # what the notebooks set, made small


@pytest.fixture(scope="module", autouse=True)
def fresh_toy() -> Iterator[None]:
    """Deletes the network that notebooks share: one of an earlier version may lie there."""
    folder = NOTEBOOKS.parent / f"runs/toy-{FEW['STEPS']}"
    shutil.rmtree(folder, ignore_errors=True)
    yield
    shutil.rmtree(folder, ignore_errors=True)


def test_each_notebook_is_listed():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(EXPECTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_notebook_runs(name: str):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        for constant, value in FEW.items():
            assignment = re.compile(rf"^{constant} = \d+$", re.M)
            cell.source = assignment.sub(f"{constant} = {value}", cell.source)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    run = nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in run.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert all(words in text for words in EXPECTED[name])
    assert any("image/png" in output.get("data", {}) for output in outputs)
