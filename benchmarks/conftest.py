"""Options of the benchmarks, a summary of all ratios, and the contents of a results file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from compare import RESULTS, instructions

from fasthg import __version__

LOAD = os.getloadavg()[0]  # before this run adds its own
KEPT = ("min", "q1", "median", "q3", "max")  # seconds


def pytest_addoption(parser):
    parser.addoption("--bench-rounds", type=int, help="rounds of each group, in place of its own")
    parser.addoption(
        "--bench-slowed",
        type=int,
        default=1,
        metavar="N",
        help="call fasthg N times for each call of the others: with 2 every floor must fail",
    )


def pytest_configure(config):
    columns = config.getoption("benchmark_columns", None)
    config.option.benchmark_columns = columns or ["median", "iqr", "min", "max", "rounds"]
    file = config.getoption("benchmark_json", None)
    if isinstance(file, Path):  # an open file before pytest-benchmark 5.2
        file.parent.mkdir(parents=True, exist_ok=True)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    results = config.stash.get(RESULTS, {})
    rows = [(group, *row) for group, one in results.items() for row in one.ratios().items()]
    if rows:
        terminalreporter.section("times as fast as each provider fasthg is: median (quartiles)")
    for group, name, (low, median, high) in rows:
        line = f'{group}: {median:.3g} ({low:.3g} to {high:.3g}) times "{name}"'
        terminalreporter.write_line(line)


def pytest_benchmark_update_machine_info(machine_info):
    """Keep the kind of machine, and nothing that identifies a single one."""
    cpu = machine_info["cpu"].get("brand_raw") or machine_info["machine"]
    python = machine_info["python_version"]
    machine_info.clear()
    machine_info |= {
        "cpu": cpu,
        "capability": instructions(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(LOAD, 2),
        "torch": torch.__version__,
        "fasthg": __version__,
        "python": python,
    }


def pytest_benchmark_update_json(output_json):
    commit = output_json["commit_info"]
    output_json["commit_info"] = {"id": commit["id"], "dirty": commit["dirty"]}
    output_json["datetime"] = output_json["datetime"][:19] + "Z"  # UTC, in seconds
    output_json["benchmarks"] = [
        {key: row[key] for key in ("group", "name", "params", "extra_info")}
        | {"stats": _kept(row["stats"])}
        for row in output_json["benchmarks"]
    ]


def _kept(stats):
    return {"rounds": stats["rounds"]} | {key: float(f"{stats[key]:.5g}") for key in KEPT}
