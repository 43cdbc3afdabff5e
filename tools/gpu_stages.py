"""The stages of `make gpu`: commands, limits, and how their reports are read."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpu_needs import lacking
from gpu_report import Figure, Result, ratios, read_benchmarks
from gpu_tests import PYTEST

ASYNCHRONOUS = ("conv1x1_act", "residual_block")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
CHECK_LIMIT, COMPILE_LIMIT = 150.0, 150.0
# For what runs side by side and computes on the CPU as well.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def _nothing(result: Result, output: str) -> None:
    """Exit status and figures say it all."""


@dataclass
class Stage:
    """One process. Stages of one group run side by side, groups in order."""

    name: str
    group: int
    limit: float
    """Seconds."""
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    read: Callable[[Result, str], None] = _nothing
    """Completes the result from the output and from files that the command wrote."""
    may_stop: bool = False
    """Measures only: what it printed until its limit counts, and reaching it is no failure."""
    keep_output: bool = False
    impossible: str = ""
    """Why it cannot run here."""
    missing: str = ""
    """What of it is left out here, and why."""


def list_stages(root: Path, folder: Path, opcheck_needs: str | None = None) -> list[Stage]:
    """All stages. root: the tree; folder: for what they write; opcheck_needs: a missing package."""
    python, tools = sys.executable, root / "tools"

    def script(name: str, *arguments: str) -> list[str]:
        return [python, str(tools / name), *arguments]

    stages = [
        Stage(
            "build",
            0,
            COMPILE_LIMIT,
            [python, "setup.py", "build_ext", "--inplace", "--force"],
            {"FASTHG_CUDA": "on"},
            impossible=_needs("pybind11", "setuptools"),
        ),
        Stage("operators", 1, CHECK_LIMIT, script("gpu_exercise.py"), ONE_THREAD),
        Stage("streams", 1, CHECK_LIMIT, script("gpu_probe.py", "capture")),
        _tests(root, folder, opcheck_needs),
        *(_sanitizer(tool, script("gpu_exercise.py")) for tool in SANITIZERS),
        # From here on the GPU has one stage at a time: these are timed.
        Stage("memory", 2, 30, script("gpu_probe.py", "memory")),
        Stage("launches", 3, 30, script("gpu_probe.py", "launches")),
        _benchmarks(root, folder),
        Stage("norm", 5, 60, script("gpu_probe.py", "norm"), may_stop=True, keep_output=True),
        Stage("conv", 6, 60, script("gpu_probe.py", "conv"), may_stop=True),
        Stage("decode", 7, 40, script("gpu_decode.py")),
        Stage("training", 8, 150, script("gpu_training.py"), keep_output=True),
        Stage("profile", 9, 60, script("gpu_probe.py", "profile"), may_stop=True, keep_output=True),
        # Whole networks, the stock one first, and last those that compile for minutes, in what time
        # is left.
        _networks(root, "steps", 10, 75, "bench_training_step", "cuda-8-8 or cuda-2-8"),
        Stage("variants", 11, 90, script("gpu_variants.py"), may_stop=True),
        _networks(root, "inference", 12, 40, "bench_inference", "cuda-8-8 or cuda-2-8"),
        _networks(root, "whole", 13, 75, "bench_end_to_end", "cuda-8-8"),
        _networks(root, "large", 14, 100, "bench_training_step", "cuda-8-32 or cuda-8-64"),
        _networks(root, "compiled-2", 15, 150, "bench_training_step", "cuda-2-8", compiled=True),
        _networks(root, "compiled-8", 16, 300, "bench_training_step", "cuda-8-8", compiled=True),
    ]
    return stages


def _needs(*packages: str) -> str:
    """What is not installed, as a reason."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _split(files: list[Path], root: Path) -> tuple[list[str], str]:
    """The files that can be imported here, and a remark on those with GPU tests that cannot."""
    able, left_out = [], []
    for file in files:
        name, missing = str(file.relative_to(root)), lacking(file, root)
        if not missing:
            able.append(name)
        elif "mark.gpu" in file.read_text(encoding="utf-8"):
            left_out.append(f"{name} needs {', '.join(sorted(missing))}")
    return able, "; ".join(left_out)


def _tests(root: Path, folder: Path, opcheck_needs: str | None) -> Stage:
    files, left_out = _split(sorted((root / "tests").rglob("test_*.py")), root)
    files = [file for file in files if "mark.gpu" in _sources(root / file)]
    command = [sys.executable, str(root / "tools" / "gpu_tests.py"), str(folder / "tests")]
    command += [*files, "--limit", str(CHECK_LIMIT - 10)]
    if opcheck_needs:
        command += ["--without", "opcheck"]
        left_out = "; ".join(filter(None, [left_out, f"opcheck needs {opcheck_needs}"]))

    def read(result: Result, output: str) -> None:
        if result.note.startswith("0 passed"):
            result.status = "FAILED"

    return Stage(
        "tests",
        1,
        CHECK_LIMIT,
        command,
        ONE_THREAD,
        read,
        impossible=_needs("pytest"),
        missing=left_out,
    )


def _sources(test: Path) -> str:
    """A test file with its folder's fixtures, where the mark may be."""
    beside = test.parent / "conftest.py"
    files = [test, beside] if beside.is_file() else [test]
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _benchmarks(root: Path, folder: Path) -> Stage:
    report = folder / "benchmarks.json"
    files, left_out = _split(sorted((root / "benchmarks").glob("bench_*.py")), root)
    command = [sys.executable, *PYTEST, "-m", "gpu and not slow", f"--benchmark-json={report}"]
    command += files

    def read(result: Result, output: str) -> None:
        if not report.is_file():
            result.status = "FAILED"
            return
        result.figures = read_benchmarks(report)
        times = ratios(result.figures)
        result.figures += times
        slow = [
            f"{f.name} {f.value} {f.unit}"
            for f in times
            if ": kernels" in f.name and f.value < 1 and _races(f)
        ]
        if slow:
            result.status, result.note = "FAILED", f"slower: {', '.join(slow)}"

    impossible = _needs("pytest", "pytest_benchmark")
    return Stage("benchmarks", 4, 75, command, {}, read, impossible=impossible, missing=left_out)


def _races(ratio: Figure) -> bool:
    """Whether a ratio of kernel times says which is the faster one.

    Not of conv3x3, which is torch's own here; of residual_block, which is there for its memory; and
    not against a loop of NumPy, whose only kernel is the copy of its result.
    """
    operator = ratio.name.partition(" ")[0]
    return operator not in ("conv3x3", "residual_block") and "numpy" not in ratio.unit


def _networks(
    root: Path,
    name: str,
    group: int,
    limit: float,
    file: str,
    chosen: str,
    *,
    compiled: bool = False,
) -> Stage:
    """Steps, training or inference of whole networks, each group's figures as soon as it is done.

    chosen: the groups, as pytest's -k. compiled: with torch.compile as well.
    """
    path = root / "benchmarks" / f"{file}.py"
    # Floors are a matter of `pytest benchmarks`: here a slow machine shall not hide the figures.
    command = [sys.executable, *PYTEST, "-s", "--bench-figures", str(path.relative_to(root))]
    return Stage(
        name,
        group,
        limit,
        [*command, "-k", chosen],
        {"BENCH_COMPILE": "on" if compiled else "off"},
        may_stop=True,
        impossible=_needs("pytest", "pytest_benchmark", *sorted(lacking(path, root))),
    )


def find_sanitizer() -> str | None:
    """compute-sanitizer on the path, or beside nvcc, where not every toolkit links it."""
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent] if nvcc else []
    places += [place.parent / "compute-sanitizer" for place in places]
    places += [Path("/usr/local/cuda/bin"), Path("/usr/local/cuda/compute-sanitizer")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)])
    return shutil.which("compute-sanitizer", path=path)


def _sanitizer(tool: str, script: list[str]) -> Stage:
    missing = ""
    if tool == "racecheck":
        # It ends with an error of its own ("failed to handle a hardware exception"), seen with
        # 2025.3.1 on an H200; the other tools find nothing there.
        script = [*script, "--without", *ASYNCHRONOUS]
        missing = f"without {', '.join(ASYNCHRONOUS)}: it does not survive asynchronous copies"
    program = find_sanitizer()
    command = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    if tool != "memcheck":
        # Our own kernels; hazards in torch's are not ours to find, and cost time.
        command += ["--kernel-name", "kns=fasthg"]

    def read(result: Result, output: str) -> None:
        if "Device not supported" in output:
            result.status, result.note = "skipped", "compute-sanitizer does not serve this device"
            return
        summary = re.findall(r"((?:ERROR|RACECHECK) SUMMARY: .*)", output)
        if summary:
            failed = result.status == "FAILED"
            result.note = f"{summary[-1]}; {result.note}" if failed else summary[-1]
        elif result.status == "passed":
            result.status, result.note = "FAILED", "compute-sanitizer gave no summary"

    return Stage(
        tool,
        1,
        CHECK_LIMIT,
        [*command, *script],
        # Each tensor gets an allocation of its own, so that the one beyond its end is nobody's.
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **ONE_THREAD},
        read,
        impossible="" if program else "compute-sanitizer not found",
        missing=missing,
    )
