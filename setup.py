"""Build the optional extension `fasthg._C`, and copy the presets into the package; everything else
stands in pyproject.toml.

Environment:
    FASTHG_EXTENSION  off: leave the extension out; the wheel is then one for every platform
    FASTHG_CUDA       auto (default: use nvcc if it works), on (fail without it), off
    FASTHG_CUDA_ARCH  what to compile for, default "80;90a;90+PTX"; NVCC names the compiler
    FASTHG_NATIVE     1: compile for this machine's processor alone (-march=native)
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

SOURCES = Path("csrc")
# Run as a file: an import of fasthg would import torch.
source_hash = runpy.run_path("fasthg/ops/_source_hash.py")["source_hash"]
DEFAULT_ARCHITECTURES = "80;90a;90+PTX"
# No -ffast-math: NaN must fail comparisons. -fno-math-errno makes sqrt an instruction, which loops
# need to be vectorised. -fopenmp-simd only reads pragmas; no OpenMP runtime.
CXX_FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fopenmp-simd", "-fvisibility=hidden"]
CXX_FLAGS += ["-Wall", "-Wextra"]


def note(message: str) -> None:
    """Say something about the build in one line; pip shows it with -v or on failure."""
    print(f"fasthg: {message}", file=sys.stderr, flush=True)


def gencode(architectures: str) -> list[str]:
    """Turn "80;90a;90+PTX" into nvcc's flags."""
    flags = []
    for name in architectures.replace(",", ";").split(";"):
        virtual = name.strip().removesuffix("+PTX")
        code = f"compute_{virtual}" if name.strip().endswith("+PTX") else f"sm_{virtual}"
        flags += ["-gencode", f"arch=compute_{virtual},code={code}"]
    return flags


def static_cudart(nvcc: str) -> Path:
    """Find libcudart_static.a of the toolkit that nvcc belongs to."""
    dry_run = subprocess.run([nvcc, "-dryrun", "x.cu"], capture_output=True, text=True).stderr
    folders = []
    for line in dry_run.splitlines():
        key, _, value = line.removeprefix("#$ ").partition("=")
        if key == "LIBRARIES":
            folders += [Path(flag[2:]) for flag in shlex.split(value) if flag.startswith("-L")]
        elif key == "TOP":
            folders += [Path(value.strip()) / "lib64", Path(value.strip()) / "lib"]
    for folder in folders:
        if (folder / "libcudart_static.a").is_file():
            return folder / "libcudart_static.a"
    raise FileNotFoundError(f"{nvcc} has no libcudart_static.a")


def run_all(commands: list[list[str]]) -> None:
    """Run commands, as many at a time as there are cores.

    The first that fails stops the others and is raised as CalledProcessError with its stderr.
    """
    lock, running = threading.Lock(), set[subprocess.Popen[str]]()
    failures: list[subprocess.CalledProcessError] = []

    def run(command: list[str]) -> None:
        with lock:
            if failures:
                return
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            running.add(process)
        _, stderr = process.communicate()
        with lock:
            running.remove(process)
            if process.returncode and not failures:
                code = process.returncode
                failures.append(subprocess.CalledProcessError(code, command, stderr=stderr))
                for other in running:
                    other.terminate()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(run, commands))
    if failures:
        raise failures[0]


class BuildExtension(build_ext):
    """Compile the C++ sources, and the CUDA sources where nvcc works."""

    def build_extension(self, ext: Extension) -> None:
        """Build the extension, or leave it out with a note: the operators then run in torch."""
        try:
            import pybind11
            from pybind11.setup_helpers import ParallelCompile
        except ImportError as error:
            note("no extension, the operators will run in plain torch (pybind11 is not installed)")
            raise CompileError("pybind11 is not installed") from error
        ext.include_dirs += [str(SOURCES), pybind11.get_include()]
        note_on_cuda = self.compile_cuda(ext)
        compiler = shlex.split(os.environ.get("CXX", "g++"))[0]
        ext.define_macros += [
            ("FASTHG_VERSION", f'"{self.distribution.get_version()}"'),
            ("FASTHG_SOURCE_HASH", f'"{source_hash(SOURCES)}"'),
            ("FASTHG_COMPILER", f'"{Path(compiler).name}"'),
            ("FASTHG_CUDA_NOTE", f'"{note_on_cuda}"'),
        ]
        try:
            with ParallelCompile(default=len(os.sched_getaffinity(0))):
                super().build_extension(ext)
        except Exception as error:
            note(f"no extension, the operators will run in plain torch ({error})")
            raise
        note(f"extension built ({note_on_cuda})")

    def compile_cuda(self, ext: Extension) -> str:
        """Compile csrc/*_cuda.cu into objects of `ext`; return one line on what came of it."""
        mode = os.environ.get("FASTHG_CUDA", "auto")
        if mode == "off":
            return "FASTHG_CUDA=off"
        nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
        try:
            if nvcc is None:
                raise FileNotFoundError("nvcc not found")
            return self.run_nvcc(ext, nvcc)
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stderr", None)
            if mode == "on":
                raise SystemExit(f"fasthg: FASTHG_CUDA=on, but: {error}\n{output or ''}") from error
            note(f"no CUDA kernels ({error})")
            return "nvcc not found" if nvcc is None else "nvcc failed"

    def run_nvcc(self, ext: Extension, nvcc: str) -> str:
        """Compile all CUDA sources; return the toolkit's version and the architectures."""
        library = static_cudart(nvcc)
        architectures = os.environ.get("FASTHG_CUDA_ARCH", DEFAULT_ARCHITECTURES)
        folder = Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-I", str(SOURCES)]
        flags += gencode(architectures)
        sources = sorted(SOURCES.glob("*_cuda.cu"))
        objects = [str(folder / f"{source.stem}.o") for source in sources]
        run_all(
            [
                [nvcc, *flags, "-c", str(source), "-o", target]
                for source, target in zip(sources, objects, strict=True)
            ]
        )
        ext.extra_objects += [*objects, str(library)]
        ext.extra_link_args += ["-lrt", "-lpthread"]
        ext.define_macros.append(("FASTHG_CUDA", "1"))
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        release = version.partition("release ")[2].partition(",")[0]
        return f"CUDA {release}, {architectures}"


class BuildPackage(build_py):
    """Copy `configs` to `fasthg/presets`; an editable install reads it in the checkout."""

    def run(self) -> None:
        """Build as ever, then copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "fasthg", "presets")
        self.mkpath(str(target))
        for source in sorted(Path("configs").iterdir()):
            self.copy_file(str(source), str(target / source.name))


native = os.environ.get("FASTHG_NATIVE", "0") == "1"
extension = Extension(
    "fasthg._C",
    sources=sorted(str(path) for path in [*SOURCES.glob("*_cpu.cpp"), SOURCES / "bindings.cpp"]),
    depends=sorted(str(path) for path in SOURCES.iterdir()),
    extra_compile_args=CXX_FLAGS + (["-march=native", "-DFASTHG_NATIVE"] if native else []),
    extra_link_args=["-s", "-ldl"],
    language="c++",
    optional=True,
)
setup(
    ext_modules=[] if os.environ.get("FASTHG_EXTENSION") == "off" else [extension],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPackage},
)
