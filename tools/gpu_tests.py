"""The tests with the mark gpu, each file in a process of its own: a device error is one file's.

    python tools/gpu_tests.py FOLDER [--limit SECONDS] [--without WORD] FILE...

Writes FOLDER/<test file>.xml and prints what failed, equal reasons together. Exit status: 0 or 1.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path

from gpu_report import failures, read_junit

# In place of pyproject's options, one of which belongs to a plugin that may be missing.
PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
PYTEST += ["-o", "addopts=--strict-markers --import-mode=importlib"]
WORKERS = min(8, len(os.sched_getaffinity(0)))
FAILED, NO_TESTS = 1, 5  # pytest's exit status


def run(file: str, report: Path, without: str, end: float) -> str:
    """Run the tests of a file until `end`; what went wrong, or nothing."""
    command = [sys.executable, *PYTEST, f"--junitxml={report}", file]
    command += ["-k", f"not {without}"] if without else []
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=max(end - time.monotonic(), 1),
        )
    except subprocess.TimeoutExpired as stopped:
        last = (stopped.stdout or b"").decode(errors="replace")[-300:]
        return f"{file}: at its limit; {last}"
    if done.returncode in (0, NO_TESTS) or (done.returncode == FAILED and report.is_file()):
        return ""
    return f"{file}: ended with {done.returncode}; {done.stdout[-1500:]}"


def main() -> int:
    """Run all files, as many at once as there are cores for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--limit", type=float, default=110)
    parser.add_argument("--without", default="")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.limit
    reports = [given.folder / f"{Path(file).stem}.xml" for file in given.files]
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        work = zip(given.files, reports, strict=True)
        words = pool.map(lambda one: run(*one, given.without, end), work)
        broken = [word for word in words if word]
    written = [report for report in reports if report.is_file()]
    failed = failures(written)
    for reason, names in failed.items():
        print(f"{len(names)} x  {reason}\n      {' '.join(names[:6])}")
    for word in broken:
        print(word)
    print(read_junit(written))
    return int(bool(failed or broken))


if __name__ == "__main__":
    sys.exit(main())
