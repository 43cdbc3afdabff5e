"""The extension with its CUDA kernels compiled for the host, for tests without a GPU.

`tests/emulation/cuda_emulation.h` says how a CUDA block runs there.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

from fasthg import __version__
from fasthg.ops._source_hash import source_hash

COMPILER = os.environ.get("CXX") or "g++"
LIBRARY = "_C.so"
ORDERS = ("natural", "greedy", "greedy backward")
"""In which threads may run, by the numbers of `enum Order` in cuda_emulation.h."""
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror"]
FLAGS += ["-Wno-unknown-pragmas", "-DFASTHG_CUDA_EMULATION", "-DFASTHG_CUDA=1"]
FLAGS += ['-DFASTHG_COMPILER="g++"', '-DFASTHG_CUDA_NOTE="host"']
INCLUDED = [pybind11.get_include(), sysconfig.get_path("include")]


def sources(root: Path) -> list[Path]:
    """What the library is compiled from; the kernels as they are."""
    csrc = root / "csrc"
    kernels = [*csrc.glob("*_cuda.cu"), *csrc.glob("*_cpu.cpp")]
    return sorted([*kernels, csrc / "bindings.cpp", *(root / "tests" / "emulation").glob("*.cu")])


def folder_of(root: Path) -> Path:
    """Where the library of this content lies, with its objects, once it is built."""
    digest = hashlib.sha256(repr((COMPILER, FLAGS)).encode())
    headers = [*(root / "csrc").glob("*.*h"), *(root / "tests" / "emulation").glob("*.h")]
    for path in sorted([*sources(root), *headers]):
        digest.update(path.name.encode() + path.read_bytes())
    return root / "build" / "emulation" / digest.hexdigest()[:16]


def build(root: Path, objects: Mapping[str, Path] | None = None) -> Path:
    """Compile and link the library of a source tree; returns its path.

    objects: by the name of a source file, an object of it that is to be linked as it is.
    """
    folder = folder_of(root)
    folder.mkdir(parents=True, exist_ok=True)
    headers = [f"-I{root / 'csrc'}", f"-I{root / 'tests' / 'emulation'}"]
    headers += [f"-isystem{path}" for path in INCLUDED]
    identity = [f'-DFASTHG_VERSION="{__version__}"']
    identity += [f'-DFASTHG_SOURCE_HASH="{source_hash(root / "csrc")}"']

    def compiled(source: Path) -> str:
        if objects and source.name in objects:
            return str(objects[source.name])
        target = str(folder / f"{source.name}.o")
        command = [
            COMPILER,
            *FLAGS,
            *identity,
            *headers,
            "-x",
            "c++",
            "-c",
            str(source),
            "-o",
            target,
        ]
        subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        linked = list(pool.map(compiled, sources(root)))
    # Under its name only once it is whole: another process may look for it.
    unfinished = folder / "linking.so"
    command = [COMPILER, "-shared", *linked, "-o", str(unfinished), "-lpthread", "-ldl"]
    subprocess.run(command, check=True)
    return unfinished.rename(folder / LIBRARY)


def built(root: Path) -> Path:
    """The library of a source tree, compiled unless this content already is; returns its path."""
    library = folder_of(root) / LIBRARY
    library.parent.mkdir(parents=True, exist_ok=True)
    with (library.parent / "lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        return library if library.exists() else build(root)


def load(library: Path) -> ModuleType:
    """The library as a module of its own, also where `fasthg._C` is loaded."""
    spec = importlib.util.spec_from_file_location("emulated._C", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
