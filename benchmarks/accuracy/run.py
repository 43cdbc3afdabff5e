"""Trainings of one recipe on one set: every fold with every seed, into one result file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.accuracy.sets import prepare
from fasthg import metrics
from fasthg.config.presets import find_config
from fasthg.files import write_text
from fasthg.training.environment import checkout

RESULTS = Path(__file__).parents[1] / "results" / "accuracy"
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        name: of a set in SETS.
        recipe: a file of `recipes/` without its ending, or a preset.
        overrides: dotted key -> value, over the recipe.
        budget: processor seconds of a training; None: the recipe's own steps.
        steps: of a training, in place of a budget.
        jobs: trainings at a time, each on an equal share of the cores.
        series: name of the experiments whose levers are compared with its result named "base".
    """

    name: str
    recipe: str
    overrides: Mapping[str, Any]
    budget: float | None
    steps: int | None
    seeds: Sequence[int]
    folds: Sequence[int]
    jobs: int
    data: Path
    work: Path
    series: str | None = None


def run(plan: Plan, label: str | None, out: Path = RESULTS) -> Path:
    """Train and test; return the result file, which is written after every training."""
    cost = f"{plan.budget:g}s" if plan.budget else f"{plan.steps}steps" if plan.steps else "own"
    label = label or plan.recipe
    words = [plan.series, plan.name, label.replace(" ", "_"), cost]
    path = out / ("-".join(word for word in words if word) + ".json")
    result: dict[str, Any] = {
        "set": plan.name,
        "recipe": label,
        "of": plan.recipe,
        "overrides": dict(plan.overrides),
        **({"lever": label, "series": plan.series} if plan.series else {}),
        "budget_cpu_seconds": plan.budget,
        "command": _command(sys.argv[1:]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "git": checkout(Path(__file__).parents[2]),
        "processor": _processor(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "runs": [],
    }
    # Records are made before any training, which would otherwise share the cores with it.
    for fold in plan.folds:
        prepare(plan.name, fold, plan.data, plan.work)
    jobs = [(fold, seed) for seed in plan.seeds for fold in plan.folds]
    with ThreadPoolExecutor(plan.jobs) as pool:
        for done in pool.map(lambda job: _one(plan, label, *job), jobs):
            result["runs"].append(done)
            write_text(path, json.dumps(result, indent=None, separators=(",", ":")) + "\n")
    return path


def _one(plan: Plan, label: str, fold: int, seed: int) -> dict[str, Any]:
    """Run one training in a process of its own."""
    _, values = prepare(plan.name, fold, plan.data, plan.work)
    own = RECIPES / f"{plan.recipe}.yaml"
    chosen = yaml.safe_load((own if own.exists() else find_config(plan.recipe)).read_text())
    by_kind = chosen.pop("SIGMAS_BY_KIND", None)
    values = {**chosen, **values}
    if by_kind is not None:
        kinds = [metrics.plain_part(part) for part in values["PARTS"]["NAMES"]]
        values["PARTS"]["SIGMAS"] = [by_kind.get(kind, by_kind["other"]) for kind in kinds]
    for key, value in plan.overrides.items():
        section, _, inner = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[inner] = value
    values["RANDOM_SEED"] = seed
    stem = f"{plan.name}-{label}-{fold}-{seed}"
    folder = plan.work / "runs" / stem
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    specification = {
        "config": str(folder / "config.yaml"),
        "folder": str(folder),
        "budget": plan.budget,
        "steps": plan.steps,
        "overrides": {},
        "out": str(folder / "result.json"),
    }
    (folder / "run.json").write_text(json.dumps(specification))
    threads = max(len(os.sched_getaffinity(0)) // plan.jobs, 1)
    # A thread that waits must not count as one that works.
    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with (folder / "log.txt").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.accuracy.train_one", str(folder / "run.json")],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    done = json.loads((folder / "result.json").read_text())
    errors = [error for row in done["errors"] for error in row if error is not None]
    print(
        f"{stem}: mean {sum(errors) / len(errors):.2f} px, {done['steps']} steps, "
        f"{done['cpu_seconds']:.0f} processor seconds",
        flush=True,
    )
    return {"fold": fold, "seed": seed, **done}


def _command(arguments: Sequence[str]) -> str:
    """The command without the options that say where files lie on this machine."""
    places = ("--data", "--work", "--out")
    kept = [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if before not in places and argument.partition("=")[0] not in places
    ]
    return shlex.join(["python", "-m", "benchmarks.accuracy", *kept])


def _processor() -> str:
    """The processor's name with the instructions that decide how fast torch is on it."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    facts = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", "").split()
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return ", ".join([facts.get("model name", platform.machine()), *known])
