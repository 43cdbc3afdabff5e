"""Which frames are chosen: doubtful ones that differ, from all films, and some at even steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

EVEN = 0.2
"""Share of the frames that are chosen at even steps whatever their doubt: what the network is wrong
about and sure of shows there alone."""
APART = 0.25
"""Least distance of two chosen frames, as a share of the mean distance of as many even ones."""
MOST_APART = 1.0
"""Seconds beyond which it is not greater: the animal is elsewhere by then."""
LEAST_SHARE = 0.5
"""Least number of frames of a film, as a share of what an even division would give it."""
CANDIDATES = 4
"""Candidates for each frame to choose."""


@dataclass(frozen=True)
class Film:
    """What choosing needs to know of a film."""

    times: Array
    """(frames,) seconds, rising."""
    doubt: Array
    """(frames,)."""
    open: Flags
    """(frames,) whether a frame may be chosen: it can be decoded and is not labelled."""


def least_distance(times: Array, frames: float) -> float:
    """Seconds between two chosen frames of a film of which `frames` are chosen, at least."""
    length = float(times[-1] - times[0]) if len(times) > 1 else 0.0
    return min(MOST_APART, APART * length / max(frames, 1))


def even(films: Sequence[Film], count: int, seed: int) -> list[tuple[int, int]]:
    """(film, frame) of frames at even steps through all films, one after the other.

    seed: decides where in the first step they begin.
    """
    places = [(f, int(n)) for f, film in enumerate(films) for n in np.flatnonzero(film.open)]
    count = min(count, len(places))
    if not count:
        return []
    step = len(places) / count
    start = np.random.default_rng(seed).uniform(0, step)
    return [places[min(int(start + i * step), len(places) - 1)] for i in range(count)]


def candidates(
    films: Sequence[Film], count: int, taken: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """(film, frame) of the most doubtful frames, `CANDIDATES` for each of `count` to choose.

    In each film they are far enough apart from one another and from frames that are `taken`. Half
    of them are shared out evenly, so that each film has some to choose from.
    """
    share = count / len(films)
    found: list[tuple[bool, float, int, int]] = []
    for number, film in enumerate(films):
        distance = least_distance(film.times, share)
        blocked = ~film.open
        for frame in (frame for f, frame in taken if f == number):
            _block(blocked, film.times, frame, distance)
        kept = 0
        # Ties in the order of the film.
        for frame in np.argsort(-film.doubt, kind="stable").tolist():
            if kept == CANDIDATES * count:
                break
            if not blocked[frame]:
                _block(blocked, film.times, frame, distance)
                later = kept >= CANDIDATES * share / 2
                found.append((later, -float(film.doubt[frame]), number, frame))
                kept += 1
    return sorted((f, frame) for _, _, f, frame in sorted(found)[: CANDIDATES * count])


def _block(blocked: Flags, times: Array, frame: int, distance: float) -> None:
    """Mark the frames that are nearer to one than `distance`, s, and itself."""
    first = np.searchsorted(times, times[frame] - distance, side="right")
    last = np.searchsorted(times, times[frame] + distance, side="left")
    blocked[first:last] = True
    blocked[frame] = True


def pick(
    films: npt.NDArray[np.int64],
    doubt: Array,
    looks: Array,
    count: int,
    *,
    taken: Array,
    already: Mapping[int, int],
) -> list[int]:
    """Places of the candidates that are chosen, the best first.

    Each time that one is taken whose doubt, times how much it differs from what is chosen already,
    is greatest: a second picture of the same mistake teaches little. Films that would get less than
    their least share come first in the end.

    films: (n,) the film of each candidate. doubt: (n,). looks: (n, features) of their pictures.
    taken: (m, features) of pictures chosen before. already: film -> how many of these are its own.
    """
    count = min(count, len(films))
    kinds = sorted({*films.tolist()})
    total = count + sum(already.values())
    least = {k: math.floor(LEAST_SHARE * total / max(len(kinds), 1)) for k in kinds}
    have = {k: already.get(k, 0) for k in kinds}
    scale = float(np.median(pdist(looks))) if len(looks) > 1 else 1.0
    scale = scale or 1.0
    far = np.full(len(films), np.inf)
    if len(taken):
        far = cdist(looks, taken).min(axis=1)
    # Without any doubt, pictures alone decide.
    worth = doubt - doubt.min() + 0.1 * (np.ptp(doubt) or 1.0) if len(doubt) else doubt
    chosen: list[int] = []
    free = np.ones(len(films), bool)
    for step in range(count):
        allowed = free
        lacking = [k for k in kinds if have[k] < least[k] and (free & (films == k)).any()]
        if sum(least[k] - have[k] for k in lacking) >= count - step:
            allowed = free & np.isin(films, lacking)
        value = np.where(allowed, worth * np.minimum(far / scale, 1.0), -1.0)
        best = int(value.argmax())
        chosen.append(best)
        free[best] = False
        have[int(films[best])] += 1
        far = np.minimum(far, cdist(looks, looks[best : best + 1])[:, 0])
    return chosen
