"""The notebooks of the documentation run from a folder of a user, top to bottom."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
EXPECTED_OUTPUT = {
    "evaluate_your_model": ("minilm-l6    nDCG@10", "p_value"),
    "results_in_pandas": ("stdlib-code  stdlib-doc  stdlib-text", "bm25"),
}


@pytest.mark.anchor  # it fetches the weights of MiniLM
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    program = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    for text in EXPECTED_OUTPUT[notebook.stem]:
        assert text in process.stdout


def test_notebooks_are_committed_without_output() -> None:
    assert NOTEBOOKS
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text())["cells"]
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
