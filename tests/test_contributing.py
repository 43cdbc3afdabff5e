"""The tutorial of CONTRIBUTING.md is code: it is applied to a copy of the tree, built and tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

COPIED = ("benchmarks", "csrc", "fasthg", "tests", "tools", ".clang-format")
COPIED_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
COMPILER = os.environ.get("CXX") or "g++"

BLOCK = re.compile(
    r"^`(?P<file>[\w/.]+)`(?: (?P<how>before|after|instead of) `(?P<anchor>[^`]+)`)?\n"
    r"```(?:cpp|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One piece of code: a new file or, with an anchor, lines at the line that starts with it."""

    file: str
    how: str | None
    anchor: str | None
    code: str

    def apply(self, root: Path) -> None:
        path = root / self.file
        if self.anchor is None:
            assert not path.exists(), f"{self.file} is already there"
            path.write_text(self.code, encoding="utf-8")
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        places = [i for i, line in enumerate(lines) if line.startswith(self.anchor)]
        assert len(places) == 1, f"{self.file}: {len(places)} lines start with {self.anchor!r}"
        (at,) = places
        lines[at + (self.how == "after") : at + (self.how != "before")] = [self.code]
        path.write_text("".join(lines), encoding="utf-8")


def blocks(repository: Path) -> list[Block]:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = [Block(**match.groupdict()) for match in BLOCK.finditer(text)]
    assert len(found) == len(re.findall(r"^```\w", text, re.MULTILINE)), "a block has no file"
    return found


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """A copy of the sources, without what was built from them, with the tutorial applied."""
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
    for name in COPIED:
        if (repository / name).is_dir():
            shutil.copytree(repository / name, tmp_path / name, ignore=built)
    for name in COPIED_FILES:
        shutil.copy(repository / name, tmp_path / name)
    for block in blocks(repository):
        block.apply(tmp_path)
    return tmp_path


def run(tree: Path, *command: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER} to build with")
def test_the_operator_of_the_tutorial_works(tree: Path) -> None:
    python = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    run(tree, sys.executable, "setup.py", "-q", "build_ext", "--inplace", FASTHG_CUDA="off")
    served = "from fasthg.ops import paths; print([row[:3] for row in paths()])"
    assert "('softsign', 'cpu', 'native')" in run(tree, sys.executable, "-c", served)
    tests = ("tests/ops/test_softsign.py", "tests/ops/test_native.py", "tests/test_walls.py")
    run(tree, *python, *tests, "-k", "softsign or paths", OMP_NUM_THREADS="1")
    run(tree, *python, "tests/emulation/test_kernels.py", "-k", "softsign", OMP_NUM_THREADS="1")
