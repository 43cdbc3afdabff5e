"""The report's sections on errors, PCK, OKS, confidence and sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fasthg import html, metrics
from fasthg.config import Config
from fasthg.html import Fixed
from fasthg.report import calibration, figures
from fasthg.report.calibration import Floats
from fasthg.report.chart import charts
from fasthg.report.evaluate import Evaluation, rows_by_animal
from fasthg.report.human import Human, people
from fasthg.words import counted

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
LEAST_LABELS, LEAST_ANIMALS = 100, 30
"""From which the charts of confidence, and the histograms of OKS, are more than noise."""
_SPREAD = ("median", "p90", "p95", "rmse")


@dataclass(frozen=True)
class Known:
    """An evaluation and what several sections need of it. distances (instances, parts) image px;
    ends (2, parts + 1) of the intervals of the means; scale: image px in a cm."""

    evaluation: Evaluation
    names: tuple[str, ...]
    distances: Floats
    ends: Floats
    scale: float | None

    @classmethod
    def of(cls, config: Config, evaluation: Evaluation) -> Known:
        """Draws the resamples."""
        distances = evaluation.predictions.errors()
        frames = evaluation.index.record[evaluation.predictions.instance]
        ends = calibration.bootstrap_mean(
            distances, frames, resamples=RESAMPLES, seed=SEED, level=LEVEL
        )
        names = tuple(config.PARTS.NAMES)
        return cls(evaluation, names, distances, ends, config.PIXELS_PER_CM)

    @property
    def metrics(self) -> dict[str, Any]:
        """As in metrics.json."""
        return self.evaluation.metrics

    @property
    def frames(self) -> int:
        """Frames with a prediction."""
        return len(np.unique(self.evaluation.index.record[self.evaluation.predictions.instance]))


def errors(known: Known) -> Iterator[str]:
    """Means with intervals as a chart, all statistics as tables."""
    yield html.heading("Error by part")
    spreads = known.metrics["error_px"]
    means = [s["mean"] for s in (*spreads["parts"].values(), spreads["all"])]
    drawn = figures.errors(known.names, np.array(means, float), known.ends, "px", LEVEL)
    yield html.beside(charts([drawn], "20rem"), _table(spreads, known.ends, "px", 2))
    if known.scale is not None:
        yield _table(known.metrics["error_cm"], known.ends / known.scale, "cm", 3)
    yield html.note(
        f"Intervals of the mean: percentile bootstrap, {LEVEL:.0%}, {RESAMPLES} resamples of "
        f"{counted(known.frames, 'frame')} (all labels of a frame together), seed {SEED}. "
        "Frames of one video are alike, which makes them too narrow where frames follow each other "
        "closely. Missing: labels without a prediction, which enter no other column."
    )


def _table(spreads: dict[str, Any], ends: Floats, unit: str, digits: int) -> str:
    rows = [
        [
            name,
            _fixed(spread["mean"], digits),
            span(low, high, digits),
            *(_fixed(spread[key], digits) for key in _SPREAD),
            spread["count"],
            spread["missing"],
        ]
        for (name, spread), low, high in zip(
            [*spreads["parts"].items(), ("all parts", spreads["all"])], *ends, strict=True
        )
    ]
    head = (f"part, {unit}", "mean", "interval", "median", "90 %", "95 %", "RMSE")
    return html.table([*head, "labels", "missing"], rows)


def pck(config: Config, known: Known) -> Iterator[str]:
    """PCK curves, with the band of people where the project has several workers."""
    yield html.heading("Labels within a radius (PCK)")
    human, note = people(config.MARS_PROJECT, known.names)
    limit = float(max(config.PCK_RADII))
    yield html.note(note)
    yield charts(figures.pck(known.names, known.distances, limit, human), "17rem")
    yield from _by_animal(known, limit, human)


def _by_animal(known: Known, limit: float, human: Human | None) -> Iterator[str]:
    """The same for each animal that the records name, where there are several."""
    found = known.metrics["animals"]
    if not found:
        return
    radii = [f"within {radius:g} px" for radius in known.metrics["pck"]["radii_px"]]
    rows = [
        [
            name,
            *(_fixed(animal["error_px"][key], 2) for key in ("mean", "median")),
            *("-" if share is None else f"{share:.1%}" for share in animal["pck"]),
            animal["error_px"]["count"],
        ]
        for name, animal in found.items()
    ]
    yield html.table(["animal", "mean, px", "median", *radii, "labels"], rows)
    evaluation = known.evaluation
    for name, chosen in rows_by_animal(evaluation.predictions, evaluation.index).items():
        band = human.animals.get(name) if human else None
        drawn = figures.pck(known.names, known.distances[chosen], limit, band)
        yield html.note(f"{name}:")
        yield charts(drawn, "17rem")


def oks(config: Config, known: Known) -> Iterator[str]:
    """Histograms under both area rules, AP and AR, and the sigmas used."""
    yield html.heading("Object keypoint similarity (OKS)")
    predictions, m = known.evaluation.predictions, known.metrics["oks"]
    sigmas = metrics.oks_sigmas(known.names, config.OKS_SIGMAS)
    areas = (predictions.area, predictions.crop_area)
    drawn = []
    for rule, area in zip(m["area"], areas, strict=True):
        similarity = metrics.oks(known.distances, sigmas, area)
        drawn.append(figures.oks(rule, *calibration.histogram_of_oks(similarity)))
    if len(predictions) < LEAST_ANIMALS:
        yield html.note(
            f"{counted(len(predictions), 'animal')}: too few for a histogram, which is drawn from "
            f"{LEAST_ANIMALS} on."
        )
    else:
        yield charts(drawn)
    rows = [
        [rule, *(_fixed(row[key], 3) for key in ("ap", "ap50", "ap75", "ar")), row["count"]]
        for rule, row in m["area"].items()
    ]
    yield html.table(["area rule", "AP", "AP50", "AP75", "AR", "animals"], rows)
    alone = [
        [name, *(_fixed(by_area[rule]["ap"], 3) for rule in m["area"])]
        for name, by_area in m["parts"].items()
    ]
    yield html.table(["AP of one part", *m["area"]], alone)
    listed = ", ".join(f"{n} {s:.3g}" for n, s in zip(known.names, sigmas, strict=True))
    yield html.note(
        "OKS is the mean over labelled parts of exp(-d² / (2 area (2 sigma)²)). AP and AR: mean "
        f"over the thresholds 0.50 to 0.95. Sigmas ({m['sigmas']}): {listed}. The padded "
        "crop is larger than the annotation, and so the more lenient; MARS divides by it. "
        f"{metrics.UNLIKE_COCO}"
    )


def confidence(config: Config, known: Known) -> Iterator[str]:
    """Errors by the height of the peak."""
    yield html.heading("Is a low confidence a warning?")
    radius = float(middle(config.PCK_RADII))
    found = calibration.calibration(known.distances, known.evaluation.predictions.scores, radius)
    if not found.count.size:
        yield html.note("No label to compare with.")
        return
    if found.count.sum() < LEAST_LABELS:
        yield html.note(
            f"{counted(int(found.count.sum()), 'label')}: too few to tell, which takes "
            f"{LEAST_LABELS}."
        )
        return
    yield charts(figures.confidence(found, radius))
    yield html.note(
        f"Bins of about {round(float(np.median(found.count)))} labels each. Where the error falls "
        "as the peak grows, a threshold on the peak finds bad points in unlabelled videos."
    )


def sides(config: Config, known: Known) -> Iterator[str]:
    """How often left is found at right."""
    pairs, names = config.PARTS.LEFT_RIGHT_PAIRS, known.names
    yield html.heading("Exchanged sides")
    if not pairs:
        yield html.note("LEFT_RIGHT_PAIRS names no pair.")
        return
    p = known.evaluation.predictions
    rows = [
        [
            f"{names[a]} / {names[b]}",
            found.judged,
            *(_of(count, found.judged) for count in (found.first, found.second, found.both)),
        ]
        for (a, b), found in zip(
            pairs, calibration.exchanges(p.keypoints, p.truth, p.visibility, pairs), strict=True
        )
    ]
    yield html.table(["pair", "animals", "first at second", "second at first", "both"], rows)
    yield html.note(
        "First at second: the prediction of the pair's first part lies nearer to the label of the "
        "second than to its own. Both at once is an exchange, most often of an animal seen the "
        "wrong way round; one alone mostly means that both were found at the same place."
    )


def middle(values: Any) -> Any:
    """The middle one of a sequence."""
    return values[len(values) // 2]


def _fixed(value: float | None, digits: int) -> Fixed:
    return Fixed(float("nan") if value is None else value, digits)


def text(value: float | None, digits: int = 2) -> str:
    """A number with a fixed number of digits; a dash for none."""
    return str(_fixed(value, digits))


def span(low: float, high: float, digits: int = 2) -> str:
    """An interval in words."""
    return f"{Fixed(low, digits)} to {Fixed(high, digits)}"


def _of(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else "-"
