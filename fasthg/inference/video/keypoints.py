"""From frames and boxes to keypoints, by the geometry, painter and forward pass of evaluation."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.augment import no_augmentation
from fasthg.data.opencv_loader import CropRenderer, Image
from fasthg.data.sampler import make_crop_transforms
from fasthg.inference.locator import Found, Locator, LocatorSettings, boxes_of_poses
from fasthg.inference.video.boxes import Boxes, Locate
from fasthg.inference.video.frame import Frame
from fasthg.inference.video.pipeline import Clock, ahead
from fasthg.inference.video.tracking import (
    EXPECTED_WITHIN,
    TAKEN,
    Animals,
    Candidates,
    Expected,
    Tracker,
    add_one_by_one,
)
from fasthg.ops import gaussian_heatmaps, heatmap_peaks

_BATCHES_AHEAD = 2
WEAK = 0.5
"""Score of a box that is worth a look, times the locator's threshold."""
UNEXPECTED = 0.2
"""Weight of a heatmap's values far from where the part is expected, in close contact."""
MORE = 2
"""Boxes of a frame that are looked at beyond the number of animals."""


class Network(Protocol):
    """uint8 images (batch, input, input, 3) to heatmaps (stacks, batch, parts, cells, cells)."""

    device: torch.device

    def __call__(self, images: Tensor) -> Tensor:
        """As `inference.Forward`."""


@dataclass
class Crop:
    """The boxes of some frames as the network's input; `n` animals with a box and an image."""

    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """One a frame, width and height in px; 0 without image."""
    boxes: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """One a frame, (animals, 4) x1 y1 x2 y2, image px; NaN without a box."""
    place: list[tuple[int, int]] = field(default_factory=list)
    """(frame of these, animal), n of them."""
    images: list[Image] = field(default_factory=list)
    """n times (input, input, 3), RGB uint8."""
    to_image: list[npt.NDArray[np.float64]] = field(default_factory=list)
    """n times (2, 3): heatmap cells -> image px."""


@dataclass(frozen=True)
class Poses:
    """What `frames` frames in a row hold."""

    first: int
    """Number of the first frame."""
    times: npt.NDArray[np.float64]
    """(frames,) seconds; NaN for images."""
    keypoints: npt.NDArray[np.float64]
    """(frames, animals, parts, 2) x, y in image px; NaN without image or box."""
    scores: npt.NDArray[np.float32]
    """(frames, animals, parts) height of the heatmap's peak; NaN as above."""
    boxes: npt.NDArray[np.float64]
    """(frames, animals, 4) x1 y1 x2 y2 before padding, image px; NaN as above."""
    sizes: npt.NDArray[np.int32]
    """(frames, 2) width and height, px; 0 without image."""

    def __len__(self) -> int:
        return len(self.times)


class Predictor:
    """Keypoints of frames, batch by batch."""

    def __init__(self, network: Network, config: Config, clock: Clock) -> None:
        """config: input and heatmap size, padding, decode, BATCH_SIZE of the crops."""
        self.network, self.config, self.clock = network, config, clock
        self._painter = CropRenderer(config.INPUT_SIZE, config.RANDOM_NOISE_SCALE)

    def poses(self, frames: Generator[Frame], animals: int, locate: Locate) -> Iterator[Poses]:
        """Poses of all frames in order, crops being made while the network works.

        Raises:
            DataError: as `locate`.
        """
        per_batch = max(1, self.config.BATCH_SIZE // animals)
        crops = ahead(self._cropped(frames, animals, locate, per_batch), _BATCHES_AHEAD)
        with closing(crops):
            for crop in crops:
                yield self._run(crop, animals)

    def located(
        self,
        frames: Generator[Frame],
        animals: int,
        locator: Locator,
        tracker: Tracker | None,
        given: Boxes,
    ) -> Iterator[Poses]:
        """Poses of the animals that a locator finds, in all frames in order.

        tracker: follows animals from frame to frame; None for images that are no film. given: boxes
        of these animals in some frames, which count instead of what is found.

        Raises:
            DataError: a given box is empty or lies outside its image.
        """
        per_batch = max(1, self.config.BATCH_SIZE // animals)
        chunks = ahead(_chunks(frames, per_batch), 1)
        with closing(chunks):
            for chunk in chunks:
                with self.clock.of("locator"):
                    found = locator.find([frame.image for frame in chunk], animals + MORE)
                least = WEAK * locator.settings.threshold
                found = [f.take(np.flatnonzero(f.scores >= least)[: animals + MORE]) for f in found]
                images = [frame.image for frame in chunk]
                looked = self.look([(i, f.boxes) for i, f in zip(images, found, strict=True)])
                if tracker is None:
                    found, looked = self.look_closely(images, found, looked, locator.settings)
                rows = []
                for frame, f, pose in zip(chunk, found, looked, strict=True):
                    candidates = Candidates(f, *pose)
                    rows.append(self._animals(frame, candidates, animals, locator, tracker, given))
                yield _as_poses(chunk, rows)

    def _animals(
        self,
        frame: Frame,
        candidates: Candidates,
        animals: int,
        locator: Locator,
        tracker: Tracker | None,
        given: Boxes,
    ) -> Animals:
        parts = self.config.PARTS.NUM_PARTS
        image = frame.image
        if image is None:
            rows = Animals.missing(animals, parts)
            if tracker is not None:
                tracker.learn(rows)
            return rows
        height, width = image.shape[:2]
        boxes = given.shares(frame.number, width, height) * [width, height, width, height]
        candidates = candidates.apart_from(boxes)
        if tracker is not None:
            return tracker.follow(
                candidates,
                boxes,
                (width, height),
                lambda where, expected: self.look([(image, where)], expected)[0],
            )
        rows = Animals.missing(animals, parts)
        known = np.flatnonzero(np.isfinite(boxes).all(axis=1))
        for animal, *pose in zip(known, *self.look([(image, boxes[known])])[0], strict=True):
            rows.put(int(animal), boxes[animal], *pose)
        add_one_by_one(rows, candidates, locator.settings)
        return rows

    def look(
        self,
        items: Sequence[tuple[Image | None, npt.NDArray[np.float64]]],
        expected: Expected | None = None,
    ) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """Keypoints (n, parts, 2) and scores (n, parts) in the n boxes, px, of each image.

        expected: of the boxes of one image.
        """
        with self.clock.of("crop"):
            images, to_image = [], []
            for image, boxes in items:
                if image is not None and len(boxes):
                    own, matrices = self._crops(image, boxes)
                    images += own
                    to_image += matrices
        parts, batch = self.config.PARTS.NUM_PARTS, self.config.BATCH_SIZE
        keypoints, scores = np.zeros((0, parts, 2)), np.zeros((0, parts))
        if images:
            found = [
                self._peaks(
                    *(images[i : i + batch], to_image[i:]),
                    None if expected is None else expected.rows(slice(i, i + batch)),
                )
                for i in range(0, len(images), batch)
            ]
            keypoints, scores = (np.concatenate(each) for each in zip(*found, strict=True))
        ends = np.cumsum([0 if image is None else len(boxes) for image, boxes in items])
        starts = [0, *ends[:-1]]
        return [(keypoints[a:b], scores[a:b]) for a, b in zip(starts, ends, strict=True)]

    def look_closely(
        self,
        images: Sequence[Image | None],
        found: Sequence[Found],
        looked: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
        settings: LocatorSettings,
    ) -> tuple[list[Found], list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]]:
        """Boxes put around the poses that `look` saw in found ones, and the poses in these."""
        refined = [
            f
            if image is None
            else replace(
                f, boxes=boxes_of_poses(f.boxes, *poses, settings, (image.shape[1], image.shape[0]))
            )
            for image, f, poses in zip(images, found, looked, strict=True)
        ]
        return refined, self.look([(i, f.boxes) for i, f in zip(images, refined, strict=True)])

    def _crops(
        self, image: Image, boxes: npt.NDArray[np.float64]
    ) -> tuple[list[Image], list[npt.NDArray[np.float64]]]:
        """The network's inputs for boxes (n, 4), px, and what maps their cells to image px."""
        height, width = image.shape[:2]
        shares = boxes / [width, height, width, height]
        sides = np.full(len(boxes), width), np.full(len(boxes), height)
        plan = make_crop_transforms(
            self.config, shares, *sides, no_augmentation(self.config, len(boxes))
        )
        warped = [self._painter.warp(image, plan, row) for row in range(len(boxes))]
        return (
            [cv2.cvtColor(each, cv2.COLOR_BGR2RGB) for each in warped],
            list(plan.crop_to_image.astype(np.float64)),
        )

    def _peaks(
        self,
        images: Sequence[Image],
        to_image: Sequence[npt.NDArray[np.float64]],
        expected: Expected | None = None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Keypoints (n, parts, 2), image px, and scores (n, parts) of n inputs."""
        with self.clock.of("network"):
            pixels = torch.from_numpy(np.stack(images)).to(self.network.device)
            heatmaps = self.network(pixels)[-1]
        with self.clock.of("peaks"):
            matrices = np.stack(to_image[: len(images)])
            if expected is not None:
                heatmaps = heatmaps * _prior(heatmaps, matrices, expected)
            cells, heights = heatmap_peaks(heatmaps, self.config.DECODE)
            points = geometry.apply(cells.double().cpu().numpy(), matrices)
            return points, heights.float().cpu().numpy()

    def _cropped(
        self, frames: Generator[Frame], animals: int, locate: Locate, per_batch: int
    ) -> Iterator[Crop]:
        crop = Crop()
        with closing(frames):
            for frame in frames:
                with self.clock.of("crop"):
                    self._add(crop, frame, animals, locate)
                if len(crop.numbers) == per_batch:
                    yield crop
                    crop = Crop()
        if crop.numbers:
            yield crop

    def _add(self, crop: Crop, frame: Frame, animals: int, locate: Locate) -> None:
        """Add a frame's boxes to the crops of a batch, as evaluation crops a record's."""
        image = frame.image
        boxes = np.full((animals, 4), np.nan)
        if image is not None:
            height, width = image.shape[:2]
            shares = locate(frame.number, width, height)
            boxes = shares * [width, height, width, height]
            there = np.flatnonzero(np.isfinite(shares).all(axis=1))
            images, to_image = self._crops(image, boxes[there])
            crop.images += images
            crop.to_image += to_image
            crop.place += [(len(crop.numbers), int(animal)) for animal in there]
            size = (width, height)
        else:
            size = (0, 0)
        crop.sizes.append(size)
        crop.boxes.append(boxes)
        crop.numbers.append(frame.number)
        crop.times.append(frame.time)

    def _run(self, crop: Crop, animals: int) -> Poses:
        parts = self.config.PARTS.NUM_PARTS
        keypoints = np.full((len(crop.numbers), animals, parts, 2), np.nan)
        scores = np.full((len(crop.numbers), animals, parts), np.nan, np.float32)
        if crop.images:
            points, heights = self._peaks(crop.images, crop.to_image)
            frame, animal = np.array(crop.place).T
            keypoints[frame, animal], scores[frame, animal] = points, heights
        return Poses(
            first=crop.numbers[0],
            times=np.array(crop.times),
            keypoints=keypoints,
            scores=scores,
            boxes=np.stack(crop.boxes),
            sizes=np.array(crop.sizes, np.int32),
        )


def _prior(heatmaps: Tensor, to_image: npt.NDArray[np.float64], expected: Expected) -> Tensor:
    """What heatmaps (n, parts, cells, cells) are multiplied by: a Gaussian about the place where a
    part is expected, above UNEXPECTED; 1 where nothing is known; less at places that are taken."""
    inverse = geometry.invert(to_image)
    scale = np.sqrt(np.abs(np.linalg.det(to_image[:, :, :2])))

    def gaussians(places: npt.NDArray[np.float64], within: npt.NDArray[np.float64]) -> Tensor:
        cells = geometry.apply(places, inverse)
        sigmas = np.broadcast_to((within / scale)[:, None], cells.shape[:2]).copy()
        size = (heatmaps.shape[2], heatmaps.shape[3])
        centres, widths = (torch.from_numpy(each).to(heatmaps) for each in (cells, sigmas))
        return gaussian_heatmaps(centres, widths, size, subpixel=True)

    near = gaussians(expected.keypoints, EXPECTED_WITHIN * expected.lengths)
    known = torch.from_numpy(np.isfinite(expected.keypoints).all(axis=2)).to(heatmaps.device)
    weight = torch.where(known[..., None, None], UNEXPECTED + (1 - UNEXPECTED) * near, 1.0)
    for other in range(expected.taken.shape[1]):
        weight *= 1 - gaussians(expected.taken[:, other], TAKEN * expected.lengths)
    return weight


def _chunks(frames: Generator[Frame], count: int) -> Iterator[list[Frame]]:
    with closing(frames):
        chunk: list[Frame] = []
        for frame in frames:
            chunk.append(frame)
            if len(chunk) == count:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _as_poses(frames: Sequence[Frame], rows: Sequence[Animals]) -> Poses:
    sizes = [(0, 0) if f.image is None else f.image.shape[1::-1] for f in frames]
    return Poses(
        first=frames[0].number,
        times=np.array([frame.time for frame in frames]),
        keypoints=np.stack([row.keypoints for row in rows]),
        scores=np.stack([row.scores for row in rows]).astype(np.float32),
        boxes=np.stack([row.boxes for row in rows]),
        sizes=np.array(sizes, np.int32),
    )
