"""setup.py: how nvcc is called, with a script in its place."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Logs when it starts and ends; fails for the files in $FAIL, and says what a toolkit would.
NVCC = """#!/bin/sh
case "$1" in -dryrun) echo '#$ TOP={toolkit}' >&2; exit 0;; esac
for last in "$@"; do :; done
echo start >> {log}
sleep ${{SECONDS_TAKEN}}
echo end >> {log}
case "$last" in *$FAIL*) echo "$last: cannot be compiled" >&2; exit 2;; esac
"""


@pytest.fixture
def build_with(repository, tmp_path):
    """Build with so many cores, until nvcc fails; returns its log and the message."""
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libcudart_static.a").touch()
    nvcc, log = tmp_path / "nvcc", tmp_path / "log"
    nvcc.write_text(NVCC.format(toolkit=tmp_path, log=log))
    nvcc.chmod(0o755)

    def run(cores, fail, seconds):
        command = [sys.executable, "setup.py", "-q", "build_ext"]
        command += ["--build-temp", tmp_path / "temp", "--build-lib", tmp_path / "lib"]
        available = sorted(os.sched_getaffinity(0))[:cores]
        environment = {"NVCC": str(nvcc), "FASTHG_CUDA": "on", "FAIL": fail}
        done = subprocess.run(
            command,
            cwd=repository,
            env={**os.environ, **environment, "SECONDS_TAKEN": str(seconds)},
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=lambda: os.sched_setaffinity(0, available),
        )
        assert done.returncode
        return log.read_text().split(), done.stderr

    return run


@pytest.mark.slow
@pytest.mark.parametrize("cores", range(1, min(2, len(os.sched_getaffinity(0))) + 1))
def test_as_many_nvcc_at_a_time_as_there_are_cores(build_with, repository, cores):
    sources = sorted((repository / "csrc").glob("*_cuda.cu"))
    log, message = build_with(cores, sources[-1].stem, 0.2)
    assert log.count("start") == len(sources)
    steps = [1 if line == "start" else -1 for line in log]
    assert max(sum(steps[:i]) for i in range(len(steps) + 1)) == cores
    assert f"{sources[-1].stem}.o: cannot be compiled" in message


def test_the_first_failure_stops_the_rest(build_with, repository):
    sources = sorted((repository / "csrc").glob("*_cuda.cu"))
    log, message = build_with(1, sources[0].stem, 0)
    assert log.count("start") == 1
    assert f"{sources[0].stem}.o: cannot be compiled" in message
