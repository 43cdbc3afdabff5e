"""The import rules between packages: no stage of the data's way imports a later one.

A new package fails here until it has a row below. A row that needs a later package is a sign that
the code belongs elsewhere.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Package or module of fasthg -> what it may import of fasthg, apart from itself; low layers first.
# `errors`, `words` and the version in `fasthg` itself are open to all but `ops`.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # layer 1
    "errors": (),
    "files": (),
    "words": (),
    "html": (),
    "ops": (),
    "config": (),
    "geometry": (),
    "metrics": (),
    "runtime": (),
    "drawing": ("config", "geometry"),
    # layer 2
    "data": ("config", "drawing", "files", "geometry", "html", "metrics"),
    "model": ("config", "ops"),
    # layer 3
    "runs": ("config", "files", "model"),
    # layer 4
    "inference": (
        *("config", "data", "drawing", "files", "geometry", "metrics", "model", "ops", "runs"),
        "runtime",
    ),
    # layer 5, not each other
    "training": (
        *("config", "data", "drawing", "files", "geometry", "inference", "metrics", "model"),
        *("ops", "runs", "runtime"),
    ),
    "interop": (
        *("config", "data", "files", "geometry", "inference", "metrics", "model", "ops", "runs"),
    ),
    "report": (
        *("config", "data", "drawing", "files", "geometry", "html", "inference", "metrics"),
        *("model", "ops", "runs", "runtime"),
    ),
    # layer 6
    "api": (
        *("config", "data", "files", "inference", "interop", "report", "runs", "runtime"),
        "training",
    ),
    # layer 7
    "": ("api",),  # names that are imported when they are first used
    "cli": ("*",),
    "__main__": ("cli",),
}

# Package -> the only modules that may import it.
CONFINED: dict[str, tuple[str, ...]] = {
    "nvidia": ("data.dali_loader",),
    "cv2": (
        *("data.opencv_loader", "data.synthetic", "data.convert", "data.check", "data.preview"),
        *("drawing", "report", "inference.video", "inference.locator", "inference.plots"),
    ),
    "av": ("inference.video",),
    "h5py": ("inference.video",),
    "pandas": ("api.poses", "data.convert", "inference.video"),
    "tables": ("data.convert",),
    "sleap_io": ("data.convert", "inference.video.suggest"),
    "matplotlib": (),
    "scipy": ("inference.locator", "inference.video"),
    "typer": ("cli",),
    "tensorflow": ("interop.export",),
    "onnx": ("interop.export",),
    "onnxscript": (),
    "onnxruntime": ("interop.export",),
}

# Packages that stay light: nothing but the standard library and these.
ONLY: dict[str, tuple[str, ...]] = {
    "errors": (),
    "ops": ("torch", "numpy"),
    "config": ("pydantic", "pydantic_core", "yaml"),
    "geometry": ("numpy",),
    "metrics": ("numpy",),
}

STANDARD_HEADERS = r"<[a-z_]+>"
DEVICE_FREE = r"<cmath>|<cstdint>"
CUDA_HEADERS = r"<cuda_(bf16|fp16|runtime)\.h>"

# File -> what it may include; {op} is the name of the op that the file implements.
MAY_INCLUDE: dict[str, str] = {
    r"portable\.h": DEVICE_FREE,
    r"ops\.h": rf"portable\.h|{DEVICE_FREE}",
    r"(?P<op>\w+)_math\.h": rf"portable\.h|{DEVICE_FREE}",
    r"parallel\.h": rf"<(dlfcn|unistd)\.h>|{STANDARD_HEADERS}",
    r"bfloat16\.h": rf"portable\.h|{STANDARD_HEADERS}",
    # Pieces that several ops, or two files of one op, share on one device.
    r"\w+_rows\.h": rf"\w+_math\.h|portable\.h|{STANDARD_HEADERS}",
    r"\w+_(tables|maps)\.cuh": rf"\w+_math\.h|portable\.h|cuda_utils\.cuh|{STANDARD_HEADERS}",
    r"(cluster|mma)\.cuh": r"cuda_utils\.cuh",
    r"conv1x1_tile\.cuh": r"cuda_utils\.cuh",
    r"conv1x1_product\.cuh": rf"(conv1x1_tile|mma)\.cuh|{STANDARD_HEADERS}",
    r"cuda_utils\.cuh": rf"portable\.h|cuda_emulation\.h|{CUDA_HEADERS}|{STANDARD_HEADERS}",
    r"(?P<op>\w+)_cpu\.cpp": (
        r"ops\.h|{op}_math\.h|portable\.h|parallel\.h|bfloat16\.h|\w+_rows\.h|"
        rf"{STANDARD_HEADERS}"
    ),
    # They have batch norms in them.
    r"conv1x1_norms\.cuh": r"bn_act_math\.h|conv1x1_product\.cuh",
    r"(?P<op>conv1x1_bn)_cuda\.cu": r"ops\.h|{op}_math\.h|conv1x1_norms\.cuh",
    r"conv1x1_bn_(grad|weight)_cuda\.cu": r"ops\.h|conv1x1_norms\.cuh|mma\.cuh",
    r"(?P<op>\w+?)(_cluster|_on_chip)?_cuda\.cu": (
        r"ops\.h|{op}_math\.h|portable\.h|{op}_maps\.cuh|"
        rf"(cuda_utils|cluster|mma|conv1x1_product|\w+_tables)\.cuh|{STANDARD_HEADERS}"
    ),
    r"bindings\.cpp": rf"ops\.h|<pybind11/\w+\.h>|{STANDARD_HEADERS}",
}


def modules() -> dict[str, Path]:
    """Dotted name below fasthg ("" for the package itself) -> file."""
    found = {}
    for path in sorted((ROOT / "fasthg").rglob("*.py")):
        parts = path.relative_to(ROOT / "fasthg").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, module: str, known: Iterable[str], package: bool) -> Iterator[str]:
    """Full dotted names that a module imports, wherever in it the statement stands."""
    here = ["fasthg", *module.split(".")] if module else ["fasthg"]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = here[: len(here) - node.level + package]
                base = ".".join([*up, base] if base else up)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_module = full.removeprefix("fasthg.") in known and full.startswith("fasthg.")
                yield full if is_module else base


def within(module: str, packages: Iterable[str]) -> bool:
    """Whether a module is one of the packages or lies in one."""
    return any(
        package == "*" or module == package or module.startswith(f"{package}.")
        for package in packages
    )


def violations(module: str, names: Iterable[str]) -> list[str]:
    """What a module imports against the tables above."""
    package = module.split(".")[0]
    if module and package not in MAY_IMPORT:
        return [f"fasthg.{module} has no row in MAY_IMPORT"]
    return [
        f"fasthg.{module} must not import {name}"
        for name in names
        if not (
            _inside(package, name) if name.split(".")[0] == "fasthg" else _outside(module, name)
        )
    ]


def _inside(package: str, name: str) -> bool:
    target = name.removeprefix("fasthg").removeprefix(".")
    if target in ("", "errors", "words"):
        return package != "ops"
    return within(target, (package, *MAY_IMPORT.get(package, ())))


def _outside(module: str, name: str) -> bool:
    top, package = name.split(".")[0], module.split(".")[0]
    if top in CONFINED and not within(module, CONFINED[top]):
        return False
    light = ONLY.get(package)
    return light is None or top in light or top in sys.stdlib_module_names


def include_violations(file: str, source: str) -> list[str]:
    """Headers that a file of csrc/ includes against MAY_INCLUDE."""
    for pattern, allowed in MAY_INCLUDE.items():
        match = re.fullmatch(pattern, file)
        if match:
            allowed = allowed.replace("{op}", match.groupdict().get("op", ""))
            break
    else:
        return [f"csrc/{file} has no row in MAY_INCLUDE"]
    headers = re.findall(r'^\s*#\s*include\s*(<[^>]+>|"[^"]+")', source, re.MULTILINE)
    return [
        f"csrc/{file} must not include {header}"
        for header in headers
        if not re.fullmatch(allowed, header.strip('"'))
    ]


@pytest.mark.parametrize("module", modules())
def test_imports_follow_the_rules(module: str) -> None:
    known = modules()
    path = known[module]
    package = path.name == "__init__.py"
    names = imported(path.read_text(encoding="utf-8"), module, known, package)
    assert violations(module, sorted(set(names))) == []


@pytest.mark.parametrize(
    "path", sorted(path for path in (ROOT / "csrc").iterdir() if path.is_file()), ids=str
)
def test_includes_follow_the_rules(path: Path) -> None:
    assert include_violations(path.name, path.read_text(encoding="utf-8")) == []


def test_the_extension_is_loaded_in_one_place_only() -> None:
    loaders = [
        name
        for name, path in modules().items()
        if re.search(r"fasthg\._C|from fasthg import _C", path.read_text(encoding="utf-8"))
    ]
    assert loaders == ["ops._extension"]


@pytest.mark.parametrize(
    ("module", "source", "bad"),
    [
        ("ops.peaks", "from fasthg.errors import DataError", "fasthg.errors"),
        ("ops.peaks", "from ..config import Config", "fasthg.config"),
        ("config.load", "import torch", "torch"),
        ("geometry", "def f():\n    import fasthg.data.index", "fasthg.data.index"),
        ("data.sampler", "from fasthg.model import build_model", "fasthg.model"),
        ("data.loader", "from nvidia import dali", "nvidia"),
        ("runs.weights", "from . import run_folder\nfrom .. import training", "fasthg.training"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str, bad: str) -> None:
    names = list(imported(source, module, [*modules(), "training"], package=False))
    assert violations(module, names) == [f"fasthg.{module} must not import {bad}"]


def test_a_module_without_row_is_found() -> None:
    assert violations("utils", []) == ["fasthg.utils has no row in MAY_IMPORT"]


@pytest.mark.parametrize(
    ("file", "header"),
    [
        ("peaks_math.h", "<vector>"),
        ("peaks_math.h", '"ops.h"'),
        ("peaks_cpu.cpp", '"cuda_utils.cuh"'),
        ("peaks_cpu.cpp", '"mse_math.h"'),
        ("peaks_cpu.cpp", "<torch/extension.h>"),
        ("peaks_cuda.cu", "<ATen/ATen.h>"),
        ("peaks_cuda.cu", "<pybind11/pybind11.h>"),
        ("ops.h", "<Python.h>"),
        ("bindings.cpp", "<torch/torch.h>"),
    ],
)
def test_a_planted_include_is_caught(file: str, header: str) -> None:
    source = f"#  include {header}  // why not\n"
    assert include_violations(file, source) == [f"csrc/{file} must not include {header}"]


def test_own_headers_pass() -> None:
    source = '#include "ops.h"\n#include "peaks_math.h"\n#include <vector>\n'
    assert include_violations("peaks_cpu.cpp", source) == []
    assert include_violations("notes.txt", "") == ["csrc/notes.txt has no row in MAY_INCLUDE"]
