"""What evaluations left of several runs, which of them are seeds of one, and their differences."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasthg import metrics
from fasthg.errors import ConfigError, DataError
from fasthg.report import calibration
from fasthg.report.accuracy import LEVEL, RESAMPLES, SEED
from fasthg.report.calibration import Floats
from fasthg.runs.listing import RunSummary, differences, read_keys, summarise
from fasthg.runs.run_folder import RunFolder

_SAME_PX = 2e-3
"""Labels are written with three digits: a difference of more is another label."""


@dataclass(frozen=True)
class MeasuredRun:
    """One run with its evaluation.

    Attributes:
        run, name: the folder, and what it is called on the page.
        summary: as `fasthg runs` lists it.
        log: the rows of `metrics.jsonl`.
        parts: names of its parts.
        frames: (instances,) what each was labelled in, the same in runs on the same data.
        animals: (instances,) which animal of its frame.
        truth: (instances, parts, 2) labels, x y in image px; NaN where there is none.
        distances: (instances, parts) errors, image px; NaN without label, inf without prediction.
    """

    run: RunFolder
    name: str
    summary: RunSummary
    log: Sequence[Mapping[str, Any]]
    parts: tuple[str, ...]
    frames: tuple[str, ...]
    animals: tuple[int, ...]
    truth: Floats
    distances: Floats

    @property
    def keys(self) -> Mapping[str, Any]:
        """The configuration by dotted name."""
        return self.summary.keys or {}

    def same_data(self, other: MeasuredRun) -> bool:
        """Whether both were measured on the same labels of the same frames, in the same order."""
        if (self.parts, self.frames, self.animals) != (other.parts, other.frames, other.animals):
            return False
        return np.allclose(self.truth, other.truth, rtol=0, atol=_SAME_PX, equal_nan=True)


@dataclass(frozen=True)
class Group:
    """Runs that differ at most in RANDOM_SEED and were measured on the same data; often one."""

    runs: tuple[MeasuredRun, ...]

    @property
    def name(self) -> str:
        """Of the first, with the number of seeds where there are several."""
        first, number = self.runs[0].name, len(self.runs)
        seeds = {run.keys.get("RANDOM_SEED") for run in self.runs}
        kind = "seeds" if len(seeds) == number else "runs"
        return first if number == 1 else f"{first} ({number} {kind})"

    def errors(self, part: str | None) -> tuple[float, float, float]:
        """Mean over the seeds, least and greatest mean error of a part, or of all; image px."""
        found = np.array([spread(run, part).mean for run in self.runs])
        return float(found.mean()), float(found.min()), float(found.max())

    def medians(self, part: str | None) -> float:
        """Mean over the seeds of the median error of a part, or of all; image px."""
        return float(np.mean([spread(run, part).median for run in self.runs]))

    @cached_property
    def interval(self) -> Floats:
        """(2, parts + 1) interval of the means of one run, by frame; least to greatest of seeds."""
        if len(self.runs) == 1:
            run = self.runs[0]
            return interval(run.distances, run.frames)
        ends = [self.errors(part)[1:] for part in (*self.runs[0].parts, None)]
        return np.array(ends).T

    def by_label(self) -> Floats:
        """(instances, parts) errors, mean over the seeds; NaN where one has none."""
        distances = np.array([run.distances for run in self.runs])
        return np.where(np.isfinite(distances), distances, np.nan).mean(axis=0)


def spread(run: MeasuredRun, part: str | None) -> metrics.Spread:
    """Errors of one part, or of all; no label where the run has no such part."""
    if part is None:
        return metrics.spread(run.distances)
    if part not in run.parts:
        return metrics.spread(np.zeros(0))
    return metrics.spread(run.distances[:, run.parts.index(part)])


def interval(distances: Floats, frames: Sequence[str]) -> Floats:
    """(2, parts + 1) ends of the intervals of mean errors, or of mean differences."""
    numbers = np.unique(np.array(frames, dtype=str), return_inverse=True)[1]
    return calibration.bootstrap_mean(
        distances, numbers, resamples=RESAMPLES, seed=SEED, level=LEVEL
    )


@dataclass(frozen=True)
class PairedDifference:
    """Mean error of one group less that of another, over the labels that both predicted.

    Attributes:
        mean: (parts + 1,) image px, each part and all; below 0 the first group is the better.
        ends: (2, parts + 1) interval, resampled by frame.
        labels: of all parts.
    """

    mean: Floats
    ends: Floats
    labels: int


def paired(group: Group, base: Group) -> PairedDifference | None:
    """The difference of two groups; None where their test data are not the same."""
    if not group.runs[0].same_data(base.runs[0]):
        return None
    difference = group.by_label() - base.by_label()
    known: NDArray[np.bool_] = np.isfinite(difference)
    counts = known.sum(axis=0)
    sums = np.where(known, difference, 0.0).sum(axis=0)
    sums, counts = np.r_[sums, sums.sum()], np.r_[counts, counts.sum()]
    mean = np.full(len(sums), np.nan)
    np.divide(sums, counts, out=mean, where=counts > 0)
    return PairedDifference(mean, interval(difference, base.runs[0].frames), int(counts[-1]))


def groups(runs: Sequence[MeasuredRun]) -> list[Group]:
    """The runs, those that differ at most in RANDOM_SEED together where their data are the same."""
    found: list[list[MeasuredRun]] = []
    for run in runs:
        for members in found:
            if _trained_alike(run, members[0]) and run.same_data(members[0]):
                members.append(run)
                break
        else:
            found.append([run])
    return [Group(tuple(members)) for members in found]


_NOT_THE_RECIPE = ("RANDOM_SEED", "NUM_INPUT_THREADS", "LOADER", "DEVICE")


def _trained_alike(one: MeasuredRun, other: MeasuredRun) -> bool:
    differing, _ = differences([one.keys, other.keys])
    # Where the data lie says nothing of them: `same_data` compares the labels.
    return all(key in _NOT_THE_RECIPE or key.startswith("DATA.") for key in differing)


def read_runs(paths: Sequence[Path]) -> tuple[str, list[MeasuredRun]]:
    """The split that all runs were evaluated on, test before val, and the runs.

    Raises:
        ConfigError: a folder is given twice.
        DataError: one is no run folder, is damaged, or was not evaluated.
    """
    runs = [RunFolder.open(path) for path in paths]
    twice = [str(p) for p, n in Counter(run.path.resolve() for run in runs).items() if n > 1]
    if twice:
        raise ConfigError(f"{twice[0]}: given twice; give each run once")
    split = _common_split(runs)
    names = Counter(run.path.resolve().name for run in runs)
    return split, [_read(run, split, alone=names[run.path.resolve().name] == 1) for run in runs]


def _common_split(runs: Sequence[RunFolder]) -> str:
    missing: dict[str, RunFolder] = {}
    for split in ("test", "val"):
        for run in runs:
            if not _predictions(run, split).is_file():
                missing.setdefault(split, run)
        if split not in missing:
            return split
    # A run without test data can be evaluated on val alone, and then all have to be.
    split = "test" if (read_keys(missing["test"]) or {}).get("DATA.TEST") else "val"
    run = missing[split]
    raise DataError(
        f"{run.path}: no {_predictions(run, split).name} in eval/{split}; "
        f"run: fasthg eval {run.path} --split {split}"
    )


def _predictions(run: RunFolder, split: str) -> Path:
    return run.eval_folder(split) / "predictions.json"


def _read(run: RunFolder, split: str, *, alone: bool) -> MeasuredRun:
    """alone: no other run has a folder of this name."""
    summary = summarise(run.path)
    if summary.problem is not None:
        raise DataError(f"{run.path}: {summary.problem}; repair it, or leave the run out")
    path = _predictions(run, split)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        parts, rows = tuple(document["parts"]), document["instances"]
        frames = _told_apart([(str(row["image_id"]), int(row["object"])) for row in rows])
        shape = (len(rows), len(parts), 2)
        predicted, truth = (
            np.array([row[key] for row in rows], float).reshape(shape)
            for key in ("keypoints", "truth")
        )
        visibility = np.array([row["visibility"] for row in rows], int).reshape(shape[:2])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged; run: fasthg eval {run.path} --split {split}"
        ) from error
    return MeasuredRun(
        run=run,
        name=run.path.resolve().name if alone else str(run.path),
        summary=summary,
        log=[row for row in run.logged() if isinstance(row, dict) and "step" in row],
        parts=parts,
        frames=frames,
        animals=tuple(int(row["object"]) for row in rows),
        truth=truth,
        distances=metrics.errors(predicted, truth, visibility),
    )


def _told_apart(rows: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """A name for the frame of each row; frames of the same id follow each other, as a new one
    begins where an animal's number comes again."""
    found, times, seen = [], Counter[str](), set[tuple[str, int]]()
    for image, animal in rows:
        if (image, animal) in seen:
            times[image] += 1
            seen = {each for each in seen if each[0] != image}
        seen.add((image, animal))
        found.append(f"{image} ({times[image]})" if times[image] else image)
    return tuple(found)
