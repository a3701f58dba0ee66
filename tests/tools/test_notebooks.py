"""The notebooks of docs/notebooks run from top to bottom, on fewer images and steps."""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support.running import REPOSITORY

NOTEBOOKS = REPOSITORY / "docs" / "notebooks"
SMALLER = {
    "own-data": {"IMAGES = 320": "IMAGES = 4", "data demo": "data demo --size 96"},
    "backbone": {
        "--train 320 --val 32": "--train 16 --val 4",
        "STEPS, BATCH = 300, 8": "STEPS, BATCH = 40, 4",
    },
}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.fixture
def executed(request, tmp_path, monkeypatch) -> tuple[str, Path]:
    """Execute a notebook; return the text of its outputs and the folder it ran in."""
    name = request.param
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "convnext"
    command.write_text(f"#!{sys.executable}\nimport convnext_cli\nconvnext_cli.main()\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for text, smaller in SMALLER[name].items():
        (cell,) = [cell for cell in notebook.cells if text in cell.source]
        cell.source = cell.source.replace(text, smaller)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs]
    return "\n".join(texts), tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("executed", ["own-data"], indirect=True)
def test_own_data_is_trained_on_and_drawn(executed):
    text, folder = executed
    assert "error:" not in text and "Traceback" not in text  # a failed shell command does not raise
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert 0 <= metrics["coco/bbox_mAP"] <= 1
    assert (folder / "run" / "report.html").is_file() and (folder / "found.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("executed", ["backbone"], indirect=True)
def test_the_backbone_learns_in_a_plain_loop(executed):
    text, _ = executed
    assert "stride 32: (1, 320, 7, 7)" in text
    first, last = map(float, re.search(r"loss from ([\d.]+) to ([\d.]+)", text).groups())
    assert last < 0.6 * first  # of the few images that it saw again and again
