"""The notebook of the study runs from its first cell to its last, on the rows that are committed."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
DOCS = Path(__file__).parents[2] / "docs"


def test_the_notebook_goes_from_rows_to_figure_and_law():
    notebook = nbformat.read(DOCS / "scaling.ipynb", as_version=4)
    made = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(DOCS)}}
    ).execute()
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "96 cells" in text and "gamma" in text and "best:" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
