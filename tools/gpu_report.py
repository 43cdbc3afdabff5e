"""What the stages of `make gpu` report: lines with figures in, one JSON file and a table out."""

from __future__ import annotations

import json
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = "figure: "
COPY_RATE = "copy rate"
KEPT_OUTPUT = 6000  # characters of a failed stage's output


@dataclass
class Figure:
    """One measured number."""

    name: str
    value: float
    unit: str


@dataclass
class Result:
    """What became of a stage. status: passed, FAILED, stopped (at its limit) or skipped."""

    name: str
    status: str
    seconds: float
    note: str = ""
    command: str = ""
    figures: list[Figure] = field(default_factory=list)
    output: str = ""


def figure(name: str, value: float, unit: str) -> None:
    """Print a figure, in the form that `read_figures` finds again."""
    print(MARK + json.dumps(asdict(Figure(name, float(f"{value:.4g}"), unit))), flush=True)


def read_figures(output: str) -> list[Figure]:
    """The figures in a stage's output; a line that was cut off by the stage's end is left out."""
    figures = []
    for line in output.splitlines():
        if line.startswith(MARK):
            try:
                figures.append(Figure(**json.loads(line.removeprefix(MARK))))
            except (ValueError, TypeError):
                continue
    return figures


def read_junit(paths: list[Path]) -> str:
    """Counts of pytest runs in words."""
    cases = [case for path in paths for case in ElementTree.parse(path).getroot().iter("testcase")]
    bad = sum(_problem(case) is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    return f"{len(cases) - bad - skipped} passed, {skipped} skipped, {bad} failed"


def failures(paths: list[Path]) -> dict[str, list[str]]:
    """Names of the failed tests by reason, the commonest first; numbers in reasons are left out."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            problem = _problem(case)
            if problem is None:
                continue
            message = " ".join((problem.get("message") or "").split())[:300]
            reason = f"{path.stem}: {re.sub(r'[0-9][0-9.e+-]*', '#', message)}"
            found.setdefault(reason, []).append(f"{case.get('name')} [{message[:160]}]")
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _problem(case: ElementTree.Element) -> ElementTree.Element | None:
    for kind in ("failure", "error"):
        if (found := case.find(kind)) is not None:
            return found
    return None


def read_benchmarks(path: Path) -> list[Figure]:
    """Rows of a pytest-benchmark file: time of a call, and of its kernels where there are some."""
    figures = []
    for row in json.loads(path.read_text(encoding="utf-8"))["benchmarks"]:
        parameters = [str(v) for k, v in row["params"].items() if k != "device"]
        name = " ".join([row["name"].partition("[")[0].removeprefix("bench_"), *parameters])
        figures.append(Figure(f"{name}: call", round(row["stats"]["median"] * 1e6, 1), "us"))
        for key, value in row["extra_info"].items():
            if key.startswith("kernel "):
                figures.append(Figure(f"{name}: kernels", value, key.removeprefix("kernel ")))
    return figures


def shares(figures: list[Figure], copy_rate: float) -> list[Figure]:
    """Each bandwidth as a share of a plain copy's."""
    rows = [f for f in figures if f.unit == "GB/s"]
    return [Figure(f.name, round(f.value / copy_rate, 3), "of copy") for f in rows]


def ratios(figures: list[Figure]) -> list[Figure]:
    """How many times faster fasthg is than each provider of the same benchmark.

    Names are `operator provider: what` with further words anywhere between operator and colon.
    """
    times = {f.name: f.value for f in figures if f.unit == "us"}
    rows = []
    for name, own in times.items():
        before, here, after = name.partition("fasthg")
        if not here:
            continue
        for other, value in times.items():
            provider = other.removeprefix(before).removesuffix(after)
            if other != name and other == f"{before}{provider}{after}":
                rows.append(Figure(name, round(value / own, 2), f"x {provider}"))
    return rows


def table(results: list[Result]) -> str:
    """Figures by stage, those of one name on one line, then one line a stage."""
    lines = []
    for result in results:
        by_name: dict[str, list[str]] = {}
        for f in result.figures:
            by_name.setdefault(f.name, []).append(f"{f.value:.6g} {f.unit}".strip())
        lines += [f"{result.name}:"] if by_name else []
        lines += [f"  {name:44} {'  '.join(values)}" for name, values in by_name.items()]
    lines.append("")
    for result in results:
        name = f"{result.name:12} {result.status:8} {result.seconds:6.1f} s"
        lines.append(f"{name}  {result.note}".rstrip())
    return "\n".join(lines)


def passed(results: list[Result]) -> bool:
    """Whether no stage failed; a stopped or skipped one does not count as a failure."""
    return all(result.status != "FAILED" for result in results)


def result_name(gpu: str, date: str, commit: str) -> str:
    """`nvidia-h200-20260131-1a2b3c4.json`."""
    return "-".join([re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-"), date, commit]) + ".json"


def placeless(text: str) -> str:
    """A text that names files of the tree from its root, and Python as `python3`."""
    # An environment may lie in the tree, so that goes last.
    for place, name in ((sys.executable, "python3"), (sys.prefix, "PREFIX"), (f"{ROOT}/", "")):
        text = text.replace(place, name)
    return text


def write(path: Path, facts: dict[str, Any], results: list[Result]) -> None:
    """Write everything into one file, whole or not at all, without the places of this machine."""
    content = {"passed": passed(results), **facts, "stages": [asdict(r) for r in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(placeless(json.dumps(content, indent=1)) + "\n", encoding="utf-8")
    temporary.replace(path)
