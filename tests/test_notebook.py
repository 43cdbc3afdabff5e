"""docs/notebook.ipynb runs from its first cell to its last, with fewer frames and steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# In place of those of the notebook.
SMALL = {"FRAMES, STEPS = 120, 300": "FRAMES, STEPS = 8, 4", '"--film", "60"': '"--film", "8"'}


@pytest.mark.slow
def test_notebook_runs(repository: Path, tmp_path: Path) -> None:
    cells = json.loads((repository / "docs/notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = "\n".join(code)
    for old, new in SMALL.items():
        assert old in text
        text = text.replace(old, new)
    # Smaller than the preset's, which takes seconds a step here.
    text = text.replace(
        "DATA=data,",
        "DATA=data, INPUT_SIZE=64, HEATMAP_SIZE=16, FEATURES=8, LOCATOR_INPUT_SIZE=128, "
        "LOCATOR_ITERATIONS=2,",
    )
    (tmp_path / "notebook.py").write_text(f"{text}\nassert len(poses) == 8 * 2 * 7\n")
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
