"""What errors of several trainings say: means with intervals over frames, spread over seeds.

An interval is the 2.5th to 97.5th percentile of a bootstrap. That of a figure is over the test
frames: frames are drawn with replacement, each with all its labels in all seeds. It says how far
another draw of such frames could move the figure. That of a ratio of two recipes is over frames,
which both share, and over the trainings of each, which they do not: where trainings differ more
than frames, frames alone would make a difference of chance look sure. The spread over seeds is the
standard deviation of the trainings' own means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000
METRICS: dict[str, Callable[[Floats], Any]] = {
    "mean": np.mean,
    "median": np.median,
    "rmse": lambda errors: np.sqrt(np.mean(errors**2)),
    "p95": lambda errors: np.percentile(errors, 95),
}


class Interval(NamedTuple):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Errors(NamedTuple):
    """Errors of all trainings of a recipe on one set.

    by_frame: `(frames, seeds, labels)` image px, NaN where a frame has fewer labels than others or
    a label is missing; frames: their ids with the fold.
    """

    by_frame: Floats
    frames: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]]) -> Errors:
        """From the runs of a result file; every fold must have the same seeds."""
        found: dict[str, dict[int, Floats]] = {}
        for run in runs:
            rows: dict[str, list[float]] = {}
            for name, errors in zip(run["frames"], run["errors"], strict=True):
                rows.setdefault(f"{run['fold']}/{name}", []).extend(
                    np.nan if error is None else error for error in errors
                )
            for name, errors in rows.items():
                found.setdefault(name, {})[run["seed"]] = np.asarray(errors)
        seeds = sorted({run["seed"] for run in runs})
        width = max(len(errors) for row in found.values() for errors in row.values())
        table = np.full((len(found), len(seeds), width), np.nan)
        for place, row in enumerate(found.values()):
            for column, seed in enumerate(seeds):
                table[place, column, : len(row[seed])] = row[seed]
        return cls(table, tuple(found))

    def of_frames(
        self,
        chosen: NDArray[np.intp] | slice = slice(None),
        seeds: NDArray[np.intp] | slice = slice(None),
    ) -> Floats:
        """All errors of some frames by some trainings, `(n,)`."""
        errors = self.by_frame[chosen][:, seeds].ravel()
        return errors[np.isfinite(errors)]


def measured(runs: Sequence[Mapping[str, Any]], radii: Sequence[float] = ()) -> dict[str, Interval]:
    """Every metric of METRICS, and the share of errors within each radius, with intervals."""
    errors = Errors.of(runs)
    own = dict(METRICS)
    for radius in radii:
        own[f"within {radius:g}"] = lambda found, limit=radius: np.mean(found <= limit)
    draws = [errors.of_frames(draw) for draw in _draws(len(errors.frames))]
    return {
        name: Interval(
            float(metric(errors.of_frames())),
            *map(float, np.percentile([metric(draw) for draw in draws], [2.5, 97.5])),
        )
        for name, metric in own.items()
    }


def spread_over_seeds(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard deviation of the mean error over seeds; None of a single one."""
    table = Errors.of(runs).by_frame
    means = np.nanmean(np.moveaxis(table, 1, 0).reshape(table.shape[1], -1), axis=1)
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


def ratio(
    new: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]], metric: str = "mean"
) -> Interval:
    """A metric of one recipe over that of another, on the same frames.

    Frames are drawn for both together, trainings for each.

    Raises:
        ValueError: the recipes were measured on other frames.
    """
    a, b, compute = Errors.of(new), Errors.of(old), METRICS[metric]
    if a.frames != b.frames:
        raise ValueError("the two were measured on other frames")
    rng, ratios = np.random.default_rng(1), []
    for frames in _draws(len(a.frames)):
        drawn = [one.of_frames(frames, _drawn(rng, one.by_frame.shape[1])) for one in (a, b)]
        ratios.append(compute(drawn[0]) / compute(drawn[1]))
    value = compute(a.of_frames()) / compute(b.of_frames())
    return Interval(float(value), *map(float, np.percentile(ratios, [2.5, 97.5])))


def _draws(count: int) -> list[NDArray[np.intp]]:
    rng = np.random.default_rng(0)
    return [_drawn(rng, count) for _ in range(DRAWS)]


def _drawn(rng: np.random.Generator, count: int) -> NDArray[np.intp]:
    return rng.integers(0, count, count)
