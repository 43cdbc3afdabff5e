"""How far predictions are from labels: pixels per part, PCK, and OKS with AP and AR.

Everything is NumPy and in image px. An unlabelled keypoint (visibility 0, or NaN coordinates) is
NaN in `errors` and counts nowhere; a labelled one that was not predicted is infinitely far away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fasthg.errors import ConfigError

Floats = NDArray[np.float64]

# COCO's ladder of OKS thresholds and of recalls at which precision is read.
THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
_RECALLS: Floats = np.linspace(0.0, 1.0, 101)

UNLIKE_COCO = (
    "AP and AR are COCO's where each frame has one animal, which has a label and is no crowd. "
    "Otherwise a prediction counts for the animal whose box it was made in (COCO: for the best "
    "match in the frame); an animal without a label is left out with its prediction (COCO: a false "
    "positive, unless it lies within twice the animal's box); a crowd counts like an animal (COCO "
    "leaves it out)."
)
"""How `average_precision` differs from COCO's evaluation; shown where its figures are."""


def errors(predictions: ArrayLike, labels: ArrayLike, visibility: ArrayLike) -> Floats:
    """Distance between prediction and label of each keypoint.

    Args:
        predictions: (instances, parts, 2) x, y in image px; NaN where nothing was predicted.
        labels: (instances, parts, 2) x, y in image px; NaN where unlabelled.
        visibility: (instances, parts); 0 marks a keypoint as unlabelled.

    Returns:
        (instances, parts) image px; NaN where unlabelled, inf where only the prediction is missing.
    """
    predicted, true = np.asarray(predictions, float), np.asarray(labels, float)
    distance: Floats = np.hypot(*np.moveaxis(predicted - true, -1, 0))
    labelled = (np.asarray(visibility) > 0) & np.isfinite(true).all(axis=-1)
    missing = ~np.isfinite(predicted).all(axis=-1)
    return np.where(labelled, np.where(missing, np.inf, distance), np.nan)


@dataclass(frozen=True)
class Spread:
    """Distribution of errors, in the unit they were given in; NaN where there is none.

    Attributes:
        mean, median, p90, p95, rmse: over keypoints with both a label and a prediction.
        count: how many those are.
        missing: labelled keypoints without prediction; they enter none of the statistics.
    """

    mean: float
    median: float
    p90: float
    p95: float
    rmse: float
    count: int
    missing: int


@dataclass(frozen=True)
class Summary:
    """Spread over all keypoints and for each part by name, in the order of the parts."""

    overall: Spread
    parts: dict[str, Spread]


def spread(distances: ArrayLike) -> Spread:
    """Statistics of errors of any shape; percentiles interpolate linearly."""
    values = np.asarray(distances, float).ravel()
    missing = int(np.isposinf(values).sum())
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Spread(np.nan, np.nan, np.nan, np.nan, np.nan, 0, missing)
    median, p90, p95 = np.percentile(values, [50, 90, 95])
    return Spread(
        mean=float(values.mean()),
        median=float(median),
        p90=float(p90),
        p95=float(p95),
        rmse=float(np.sqrt(np.mean(values**2))),
        count=values.size,
        missing=missing,
    )


def summary(distances: ArrayLike, names: Sequence[str]) -> Summary:
    """Spread of errors overall and per part.

    Args:
        distances: (instances, parts) from `errors`; divide by pixels per cm for centimetres.
        names: name of each part.
    """
    values = np.asarray(distances, float)
    parts = {name: spread(values[:, index]) for index, name in enumerate(names)}
    return Summary(spread(values), parts)


def pck(distances: ArrayLike, radii: ArrayLike) -> Floats:
    """Share of labelled keypoints predicted within each radius (border included).

    Args:
        distances: (instances, parts) from `errors`.
        radii: (radii,) in the same unit.

    Returns:
        (radii, parts + 1): a column for each part, then all parts together; 0..1, NaN where nothing
        is labelled.
    """
    values, limits = np.asarray(distances, float), np.asarray(radii, float)
    labelled = (~np.isnan(values)).sum(axis=0)
    # NaN is within no radius.
    within = (values <= limits[:, None, None]).sum(axis=1)
    hits = np.column_stack([within, within.sum(axis=1)])
    totals = np.append(labelled, labelled.sum())
    return np.divide(hits, totals, out=np.full(hits.shape, np.nan), where=totals > 0)


def oks(distances: ArrayLike, sigmas: ArrayLike, area: ArrayLike) -> Floats:
    """Object keypoint similarity: mean over labelled parts of exp(-d^2 / (2 area (2 sigma)^2)).

    The formula is COCO's (cocodataset.org/#keypoints-eval). COCO and the published mouse sigmas use
    the area of the annotation; MARS divides by the area of the padded crop, which is more lenient.

    Args:
        distances: (instances, parts) image px, from `errors`.
        sigmas: (parts,) as a fraction of the root of the area, from `oks_sigmas`.
        area: (instances,) image px^2.

    Returns:
        (instances,) 0..1; NaN where no part is labelled or the area is not positive.
    """
    values, size = np.asarray(distances, float), np.asarray(area, float)
    size = np.where(size > 0, size, np.nan)
    scale = 2.0 * size[:, None] * (2.0 * np.asarray(sigmas, float)) ** 2
    similarity = np.exp(-np.square(values) / scale)
    labelled = ~np.isnan(values)
    count = labelled.sum(axis=1)
    total = np.where(labelled, similarity, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


@dataclass(frozen=True)
class Precision:
    """Average precision and recall, 0..1; NaN where no instance has a label.

    Attributes:
        ap, ar: mean over the thresholds 0.50:0.05:0.95.
        ap50, ap75: precision at one threshold.
        count: instances that entered.
    """

    ap: float
    ar: float
    ap50: float
    ap75: float
    count: int


def average_precision(similarity: ArrayLike, scores: ArrayLike) -> Precision:
    """AP and AR over OKS thresholds, with one prediction for each labelled instance.

    Boxes are given, so each prediction belongs to its own instance and none is matched to another.
    Precision is made non-increasing and read at 101 recalls, as in COCO. UNLIKE_COCO says where the
    two differ.

    Args:
        similarity: (instances,) from `oks`; NaN instances are left out.
        scores: (instances,) confidence; a higher one comes first, and a NaN last.
    """
    values, confidence = np.asarray(similarity, float), np.asarray(scores, float)
    judged = np.isfinite(values)
    values, confidence = values[judged], confidence[judged]
    if values.size == 0:
        return Precision(np.nan, np.nan, np.nan, np.nan, 0)
    values = values[np.argsort(-confidence, kind="stable")]
    found = np.cumsum(values >= THRESHOLDS[:, None], axis=1)
    precision = found / np.arange(1, values.size + 1)
    recall = found / values.size
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # Beyond the greatest recall reached, precision is 0.
    envelope = np.pad(envelope, ((0, 0), (0, 1)))
    at = np.stack([np.searchsorted(row, _RECALLS, side="left") for row in recall])
    averages = np.take_along_axis(envelope, at, axis=1).mean(axis=1)
    return Precision(
        ap=float(averages.mean()),
        ar=float(recall[:, -1].mean()),
        ap50=float(averages[0]),
        ap75=float(averages[5]),
        count=values.size,
    )


def precision_by_area(
    distances: ArrayLike, sigmas: ArrayLike, scores: ArrayLike, areas: Mapping[str, ArrayLike]
) -> dict[str, Precision]:
    """`average_precision` under several area rules, by the label of each.

    Args:
        distances, sigmas, scores: as in `oks` and `average_precision`.
        areas: label such as "annotation" or "padded crop" -> (instances,) image px^2.
    """
    return {
        label: average_precision(oks(distances, sigmas, area), scores)
        for label, area in areas.items()
    }


_UNIFORM = {"narrow": 0.025, "moderate": 0.05, "wide": 0.1, "ultrawide": 0.15}

# Spread of human annotators, measured on MARS's crowd-sourced labels.
_MOUSE = {
    "mouse_top": {
        "nose": 0.039,
        "ear": 0.045,
        "neck": 0.042,
        "side": 0.067,
        "tail base": 0.044,
        "mid tail": 0.067,
        "tail end": 0.084,
    },
    "mouse_front": {
        "nose": 0.087,
        "ear": 0.087,
        "neck": 0.093,
        "side": 0.125,
        "tail base": 0.086,
        "mid tail": 0.108,
        "tail end": 0.145,
        "paw": 0.125,
    },
}

# Names without sides, spaces and punctuation, as projects spell them.
_ALIASES = {
    "nose": ("nose", "snout", "nosetip"),
    "ear": ("ear",),
    "neck": ("neck", "topofneck"),
    "side": ("side", "sidebody", "bodyside", "rearknee", "knee"),
    "tail base": ("tailbase", "baseoftail"),
    "mid tail": ("midtail", "tailmid", "middletail", "middleoftail"),
    "tail end": ("tailend", "endoftail", "tailtip", "tipoftail"),
    "paw": ("paw", "frontpaw", "forepaw", "rearpaw", "hindpaw"),
}
_PLAIN = {alias: part for part, aliases in _ALIASES.items() for alias in aliases}


def oks_sigmas(names: Sequence[str], kind: str | Sequence[float]) -> Floats:
    """Sigma of each part, as a fraction of the root of the area.

    Args:
        names: names of the parts; `mouse_top` and `mouse_front` look them up without regard to
            case, punctuation and side ("right rear knee" is a side, "base of tail" the tail base).
        kind: a value of OKS_SIGMAS: the name of a set, or one number for each part.

    Raises:
        ConfigError: the set is unknown or lacks a part, or the numbers do not match the parts.
    """
    if not isinstance(kind, str):
        if len(kind) != len(names):
            raise ConfigError(
                f"OKS_SIGMAS: {len(kind)} numbers for {len(names)} parts; give one for each part"
            )
        return np.asarray(kind, float)
    if kind in _UNIFORM:
        return np.full(len(names), _UNIFORM[kind])
    if kind not in _MOUSE:
        known = ", ".join([*_MOUSE, *_UNIFORM])
        raise ConfigError(f"OKS_SIGMAS: unknown set {kind!r}; use one of {known}")
    table = _MOUSE[kind]
    unknown = [name for name in names if plain_part(name) not in table]
    if unknown:
        raise ConfigError(
            f"OKS_SIGMAS: {kind} has no sigma for {', '.join(map(repr, unknown))}; "
            "use narrow, or a list with one number for each part"
        )
    return np.array([table[plain_part(name)] for name in names])


def plain_part(name: str) -> str:
    """The part in the sigma tables that a name means, such as "ear"; empty if there is none."""
    words = re.sub(r"left|right|\b[lr](?=[\s_.-])|(?<=[\s_.-])[lr]\b", "", name.lower())
    return _PLAIN.get(re.sub(r"[^a-z]", "", words), "")
