"""The figures of an Agreement as tables and notes, for a terminal and for a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fasthg.data.agreement.measure import OUTLIER_RULE, Agreement
from fasthg.html import Fixed
from fasthg.metrics import Summary

_SPREAD = ("mean", "median", "p90", "p95", "rmse")


@dataclass(frozen=True)
class Table:
    """title above it, names of the columns, rows of text and numbers, notes below it; last a line
    for a configuration."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()
    line: str | None = None


def tables(agreement: Agreement) -> list[Table]:
    """Errors, bands, workers, repairs and, last, the sigmas with their line for a config."""
    found = [_errors(agreement, agreement.error, "px")]
    if agreement.error_cm is not None:
        found.append(_errors(agreement, agreement.error_cm, "cm"))
    return [*found, _bands(agreement), _workers(agreement), _repairs(agreement), _sigmas(agreement)]


def _errors(agreement: Agreement, summary: Summary, unit: str) -> Table:
    digits = 2 if unit == "px" else 3
    rows = [
        [name, *(Fixed(getattr(spread, key), digits) for key in _SPREAD), spread.count, left_out]
        for (name, spread), left_out in zip(
            [*summary.parts.items(), ("all", summary.overall)],
            [*agreement.single.tolist(), int(agreement.single.sum())],
            strict=True,
        )
    ]
    return Table(
        f"Distance of a worker to the median of the others, {unit}",
        ("part", *_SPREAD, "labels", "left out"),
        rows,
        ["left out: labels of parts that nobody else labelled in that frame"],
    )


def _bands(agreement: Agreement) -> Table:
    last = len(agreement.radii) - 1
    chosen = [last // 8, last // 4, last // 2, last]
    rows = [
        [
            name,
            *(" / ".join(f"{share:.0%}" for share in agreement.bands[:, k, part]) for k in chosen),
        ]
        for part, name in enumerate([*agreement.parts, "all"])
    ]
    return Table(
        "Labels within a radius of the median of the others: worst / middle / best worker",
        ("part", *(f"{agreement.radii[k]:g} px" for k in chosen)),
        [[cell.replace("nan%", "-") for cell in row] for row in rows],
        ["worst, middle and best are taken anew among the workers of each label"],
    )


def _sigmas(agreement: Agreement) -> Table:
    line = agreement.config_line()
    notes = [
        "sigma² = E[d² / s²] as COCO defines it (cocodataset.org/#keypoints-eval; OKS uses "
        "k = 2 sigma); d: distance to the median of the other workers, s²: area of the box",
        "d² is divided by 1 + v, v being the variance of a median of m normal values: 4 others "
        "0.298, 2 others 0.5, 1 other 1. Workers named as outliers are left out",
        "robust: from the median of d² / s²; sigma far above it tells of gross mistakes",
    ]
    if agreement.sized < agreement.animals:
        notes.append(
            f"{agreement.animals - agreement.sized} of {agreement.animals} animals are left out: "
            "no image, whose size the box needs, or fewer than two parts"
        )
    if line is None:
        notes.append("no OKS_SIGMAS: a part has no labels to measure it by, or no spread")
    rows = [
        [name, Fixed(sigma, 4), Fixed(robust, 4)]
        for name, sigma, robust in zip(
            agreement.parts, agreement.sigmas, agreement.robust, strict=True
        )
    ]
    return Table("OKS sigmas", ("part", "sigma", "robust"), rows, notes, line)


def _workers(agreement: Agreement) -> Table:
    rows = [
        [
            worker.name,
            worker.labels,
            Fixed(worker.median),
            f"{worker.swaps} of {worker.voted}",
            Fixed(100 * worker.swaps / worker.voted if worker.voted else math.nan, 1),
            "outlier" if worker.outlier else "",
        ]
        for worker in agreement.workers
    ]
    named = ", ".join(agreement.outliers) or "none"
    return Table(
        "Workers",
        ("worker", "labels", "median error, px", "swaps repaired", "%", ""),
        rows,
        [f"outliers: {named} ({OUTLIER_RULE})"],
    )


def _repairs(agreement: Agreement) -> Table:
    return Table(
        f"Left and right exchanged: {len(agreement.repairs)}",
        ("frame", "worker", "left", "right"),
        [list(asdict(repair).values()) for repair in agreement.repairs],
        ["a pair is judged where three or more workers labelled both of its parts"],
    )


def as_dict(agreement: Agreement) -> dict[str, Any]:
    """Everything for JSON; keys of parts by name, the last curve of `bands` over all parts."""
    by_part = dict.fromkeys(agreement.parts)
    curves = zip((*agreement.parts, "all"), agreement.bands.transpose(2, 0, 1), strict=True)
    return {
        "source": agreement.source,
        "animals": agreement.animals,
        "error_px": asdict(agreement.error),
        "error_cm": None if agreement.error_cm is None else asdict(agreement.error_cm),
        "left_out": dict(zip(by_part, agreement.single.tolist(), strict=True)),
        "pck": {
            "radii_px": agreement.radii,
            "bands": {
                name: dict(zip(("min", "median", "max"), curve, strict=True))
                for name, curve in curves
            },
        },
        "oks": {
            "animals_with_area": agreement.sized,
            "sigmas": dict(zip(by_part, agreement.sigmas.tolist(), strict=True)),
            "robust": dict(zip(by_part, agreement.robust.tolist(), strict=True)),
            "config": agreement.config_line(),
        },
        "workers": [asdict(worker) for worker in agreement.workers],
        "outlier_rule": OUTLIER_RULE,
        "repairs": [asdict(repair) for repair in agreement.repairs],
    }
