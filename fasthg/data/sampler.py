"""Samples, crop transforms and augmentation parameters of each batch: everything but the pixels.

`BatchSampler.plan(step)` is a pure function of the step, so a loader may make batches in any order
and process, and a resumed run continues exactly where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.augment import AugmentParams, draw, fixed_padding, no_augmentation
from fasthg.data.augment_ops import smoothing, smoothing_radius
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.rng import first_words
from fasthg.errors import DataError

_STREAM = 0
# Orders kept by each process: a batch may need those of two epochs.
_ORDERS_KEPT = 2
# Items whose random numbers are drawn at once; their arrays fit into a CPU cache.
_DRAWN_TOGETHER = 1 << 14


@dataclass(frozen=True)
class CropTransforms:
    """Where boxes lie in the network's input; every array has the boxes as its first dimension."""

    image_to_input: npt.NDArray[np.float64]
    """(boxes, 2, 3) image px -> input px."""
    input_to_image: npt.NDArray[np.float64]
    """(boxes, 2, 3) input px -> image px, what a warp looks up."""
    image_to_heatmap: npt.NDArray[np.float64]
    """(boxes, 2, 3) image px -> heatmap cells."""
    window: npt.NDArray[np.int64]
    """(boxes, 4) x1 y1 x2 y2, the image px that smoothing and warp read."""
    smoothing: npt.NDArray[np.float32]
    """(boxes, 2) sigma in x and y of the Gaussian before the warp, image px; 0 = none."""
    crop_to_image: npt.NDArray[np.float32]
    """(boxes, 2, 3) heatmap cells -> image px."""
    side: npt.NDArray[np.float64]
    """(boxes, 2) width and height of the padded crop, image px."""


def make_crop_transforms(
    cfg: Config,
    bbox: npt.ArrayLike,
    width: npt.ArrayLike,
    height: npt.ArrayLike,
    draws: AugmentParams,
) -> CropTransforms:
    """The crop of each box, padded, shifted, flipped and turned as `draws` say.

    A box is cut at the image border; its crop ends there as well or leaves the image, as
    CROP_BORDER says. Beyond the image the loaders repeat its edge px.
    bbox: `(boxes, 4)` x1 y1 x2 y2 as shares of width and height. width, height: `(boxes,)` px.
    """
    clip = cfg.CROP_BORDER == "clip"
    box = geometry.box_to_pixels(bbox, width, height)
    loose = geometry.shift_edges(box, draws.shift, width, height, clip=clip)
    crop = geometry.loose_crop(loose, draws.pad, width, height, clip=clip)
    return transforms_of_crops(cfg, crop, width, height, draws)


def evaluation_transforms(
    cfg: Config, bbox: npt.ArrayLike, width: npt.ArrayLike, height: npt.ArrayLike
) -> CropTransforms:
    """The crops of `fasthg eval`, as EVAL_CROP says; arguments as of `make_crop_transforms`.

    With `mars` they are only as exact for pixels as for keypoints: a loader samples them by
    `opencv_loader.crop_and_resize`, whose grid differs by less than a px.
    """
    bbox = np.asarray(bbox)
    nothing = no_augmentation(cfg, len(bbox))
    if cfg.EVAL_CROP == "training":
        return make_crop_transforms(cfg, bbox, width, height, nothing)
    size = np.stack([np.asarray(width), np.asarray(height)] * 2, axis=-1)
    crop = geometry.unrounded_crop(bbox, fixed_padding(cfg)) * size
    return transforms_of_crops(cfg, crop, width, height, nothing)


def transforms_of_crops(
    cfg: Config,
    crop: npt.ArrayLike,
    width: npt.ArrayLike,
    height: npt.ArrayLike,
    draws: AugmentParams,
) -> CropTransforms:
    """The transforms of crops as they are, flipped and turned as `draws` say.

    crop: `(boxes, 4)` x1 y1 x2 y2, image px; may leave the image. width, height: `(boxes,)` px.
    """
    crop = np.asarray(crop)
    side = (crop[:, 2:] - crop[:, :2]).astype(np.float64)
    to_input = geometry.image_to_input(crop, cfg.INPUT_SIZE, draws.flip, draws.angle)
    to_image = geometry.invert(to_input)
    to_heatmap = geometry.image_to_heatmap(to_input, cfg.INPUT_SIZE, cfg.HEATMAP_SIZE)
    sigma = smoothing(side / cfg.INPUT_SIZE).astype(np.float32)
    window = geometry.source_window(
        to_image, cfg.INPUT_SIZE, smoothing_radius(sigma), width, height
    )
    return CropTransforms(
        image_to_input=to_input,
        input_to_image=to_image,
        image_to_heatmap=to_heatmap,
        window=window,
        smoothing=sigma,
        crop_to_image=geometry.invert(to_heatmap).astype(np.float32),
        side=side,
    )


@dataclass(frozen=True)
class BatchSpec:
    """Specification of one batch; every array has the batch as its first dimension."""

    instances: npt.NDArray[np.int64]
    """(batch,) rows of the RecordIndex."""
    records: npt.NDArray[np.int64]
    """(batch,) the record each instance is in."""
    image_to_input: npt.NDArray[np.float64]
    """(batch, 2, 3) image px -> input px."""
    input_to_image: npt.NDArray[np.float64]
    """(batch, 2, 3) input px -> image px, what a warp looks up."""
    window: npt.NDArray[np.int64]
    """(batch, 4) x1 y1 x2 y2, the image px that smoothing and warp read."""
    smoothing: npt.NDArray[np.float32]
    """(batch, 2) sigma in x and y of the Gaussian before the warp, image px; 0 = none."""
    draws: AugmentParams
    keypoints: npt.NDArray[np.float32]
    """(batch, parts, 2) heatmap cells, left and right swapped where flipped; NaN = unlabelled."""
    visibility: npt.NDArray[np.uint8]
    """(batch, parts) 0 = no target (not visible or no position), 1 = occluded, 2 = visible."""
    sigmas: npt.NDArray[np.float32]
    """(batch, parts) heatmap cells."""
    crop_to_image: npt.NDArray[np.float32]
    """(batch, 2, 3) heatmap cells -> image px."""
    area: npt.NDArray[np.float32]
    """(batch,) the animal's area, image px²."""
    crop_area: npt.NDArray[np.float32]
    """(batch,) area of the padded crop, image px²."""

    def __len__(self) -> int:
        return len(self.instances)

    def take(self, rows: npt.NDArray[np.int64]) -> BatchSpec:
        """The specification of `rows`, in that order; a row may be taken twice."""
        taken: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        draws = taken.pop("draws").take(rows)
        return BatchSpec(draws=draws, **{name: array[rows] for name, array in taken.items()})


class BatchSampler:
    """Specifications of the batches of one split.

    Training: an endless stream that holds every instance once per epoch, each epoch in a new
    order and with new parameters; every batch is full, so one may span two epochs (and a small
    dataset repeats within a batch, drawn anew). Evaluation: each instance once, in order, without
    augmentation; the last batch may be short.
    """

    def __init__(
        self,
        index: RecordIndex,
        cfg: Config,
        *,
        training: bool,
        seed: int,
        batch_size: int | None = None,
        rank: int = 0,
        ranks: int = 1,
        final: bool = False,
    ) -> None:
        """batch_size: instances a batch, BATCH_SIZE unless given. Raises DataError if empty.

        final: an evaluation whose crops EVAL_CROP chooses; in a training, validation has the crops
        of the training, as in MARS.

        rank, ranks: number of this process and count of those that train together. In training
        batch `step` of rank r is the r-th part of the batch that one process would make of
        `ranks * batch_size` instances; in evaluation a rank has every `ranks`-th instance.
        """
        if len(index) == 0:
            names = ", ".join(str(name) for name in index.files[:3])
            raise DataError(f"no object in {names}: give files whose records hold a bounding box")
        self.index = index
        self.cfg = cfg
        self.training = training
        self.seed = seed
        self.batch_size = int(batch_size or cfg.BATCH_SIZE)
        self.rank, self.ranks = rank, ranks
        self.final = final and not training
        self._sigmas = np.asarray(cfg.PARTS.SIGMAS, np.float64)
        self._swap = np.arange(index.num_parts)
        for left, right in cfg.PARTS.LEFT_RIGHT_PAIRS:
            self._swap[[left, right]] = right, left
        self._orders: dict[int, npt.NDArray[np.uint32]] = {}

    @property
    def count(self) -> int:
        """Items that an epoch holds: instances."""
        return len(self.index)

    @property
    def crops_as_mars(self) -> bool:
        """Whether images are `opencv_loader.crop_and_resize` of `mars_crops`, in float32."""
        return self.final and self.cfg.EVAL_CROP == "mars"

    def mars_crops(self, instances: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(instances, 4) x1 y1 x2 y2 of the crops of MARS's evaluation, as shares of the image."""
        boxes = np.asarray(self.index.bbox)[instances]
        return geometry.unrounded_crop(boxes, fixed_padding(self.cfg))

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which all ranks together show every item: rounded up."""
        if self.training:
            return -(-self.count // (self.batch_size * self.ranks))
        return -(-len(self._evaluated) // self.batch_size)

    @property
    def _evaluated(self) -> range:
        """The items of this rank in an evaluation."""
        return range(self.rank, self.count, self.ranks)

    @property
    def stop(self) -> int | None:
        """The step after the last one; None while training, which never ends."""
        return None if self.training else self.batches_per_epoch

    def plan(self, step: int) -> BatchSpec:
        """Specification of batch `step`, counted from 0. Raises IndexError beyond the last one."""
        if step < 0 or (self.stop is not None and step >= self.stop):
            raise IndexError(f"batch {step} of {self.batches_per_epoch}")
        size = self.batch_size
        if not self.training:
            return self._build(
                np.array(self._evaluated[step * size : (step + 1) * size], np.int64), None
            )
        place = np.arange(size) + (step * self.ranks + self.rank) * size
        epoch = place // self.count
        items = np.empty(size, np.int64)
        for one in range(int(epoch[0]), int(epoch[-1]) + 1):
            items[epoch == one] = self._order(one)[place[epoch == one] % self.count]
        return self._build(items, epoch)

    def _order(self, epoch: int) -> npt.NDArray[np.uint32]:
        """The order in which an epoch visits its items; `(items,)`."""
        if epoch not in self._orders:
            if len(self._orders) >= _ORDERS_KEPT:
                del self._orders[next(iter(self._orders))]
            # Random word in the upper half, item in the lower: the order is unique.
            keys = np.arange(self.count, dtype=np.uint64)
            for start in range(0, len(keys), _DRAWN_TOGETHER):
                part = keys[start : start + _DRAWN_TOGETHER]
                part |= first_words(self.seed, _STREAM, epoch, part) << np.uint64(32)
            keys.sort()
            self._orders[epoch] = keys.astype(np.uint32)  # the lower half
        return self._orders[epoch]

    def _draws(
        self, items: npt.NDArray[np.int64], epoch: npt.NDArray[np.int64] | None
    ) -> AugmentParams:
        """Augmentation of items in their epochs; none for None."""
        if epoch is None:
            return no_augmentation(self.cfg, len(items))
        return draw(self.cfg, self.seed, epoch, items)

    def _build(
        self, items: npt.NDArray[np.int64], epoch: npt.NDArray[np.int64] | None
    ) -> BatchSpec:
        """items: `(batch,)`. epoch: `(batch,)`, or None for an evaluation."""
        index, cfg, instances = self.index, self.cfg, items
        draws = self._draws(items, epoch)
        records = np.asarray(index.record)[instances].astype(np.int64)
        width, height = np.asarray(index.width)[records], np.asarray(index.height)[records]
        area = np.asarray(index.area)[instances].astype(np.float32)

        boxes = np.asarray(index.bbox)[instances]
        if self.final:
            crops = evaluation_transforms(cfg, boxes, width, height)
        else:
            crops = make_crop_transforms(cfg, boxes, width, height, draws)

        keypoints = np.asarray(index.keypoints)[instances]
        visibility = np.asarray(index.visibility)[instances]
        flip = draws.flip[:, None]
        keypoints = np.where(flip[..., None], keypoints[:, self._swap], keypoints)
        visibility = np.where(flip, visibility[:, self._swap], visibility)
        unlabelled = ~np.isfinite(keypoints).all(axis=2)

        sigmas = np.broadcast_to(self._sigmas, visibility.shape)
        if cfg.PARTS.SCALE_SIGMAS_BY_AREA:
            # INPUT_SIZE cancels out of MARS' im_scale * HEATMAP_SIZE / INPUT_SIZE.
            scale = cfg.HEATMAP_SIZE / crops.side.max(axis=1) * np.sqrt(area) * 2
            sigmas = sigmas * scale[:, None]

        return BatchSpec(
            instances=instances,
            records=records,
            image_to_input=crops.image_to_input,
            input_to_image=crops.input_to_image,
            window=crops.window,
            smoothing=crops.smoothing,
            draws=draws,
            keypoints=geometry.apply(keypoints, crops.image_to_heatmap).astype(np.float32),
            visibility=np.where(unlabelled, 0, visibility).astype(np.uint8),
            sigmas=sigmas.astype(np.float32),
            crop_to_image=crops.crop_to_image,
            area=area,
            crop_area=crops.side.prod(axis=1).astype(np.float32),
        )


def replacement_rows(bad: npt.NDArray[np.bool_], training: bool) -> npt.NDArray[np.int64]:
    """Rows of a batch after those whose image cannot be decoded are replaced or dropped.

    bad: `(batch,)`. Training keeps the size: each bad row becomes the next good one after it,
    cyclically. Evaluation drops bad rows. No rows at all if every row is bad.
    """
    good = np.flatnonzero(~bad)
    if not training or not len(good):
        return good
    place = np.searchsorted(good, np.arange(len(bad)))
    return good[place % len(good)]
