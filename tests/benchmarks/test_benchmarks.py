"""The gate of the benchmarks: what it measures, what it refuses, and what a results file keeps."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import pytest
import scale
import torch

CPU = torch.device("cpu")
SINGLE_PROCESS = {"PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS"}
SLOWED = """
    def pytest_configure():
        import fasthg.ops
        once = fasthg.ops.heatmap_mse
        def slowed(*arguments):
            return [once(*arguments) for _ in range(60)][0]
        fasthg.ops.heatmap_mse = slowed
"""


@pytest.mark.slow
def test_a_slowed_operator_fails_and_its_results_are_kept(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(textwrap.dedent(SLOWED))
    file = tmp_path / "new" / "results.json"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "planted", "--bench-rounds=3"]
    environment = {k: v for k, v in os.environ.items() if k not in SINGLE_PROCESS}
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            *(sys.executable, *command, f"--benchmark-json={file}"),
            "benchmarks/bench_heatmap_mse.py",
        ],
        cwd=repository,
        env=environment | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout
    message = (
        r'^heatmap_mse, cpu: fasthg is 0\.\d+ times as fast as "draw, then MSE"; '
        r"the floor is \d+\.\d+ \(benchmarks/floors\.yaml\)$"
    )
    assert len(re.findall(message, done.stdout, re.MULTILINE)) == 1, done.stdout
    assert "1 failed, 1 passed" in done.stdout
    # Both rows of a group are in one table and in the file, with the times whose ratio is given.
    assert "benchmark 'heatmap_mse, cpu': 2 tests" in done.stdout
    content = json.loads(file.read_text())
    other, ours = content["benchmarks"]
    assert [row["params"]["provider"] for row in (other, ours)] == ["draw, then MSE", "fasthg"]
    assert set(ours["stats"]) == {"min", "q1", "median", "q3", "max", "rounds"}
    least = other["stats"]["min"] / ours["stats"]["max"]
    most = other["stats"]["max"] / ours["stats"]["min"]
    assert least * 0.99 < other["extra_info"]["x fasthg"] < most * 1.01
    assert {"GB/s", "of copy", "threads"} <= set(ours["extra_info"])
    machine = content["machine_info"]
    assert machine["cpu"] and machine["gpu"] is None and machine["torch"] == torch.__version__
    assert set(content["commit_info"]) == {"id", "dirty"}
    words = re.findall(r'"([^"]*)"', file.read_text())
    assert not [word for word in words if re.search(r"(^|[\s=:'(])[~/]\w", word)]
    assert platform.node() not in words and str(Path.home()) not in file.read_text()


def test_times_are_compared_within_a_round() -> None:
    result = compare.Result({"torch": [4.0, 40.0, 6.0], "fasthg": [2.0, 10.0, 2.0]})
    # The median of the ratios 2, 4, 3, and not the ratio 6 / 2 of the medians.
    assert result.ratios() == {"torch": [2.5, 3.0, 3.5]} and result.gated() == {"torch": 3.0}
    # Floors hold for the kernels where those were timed.
    result.figures = {"torch": {"kernel us": 8.0}, "fasthg": {"kernel us": 4.0}}
    assert result.gated() == {"torch": 2.0}
    assert compare.Result({"torch": [6.0], "fasthg": [2.0]}).ratios() == {"torch": [3.0] * 3}
    assert compare.Result({"torch": [6.0]}, absent={"fasthg": "why"}).ratios() == {}


def test_providers_alternate_and_the_first_round_does_not_count() -> None:
    events: list[str] = []

    class Prepared:
        def before(self) -> None:
            events.append("before")

        def __call__(self) -> None:
            events.append("run")

        def after(self) -> None:
            events.append("after")

    @compare.compare("a", "absent", "b", calls=(2, 1), cold=False, bytes_moved=10**9, size=[1, 2])
    def bench_example(device: torch.device, size: int) -> Any:
        events.append(f"build {size}")
        try:
            yield {"a": lambda: events.append("a"), "absent": "not installed", "b": Prepared()}
        finally:
            events.append("clean up")

    comparison = bench_example.comparison  # type: ignore[attr-defined]
    assert comparison.groups() == ["example, size 1", "example, size 2"]
    result = comparison.measure(CPU, {"size": 2}, 3)
    each = ["a", "a", "before", "run", "run", "after"]
    assert events == ["build 2", *each * 4, "clean up"]
    assert result.absent == {"absent": "not installed"} and set(result.seconds) == {"a", "b"}
    assert {len(seconds) for seconds in result.seconds.values()} == {3}


def test_floors_of_a_group_replace_those_of_its_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    floors = {
        "cpu": {"x": {"torch": 1.0, "numpy": 2.0}, "x, a": {"torch": 3.0}},
        "cpu avx2": {"x": {"numpy": 4.0}},
        "cpu default": {"x": {"numpy": 5.0}},
    }
    monkeypatch.setattr(compare, "read_floors", lambda: floors)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert compare.floors_of("x", "x, a", "cpu") == {"torch": 3.0, "numpy": 4.0}
    assert compare.floors_of("x", "x, b", "cpu") == {"torch": 1.0, "numpy": 4.0}
    assert compare.floors_of("y", "y", "cpu") == {} == compare.floors_of("x", "x", "cuda")
    assert compare.below_floors("x", "x, a", "cpu", {"torch": 2.9, "numpy": 4.0}) == [
        'fasthg is 2.9 times as fast as "torch"; the floor is 3.0 (benchmarks/floors.yaml)'
    ]


def test_every_floor_is_that_of_a_benchmark(repository: Path) -> None:
    known: dict[str, tuple[str, ...]] = {}
    for file in (repository / "benchmarks").glob("bench_*.py"):
        for value in vars(importlib.import_module(file.stem)).values():
            if isinstance(one := getattr(value, "comparison", None), compare.Comparison):
                known |= dict.fromkeys([one.name, *one.groups()], one.providers)
    for device, groups in compare.read_floors().items():
        assert device in ("cpu", "cpu avx2", "cpu avx512", "cuda")
        for group, providers in groups.items():
            assert set(providers) <= set(known[group]) - {compare.OURS}, (device, group)


def test_an_operator_without_its_kernel_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    row = compare.ops.OpPath("bn_act", "cpu", "torch reference", "not built")
    monkeypatch.setattr(compare.ops, "paths", lambda: [row])
    assert compare.without_kernel("bn_act", "cpu") == ["fasthg runs its torch reference: not built"]
    assert not compare.without_kernel("bn_act", "cuda") + compare.without_kernel("loader", "cpu")


OWN_PROCESS = """
import os, time
from compare import compare

@compare("slow", "fasthg", "absent", cold=False, own_process=True,
         figures=lambda run, seconds: {"pid": run.pid})
def bench_processes(device):
    class Sleep:
        def __init__(self, seconds):
            self.seconds, self.pid = seconds, os.getpid()
        def __call__(self):
            time.sleep(self.seconds)
            assert self.seconds, "no sleep"
    return {"slow": lambda: Sleep(0.06), "fasthg": lambda: Sleep(FASTHG), "absent": "not here"}
"""


@pytest.fixture
def own_process(tmp_path: Path) -> Callable[[float], compare.Comparison]:
    """Makes the comparison of OWN_PROCESS, where a call of fasthg takes so many seconds."""

    def make(seconds: float) -> compare.Comparison:
        file = tmp_path / "bench_processes.py"
        file.write_text(OWN_PROCESS.replace("FASTHG", str(seconds)))
        spec = importlib.util.spec_from_file_location("bench_processes", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.bench_processes.comparison

    return make


@pytest.mark.slow
def test_providers_have_processes_of_their_own(
    own_process: Callable[[float], compare.Comparison],
) -> None:
    result = own_process(0.02).measure(CPU, {}, 3)
    assert result.absent == {"absent": "not here"}
    pids = {figures["pid"] for figures in result.figures.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    assert 1.5 < result.ratios()["slow"][1] < 4.5


@pytest.mark.slow
def test_an_error_in_another_process_is_raised(
    own_process: Callable[[float], compare.Comparison],
) -> None:
    with pytest.raises(AssertionError, match="no sleep"):
        own_process(0).measure(CPU, {}, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_scale_measures_what_it_says(tmp_path: Path) -> None:
    found = scale.measure(
        *(tmp_path, 600, 4, 500, 16, 1, 2), call=lambda call, *given: call(*given), start="fork"
    )
    lines = "\n".join(scale.table(found))
    assert "build: processor us a record" in lines and "at once: MB together" in lines
    assert 500 < found["bytes a record"] < 2000
    for part in ("build", "open again", "at once"):
        assert 0 < found[part]["seconds"] < 60
    assert found["build"]["held MB"] == pytest.approx(2 * 600 * 115.5 / 1e6, rel=0.05)
    assert 0 < found["plan"]["epoch 50"]["next ms"] < found["loader"]["step 0, first batch s"] * 1e3
