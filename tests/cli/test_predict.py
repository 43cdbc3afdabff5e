"""What `fasthg predict` says of its arguments, and how soon."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["scipy"] = None  # their import takes seconds
from fasthg.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        (["film.mp4"], 2, "error: film.mp4 is not a run folder; give RUN first"),
        (["gone", "film.mp4"], 1, "error: gone: not a run folder"),
        (["."], 2, "error: . is not a run folder; give RUN first"),
    ],
)
def test_what_is_no_run_is_said_before_torch_is_imported(
    tmp_path: Path, given: list[str], status: int, says: str
) -> None:
    (tmp_path / "film.mp4").touch()
    command = [sys.executable, "-c", WITHOUT_TORCH, "predict", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1
