"""Command line.

python -m benchmarks.accuracy run --set openfield --recipe small --seeds 3 --minutes 6
python -m benchmarks.accuracy compare NEW.json OLD.json
python -m benchmarks.accuracy decode build/accuracy/runs/*/*
python -m benchmarks.accuracy page
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.accuracy import decoders, page
from benchmarks.accuracy.intervals import measured, ratio, spread_over_seeds
from benchmarks.accuracy.run import RESULTS, Plan, run
from benchmarks.accuracy.sets import SETS

WORK = Path("build/accuracy")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("run", help="train and test a recipe on a set")
    training.add_argument("--set", action="append", required=True, choices=list(SETS))
    training.add_argument("--recipe", default="small", help="a file of recipes/, or a preset")
    training.add_argument("--name", help="of the result file; default: the recipe")
    training.add_argument("--seeds", type=_positive, help="trainings of a fold; default: the set's")
    training.add_argument("--folds", type=_positive, help="how many; default: the set's")
    cost = training.add_mutually_exclusive_group()
    cost.add_argument("--minutes", type=float, help="of two cores, for each training")
    cost.add_argument("--steps", type=_positive, help="of each training")
    training.add_argument("--jobs", type=_positive, default=2, help="trainings at a time")
    training.add_argument("--data", type=Path, default=os.environ.get("FASTHG_TEST_DATA"))
    training.add_argument("--work", type=Path, default=WORK, help="records and runs")
    training.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    training.add_argument("--series", help="compare NAME with base, in the table of levers")
    training.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    comparison = commands.add_parser("compare", help="two result files on the same frames")
    comparison.add_argument("new", type=Path)
    comparison.add_argument("old", type=Path)
    shown = commands.add_parser("show", help="figures of result files")
    shown.add_argument("files", type=Path, nargs="+")
    decoding = commands.add_parser("decode", help="decoders on the maps of trained networks")
    decoding.add_argument("folders", type=Path, nargs="+", help="run folders that `run` left")
    commands.add_parser("page", help="write docs/accuracy.md from the committed results")
    given = parser.parse_args(arguments)
    if given.command == "run":
        _run(given)
    elif given.command == "page":
        page.write()
    elif given.command == "decode":
        decoders.compare(given.folders)
    elif given.command == "compare":
        _compare(given.new, given.old)
    else:
        for path in given.files:
            print(summary(path))


def _run(given: argparse.Namespace) -> None:
    if given.data is None:
        raise SystemExit("--data: give the folder of the data sets, or set FASTHG_TEST_DATA")
    pairs = [text.partition("=")[::2] for text in given.overrides]
    for name in given.set:
        one = SETS[name]
        plan = Plan(
            name,
            given.recipe,
            {key: yaml.safe_load(value) for key, value in pairs},
            None if given.minutes is None else given.minutes * 120,
            given.steps,
            range(1, 1 + (given.seeds or one.seeds)),
            range(given.folds or one.folds),
            given.jobs,
            given.data.resolve(),
            given.work.resolve(),
            given.series,
        )
        out = given.out / "levers" if given.series else given.out
        print(summary(run(plan, given.name, out)))


def summary(path: Path) -> str:
    """One line of a result file."""
    result = json.loads(path.read_text())
    runs = result["runs"]
    parts = [f"{path.stem}:"]
    for name, interval in measured(runs).items():
        parts.append(f"{name} {interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})")
    spread = spread_over_seeds(runs)
    if spread is not None:
        parts.append(f"seeds ±{spread:.2f}")
    cost = sum(run["cpu_seconds"] for run in runs) / len(runs)
    parts.append(f"{cost:.0f} processor seconds, {runs[0]['steps']} steps")
    return " ".join(parts)


def _compare(new: Path, old: Path) -> None:
    a, b = (json.loads(path.read_text())["runs"] for path in (new, old))
    for metric in ("mean", "median", "rmse"):
        found = ratio(a, b, metric)
        print(f"{metric}: {found.value:.3f} times ({found.low:.3f} to {found.high:.3f})")


if __name__ == "__main__":
    main()
