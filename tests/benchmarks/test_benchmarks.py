"""The gate of the benchmarks: what it measures, what it refuses, and what a results file keeps."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import compare
import floors
import pytest
import scale
import torch

CPU = torch.device("cpu")
SINGLE_PROCESS = {"PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS"}


@pytest.mark.slow
def test_a_slowed_operator_fails_and_its_results_are_kept(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    # Twice as slow is enough on a quiet machine.
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--bench-rounds=3"]
    command += ["--bench-slowed=6"]
    environment = {k: v for k, v in os.environ.items() if k not in SINGLE_PROCESS}
    done = subprocess.run(
        [
            *(sys.executable, *command, f"--benchmark-json={file}"),
            "benchmarks/bench_heatmap_mse.py",
        ],
        cwd=repository,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout
    message = (
        r'^heatmap_mse, cpu: fasthg is \d+(?:\.\d+)? times as fast as "draw, then MSE"; '
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


def test_what_pytest_deselects_is_not_measured() -> None:
    @compare.compare("a", "b", "c", cold=False, size=[1, 2])
    def bench_example(device: torch.device, size: int) -> Any:
        return {name: lambda: None for name in "abc"}

    comparison = bench_example.comparison  # type: ignore[attr-defined]
    session = SimpleNamespace(items=[])
    for one, size, provider in [("x", 1, "a"), ("y", 1, "b"), ("x", 2, "b"), ("x", 1, "c")]:
        params = {"device": "cpu", "size": size, "provider": provider}
        callspec = SimpleNamespace(params=params)
        session.items.append(SimpleNamespace(obj=one, callspec=callspec, session=session))
    session.items.append(SimpleNamespace(session=session))  # a test without parameters
    chosen = compare._chosen(session.items[0])  # type: ignore[arg-type]
    assert chosen == ["a", "c"]
    result = comparison.measure(CPU, {"size": 1}, 2, chosen=chosen)
    assert set(result.seconds) == {"a", "c"}


def test_floors_are_those_of_the_machine_s_class(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "cpu": {"x, a": {"torch": 1.0}},
        "cpu avx2": {"x, a": {"torch": 3.0}},
        "cpu avx512 bf16": {"x, a": {"torch": 4.0}},
    }
    monkeypatch.setattr(compare, "read_floors", lambda: given)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert compare.floors_of("x, a", "cpu") == {"torch": 3.0}
    assert compare.floors_of("x, b", "cpu") == {} == compare.floors_of("x, a", "cuda")
    assert compare.below_floors("x, a", "cpu", {"torch": 2.9, "numpy": 4.0}) == [
        'fasthg is 2.9 times as fast as "torch"; the floor is 3.0 (benchmarks/floors.yaml)'
    ]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert compare.floors_of("x, a", "cpu") == {"torch": 1.0}
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert compare.floors_of("x, a", "cpu") == {"torch": 4.0}


def test_floors_are_those_of_the_results() -> None:
    assert floors.FLOORS.read_text() == floors.text(), "run python benchmarks/floors.py"


def test_half_the_speed_of_any_result_is_below_its_floor() -> None:
    given = compare.read_floors()
    for machine, ratios in floors.current_medians().items():
        assert ratios, machine
        for (group, provider), ratio in ratios.items():
            assert ratio / 2 < given[machine][group][provider] < 0.7 * ratio, (group, provider)


def test_the_median_of_results_of_a_class_counts(tmp_path: Path) -> None:
    def row(ratio: float) -> dict[str, Any]:
        params = {"device": "cpu", "provider": "torch"}
        return {"group": "x, a, cpu", "params": params, "extra_info": {"x fasthg": ratio}}

    for number, (capability, ratio) in enumerate(
        [("avx2", 1.0), ("avx2", 3.0), ("avx2", 2.0), ("avx512", 1.5)]
    ):
        content = {"machine_info": {"capability": capability}, "benchmarks": [row(ratio)]}
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    found = floors.medians(tmp_path)
    assert found == {"cpu avx2": {("x, a", "torch"): 2.0}, "cpu avx512": {("x, a", "torch"): 1.5}}
    assert floors.floors(found) == {
        "cpu": {"x, a": {"torch": 0.6}},
        "cpu avx2": {"x, a": {"torch": 1.3}},
        "cpu avx512": {"x, a": {"torch": 0.98}},
    }


def test_a_visit_s_rows_give_floors_of_kernel_times(tmp_path: Path) -> None:
    def row(group: str, device: str, provider: str, **info: float) -> dict[str, Any]:
        params = {"device": device, "provider": provider}
        return {"group": f"{group}, {device}", "params": params, "extra_info": info}

    rows = [
        row("x, a", "cuda", "torch", **{"kernel us": 30.0, "x fasthg": 7.0}),
        row("x, a", "cuda", "fasthg", **{"kernel us": 10.0}),
        row("x, b", "cuda", "torch", **{"kernel us": 30.0}),  # alone
        row("x, a", "cpu", "torch", **{"x fasthg": 9.0}),
        row("step", "cuda", "captured", **{"x fasthg": 1.4, "ms of kernels": 20.0}),
    ]
    content = {"machine_info": {"capability": "avx2"}, "benchmarks": rows, "stages": [{}]}
    (tmp_path / "visit.json").write_text(json.dumps(content))
    assert floors.medians(tmp_path) == {"cuda": {("x, a", "torch"): 3.0}}


def test_a_planted_slowdown_is_the_sum_of_so_many_calls() -> None:
    calls = {"torch": 0, "fasthg": 0}

    @compare.compare("torch", "fasthg", cold=False)
    def bench_counted(device: torch.device) -> Any:
        def count(name: str) -> Callable[[], None]:
            def run() -> None:
                calls[name] += 1

            return run

        return {name: count(name) for name in calls}

    bench_counted.comparison.measure(CPU, {}, 3, 2)  # type: ignore[attr-defined]
    assert calls == {"torch": 4, "fasthg": 8}


def test_an_operator_without_its_kernel_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    row = compare.ops.OpPath("bn_act", "cpu", "torch reference", "not built")
    monkeypatch.setattr(compare.ops, "paths", lambda: [row])
    assert compare.without_kernel("bn_act", "cpu") == ["fasthg runs its torch reference: not built"]
    assert not compare.without_kernel("bn_act", "cuda") + compare.without_kernel("loader", "cpu")


OWN_PROCESS = """
import os, time
from pathlib import Path
from compare import compare

@compare("slow", "fasthg", "absent", "broken", cold=False, own_process=True,
         figures=lambda run, seconds: {"pid": run.pid})
def bench_processes(device):
    class Sleep:
        def __init__(self, seconds):
            self.seconds, self.pid = seconds, os.getpid()
        def __call__(self):
            time.sleep(self.seconds)
            assert self.seconds, "no sleep"
    try:
        yield {"slow": lambda: Sleep(0.06), "fasthg": lambda: Sleep(FASTHG), "absent": "not here",
               "broken": lambda: 1 / 0}
    finally:
        Path(__file__).with_name(f"cleaned {os.getpid()}").touch()
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
    own_process: Callable[[float], compare.Comparison], tmp_path: Path
) -> None:
    result = own_process(0.02).measure(CPU, {}, 3)
    assert result.absent == {"absent": "not here"}
    # The others of its group are measured all the same.
    assert result.failed == {"broken": "ZeroDivisionError: division by zero"}
    pids = {figures["pid"] for figures in result.figures.values()}
    assert len(pids) == 2 and os.getpid() not in pids
    cleaned = {int(path.name.split()[1]) for path in tmp_path.glob("cleaned *")}
    assert pids < cleaned and os.getpid() in cleaned, "each cleans up what it has built"
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
