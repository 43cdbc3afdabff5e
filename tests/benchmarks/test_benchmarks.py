"""The benchmarks' gate: what it measures, what it refuses, and what a results file keeps."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import floors
import pytest
import race
import scale
import torch
import turns

CPU = torch.device("cpu")
SINGLE_PROCESS = {"PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS"}


def bench(repository, folder, plugin, *options):
    """Three rounds of heatmap_mse in a process of its own; `plugin` is code that runs first."""
    (folder / "planted.py").write_text(textwrap.dedent(plugin))
    environment = {k: v for k, v in os.environ.items() if k not in SINGLE_PROCESS}
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "planted", "--bench-rounds=3"]
    done = subprocess.run(
        [sys.executable, *command, *options, "benchmarks/bench_heatmap_mse.py"],
        cwd=repository,
        env=environment | {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_slowed_operator_fails_in_one_readable_line(repository, tmp_path):
    plugin = """
        def pytest_configure():
            import fasthg.ops
            once = fasthg.ops.heatmap_mse
            def slowed(*arguments):
                return [once(*arguments) for _ in range(50)][0]
            fasthg.ops.heatmap_mse = slowed
    """
    status, output = bench(repository, tmp_path, plugin)
    assert status == 1
    message = (
        r'^heatmap_mse, cpu: fasthg is 0\.\d+ times as fast as "draw, then MSE"; '
        r"the floor is \d+\.\d+ \(benchmarks/floors\.yaml\)$"
    )
    assert len(re.findall(message, output, re.MULTILINE)) == 1, output
    assert "1 failed, 1 passed" in output


def test_a_results_file_names_the_kind_of_machine_and_no_single_one(repository, tmp_path):
    plugin = """
        def pytest_configure():
            import floors
            floors.read = lambda: {"cpu": {"heatmap_mse": {"draw, then MSE": 0}}}
    """
    file = tmp_path / "new" / "results.json"
    status, output = bench(repository, tmp_path, plugin, f"--benchmark-json={file}")
    assert status == 0, output
    # Both rows of a group stand in one table, and are those times whose ratio is given.
    assert "benchmark 'heatmap_mse, cpu': 2 tests" in output
    content = json.loads(file.read_text())
    other, ours = content["benchmarks"]
    names = [row["params"]["provider"] for row in (other, ours)]
    assert names == ["draw, then MSE", "fasthg"]
    assert set(ours["stats"]) == {"min", "q1", "median", "q3", "max", "rounds"}
    assert ours["stats"]["rounds"] == 3
    least = other["stats"]["min"] / ours["stats"]["max"]
    most = other["stats"]["max"] / ours["stats"]["min"]
    assert least * 0.99 < other["extra_info"]["x fasthg"] < most * 1.01
    machine = content["machine_info"]
    assert machine["cpu"] and machine["gpu"] is None and machine["cores"] >= 1
    assert machine["torch"] == torch.__version__ and machine["load"] >= 0
    assert set(content["commit_info"]) == {"id", "dirty"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", content["datetime"])
    words = re.findall(r'"([^"]*)"', file.read_text())
    assert not [word for word in words if re.search(r"(^|[\s=:'(])[~/]\w", word)]
    assert platform.node() not in words and str(Path.home()) not in file.read_text()


def test_times_are_compared_within_a_round():
    measured = race.Measured({"torch": [4.0, 40.0, 6.0], "fasthg": [2.0, 10.0, 2.0]})
    # The median of the ratios 2, 4, 3, and not the ratio 6 / 2 of the medians.
    assert measured.ratios() == {"torch": [2.5, 3.0, 3.5]}
    assert race.Measured({"torch": [6.0], "fasthg": [2.0]}).ratios() == {"torch": [3.0] * 3}
    assert race.Measured({"torch": [6.0]}, absent={"fasthg": "why"}).ratios() == {}


def test_providers_run_in_turn_and_the_first_round_does_not_count(monkeypatch):
    done = []
    clock = iter(range(100))
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))

    class Prepared:
        def before(self):
            done.append("before")

        def __call__(self):
            done.append("run")

        def after(self):
            done.append("after")

    runs = {"a": lambda: done.append("a"), "b": Prepared()}
    seconds = turns.in_turn(runs, 2, calls=2, cool=lambda: done.append("cool"))
    assert done == ["cool", "a", "a", "before", "run", "run", "after"] * 3
    assert seconds == {"a": [0.5, 0.5], "b": [0.5, 0.5]}


def test_a_group_is_built_once_and_cleaned_up(monkeypatch):
    monkeypatch.setattr(race, "RACES", {})
    steps = []

    @race.race("torch", "dali", "fasthg", cool=False, rounds=4, moved=10**9, size=[1, 2])
    def bench_made_up(device, size):
        steps.append(f"build {size}")
        try:
            yield {"torch": lambda: None, "dali": "not installed", "fasthg": lambda: None}
        finally:
            steps.append("clean up")

    this = race.RACES["made_up"]
    assert this.groups() == ["made_up, size 1", "made_up, size 2"]
    measured = this.measure(CPU, {"size": 2}, 4)
    assert steps == ["build 2", "clean up"] and measured.absent == {"dali": "not installed"}
    assert {len(seconds) for seconds in measured.seconds.values()} == {4}
    assert {"x fasthg", "GB/s"} <= set(measured.figures["torch"])


def test_floors_of_a_group_come_before_those_of_its_benchmark(monkeypatch):
    given = {
        "cpu": {"x": {"torch": 1.0, "numpy": 2.0}, "x, a": {"torch": 3.0}},
        "cpu bf16": {"x": {"numpy": 4.0}},
        "cpu fp32": {"x": {"numpy": 5.0}},
    }
    monkeypatch.setattr("fasthg.train.step.choose_precision", lambda name, device: torch.bfloat16)
    assert floors.of(given, "x", "x, a", "cpu") == {"torch": 3.0, "numpy": 4.0}
    assert floors.of(given, "x", "x, b", "cpu") == {"torch": 1.0, "numpy": 4.0}
    assert floors.of(given, "y", "y", "cpu") == {} == floors.of(given, "x", "x", "cuda")
    ratios = {"torch": 2.9, "numpy": 4.0}
    assert floors.below(ratios, {"torch": 3.0, "numpy": 4.0, "dali": 9.0}) == [
        'fasthg is 2.9 times as fast as "torch"; the floor is 3.0 (benchmarks/floors.yaml)'
    ]


def test_every_floor_is_that_of_a_benchmark(repository):
    for file in (repository / "benchmarks").glob("bench_*.py"):
        importlib.import_module(file.stem)
    assert floors.unknown(floors.read(), race.RACES, complete=True) == []
    planted = {
        "cpu": {"heatmap_mse": {"torhc": 1}, "heatmap_peaks, drak": {"torch": 1}, "ms": {}},
        "gpu": {},
    }
    assert floors.unknown(planted, race.RACES, complete=True) == [
        'no device "gpu"',
        'cpu: heatmap_mse: no provider "torhc"',
        'cpu: no group "heatmap_peaks, drak"',
        'cpu: no group "ms"',
    ]
    # A run of some of the files cannot know the others.
    assert len(floors.unknown(planted, race.RACES, complete=False)) == 3


def test_a_run_refuses_unknown_floors(repository, tmp_path):
    plugin = """
        def pytest_configure():
            import floors
            floors.read = lambda: {"cpu": {"heatmap_mse": {"draw": 1}}}
    """
    status, output = bench(repository, tmp_path, plugin)
    assert status == 4
    assert 'benchmarks/floors.yaml: cpu: heatmap_mse: no provider "draw"' in output


APART = """
import os, time
from race import race

@race("slow", "fasthg", "absent", rounds=3, cool=False, apart=True,
      figures=lambda run, seconds: {"pid": run.pid})
def bench_apart(device):
    class Sleep:
        def __init__(self, seconds):
            self.seconds, self.pid = seconds, os.getpid()
        def __call__(self):
            time.sleep(self.seconds)
            assert self.seconds, "no sleep"
    return {"slow": lambda: Sleep(0.06), "fasthg": lambda: Sleep(FASTHG), "absent": "not here"}
"""


@pytest.fixture
def apart(tmp_path):
    """Makes the race of APART, where a call of fasthg takes so many seconds."""

    def make(seconds):
        file = tmp_path / "bench_apart.py"
        file.write_text(APART.replace("FASTHG", str(seconds)))
        spec = importlib.util.spec_from_file_location("bench_apart", file)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        return race.RACES.pop("apart")

    return make


def test_providers_apart_have_processes_of_their_own(apart):
    measured = apart(0.02).measure(torch.device("cpu"), {}, 3)
    assert measured.absent == {"absent": "not here"}
    assert [len(s) for s in measured.seconds.values()] == [3, 3]
    pids = {figures["pid"] for figures in measured.figures.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    assert 1.5 < measured.ratios()["slow"][1] < 4.5
    assert all(figures["peak GiB"] > 0.05 for figures in measured.figures.values())


def test_a_process_that_ends_is_told(apart):
    with pytest.raises(RuntimeError, match="the process of a provider ended"):
        apart(0).measure(torch.device("cpu"), {}, 1)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_scale_measures_what_it_says(tmp_path):
    found = scale.measure(
        *(tmp_path, 600, 4, 500, 16, 1, 2), call=lambda call, *given: call(*given), start="fork"
    )
    lines = "\n".join(scale.table(found))
    assert "build: processor us a record" in lines and "at once: MB together" in lines
    assert 500 < found["bytes a record"] < 2000
    for part in ("build", "open again", "at once"):
        assert 0 < found[part]["seconds"] < 60
    assert found["build"]["held MB"] == pytest.approx(2 * 600 * 109 / 1e6, rel=0.05)
    assert 0 < found["plan"]["epoch 50"]["next ms"] < found["loader"]["step 0, first batch s"] * 1e3
