"""After-treatment of a film's trajectories: unsure points left out, gaps filled, then smoothed.

The order is that of the package movement (filter_by_confidence, interpolate_over_time, then
rolling_filter or savgol_filter), whose steps these are; DeepLabCut's filterpredictions is
`median:5` alone. Each coordinate of each part of each animal is a series of its own. Nothing is
smoothed across a gap: what lies between two gaps is filtered by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter
from scipy.signal import savgol_filter

from fasthg.errors import ConfigError
from fasthg.inference.video.row_store import Rows

Series = npt.NDArray[np.float64]
# Steps in time that differ by more than this share of the usual one are named.
_IRREGULAR = 0.1
# Frames of the widest window.
_WIDEST = 9999


@dataclass(frozen=True)
class Filter:
    """What is done to the rows of a film; nothing by default."""

    score: float = 0.0
    """Points of a lower score are left out."""
    fill: int = 0
    """Gaps of at most so many frames between two points are filled, linearly in time."""
    method: str | None = None
    """median or savgol; None: not smoothed."""
    window: int = 5
    """Frames, an odd number."""
    order: int = 2
    """Of savgol's polynomial, less than the window."""

    @classmethod
    def parse(cls, method: str | None, score: float | None, fill: int | None) -> Filter | None:
        """Of the options --filter, --filter-score and --fill; None where none is given.

        method: `median[:WINDOW]` or `savgol[:WINDOW[:ORDER]]`, windows in frames.

        Raises:
            ConfigError: `method` is no filter, or its numbers do not fit.
        """
        if method is None and score is None and fill is None:
            return None
        plain = cls(score or 0.0, fill or 0)
        if method is None:
            return plain
        name, *numbers = method.split(":")
        most = {"median": 1, "savgol": 2}.get(name)
        if most is None or len(numbers) > most or not all(each.isdecimal() for each in numbers):
            raise ConfigError(f"--filter {method}: give median:5 or savgol:7:2 (window, order)")
        stock = {"median": (5, 2), "savgol": (7, 2)}[name]
        window, order = (*map(int, numbers), *stock[len(numbers) :])
        if window % 2 == 0 or not 3 <= window <= _WIDEST:
            raise ConfigError(
                f"--filter {method}: a window is 3, 5, 7 or another odd number up to {_WIDEST}"
            )
        if name == "savgol" and order >= window:
            raise ConfigError(f"--filter {method}: the order is less than the window, {window}")
        return replace(plain, method=name, window=window, order=order)

    def __str__(self) -> str:
        own = {"median": f"median:{self.window}", "savgol": f"savgol:{self.window}:{self.order}"}
        steps = [
            f"score {self.score:g}" if self.score else "",
            f"fill {self.fill}" if self.fill else "",
            own.get(self.method or "", ""),
        ]
        return ", ".join(step for step in steps if step)


def filtered(rows: Rows, settings: Filter) -> Rows:
    """Rows of a film after the steps of `settings`; the given ones stay as they are.

    Keypoints that are left out are NaN, with their score. Filled ones have score 0: nothing was
    seen there. Others keep their score, smoothed or not. Boxes are filled, not smoothed.
    """
    keypoints, scores = rows.keypoints.copy(), rows.scores.copy()
    with np.errstate(invalid="ignore"):
        keypoints[scores < settings.score] = np.nan
    seen = np.isfinite(keypoints).all(axis=3)
    times = rows.times
    if not (np.diff(times) > 0).all():  # unknown, or two frames at one time
        times = np.arange(len(rows), dtype=np.float64)
    for series in _series(keypoints):
        series[:] = fill_gaps(series, times, settings.fill)
    boxes = rows.boxes.copy()
    for series in boxes.reshape(len(boxes), -1).T:
        series[:] = fill_gaps(series, times, settings.fill)
    scores[np.isfinite(keypoints).all(axis=3) & ~seen] = 0
    smooth = _smoother(settings)
    if smooth is not None:
        for series in _series(keypoints):
            series[:] = smooth_pieces(series, smooth)
    return replace(rows, keypoints=keypoints, scores=scores, boxes=boxes)


def irregular(times: Series) -> list[str]:
    """One note where the frames of a film (times in s) do not follow each other evenly, as windows
    in frames assume; none where they do, or where times are unknown."""
    steps = np.diff(times)
    if not len(steps) or not np.isfinite(steps).all() or (usual := float(np.median(steps))) <= 0:
        return []
    count = int((np.abs(steps - usual) > _IRREGULAR * usual).sum())
    if not count:
        return []
    return [
        f"{count} of {len(steps)} steps between frames are not the usual {1000 * usual:.1f} ms; "
        "--filter smooths over frames, whatever their times"
    ]


def fill_gaps(series: Series, times: Series, most: int) -> Series:
    """(frames,) with the gaps of NaN of at most `most` frames between two values filled, linearly
    in `times` (frames,), which rise. Gaps at the beginning and the end stay, and longer ones."""
    known = np.flatnonzero(np.isfinite(series))
    filled = series.copy()
    if len(known):
        lengths = np.diff(known) - 1
        for gap in np.flatnonzero((lengths > 0) & (lengths <= most)):
            inside = np.arange(known[gap] + 1, known[gap + 1])
            filled[inside] = np.interp(times[inside], times[known], series[known])
    return filled


def smooth_pieces(series: Series, smooth: Callable[[Series], Series]) -> Series:
    """(frames,) with each piece between gaps of NaN smoothed by itself."""
    done = series.copy()
    there = np.isfinite(series)
    edges = np.flatnonzero(np.diff(there, prepend=False, append=False))
    for begin, end in edges.reshape(-1, 2):
        done[begin:end] = smooth(series[begin:end])
    return done


def _smoother(settings: Filter) -> Callable[[Series], Series] | None:
    if settings.method == "median":
        # Beyond its ends a piece goes on with its last value, as ends of a walk would.
        return lambda piece: median_filter(piece, settings.window, mode="nearest")
    if settings.method == "savgol":
        # A piece shorter than the window has too few values for the polynomial's fit, and stays.
        return lambda piece: (
            savgol_filter(piece, settings.window, settings.order, mode="interp")
            if len(piece) >= settings.window
            else piece
        )
    return None


def _series(keypoints: npt.NDArray[np.float64]) -> Iterator[Series]:
    """Views (frames,) of keypoints (frames, animals, parts, 2), one a coordinate."""
    yield from keypoints.reshape(len(keypoints), -1).T
