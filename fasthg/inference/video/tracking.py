"""Animals from frame to frame: which of the candidates is which, and which are believed.

Each animal has a memory: its last box and pose, moved on by its velocity, and the sizes of its
boxes. A candidate is what the locator finds, or the last box moved on.

1. The cost of giving a found box to an animal is the distance between the centres in body lengths,
   plus one less the overlap of the boxes, plus one less the likeness of the poses. Beyond the reach
   of an animal, and for one that is lost, it is `FAR`. An animal whose class is known takes boxes
   of its class alone. The assignment with the least sum counts.
2. A found box from afar must beat the place where the animal was: both are looked at, the higher
   pose counts. An animal that got no box is looked for where it should be now.
3. A pose counts from a share of what poses in annotated boxes have in validation. Two animals with
   the same pose are one: the less certain one is missing.
4. Animals in contact are each looked for where their parts should be, and a part that a more
   entitled animal has is not another's. While the locator finds fewer of alike animals than touch,
   what it finds is not assigned: it may be either, or a mixture. A covered animal is missing.
5. Box sizes stay near the median of the animal's last ones, and within those of the training.

A missing animal has an empty row, and a memory that ages: its reach grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components

from fasthg.geometry import box_iou
from fasthg.inference.locator import MATCH_IOU, Found, LocatorSettings, boxes_of_poses
from fasthg.inference.predictor import certainty

Array = npt.NDArray[np.float64]

REACH = 0.7
"""How far an animal may come in one frame, in body lengths (roots of the box's area)."""
FAR = 4.0
"""Cost of a box beyond the reach; more than any within it."""
LOOKED = 8
"""Frames that an animal which the locator misses is looked for where it should be."""
FRESH = 5
"""Missing frames after which a memory does not say any more where parts are."""
FORGOTTEN = 60
"""Missing frames after which an animal may be anywhere."""
VELOCITY_KEPT = 0.6
"""Share of the old velocity in the new one; a missing animal's velocity falls by it each frame."""
SIZES = 61
"""Boxes whose median size bounds the next one."""
SIZE_RANGE = (0.6, 1.6)
"""Least and greatest size of a box, times that median."""
TRAINING_RANGE = (0.5, 2.0)
"""Least and greatest size of a box, times the 1st and 99th percentile of the training's."""
BELIEVED = 0.5
"""Least certainty of a pose, times the 1st percentile of the validation's."""
STARTED = 0.75
"""The same for a pose from afar, and of an animal that was missing."""
SAME_POSE = 0.75
"""Likeness of two poses from which they are of one animal."""
LIKENESS = 0.2
"""Distance of a part at which two poses are half alike, about, in body lengths."""
GROWTH = 1.1
"""Side of the box in which a missed animal is looked for, times the last one."""
CONTACT = 1.65
"""Side of a box, times its own, in which another animal's parts may be taken for this one's."""
SAME_BOX = 0.9
"""Overlap with the box around its pose from which a box is looked at once only."""
CONTESTED = 0.1
"""Overlap of the boxes of two animals from which what the locator finds there may be either."""
EXPECTED_WITHIN = 0.2
"""Standard deviation of where a part is expected, in body lengths."""
TAKEN = 0.08
"""Distance from another animal's part below which it is not this one's, in body lengths."""


@dataclass(frozen=True)
class Expected:
    """Where parts are expected, image px."""

    keypoints: Array
    """(n, parts, 2); NaN where nothing is known."""
    lengths: Array
    """(n,) body lengths, px; a part is EXPECTED_WITHIN of them from its place."""
    taken: Array
    """(n, others, parts, 2) places of other animals' parts, where the same parts are not; NaN where
    there is none."""

    def rows(self, rows: slice | list[int]) -> Expected:
        """Some of them."""
        return Expected(self.keypoints[rows], self.lengths[rows], self.taken[rows])


Look = Callable[[Array, Expected | None], tuple[Array, Array]]
"""(n, 4) boxes in image px -> their poses, (n, parts, 2), and scores, (n, parts)."""


@dataclass(frozen=True)
class Candidates:
    """Boxes that the locator found in a frame, and the poses in them."""

    found: Found
    keypoints: Array
    """(n, parts, 2) image px."""
    scores: Array
    """(n, parts)."""

    def apart_from(self, boxes: Array) -> Candidates:
        """Those that are not the animals of given boxes, (animals, 4) px, NaN without."""
        known = boxes[np.isfinite(boxes).all(axis=1)]
        if not len(known) or not len(self.found):
            return self
        kept = np.flatnonzero(box_iou(self.found.boxes[:, None], known).max(axis=1) < MATCH_IOU)
        return Candidates(self.found.take(kept), self.keypoints[kept], self.scores[kept])


@dataclass
class Animals:
    """The rows of one frame, image px; NaN for a missing animal."""

    boxes: Array
    """(animals, 4)."""
    keypoints: Array
    """(animals, parts, 2)."""
    scores: Array
    """(animals, parts)."""

    @classmethod
    def missing(cls, animals: int, parts: int) -> Animals:
        """Of a frame in which there is none."""
        return cls(
            np.full((animals, 4), np.nan),
            np.full((animals, parts, 2), np.nan),
            np.full((animals, parts), np.nan),
        )

    def put(self, animal: int, box: Array, keypoints: Array, scores: Array) -> None:
        """Set one row."""
        self.boxes[animal], self.keypoints[animal], self.scores[animal] = box, keypoints, scores

    def drop(self, animal: int) -> None:
        """Empty one row."""
        self.put(animal, *(np.array(np.nan) for _ in range(3)))


def likeness(one: Array, other: Array, length: float) -> float:
    """How alike two poses `(parts, 2)` are, 0..1: mean Gaussian of the distances of parts.

    length: of the body, px.
    """
    squared = ((one - other) ** 2).sum(axis=-1) / (LIKENESS * length) ** 2
    return float(np.nan_to_num(np.exp(-squared / 2)).mean())


def add_one_by_one(rows: Animals, candidates: Candidates, settings: LocatorSettings) -> None:
    """Fill empty rows of an image that is no film's: by class, or the most certain first."""
    for place in range(len(candidates.found)):
        believed = certainty(candidates.scores[place]) >= BELIEVED * settings.pose_scores[0]
        if candidates.found.scores[place] < settings.threshold or not believed:
            continue
        empty = np.flatnonzero(np.isnan(rows.boxes[:, 0])).tolist()
        animal = (
            int(candidates.found.classes[place]) if settings.told_apart else min(empty, default=-1)
        )
        if animal in empty:
            box = candidates.found.boxes[place]
            rows.put(animal, box, candidates.keypoints[place], candidates.scores[place])


class _Memory:
    """What is known of one animal; a function of the rows of its frames."""

    def __init__(self) -> None:
        self.box: Array | None = None
        """Where it should be in the next frame; None before it was seen."""
        self.keypoints: Array = np.zeros((0, 2))
        self.sizes: deque[float] = deque(maxlen=SIZES)
        self.missing = 0
        self._velocity = np.zeros(2)

    @property
    def length(self) -> float:
        """Body length, px."""
        return float(np.median(self.sizes)) if self.sizes else 1.0

    def update(self, box: Array, keypoints: Array) -> None:
        """Learn a frame's row; NaN where the animal is missing."""
        if not np.isfinite(box).all():
            self.missing += 1
            if self.box is not None:
                self._velocity = self._velocity * VELOCITY_KEPT
                self._move()
            return
        moved = np.full(2, np.inf)
        if self.box is not None and not self.missing:
            moved = _centre(box) - (_centre(self.box) - self._velocity)
        if np.hypot(*moved) <= REACH * self.length:
            self._velocity = VELOCITY_KEPT * self._velocity + (1 - VELOCITY_KEPT) * moved
        else:  # it appears, or is set right
            self._velocity = np.zeros(2)
        self.box, self.keypoints, self.missing = box.copy(), keypoints.copy(), 0
        self.sizes.append(_size(box))
        self._move()

    def _move(self) -> None:
        assert self.box is not None
        self.box = self.box + np.tile(self._velocity, 2)
        self.keypoints = self.keypoints + self._velocity


class Tracker:
    """Assigns what a locator finds to animals, frame by frame.

    Args:
        settings: of the locator. Where classes are told apart, animal `i` is of class `i`.
        animals: how many there are at most.
        parts: keypoints of an animal.
    """

    def __init__(self, settings: LocatorSettings, animals: int, parts: int) -> None:
        self.settings, self.animals, self.parts = settings, animals, parts
        self._memories = [_Memory() for _ in range(animals)]
        self._believed = BELIEVED * settings.pose_scores[0]
        self._started = STARTED * settings.pose_scores[0]

    def follow(
        self,
        candidates: Candidates,
        given: Array,
        image_size: tuple[int, int],
        look: Look,
    ) -> Animals:
        """The animals of the next frame.

        given: (animals, 4) image px, boxes that a person gives; NaN without.
        """
        rows = Animals.missing(self.animals, self.parts)
        known = np.flatnonzero(np.isfinite(given).all(axis=1)).tolist()
        if known:
            for animal, *pose in zip(known, *look(given[known], None), strict=True):
                rows.put(animal, given[animal], *pose)
        free = [animal for animal in range(self.animals) if animal not in known]
        certain = np.full(self.animals, np.inf)
        for animal in self._contested(candidates, free):
            self._look_again(rows, animal, image_size, look, alone=False)
        held = [animal for animal in free if np.isfinite(rows.boxes[animal]).all()]
        rest = candidates.apart_from(rows.boxes[held])
        for animal, place in self._assign(rest, [a for a in free if a not in held]):
            self._take(rows, animal, rest, place, image_size, look)
            certain[animal] = rest.found.scores[place]
        self._look_closely(rows, free, image_size, look)
        for animal in free:
            if not np.isfinite(rows.boxes[animal]).all():
                self._look_again(rows, animal, image_size, look)
                certain[animal] = 0.0
        self._drop_doubles(rows, certain)
        self.learn(rows)
        return rows

    def learn(self, rows: Animals) -> None:
        """Update the memories with a frame's rows."""
        for memory, box, keypoints in zip(self._memories, rows.boxes, rows.keypoints, strict=True):
            memory.update(box, keypoints)

    def _contested(self, candidates: Candidates, free: list[int]) -> list[int]:
        """Animals in contact of which the locator finds fewer than there are.

        What it finds there may be any of them, or a mixture of two: it would be a guess. Where
        classes are told apart it is not.
        """
        known = [
            animal
            for animal in free
            if self._memories[animal].box is not None
            and self._memories[animal].missing <= FORGOTTEN
        ]
        if self.settings.told_apart or len(known) < 2:
            return []
        boxes = np.stack([self._memories[animal].box for animal in known])  # type: ignore[misc]
        _, groups = connected_components(box_iou(boxes[:, None], boxes) > CONTESTED)
        contested = []
        for group in range(groups.max() + 1):
            members = [animal for animal, own in zip(known, groups, strict=True) if own == group]
            near = sum(
                any(self._cost(animal, candidates, place) is not None for animal in members)
                for place in range(len(candidates.found))
            )
            if near < len(members) > 1:
                contested += members
        return contested

    def _assign(self, candidates: Candidates, free: list[int]) -> list[tuple[int, int]]:
        """Pairs (animal, candidate) of the least cost."""
        found = candidates.found
        if not len(found) or not free:
            return []
        cost = np.full((len(free), len(found)), np.inf)
        for row, animal in enumerate(free):
            for place in range(len(found)):
                if self.settings.told_apart and found.classes[place] != animal:
                    continue
                near = self._cost(animal, candidates, place)
                if near is not None:
                    cost[row, place] = near
                elif found.scores[place] >= self.settings.threshold:
                    cost[row, place] = FAR + animal / 100 - found.scores[place]
        # The library wants numbers: a forbidden pair costs more than all others together.
        forbidden = 1e6
        pairs = zip(*linear_sum_assignment(np.minimum(cost, forbidden)), strict=True)
        return [(free[row], int(place)) for row, place in pairs if cost[row, place] < forbidden]

    def _cost(self, animal: int, candidates: Candidates, place: int) -> float | None:
        """Cost of a candidate within an animal's reach; None beyond it."""
        memory = self._memories[animal]
        if memory.box is None or memory.missing > FORGOTTEN:
            return None
        box = candidates.found.boxes[place]
        distance = float(np.hypot(*(_centre(box) - _centre(memory.box)))) / memory.length
        if distance > REACH * (1 + 0.25 * memory.missing):
            return None
        alike = likeness(candidates.keypoints[place], memory.keypoints, memory.length)
        overlap = float(box_iou(box, memory.box))
        return min(distance, 1.5) + (1 - overlap) + (1 - alike)

    def _take(
        self,
        rows: Animals,
        animal: int,
        candidates: Candidates,
        place: int,
        image_size: tuple[int, int],
        look: Look,
    ) -> None:
        """Give a candidate to an animal, if its pose is believed and nothing better is there."""
        memory = self._memories[animal]
        box, pose = candidates.found.boxes[place], candidates.keypoints[place]
        scores = candidates.scores[place]
        bounded = self._bounded(box, memory, image_size)
        if not np.allclose(bounded, box):
            box = bounded
            pose, scores = (each[0] for each in look(box[None], None))
        near = self._cost(animal, candidates, place) is not None
        if not near and memory.box is not None and memory.missing < LOOKED:
            self._look_again(rows, animal, image_size, look)
            if certainty(rows.scores[animal]) >= certainty(scores):
                return
            rows.drop(animal)
        least = self._believed if near and not memory.missing else self._started
        if certainty(scores) >= least:
            rows.put(animal, box, pose, scores)

    def _look_again(
        self,
        rows: Animals,
        animal: int,
        image_size: tuple[int, int],
        look: Look,
        alone: bool = True,
    ) -> None:
        """Look for an animal where it should be now; the box follows the pose.

        alone: not where another one has that pose. In contact, without a memory of where its parts
        should be, what is seen is the other.
        """
        memory = self._memories[animal]
        if memory.box is None or memory.missing >= (LOOKED if alone else FRESH + 1):
            return
        grown = _cut(_grown(memory.box, GROWTH), image_size)
        if grown is None:
            return
        pose, scores = (each[0] for each in look(grown[None], self._expected([animal])))
        if certainty(scores) < (self._started if alone or memory.missing else self._believed):
            return
        if alone and self._taken(rows, pose, memory.length):
            return
        moved = np.nanmedian(pose - memory.keypoints, axis=0)
        box = _cut(memory.box + np.tile(moved, 2), image_size)
        if box is not None:
            rows.put(animal, box, pose, scores)

    def _taken(self, rows: Animals, pose: Array, length: float) -> bool:
        """Whether a pose is that of an animal that has its row already."""
        there = np.flatnonzero(np.isfinite(rows.boxes).all(axis=1))
        return any(likeness(pose, rows.keypoints[row], length) > SAME_POSE for row in there)

    def _expected(self, animals: Sequence[int]) -> Expected:
        """Where the parts of animals should be; NaN where that is not known."""
        parts = np.full((len(animals), self.parts, 2), np.nan)
        lengths = np.ones(len(animals))
        for row, animal in enumerate(animals):
            memory = self._memories[animal]
            if memory.box is not None and memory.missing <= FRESH:
                parts[row], lengths[row] = memory.keypoints, memory.length
        nothing_taken = np.zeros((len(animals), 0, self.parts, 2))
        return Expected(parts, lengths, nothing_taken)

    def _look_closely(
        self, rows: Animals, free: list[int], image_size: tuple[int, int], look: Look
    ) -> None:
        """Look again in boxes put around the poses; at animals in each other's boxes, each for the
        parts that it should have."""
        there = [animal for animal in free if np.isfinite(rows.boxes[animal]).all()]
        if not there:
            return
        boxes = boxes_of_poses(
            *(rows.boxes[there], rows.keypoints[there], rows.scores[there]),
            *(self.settings, image_size),
        )
        for row, animal in enumerate(there):
            boxes[row] = self._bounded(boxes[row], self._memories[animal], image_size)
        expected = self._expected(there)
        again, close = [], []
        for row, animal in enumerate(there):
            if self._in_contact(rows, animal):
                close.append(animal)
                boxes[row] = rows.boxes[animal]
            else:
                expected.keypoints[row] = np.nan
            if animal in close or box_iou(boxes[row], rows.boxes[animal]) < SAME_BOX:
                again.append(row)
        if not again:
            return
        poses = zip(*look(boxes[again], expected.rows(again)), strict=True)
        for row, (pose, scores) in zip(again, poses, strict=True):
            if certainty(scores) >= self._believed:
                rows.put(there[row], boxes[row], pose, scores)
        self._set_apart(rows, close, look)

    def _in_contact(self, rows: Animals, animal: int) -> bool:
        """Whether the box of another animal is that near."""
        around = _grown(rows.boxes[animal], CONTACT)
        others = [other for other in range(self.animals) if other != animal]
        return bool((box_iou(around, rows.boxes[others]) > 0).any())

    def _set_apart(self, rows: Animals, close: list[int], look: Look) -> None:
        """Look again for animals that took parts of more entitled ones in contact, elsewhere than
        there. One that is not seen then is covered: its row is empty."""
        # A pose is rather that of the animal which should have it.
        order = sorted(close, key=lambda animal: -self._claim(rows, animal))
        for place, animal in enumerate(order[1:], 1):
            expected = self._expected([animal])
            if not np.isfinite(expected.keypoints).any():
                continue
            taken = rows.keypoints[order[:place]]
            length = self._memories[animal].length
            near = _distance(rows.keypoints[animal], taken) < TAKEN * length
            if not near.any():
                continue
            taken = np.where(near[..., None], taken, np.nan)
            apart = Expected(expected.keypoints, expected.lengths, taken[None])
            pose, scores = (each[0] for each in look(rows.boxes[animal][None], apart))
            if certainty(scores) >= self._believed:
                rows.put(animal, rows.boxes[animal], pose, scores)
            else:
                rows.drop(animal)

    def _claim(self, rows: Animals, animal: int) -> float:
        """Certainty of an animal's pose times its likeness to the one that it should have."""
        memory = self._memories[animal]
        alike = 1.0
        if memory.box is not None:
            alike = likeness(rows.keypoints[animal], memory.keypoints, memory.length)
        return float(certainty(rows.scores[animal])) * alike

    def _drop_doubles(self, rows: Animals, certain: Array) -> None:
        """Empty the row of an animal that has the pose of a more certain one."""
        there = np.flatnonzero(np.isfinite(rows.boxes).all(axis=1)).tolist()
        for animal in sorted(there, key=lambda a: certain[a]):
            for other in there:
                if other == animal or not np.isfinite(rows.boxes[other]).all():
                    continue
                length = min(_size(rows.boxes[animal]), _size(rows.boxes[other]))
                alike = likeness(rows.keypoints[animal], rows.keypoints[other], length)
                if alike > SAME_POSE and certain[animal] <= certain[other] < np.inf:
                    rows.drop(animal)
                    break

    def _bounded(self, box: Array, memory: _Memory, image_size: tuple[int, int]) -> Array:
        """The box, larger or smaller about its centre where its size is out of bounds."""
        size, longer = _size(box), max(image_size)
        low = TRAINING_RANGE[0] * self.settings.sizes[0] * longer
        high = TRAINING_RANGE[1] * self.settings.sizes[2] * longer
        if memory.sizes:
            low = max(low, SIZE_RANGE[0] * memory.length)
            high = min(high, SIZE_RANGE[1] * memory.length)
        factor = float(np.clip(size, low, max(low, high))) / size
        bounded = _cut(_grown(box, factor), image_size)
        return box if bounded is None else bounded


def _distance(one: Array, other: Array) -> Array:
    """Of parts, `(..., parts)` px."""
    apart: Array = np.hypot(*np.moveaxis(one - other, -1, 0))
    return apart


def _centre(box: Array) -> Array:
    centre: Array = (box[:2] + box[2:]) / 2
    return centre


def _grown(box: Array, factor: float) -> Array:
    """The box with sides that are longer by a factor, about its centre."""
    centre, half = _centre(box), factor * (box[2:] - box[:2]) / 2
    return np.concatenate([centre - half, centre + half])


def _size(box: Array) -> float:
    """Root of the area, px."""
    return float(np.sqrt(max((box[2:] - box[:2]).prod(), 1.0)))


def _cut(box: Array, image_size: tuple[int, int]) -> Array | None:
    """The part of a box in the image; None where none of it is."""
    cut: Array = np.clip(box, 0, [*image_size, *image_size])
    return cut if (cut[2:] - cut[:2] >= 2).all() else None
