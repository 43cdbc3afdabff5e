"""Floors of the ratios, from committed results: `python benchmarks/floors.py` writes floors.yaml.

A machine class is a kind of processor (`cpu avx2`, `cpu avx512 bf16`: by its instructions) or
`cuda`. The floor of a ratio is SHARE of the median of what results of its class measured: below
that, noise passes, and an operator of half the speed does not. `cpu` holds for processors of other
classes: ELSEWHERE of the lowest median of all.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from compare import FLOORS, FOLDER, OURS, all_comparisons, known_groups

RESULTS = FOLDER / "results"
SHARE, ELSEWHERE = 0.65, 0.4
Medians = dict[str, dict[tuple[str, str], float]]
"""Machine class -> (group, provider) -> how many times as fast fasthg is."""

_HEAD = f"""\
# How many times as fast as each provider fasthg must be: machine class -> group -> provider.
# Written by `python benchmarks/floors.py`: {SHARE} of the median of results/ of that class; `cpu`,
# for processors of other classes, {ELSEWHERE} of the lowest.
"""


def medians(folder: Path = RESULTS) -> Medians:
    """What the results of a folder measured, each class by the median over its files."""
    found: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        machine, ratios = _of_gpu(content) if "stages" in content else _of_processor(content)
        for key, ratio in ratios.items():
            found[machine][key].append(ratio)
    return {
        machine: {key: statistics.median(ratios) for key, ratios in sorted(of.items())}
        for machine, of in sorted(found.items())
        if of
    }


def current_medians() -> Medians:
    """Those of RESULTS, of groups and providers that there still are."""
    known = known_groups()
    return {
        machine: {key: ratio for key, ratio in of.items() if key[1] in known.get(key[0], ())}
        for machine, of in medians().items()
    }


def _of_processor(content: dict[str, Any]) -> tuple[str, dict[tuple[str, str], float]]:
    """Class and ratios of a file that pytest-benchmark wrote."""
    ratios = {
        (row["group"].rpartition(", ")[0], row["params"]["provider"]): row["extra_info"]["x fasthg"]
        for row in content.get("benchmarks", ())
        if row["params"]["device"] == "cpu" and "x fasthg" in row["extra_info"]
    }
    return f"cpu {content['machine_info']['capability']}" if ratios else "cpu", ratios


def _of_gpu(content: dict[str, Any]) -> tuple[str, dict[tuple[str, str], float]]:
    """Class and ratios of kernel times of a file that `make gpu` wrote."""
    rows = content.get("benchmarks")
    us = _us_of_figures(content["stages"]) if rows is None else _us_of_rows(rows)
    ratios = {
        (group, provider): value / us[group, OURS]
        for (group, provider), value in us.items()
        if provider != OURS and (group, OURS) in us
    }
    return "cuda", ratios


def _us_of_rows(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Kernel times of rows of pytest-benchmark."""
    return {
        (row["group"].rpartition(", ")[0], row["params"]["provider"]): info["kernel us"]
        for row in rows
        if row["params"]["device"] == "cuda" and "kernel us" in (info := row["extra_info"])
    }


def _us_of_figures(stages: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Kernel times of the figures that the first files have in place of rows."""
    figures = {
        figure["name"]: figure["value"]
        for stage in stages
        if stage["name"] == "benchmarks"
        for figure in stage["figures"]
        if figure["unit"] == "us"
    }
    found = {}
    for comparison in all_comparisons():
        for values in comparison.choices():
            label = " ".join([comparison.name, *map(str, values.values())])
            for provider in comparison.providers:
                name = f"{label} {provider}: kernels"
                if name in figures:
                    found[comparison.group(values), provider] = figures[name]
    return found


def floors(found: Medians) -> dict[str, dict[str, dict[str, float]]]:
    """Machine class -> group -> provider -> floor."""
    given: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for machine, ratios in found.items():
        for (group, provider), ratio in ratios.items():
            given[machine][group][provider] = _rounded(SHARE * ratio)
            if machine.startswith("cpu"):
                low = _rounded(ELSEWHERE * ratio)
                known = given["cpu"][group].get(provider, low)
                given["cpu"][group][provider] = min(low, known)
    return {machine: dict(groups) for machine, groups in sorted(given.items())}


def _rounded(ratio: float) -> float:
    return float(f"{ratio:.2g}")


def text() -> str:
    """What floors.yaml should hold."""
    lines = [_HEAD.rstrip()]
    for machine, groups in floors(current_medians()).items():
        lines.append(f"\n{machine}:")
        for group, providers in sorted(groups.items()):
            row = yaml.safe_dump(providers, default_flow_style=True, width=1000).strip()
            lines.append(f"  {group}: {row}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FLOORS.write_text(text(), encoding="utf-8")
