"""Distances between workers, bands of PCK, outliers, and the sigmas of OKS that follow.

As MARS does, each worker is compared with the median of the others, by coordinate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from fasthg import metrics
from fasthg.data.agreement.crowd import Crowd, Floats, Ints, Repair, areas, repair, without
from fasthg.data.convert.crowd import consensus
from fasthg.errors import DataError

OUTLIER_MADS = 3.0
OUTLIER_RATIO = 1.5
OUTLIER_LABELS = 20
OUTLIER_RULE = (
    f"median error more than {OUTLIER_MADS:g} scaled MADs above the median of the workers' "
    f"medians, and more than {OUTLIER_RATIO:g} times it; workers with fewer than "
    f"{OUTLIER_LABELS} labels are not judged"
)
_NORMAL_MAD = 1.4826  # standard deviation of a normal distribution whose MAD is 1
_POINTS = 80  # of a PCK curve
_ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True)
class Worker:
    """One worker. labels: compared with others; median: of the distances, image px, NaN without
    labels; swaps of voted: pairs exchanged by repair, of those on which others voted."""

    name: str
    labels: int
    median: float
    swaps: int
    voted: int
    outlier: bool


@dataclass(frozen=True)
class Agreement:
    """What workers agree on, for P parts.

    error, error_cm: distances of a worker to the median of the others, in image px and cm (None
    without a scale). single (P,): labels left out because nobody else labelled the part there.
    radii (R,) image px; bands (3, R, P + 1): the share of labels within a radius, by part and over
    all, of the worst, the middle and the best worker of each animal and part: min, median, max.
    sigmas, robust (P,): see `oks_sigmas`; sized: animals with an area, of `animals`.
    """

    source: str
    parts: tuple[str, ...]
    animals: int
    sized: int
    error: metrics.Summary
    error_cm: metrics.Summary | None
    single: Ints
    radii: Floats
    bands: Floats
    sigmas: Floats
    robust: Floats
    workers: tuple[Worker, ...]
    repairs: tuple[Repair, ...]

    @property
    def outliers(self) -> tuple[str, ...]:
        """Names of the workers that OUTLIER_RULE finds."""
        return tuple(worker.name for worker in self.workers if worker.outlier)

    def config_line(self) -> str | None:
        """The sigmas as a line of a configuration; None unless each part has one above 0."""
        if not (np.isfinite(self.sigmas) & (self.sigmas > 0)).all():
            return None
        return f"OKS_SIGMAS: [{', '.join(f'{sigma:.4f}' for sigma in self.sigmas)}]"


def measure(crowd: Crowd, pixels_per_cm: float | None = None) -> Agreement:
    """Repair swaps, then compare everybody with the others.

    Raises DataError where no part of any animal has labels of two workers.
    """
    crowd, repairs, swapped, voted = repair(crowd)
    distance, others = against_others(crowd.labels)
    if not np.isfinite(distance).any():
        raise DataError(
            f"{crowd.source}: no part was labelled by two workers in the same frame; "
            "agreement needs the labels of several workers"
        )
    workers = [
        _worker(name, distance[crowd.who == row], int(swapped[row]), int(voted[row]))
        for row, name in enumerate(crowd.workers)
    ]
    outliers = _outliers(workers)
    area = areas(crowd)
    good = against_others(without(crowd, outliers).labels)
    sigmas, robust = oks_sigmas(*good, area)
    by_label = distance.reshape(-1, len(crowd.parts))
    radii = np.linspace(0, _round_up(float(np.nanpercentile(distance, 98))), _POINTS + 1)
    return Agreement(
        source=crowd.source,
        parts=crowd.parts,
        animals=len(crowd.frames),
        sized=int(np.isfinite(area).sum()),
        error=metrics.summary(by_label, crowd.parts),
        error_cm=metrics.summary(by_label / pixels_per_cm, crowd.parts) if pixels_per_cm else None,
        single=(np.isfinite(crowd.labels).all(axis=3) & (others == 0)).sum(axis=(0, 1)),
        radii=radii,
        bands=_bands(distance, radii),
        sigmas=sigmas,
        robust=robust,
        workers=tuple(
            replace(worker, outlier=row in outliers) for row, worker in enumerate(workers)
        ),
        repairs=tuple(repairs),
    )


def against_others(labels: Floats) -> tuple[Floats, Ints]:
    """The distance of each worker to the median of the others.

    labels: (animals, workers, parts, 2) image px, NaN where left out. Returns (animals, workers,
    parts) px, NaN where the worker or everybody else left the part out, and in the same shape how
    many others labelled it.
    """
    labelled = np.asarray(np.isfinite(labels).all(axis=3))
    by_worker = np.moveaxis(np.where(labelled[..., None], labels, np.nan), 1, 0)
    distance = np.full(by_worker.shape[:3], np.nan)
    for worker, mine in enumerate(by_worker):
        rest = np.delete(by_worker, worker, axis=0)
        if len(rest):
            distance[worker] = np.hypot(*np.moveaxis(mine - consensus(rest), -1, 0))
    others = labelled.sum(axis=1, keepdims=True) - labelled
    return np.moveaxis(distance, 0, 1), others


def oks_sigmas(distance: Floats, others: Ints, area: Floats) -> tuple[Floats, Floats]:
    """The spread of a worker about the truth, as OKS wants it.

    COCO's definition (cocodataset.org/#keypoints-eval) is sigma² = E[d² / s²] over labels, with d
    the distance and s² the object's area, and OKS then uses k = 2 sigma. Here d is the distance to
    the median of m others, which has an error of its own: with normal errors E[d²] is 1 + v(m)
    times what it would be to the truth, v from `median_variance`. It is divided out.

    distance, others: (animals, workers, parts) of `against_others`; area: (animals,) image px².
    Returns twice (parts,), NaN where there is nothing to measure: sigma, and a robust one from the
    median (d² of normal errors is exponential, so its median is ln 2 of its mean). The first far
    above the second tells of gross mistakes among the labels.
    """
    excess = np.array([0.0, *map(median_variance, range(1, int(others.max(initial=0)) + 1))])
    share = distance**2 / (area[:, None, None] * (1 + excess[others]))
    sigmas = np.full((2, distance.shape[2]), np.nan)
    for part in range(distance.shape[2]):
        values = share[..., part][np.isfinite(share[..., part])]
        if values.size:
            sigmas[:, part] = np.sqrt([values.mean(), np.median(values) / math.log(2)])
    return sigmas[0], sigmas[1]


@lru_cache(maxsize=256)
def median_variance(count: int) -> float:
    """Variance of the median of `count` standard normal values: 1, 0.5, 0.449, 0.298, 0.287, ...

    By quadrature of the density of the middle order statistic, or of the two that an even number
    averages (David and Nagaraja, "Order Statistics", 2003, chapter 2).
    """
    below, odd = (count - 1) // 2, count % 2 == 1
    middle = np.linspace(-8, 8, 401)[:, None]
    # An even number's two middle values lie `half` below and above their mean.
    half = np.zeros((1, 1)) if odd else np.linspace(0, 6, 301)[None]
    low, high = middle - half, middle + half
    log = np.log(np.maximum(_normal_cdf(low) * _normal_cdf(-high), 1e-300)) * below
    weight = np.exp(log - (low**2 if odd else low**2 + high**2) / 2)
    if not odd:
        weight[:, 0] /= 2
    return float((middle**2 * weight).sum() / weight.sum())


def _normal_cdf(x: Floats) -> Floats:
    return np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x.ravel()]).reshape(x.shape)


def _worker(name: str, distance: Floats, swaps: int, voted: int) -> Worker:
    values = distance[np.isfinite(distance)]
    median = float(np.median(values)) if values.size else math.nan
    return Worker(name, values.size, median, swaps, voted, outlier=False)


def _outliers(workers: list[Worker]) -> list[int]:
    """Rows of the workers that OUTLIER_RULE finds."""
    judged = [row for row, worker in enumerate(workers) if worker.labels >= OUTLIER_LABELS]
    if len(judged) < 3:
        return []
    medians = np.array([workers[row].median for row in judged])
    usual = float(np.median(medians))
    mad = _NORMAL_MAD * float(np.median(np.abs(medians - usual)))
    limit = max(usual + OUTLIER_MADS * mad, OUTLIER_RATIO * usual)
    return [row for row, median in zip(judged, medians, strict=True) if median > limit]


def _bands(distance: Floats, radii: Floats) -> Floats:
    """(3, radii, parts + 1): PCK of the worst, the middle and the best worker of each label."""
    by_worker = np.moveaxis(distance, 1, 0)
    ranked = (np.fmax.reduce(by_worker), consensus(by_worker), np.fmin.reduce(by_worker))
    return np.stack([metrics.pck(distances, radii) for distances in ranked])


def _round_up(value: float) -> float:
    """The next round number above, at least 1."""
    scale = 10.0 ** math.floor(math.log10(max(value, 1.0)))
    return next(scale * step for step in _ROUND if scale * step >= max(value, 1.0))
