"""Which packages a source file needs at import and this Python lacks, found without importing it.

Follows imports at the top of modules through the tree's own sources; what is imported inside a
function, a try or `if TYPE_CHECKING` is not needed to import the file.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path


def lacking(path: Path, root: Path) -> set[str]:
    """Names of the missing packages of a file below `root`; a test's conftest files count."""
    known = {entry.stem for folder in _folders(root) for entry in folder.iterdir()}
    todo = [path, *_conftests(path, root)]
    seen, missing = set(todo), set()
    while todo:
        for name in _imports(todo.pop()):
            top = name.partition(".")[0]
            if top in known:
                fresh = set(_own(name, root)) - seen
                seen |= fresh
                todo += fresh
            elif top not in sys.stdlib_module_names and importlib.util.find_spec(top) is None:
                missing.add(top)
    return missing


def _folders(root: Path) -> list[Path]:
    """Where absolute imports of the tree's own modules are found."""
    folders = (root, root / "benchmarks", root / "tools", root / "tests" / "support")
    return [folder for folder in folders if folder.is_dir()]


def _conftests(path: Path, root: Path) -> Iterator[Path]:
    for folder in path.relative_to(root).parents:
        if (root / folder / "conftest.py").is_file():
            yield root / folder / "conftest.py"


@functools.cache
def _imports(path: Path) -> list[str]:
    """Dotted names; for `from a import b` both a and a.b, as b may be a module."""
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@functools.cache
def _own(name: str, root: Path) -> list[Path]:
    """The files that importing a module of the tree runs: its packages' and its own."""
    found = []
    parts = name.split(".")
    for folder in _folders(root):
        for length in range(1, len(parts) + 1):
            place = folder.joinpath(*parts[:length])
            for file in (place / "__init__.py", place.with_suffix(".py")):
                if file.is_file():
                    found.append(file)
    return found
