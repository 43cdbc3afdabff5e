"""Problems of a data set, and their report for terminals and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

NOTHING = "split without an annotated animal"
BROKEN_RECORD = "record that cannot be read"
WRONG_COUNTS = "counts that contradict each other"
BAD_BOX = "box without an area"
BAD_IMAGE = "image that training leaves out"
SAME_ID = "image id used before"
SAME_IMAGE = "image that is there twice"
NEAR_IMAGE = "image much like one of another split"
UNLABELLED = "animal without a labelled part"
OUTSIDE_IMAGE = "part outside the image"
OUTSIDE_BOX = "part outside its box"
BOX_OUTSIDE = "box reaches beyond the image"
TINY = "tiny box"
IDENTICAL = "left and right at one point"
SWAPPED = "left and right perhaps swapped"
WRONG_AREA = "area in another unit"
CONTRADICTED = "label that networks contradict"

KINDS = (
    *(NOTHING, BROKEN_RECORD, WRONG_COUNTS, BAD_BOX, BAD_IMAGE, SAME_ID, SAME_IMAGE, NEAR_IMAGE),
    *(UNLABELLED, OUTSIDE_IMAGE, OUTSIDE_BOX, BOX_OUTSIDE, TINY, IDENTICAL, SWAPPED, WRONG_AREA),
    CONTRADICTED,
)
"""Kinds of problems, in the order of reports."""

FOUND_BY = {
    NOTHING: "A split is named in DATA, and its files hold no animal.",
    BROKEN_RECORD: "The record's checksum or its fields cannot be read; training stops there.",
    WRONG_COUNTS: "Lists of a record, as of boxes and parts, differ in length; training stops.",
    BAD_BOX: "A box is no number, or less than a pixel wide or high; training stops there.",
    BAD_IMAGE: "The image cannot be decoded, or its size is another than the record says.",
    SAME_ID: "Two records have one image/id.",
    SAME_IMAGE: "Two images hold the same bytes; in two splits they make the test too easy.",
    NEAR_IMAGE: "No pixel of the images' thumbnails of 32x32 px differs by more than 4 grey "
    "levels, once their brightness is made equal.",
    UNLABELLED: "An animal has a box and no part; it teaches nothing.",
    OUTSIDE_IMAGE: "A part is more than 1 px beyond the image's border.",
    OUTSIDE_BOX: "A part is more than 1 px beyond its animal's box; the crop may lose it.",
    BOX_OUTSIDE: "A box reaches more than 1 px beyond the image's border.",
    TINY: "The longer side of a box is less than 16 px.",
    IDENTICAL: "The two parts of a pair are within 0.5 px of each other.",
    SWAPPED: "Seen from above, left and right lie on fixed sides of the line from their middle to "
    "a part on the midline. At least 80 % of the animals agree; these clearly do not.",
    WRONG_AREA: "The area is less than 1 % or more than 400 % of the square around the box.",
    CONTRADICTED: "The runs given by --with see the part elsewhere (cross): at more than 5 times "
    "their median error at that part, and agreed with each other. The label may be wrong, or the "
    "frame unlike the others.",
}
"""Kind of problem -> how it is found, or what it means."""


@dataclass(frozen=True)
class Problem:
    """One problem of one record, image or animal."""

    kind: str
    """One of KINDS."""
    split: str
    where: str
    """File, record and image id, and object."""
    detail: str
    """Details: figures or names."""
    record: int | None = None
    """Row of the record in the split's index, if it has one."""
    instance: int | None = None
    """Row of the instance in the split's index, if the problem is of one animal."""
    parts: tuple[int, ...] = ()
    """Indices of the parts concerned."""
    weight: float = 0.0
    """Severity among problems of the same kind; larger is worse."""
    seen: tuple[tuple[float, float], ...] = ()
    """Where networks see `parts`, x and y in image px, if the problem is of their predictions."""

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


@dataclass(frozen=True)
class Counts:
    """Counts of a split; unlabelled: (parts,) animals that lack each part."""

    frames: int
    instances: int
    unlabelled: npt.NDArray[np.int64]


@dataclass
class Report:
    """Result of a check: counts by split, all problems, and notes on what is no fault of the data
    but may spoil training."""

    names: tuple[str, ...]
    splits: dict[str, Counts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, kind: str, split: str | None = None) -> list[Problem]:
        """The problems of a kind, the worst first."""
        selected = [p for p in self.problems if p.kind == kind and split in (None, p.split)]
        return sorted(selected, key=lambda problem: -problem.weight)

    def table(self) -> list[list[str | int]]:
        """Rows of a table: what is counted, then its number in each split."""
        splits = list(self.splits)
        rows: list[list[str | int]] = [
            ["frames", *(self.splits[s].frames for s in splits)],
            ["animals", *(self.splits[s].instances for s in splits)],
        ]
        for part, name in enumerate(self.names):
            missing = [int(self.splits[s].unlabelled[part]) for s in splits]
            rows += [[f"{name}: unlabelled in", *missing]] if any(missing) else []
        for kind in KINDS:
            rows += [[kind, *(len(self.of(kind, s)) for s in splits)]] if self.of(kind) else []
        return rows

    def lines(self, shown: int = 5) -> list[str]:
        """The report for a terminal, with the worst `shown` problems of each kind."""
        if not self.problems:
            return ["no problem found", *self.notes]
        lines = []
        for kind in KINDS:
            problems = self.of(kind)
            if problems:
                lines.append(f"{kind}: {len(problems)}")
                lines += [f"  {problem.split}: {problem}" for problem in problems[:shown]]
                lines += [f"  and {len(problems) - shown} more"] if len(problems) > shown else []
        return lines + self.notes

    def as_json(self) -> dict[str, Any]:
        """The report as plain values for JSON, with all problems."""
        return {
            "splits": {
                split: {
                    "frames": counts.frames,
                    "instances": counts.instances,
                    "unlabelled": dict(zip(self.names, counts.unlabelled.tolist(), strict=True)),
                    "problems": {kind: n for kind in KINDS if (n := len(self.of(kind, split)))},
                }
                for split, counts in self.splits.items()
            },
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
        }
