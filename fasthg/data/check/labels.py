"""Looks through a data set for what would spoil training quietly: the work of `fasthg data check`.

What cannot be read at all is an error of the index and never gets here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fasthg.data.index import RecordIndex
from fasthg.data.jpeg import image_fault
from fasthg.errors import DataError

BAD_IMAGE = "image that training leaves out"
DUPLICATE = "image id used before"
UNLABELLED = "animal without a labelled part"
OUTSIDE_IMAGE = "part outside the image"
OUTSIDE_BOX = "part outside its box"
BOX_OUTSIDE = "box reaches beyond the image"
TINY = "tiny box"
SWAPPED = "left and right perhaps swapped"

_TINY_PX = 16
_TOLERANCE_PX = 1.0
_SHOWN = 5
# A pair's order counts as known where this share of the animals agrees, and as contradicted where
# the angle is clear: views from the side have no order to check.
_AGREEMENT = 0.8
_CLEAR = 0.3


@dataclass(frozen=True)
class Problem:
    """kind: one of this module's constants; where: file, record, id (and object); detail: figures
    or names."""

    kind: str
    where: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


@dataclass
class Report:
    """What was looked at and found. unlabelled: (parts,) animals that lack each part."""

    records: int
    instances: int
    unlabelled: npt.NDArray[np.int64]
    names: tuple[str, ...]
    problems: list[Problem] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems of each kind found."""
        found: dict[str, int] = {}
        for problem in self.problems:
            found[problem.kind] = found.get(problem.kind, 0) + 1
        return found

    def lines(self, shown: int = _SHOWN) -> list[str]:
        """The report for a terminal, with the first `shown` problems of each kind."""
        lines = [f"{self.instances} animals in {self.records} records"]
        lines += [
            f"{name}: unlabelled in {count} animals"
            for name, count in zip(self.names, self.unlabelled.tolist(), strict=True)
            if count
        ]
        for kind, count in self.counts.items():
            lines.append(f"{kind}: {count}")
            same = [problem for problem in self.problems if problem.kind == kind]
            lines += [f"  {problem}" for problem in same[:shown]]
            lines += [f"  and {count - shown} more"] if count > shown else []
        return lines if self.problems else [*lines, "no problem found"]


def check(
    index: RecordIndex,
    *,
    names: Sequence[str] = (),
    pairs: Sequence[tuple[int, int]] = (),
    decode: Callable[[bytes], object | None] | None = None,
) -> Report:
    """Look through every record and animal of an index.

    names: the parts', for messages; pairs: indices of left and right parts (LEFT_RIGHT_PAIRS);
    decode: gives None for an image that it cannot decode (`convert.images.decode` does); without
    it only the images' markers are read, as loaders do, which misses damage between them.
    """
    names = tuple(names) or tuple(f"part {i}" for i in range(index.num_parts))
    missing = (index.visibility == 0).sum(axis=0)
    report = Report(index.num_records, len(index), missing, names)
    report.problems += _images(index, decode)
    report.problems += _annotations(index, names)
    report.problems += _sides(index, names, pairs)
    return report


def _images(
    index: RecordIndex, decode: Callable[[bytes], object | None] | None
) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for record in range(index.num_records):
        where = index.describe_record(record)
        image_id = index.image_id(record)
        if image_id and seen.setdefault(image_id, record) != record:
            yield Problem(DUPLICATE, where, f"first in {index.describe_record(seen[image_id])}")
        try:
            data = index.jpeg(record)
        except DataError as error:
            yield Problem(BAD_IMAGE, where, str(error))
            continue
        fault = image_fault(data, int(index.width[record]), int(index.height[record]))
        if fault is None and decode is not None and decode(data) is None:
            fault = "cannot be decoded"
        if fault is not None:
            yield Problem(BAD_IMAGE, where, f"image {fault}")


def _annotations(index: RecordIndex, names: tuple[str, ...]) -> Iterator[Problem]:
    size = np.stack([index.width, index.height], axis=1)[index.record].astype(np.float32)
    box = index.bbox * np.tile(size, 2)
    points = index.keypoints
    margin = _TOLERANCE_PX
    # NaN fails both comparisons: unlabelled parts are outside of nothing.
    low, high = box[:, None, :2] - margin, box[:, None, 2:] + margin
    off_image = np.any((points < -margin) | (points > size[:, None] + margin), axis=2)
    off_box = np.any((points < low) | (points > high), axis=2)
    for kind, found in ((OUTSIDE_IMAGE, off_image), (OUTSIDE_BOX, off_box & ~off_image)):
        for instance in np.flatnonzero(found.any(axis=1)):
            parts = ", ".join(
                f"{names[part]} at {points[instance, part, 0]:.0f},{points[instance, part, 1]:.0f}"
                for part in np.flatnonzero(found[instance])
            )
            yield Problem(kind, index.describe(int(instance)), parts)
    beyond = ((box < -margin) | (box > np.tile(size, 2) + margin)).any(axis=1)
    longer = (box[:, 2:] - box[:, :2]).max(axis=1)
    empty = (index.visibility == 0).all(axis=1)
    for kind, flags in ((BOX_OUTSIDE, beyond), (TINY, longer < _TINY_PX), (UNLABELLED, empty)):
        for instance in np.flatnonzero(flags):
            edges = " ".join(f"{edge:.0f}" for edge in box[instance])
            yield Problem(kind, index.describe(int(instance)), f"box {edges} px")


def _sides(
    index: RecordIndex, names: tuple[str, ...], pairs: Sequence[tuple[int, int]]
) -> Iterator[Problem]:
    """Animals whose left lies on the other side than in most others.

    Seen from above, the turn from (first part - second part) to (a part on the midline - the pair's
    middle) has the same sense in every animal; the part on the midline that is farthest from the
    pair serves. Sense and clarity are those of the sine between the two vectors.
    """
    paired = {part for pair in pairs for part in pair}
    middle = [part for part in range(index.num_parts) if part not in paired]
    for first, second in pairs:
        across = index.keypoints[:, first] - index.keypoints[:, second]
        centre = (index.keypoints[:, first] + index.keypoints[:, second]) / 2
        along = index.keypoints[:, middle] - centre[:, None]
        lengths = np.hypot(along[..., 0], along[..., 1])
        seen = np.isfinite(lengths).all(axis=1) & np.isfinite(across).all(axis=1)
        if not middle or not seen.any():
            continue
        far = int(lengths[seen].mean(axis=0).argmax())
        along, length = along[:, far], lengths[:, far]
        cross = across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0]
        sine = cross / np.maximum(np.hypot(across[:, 0], across[:, 1]) * length, 1e-6)
        sense = 1.0 if (sine > 0).sum() >= (sine < 0).sum() else -1.0
        if (sine * sense > 0).sum() < _AGREEMENT * np.isfinite(sine).sum():
            continue
        for instance in np.flatnonzero(sine * sense < -_CLEAR):
            pair = f"{names[first]} and {names[second]}"
            yield Problem(SWAPPED, index.describe(int(instance)), pair)
