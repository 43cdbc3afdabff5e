"""How well people agree about the frames a network learned from, for comparison."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fasthg.data.agreement import Agreement, measure, read_crowd
from fasthg.errors import DataError
from fasthg.report.calibration import Floats


@dataclass(frozen=True)
class Human:
    """PCK of people. parts: names; radii (radii,) image px; bands (3, radii, parts + 1): the worst,
    the middle and the best worker of each label, against the median of the others; whole: whether
    the network has the same parts; median: distance in image px over all parts; animals: the same
    of each animal alone, by name."""

    parts: tuple[str, ...]
    radii: Floats
    bands: Floats
    whole: bool
    median: float
    animals: Mapping[str, Human] = field(default_factory=dict)

    def band(self, part: str | None) -> Floats | None:
        """(3, radii) of a part by name, or of all parts; None where people labelled other ones."""
        if part is None:
            row = len(self.parts) if self.whole else None
        else:
            row = self.parts.index(part) if part in self.parts else None
        if row is None or not np.isfinite(self.bands[:, :, row]).all():
            return None
        return self.bands[:, :, row]


def _band_of(found: Agreement, parts: tuple[str, ...]) -> Human:
    return Human(
        parts=found.parts,
        radii=found.radii,
        bands=found.bands,
        whole=set(found.parts) == set(parts),
        median=found.error.overall.median,
    )


def people(project: str | None, parts: tuple[str, ...]) -> tuple[Human | None, str]:
    """The band of a MARS project's workers and a note on it; None and the reason without one."""
    if project is None:
        return None, (
            "No band of human annotators: the configuration names no MARS_PROJECT with the labels "
            "of several workers."
        )
    try:
        crowd = read_crowd(Path(project))
        found = measure(crowd)
    except DataError as error:
        return None, f"No band of human annotators: {error}."
    animals = {}
    for name in dict.fromkeys(crowd.animals):
        with contextlib.suppress(DataError):  # of no worker or one: no band
            animals[name] = _band_of(measure(crowd.of(name)), parts)
    human = replace(_band_of(found, parts), animals=animals)
    return human, (
        f"People: each of {len(found.workers)} workers against the median of the others in "
        f"{found.animals} animals of {Path(project).name}; band from the worst to the best worker "
        f"of each label, dashes the middle one; median distance {human.median:.2f} px over all "
        "parts. A network is measured against the median of everybody, which is steadier: at the "
        "band's middle it is about as good as a person."
    )
