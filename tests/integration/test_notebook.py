"""examples/own_images.ipynb runs from its first cell to its last as it stands."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_images.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(
        not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code"
    )


def test_the_notebook_ends_with_a_segmented_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.delenv("REFSAM_RUNS", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = ["".join(str(output) for output in cell.outputs) for cell in cells]
    assert "16 images" in shown[0]
    assert "3 completed" in shown[2]
    assert shown[3].count("box") >= 3  # the table: a baseline and two trainings
    assert "image/png" in shown[4]
    found = re.search(r"(\d+) boxes, (\d+) objects", shown[5])
    assert found is not None
    assert min(map(int, found.groups())) > 0
    assert "image/png" in shown[6]
