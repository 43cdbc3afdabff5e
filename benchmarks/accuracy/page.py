"""docs/accuracy.md, written from the committed result files: no figure in it is typed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import decoders
from benchmarks.accuracy.intervals import METRICS, Interval, measured, ratio, spread_over_seeds
from benchmarks.accuracy.run import RESULTS
from benchmarks.accuracy.sets import SETS
from fasthg.files import write_text

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"
OLD, NEW = "first", "small"
"""Recipes of the main table: that of the first version, and the preset `small` as it is."""
RADII = (2, 5, 10, 20)
Result = dict[str, Any]

_HEAD = """# Accuracy

<!-- Written by `python -m benchmarks.accuracy page` from benchmarks/results/accuracy. -->

Errors in image px on test frames that no training saw, in annotated boxes, by the weights that were
best on the validation frames. In brackets: the 95 % interval of a bootstrap over test frames; of
ratios, over test frames and trainings. Cost is processor time, all threads, loading of images
included. Trainings are compared at equal cost on one machine: {machine}.
"""


def load(folder: Path = RESULTS) -> list[Result]:
    """All result files of a folder."""
    files = sorted(path for path in folder.glob("*.json") if path != decoders.FILE)
    return [json.loads(path.read_text()) for path in files]


def cost(runs: Iterable[Mapping[str, Any]]) -> float:
    """Processor seconds of a training, mean over runs."""
    return float(np.mean([run["cpu_seconds"] for run in runs]))


def machine(result: Result) -> str:
    """The widest instructions of a result's processor, by which its speed differs most."""
    return str(result["processor"]).rpartition(", ")[2]


def _cost_of(result: Result) -> float:
    return cost(result["runs"])


def shown(interval: Interval, digits: int = 2) -> str:
    """A figure with its interval."""
    low, high = (f"{end:.{digits}f}" for end in interval[1:])
    return f"{interval.value:.{digits}f} ({low}–{high})"


def page(results: list[Result], levers: list[Result], decoded: list[Result] | None = None) -> str:
    """The whole page; decoded: rows of `decoders.FILE`."""
    machines = sorted({result["processor"] for result in results})
    blocks = [_HEAD.format(machine="; ".join(machines)), *_main(results), *_sets(results)]
    blocks += [*_folds(results), *_by_cost(results), *_views(results), *_shift(results)]
    blocks += [*_levers(levers), *_others(levers), *_decoders(decoded or []), *_commands(results)]
    return "\n".join(blocks) + "\n"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [[*head], *([*row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _pick(results: list[Result], name: str, recipe: str) -> Result | None:
    """The result of a recipe on a set that had the largest budget."""
    found = [r for r in results if r["set"] == name and r["recipe"] == recipe]
    return max(found, key=_cost_of, default=None)


def _pair(results: list[Result], name: str) -> tuple[Result, Result] | None:
    """Both recipes on a set, at the largest budget that both had on one machine; None without."""
    old, new = (
        [r for r in results if r["set"] == name and r["recipe"] == recipe] for recipe in (OLD, NEW)
    )
    same = ("budget_cpu_seconds", "processor")
    pairs = [(a, b) for a in old for b in new if all(a[key] == b[key] for key in same)]
    return max(pairs, key=lambda pair: _cost_of(pair[0]), default=None)


def _main(results: list[Result]) -> list[str]:
    rows, ratios = [], []
    for name in SETS:
        pair = _pair(results, name)
        if pair is None or name == "shift":
            continue
        old, new = pair
        both = ratio(new["runs"], old["runs"])
        ratios.append(both.value)
        for result in (old, new):
            figures, spread = measured(result["runs"]), spread_over_seeds(result["runs"])
            rows.append(
                [
                    name if result is old else "",
                    result["recipe"],
                    *(shown(figures[metric]) for metric in ("mean", "median", "rmse", "p95")),
                    "–" if spread is None else f"±{spread:.2f}",
                    f"{cost(result['runs']):.0f} ({machine(result)})",
                    "" if result is old else shown(both),
                ]
            )
    if not rows:
        return []
    head = ["set", "recipe", "mean", "median", "RMSE", "p95", "seeds", "processor s", "ratio"]
    overall = _geometric_mean(ratios)
    others = [name for name in SETS if name != "shift" and _pair(results, name) is None]
    missing = f" Not measured with both recipes yet: {', '.join(others)}." if others else ""
    return [
        "## Two recipes\n",
        f"`{OLD}` is the recipe of fasthg's first version "
        f"(`benchmarks/accuracy/recipes/{OLD}.yaml`), `{NEW}` the preset as it is now, which "
        "chooses its keys from the data. Ratio: mean error of the second over that of the first on "
        "the same frames. Seeds: standard deviation of the mean over seeds. Over these "
        f"{len(ratios)} sets, the geometric mean of the ratios is **{overall:.2f}**.{missing}\n",
        _table(head, rows),
    ]


def _sets(results: list[Result]) -> list[str]:
    rows = []
    for name, one in SETS.items():
        new = _pick(results, name, NEW)
        if new is None or name == "shift":
            continue
        shares = measured(new["runs"], RADII)
        frames = {(run["fold"], frame) for run in new["runs"] for frame in run["frames"]}
        rows.append(
            [
                name,
                one.what,
                str(len(frames)),
                f"{np.mean([run['animal_px'] for run in new['runs']]):.0f}",
                *(f"{shares[f'within {radius}'].value:.0%}" for radius in RADII),
                one.anchor or "–",
            ]
        )
    if not rows:
        return []
    head = ["set", "what", "test frames", "animal, px", *(f"≤ {r} px" for r in RADII)]
    return ["## The sets\n", _table([*head, "published for such data"], rows)]


def _folds(results: list[Result]) -> list[str]:
    """Sets of which every fold was tested: each fold, and all frames together."""
    rows = []
    for name, one in SETS.items():
        whole = [r for r in results if r["set"] == name and len({x["fold"] for x in r["runs"]}) > 1]
        for recipe in (OLD, NEW) if one.folds > 1 else ():
            result = _pick(whole, name, recipe)
            if result is None:
                continue
            parts = [
                (str(fold + 1), [run for run in result["runs"] if run["fold"] == fold])
                for fold in range(one.folds)
            ]
            for fold, runs in [*parts, ("all", result["runs"])]:
                figures = measured(runs)
                frames = {(run["fold"], frame) for run in runs for frame in run["frames"]}
                cells = [shown(figures[metric]) for metric in ("mean", "median", "rmse")]
                rows.append([name, recipe, fold, str(len(frames)), *cells, f"{cost(runs):.0f}"])
    if not rows:
        return []
    head = ["set", "recipe", "fold", "test frames", "mean", "median", "RMSE", "processor s"]
    return [
        "## Every frame tested once\n",
        "Each fold is the test of trainings on the others; `all` takes the folds' frames "
        "together.\n",
        _table(head, rows),
    ]


def _of_one_machine(results: list[Result]) -> list[Result]:
    """The results of the machine that has most of them, cheapest first: seconds differ between."""
    machines = [result["processor"] for result in results]
    most = max(machines, key=machines.count, default="")
    return sorted((r for r in results if r["processor"] == most), key=_cost_of)


def _by_cost(results: list[Result]) -> list[str]:
    rows = []
    for name in SETS:
        for recipe in (OLD, NEW):
            found = _of_one_machine(
                [r for r in results if r["set"] == name and r["recipe"] == recipe]
            )
            # The same test frames in every row.
            folds = [{run["fold"] for run in result["runs"]} for result in found]
            common = set.intersection(*folds) if folds else set()
            for result in found if len(found) > 1 and common else ():
                runs = [run for run in result["runs"] if run["fold"] in common]
                figures = measured(runs)
                rows.append(
                    [name, recipe, f"{cost(runs):.0f}", *(shown(figures[m]) for m in METRICS)]
                )
    if not rows:
        return []
    return [
        "## Error against processor seconds\n",
        "Each row is a training of its own, whose learning rate falls to zero at its end; 120 "
        "processor seconds are a minute of two cores.\n",
        _table(["set", "recipe", "processor s", "mean", "median", "RMSE", "p95"], rows),
    ]


def _views(results: list[Result]) -> list[str]:
    """Errors by view, and how often sides are exchanged, of sets with several views."""
    rows = []
    for name, one in SETS.items():
        for result in _pair(results, name) or () if one.views else ():
            cells = [name, result["recipe"]]
            for end in one.views:
                figures = measured([_of_parts(run, end) for run in result["runs"]])
                cells += [f"{shown(figures[metric])}" for metric in ("mean", "median")]
            judged, exchanged = (
                sum(run["sides"][key] for run in result["runs"]) for key in ("judged", "exchanged")
            )
            rows.append([*cells, f"{exchanged / judged:.1%} of {judged}"])
    if not rows:
        return []
    views = [view for one in SETS.values() for view in one.views.values()]
    figures = [f"{view}: {metric}" for view in views for metric in ("mean", "median")]
    return [
        "## Several views in a picture\n",
        "Sides exchanged: predictions of a paired part that lie nearer to its partner's label, "
        "of all that have both labels, over all seeds.\n",
        _table(["set", "recipe", *figures, "sides exchanged"], rows),
    ]


def _of_parts(run: Mapping[str, Any], end: str) -> dict[str, Any]:
    """A run with the errors of those parts alone whose names end so."""
    kept = [place for place, part in enumerate(run["parts"]) if part.endswith(end)]
    return {**run, "errors": [[row[place] for place in kept] for row in run["errors"]]}


def _shift(results: list[Result]) -> list[str]:
    rows = []
    for result in _pair(results, "shift") or ():
        figures = measured(result["runs"], RADII)
        rows.append([result["recipe"], *(shown(figures[m]) for m in ("mean", "median"))])
        rows[-1] += [f"{figures[f'within {radius}'].value:.0%}" for radius in RADII]
    if not rows:
        return []
    head = ["recipe", "mean", "median", *(f"≤ {radius} px" for radius in RADII)]
    return ["## Another camera\n", SETS["shift"].what.capitalize() + ".\n", _table(head, rows)]


def _levers(results: list[Result]) -> list[str]:
    """Each lever against the base of its series, on the sets that both were measured on."""
    base = {
        (r["set"], r["series"]): r for r in results if r.get("lever") == "base" and "series" in r
    }
    rows = []
    for name in dict.fromkeys(r["lever"] for r in results if r.get("lever", "base") != "base"):
        own = [r for r in results if r.get("lever") == name and (r["set"], r["series"]) in base]
        pairs = {r["set"]: _of_common_seeds(r, base[r["set"], r["series"]]) for r in own}
        ratios = {one: ratio(*pair) for one, pair in pairs.items()}
        overall = _geometric_mean(found.value for found in ratios.values())
        costs = _geometric_mean(cost(new) / cost(old) for new, old in pairs.values())
        cells = [shown(ratios[one]) if one in ratios else "" for one in SETS if one != "shift"]
        rows.append([f"`{name}`", f"{overall:.2f}", f"{costs:.2f}", *cells])
    if not rows:
        return []
    head = ["lever", "all", "cost", *(name for name in SETS if name != "shift")]
    return [
        "## Levers, each alone\n",
        "Mean error with the lever over that without it, on the same frames with the same seeds; "
        "below 1 it helps. All: geometric mean over the sets. Cost: processor seconds over those "
        "without. `benchmarks/results/accuracy/levers` has each training's command and keys.\n",
        _table(head, rows),
    ]


def _of_common_seeds(new: Result, old: Result) -> tuple[list[Any], list[Any]]:
    """Runs of both with the seeds that both have."""
    seeds = {run["seed"] for run in new["runs"]} & {run["seed"] for run in old["runs"]}
    a, b = ([run for run in r["runs"] if run["seed"] in seeds] for r in (new, old))
    return a, b


def _geometric_mean(ratios: Iterable[float]) -> float:
    return float(np.exp(np.mean(np.log(list(ratios)))))


def _others(results: list[Result]) -> list[str]:
    """Recipes that were tried at the cost of the main table and are not the preset of today."""
    rows = []
    for name in SETS:
        for result in results:
            if result["set"] != name or "series" in result:
                continue
            figures = measured(result["runs"])
            keys = ", ".join(f"{key}: {value}" for key, value in result["overrides"].items())
            keys = keys.replace("None", "null") or "none"
            commit = result["git"]["commit"][:7]
            cells = [name, f"`{result['of']}` at {commit}", keys]
            cells += [shown(figures[m]) for m in ("mean", "median")]
            seeds = len({run["seed"] for run in result["runs"]})
            rows.append([*cells, str(seeds), f"{cost(result['runs']):.0f}"])
    if not rows:
        return []
    head = ["set", "recipe", "other keys", "mean", "median", "seeds", "processor s"]
    return [
        "## Other recipes that were tried\n",
        "Where a preset stands at an older commit, it chose other keys then.\n",
        _table(head, rows),
    ]


def _decoders(rows: list[Result]) -> list[str]:
    """Each decoder against the usual one, over runs by the sigma that they were trained with."""
    table = []
    for sigma in sorted({row["sigma"] for row in rows}):
        own = [row["mean_px"] for row in rows if row["sigma"] == sigma]
        ratios = {
            name: np.exp(np.mean([np.log(one[name] / one[decoders.USUAL]) for one in own]))
            for name in own[0]
        }
        table.append([f"{sigma:g}", str(len(own)), *(f"{value:.3f}" for value in ratios.values())])
    if not rows:
        return []
    return [
        "## Decoding\n",
        f"Mean error over that of `{decoders.USUAL}` (sigma in heatmap cells), which is what "
        "`DECODE: dark` does, on the same maps: geometric mean over networks, by their "
        "training's sigma.\n",
        _table(["sigma of training", "networks", *rows[0]["mean_px"]], table),
    ]


def _commands(results: list[Result]) -> list[str]:
    commands = dict.fromkeys(result["command"] for result in results)
    return [
        "## To run it again\n",
        "The sets are not part of this repository; `benchmarks/accuracy/sets.py` says how each is "
        "laid out, and `FASTHG_TEST_DATA` or `--data` where they lie.\n",
        "```sh\n" + "\n".join(commands) + "\npython -m benchmarks.accuracy page\n```",
    ]


def write() -> None:
    """Write the page."""
    decoded = json.loads(decoders.FILE.read_text()) if decoders.FILE.exists() else []
    write_text(PAGE, page(load(), load(RESULTS / "levers"), decoded))
