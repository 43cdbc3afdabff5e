"""Compile every CUDA source for the GPUs we ship for; fail on an error or a register spill.

Needs nvcc and no GPU. Prints one line a kernel and architecture: the worst of its instantiations.

    python tools/cuda_check.py [--arch "80;90a;90+PTX"]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).resolve().parent.parent / "csrc"
ARCHITECTURES = "80;90a;90+PTX"

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
# In a mangled name, its length stands before every part; there may be more digits before that.
LENGTH = re.compile(r"(?=(\d+)[a-z])")


class Usage(NamedTuple):
    """What one instantiation of a kernel takes: registers a thread, and bytes a thread."""

    registers: int
    stack: int
    spilled: int


def gencode(architectures: str) -> list[str]:
    """Turn "80;90a;90+PTX" into nvcc's flags."""
    flags = []
    for name in architectures.split(";"):
        virtual = name.removesuffix("+PTX")
        code = f"compute_{virtual}" if name.endswith("+PTX") else f"sm_{virtual}"
        flags += ["-gencode", f"arch=compute_{virtual},code={code}"]
    return flags


def kernel_name(mangled: str) -> str:
    """The kernel's own name in a mangled one, or all of it."""
    parts = [mangled[m.end(1) :][: int(m[1])] for m in LENGTH.finditer(mangled)]
    return min((part for part in parts if part.endswith("_kernel")), key=len, default=mangled)


def parse(report: str) -> dict[tuple[str, str], list[Usage]]:
    """Read ptxas -v: (kernel, architecture) -> usage of each instantiation."""
    usages: dict[tuple[str, str], list[Usage]] = defaultdict(list)
    key, stack, spilled = ("", ""), 0, 0
    for line in report.splitlines():
        if entry := ENTRY.search(line):
            key = (kernel_name(entry[1]), entry[2])
        elif frame := FRAME.search(line):
            stack, spilled = int(frame[1]), int(frame[2]) + int(frame[3])
        elif used := REGISTERS.search(line):
            usages[key].append(Usage(int(used[1]), stack, spilled))
    return usages


def main() -> int:
    """Compile, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default=ARCHITECTURES, help=f"default {ARCHITECTURES!r}")
    arguments = parser.parse_args()
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if nvcc is None:
        print("cuda-check: nvcc not found: skipped")
        return 0
    sources = sorted(CSRC.glob("*.cu"))
    flags = ["-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", "-I", str(CSRC)]
    flags += gencode(arguments.arch)
    failed = False
    with tempfile.TemporaryDirectory() as folder:

        def compiled(source: Path) -> subprocess.CompletedProcess[str]:
            command = [nvcc, *flags, "-c", str(source), "-o", f"{folder}/{source.stem}.o"]
            return subprocess.run(command, capture_output=True, text=True)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            results = list(pool.map(compiled, sources))
    print(f"{'kernel':31}{'arch':8}{'variants':>9}{'registers':>11}{'stack B':>9}{'spilled B':>11}")
    for source, result in zip(sources, results, strict=True):
        usages = parse(result.stderr)
        if result.returncode or not usages:
            failed = True
            print(f"{source.name}: nvcc failed\n{result.stderr}", file=sys.stderr)
        for (kernel, architecture), usage in usages.items():
            registers, stack, spilled = (max(column) for column in zip(*usage, strict=True))
            print(
                f"{kernel:31}{architecture:8}{len(usage):9}{registers:11}{stack:9}{spilled:11}"
                + ("  SPILLS" if spilled else "")
            )
            failed |= spilled > 0
    print(
        f"cuda-check: {'FAILED' if failed else 'passed'} ({len(sources)} files, {arguments.arch})"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
