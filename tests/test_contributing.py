"""The tutorial in CONTRIBUTING.md works: it is applied to a copy of the tree, built and tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import emulated_extension
import pytest

FOLDERS = ("benchmarks", "csrc", "fasthg", "tests")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTING.md", ".clang-format")
TOOLS = Path(sys.executable).parent
COMPILER = emulated_extension.COMPILER

BLOCK = re.compile(
    r"^`(?P<file>[\w/.]+)`(?: (?P<how>before|after|instead of) `(?P<anchor>[^`]+)`)?\n"
    r"```(?:cpp|python)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One piece of code: a new file or, with an anchor, lines where a line starts with it.

    Lines before another keep the distance that it had; all are indented as the line is.
    """

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
        lines = path.read_text(encoding="utf-8").splitlines()
        places = [i for i, line in enumerate(lines) if line.lstrip().startswith(self.anchor)]
        assert len(places) == 1, f"{self.file}: {len(places)} lines start with {self.anchor!r}"
        (at,) = places
        indent = lines[at][: -len(lines[at].lstrip())]
        new = textwrap.indent(self.code, indent).splitlines()
        if self.how == "before":
            blank = at - max(i + 1 for i in range(at) if lines[i])
            new += [""] * blank
        lines[at + (self.how == "after") : at + (self.how != "before")] = new
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def blocks(repository: Path) -> list[Block]:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    pieces = [Block(**match.groupdict()) for match in BLOCK.finditer(text)]
    assert len(pieces) == len(re.findall(r"^```\w", text, re.MULTILINE)), "a block has no file"
    return pieces


@pytest.fixture
def tree(repository: Path, tmp_path: Path) -> Path:
    """A copy of the sources, without what was built from them, with the tutorial applied."""
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")
    for name in FOLDERS:
        shutil.copytree(repository / name, tmp_path / name, ignore=built)
    for name in FILES:
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
@pytest.mark.skipif(
    shutil.which(emulated_extension.COMPILER) is None,
    reason=f"no {emulated_extension.COMPILER} to build with",
)
def test_the_operator_of_the_tutorial_works(repository: Path, tree: Path) -> None:
    pytest_here = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    # Its files and the bindings are compiled, the others are those of this repository. The same
    # library has the kernels for the CPU and the emulated ones.
    objects = emulated_extension.built(repository).parent
    same = [
        path.name
        for path in emulated_extension.sources(repository)
        if (tree / path.relative_to(repository)).read_bytes() == path.read_bytes()
    ]
    library = emulated_extension.build(tree, {name: objects / f"{name}.o" for name in same})
    shutil.copy(library, tree / "fasthg")
    listed = "from fasthg.ops import paths; print([row[:3] for row in paths()])"
    assert "('softsign', 'cpu', 'native')" in run(tree, sys.executable, "-c", listed)
    tests = ("ops/test_softsign.py", "ops/test_extension.py", "emulation/test_kernels.py")
    files = [f"tests/{name}" for name in (*tests, "test_import_rules.py")]
    run(tree, *pytest_here, *files, "-k", "softsign or paths", OMP_NUM_THREADS="2")
    run(tree, *pytest_here, "--collect-only", "benchmarks/bench_softsign.py")


@pytest.mark.skipif(
    not all((TOOLS / name).exists() for name in ("ruff", "clang-format")),
    reason="ruff or clang-format is not installed",
)
def test_the_code_of_the_tutorial_is_in_style(tree: Path) -> None:
    changed = sorted({block.file for block in blocks(tree)})
    python = [name for name in changed if name.endswith(".py")]
    run(tree, str(TOOLS / "ruff"), "check", *python)
    run(tree, str(TOOLS / "ruff"), "format", "--check", *python)
    native = [name for name in changed if name not in python]
    run(tree, str(TOOLS / "clang-format"), "--dry-run", "-Werror", *native)
