"""Batches of whole frames, for the locator: centres and sizes of all animals in heatmap cells.

A frame is letterboxed: the crop is the square around it, and beyond the image its edge px are
repeated, as CROP_BORDER: edge does. Loaders see an ordinary `BatchSpec` whose "parts" are slots: a
frame has as many as the most animals that a class has in one record, class by class, and the
keypoints of slot `s` are the centre at `s` and (width, height) at `slots + s`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.rng import uniforms
from fasthg.data.sampler import BatchSampler, BatchSpec, transforms_of_crops

_STREAM = 2
SCALE = (0.7, 1.4)
"""Range of the side of a training crop, times the longer side of the frame."""
SHIFT = 0.2
"""Greatest shift of a training crop on each axis, in sides of the crop."""
SIGMA = 0.18
"""Standard deviation of a centre's Gaussian, times the root of the animal's area in cells; at least
one cell."""
WHOLE = 0.6
"""Share of the usual number of labelled parts from which a box is taken for that of the animal."""
PARTLY_SIGMA = 0.4
"""SIGMA of an animal of which fewer are labelled: where it may be is neither animal nor ground."""
_MOST_CLASSES = 8
_LEAST_PER_CLASS = 10


def name_classes(index: RecordIndex) -> tuple[str, ...]:
    """Names by which the animals of records may be told apart; empty where there are none.

    Two to eight names, each on at least ten animals and never twice in a frame, that name all
    animals. Whether images really tell them apart is seen in validation.
    """
    names = index.names
    if not 2 <= len(names) <= _MOST_CLASSES or (index.name < 0).any():
        return ()
    if np.bincount(index.name, minlength=len(names)).min() < _LEAST_PER_CLASS:
        return ()
    pairs = index.record.astype(np.int64) * len(names) + index.name
    return names if len(np.unique(pairs)) == len(pairs) else ()


def class_numbers(index: RecordIndex, classes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """The class of each instance, `(instances,)`; -1 for a name that is none of `classes`."""
    # The last entry is for animals without a name, whose number is -1.
    numbers = [*(classes.index(n) if n in classes else -1 for n in index.names), -1]
    return np.array(numbers, np.int64)[index.name]


def whole_animals(index: RecordIndex) -> npt.NDArray[np.bool_]:
    """Whether enough parts of each instance are labelled to show the whole animal, `(instances,)`.

    A box around the tail alone is not that of the mouse.
    """
    labelled = np.isfinite(index.keypoints).all(axis=2).sum(axis=1)
    usual = np.quantile(labelled, 0.9) if len(labelled) else 0
    enough: npt.NDArray[np.bool_] = labelled >= WHOLE * usual
    return enough


def animal_spans(index: RecordIndex) -> npt.NDArray[np.float64]:
    """`(instances,)` root of each box's area, divided by the longer side of its frame."""
    width, height = (np.asarray(a)[index.record] for a in (index.width, index.height))
    box = np.asarray(index.bbox, np.float64)
    sides = (box[:, 2:] - box[:, :2]) * np.stack([width, height], axis=1)
    spans: npt.NDArray[np.float64] = np.sqrt(sides.clip(0).prod(axis=1)) / np.maximum(width, height)
    return spans


def frame_crop(width: npt.ArrayLike, height: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The square around frames, `(frames, 4)` x1 y1 x2 y2, image px."""
    size = np.stack([np.asarray(width), np.asarray(height)], axis=-1).astype(np.float64)
    side = size.max(axis=-1, keepdims=True)
    low = (size - side) / 2
    return np.concatenate([low, low + side], axis=-1)


class FrameSampler(BatchSampler):
    """Specifications of the batches of one split, whose items are records with an image.

    `BatchSpec.instances` holds records. Besides what the configuration draws, training crops are
    scaled and shifted at random, so that animals of other sizes and at other places are found; an
    animal whose centre has left the crop is absent.
    """

    def __init__(
        self,
        index: RecordIndex,
        cfg: Config,
        *,
        classes: tuple[str, ...],
        most: int,
        training: bool,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """classes: names that have slots of their own; without them all animals share `most` slots.

        most: animals in a frame at most. Raises DataError for an index without animals.
        """
        super().__init__(index, cfg, training=training, seed=seed, rank=rank, ranks=ranks)
        self._records = np.flatnonzero(index.jpeg_length > 0)
        self.classes = classes
        self.slots = len(classes) or most
        order = np.argsort(index.record, kind="stable")
        record = index.record[order]
        within = np.arange(len(record)) - np.searchsorted(record, record)
        slot = within
        if classes:
            slot = class_numbers(index, classes)[order]
        self._slot = np.empty(len(record), np.int64)
        self._slot[order] = np.where(slot < self.slots, slot, -1)
        self._first = np.searchsorted(record, np.arange(index.num_records + 1))
        self._whole = whole_animals(index)
        self._order_of_instances = order
        self._usual = float(np.median(animal_spans(index)[self._whole]))

    @property
    def count(self) -> int:
        """Items that an epoch holds: records with an image."""
        return len(self._records)

    def _build(
        self, items: npt.NDArray[np.int64], epoch: npt.NDArray[np.int64] | None
    ) -> BatchSpec:
        index, cfg = self.index, self.cfg
        records = self._records[items]
        draws = self._draws(items, epoch)
        width, height = (
            np.asarray(a)[records].astype(np.int64) for a in (index.width, index.height)
        )
        crop = frame_crop(width, height)
        if epoch is not None:
            u = uniforms(self.seed, _STREAM, epoch, items, 3)
            scale = SCALE[0] * (SCALE[1] / SCALE[0]) ** u[0]
            side = (crop[:, 2:] - crop[:, :2]) * scale[:, None]
            centre = (crop[:, 2:] + crop[:, :2]) / 2 + (2 * u[1:].T - 1) * SHIFT * side
            crop = np.concatenate([centre - side / 2, centre + side / 2], axis=1)
        crop = np.rint(crop).astype(np.int64)
        crops = transforms_of_crops(cfg, crop, width, height, draws)

        slots = self.slots
        keypoints = np.full((len(items), 2 * slots, 2), np.nan, np.float32)
        visibility = np.zeros((len(items), 2 * slots), np.uint8)
        sigmas = np.ones((len(items), 2 * slots), np.float32)
        for row, record in enumerate(records):
            own = self._order_of_instances[self._first[record] : self._first[record + 1]]
            own = own[self._slot[own] >= 0]
            if not len(own):
                continue
            box = turned_boxes(
                index.bbox[own].astype(np.float64) * np.tile([width[row], height[row]], 2),
                index.keypoints[own].astype(np.float64),
                crops.image_to_heatmap[row],
            )
            centre, size = (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]
            inside = ((centre >= 0) & (centre < cfg.HEATMAP_SIZE)).all(axis=1)
            at, whole = self._slot[own[inside]], self._whole[own[inside]]
            keypoints[row, at], keypoints[row, slots + at] = centre[inside], size[inside]
            visibility[row, at] = np.where(whole, 2, 1)
            area = size[inside].prod(axis=1)
            scale = np.sqrt(abs(np.linalg.det(crops.image_to_heatmap[row, :, :2])))
            usual = self._usual * max(width[row], height[row]) * scale
            sigma = np.where(whole, SIGMA * np.sqrt(area), PARTLY_SIGMA * usual)
            sigmas[row, at] = np.maximum(1.0, sigma)
        side_px = crops.side.prod(axis=1).astype(np.float32)
        return BatchSpec(
            instances=records,
            records=records,
            image_to_input=crops.image_to_input,
            input_to_image=crops.input_to_image,
            window=crops.window,
            smoothing=crops.smoothing,
            draws=draws,
            keypoints=keypoints,
            visibility=visibility,
            sigmas=sigmas,
            crop_to_image=crops.crop_to_image,
            area=side_px,
            crop_area=side_px,
        )


def turned_boxes(
    box: npt.NDArray[np.float64], keypoints: npt.NDArray[np.float64], matrix: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Boxes of animals after an affine map, `(animals, 4)` x1 y1 x2 y2.

    Where the axes stay axes the box is mapped itself. Otherwise it is put around the mapped parts,
    with the margin that it had around them on the average of its sides; an animal with fewer than
    three labelled parts is taken for the ellipse that its box is around.

    box: `(animals, 4)` px. keypoints: `(animals, parts, 2)` px, NaN where unlabelled. matrix:
    `(2, 3)`, of one scale on both axes.
    """
    linear = matrix[:, :2]
    scale = np.sqrt(abs(np.linalg.det(linear)))
    half = (box[:, 2:] - box[:, :2]) / 2
    centre = geometry.apply(box[:, :2] + half, matrix)
    if min(abs(linear[0, 0]), abs(linear[0, 1])) < 1e-9 * scale:
        half = half @ np.abs(linear).T
    else:
        half = np.sqrt(half**2 @ (linear**2).T)
        known: npt.NDArray[np.bool_] = np.all(np.isfinite(keypoints), axis=2)
        for animal in np.flatnonzero(known.sum(axis=1) >= 3):
            points = keypoints[animal, known[animal]]
            low, high = points.min(axis=0), points.max(axis=0)
            margin = np.concatenate([low - box[animal, :2], box[animal, 2:] - high]).mean() * scale
            mapped = geometry.apply(points, matrix)
            low, high = mapped.min(axis=0) - margin, mapped.max(axis=0) + margin
            if (high - low > 0.25 * half[animal]).all():
                centre[animal], half[animal] = (low + high) / 2, (high - low) / 2
    return np.concatenate([centre - half, centre + half], axis=1)
