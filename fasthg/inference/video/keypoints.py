"""From frames and boxes to keypoints, by the geometry, painter and forward pass of evaluation."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

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
from fasthg.inference.video.boxes import Locate
from fasthg.inference.video.frame import Frame
from fasthg.inference.video.pipeline import Clock, ahead
from fasthg.inference.video.tracking import Tracker
from fasthg.ops import heatmap_peaks

_BATCHES_AHEAD = 2


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

    def of(self, animal: int) -> Poses:
        """Those of one animal."""
        one = slice(animal, animal + 1)
        found = {name: getattr(self, name)[:, one] for name in ("keypoints", "scores", "boxes")}
        return replace(self, **found)


def _first(poses: Poses) -> tuple[Any, Any, tuple[float, float]]:
    """Keypoints and scores of the first animal in the first frame, and the frame's size."""
    width, height = poses.sizes[0]
    return poses.keypoints[0, 0], poses.scores[0, 0], (float(width), float(height))


class Predictor:
    """Keypoints of frames, batch by batch."""

    def __init__(self, network: Network, config: Config, clock: Clock) -> None:
        """config: input and heatmap size, padding, decode, BATCH_SIZE of the crops."""
        self.network, self.config, self.clock = network, config, clock
        self._painter = CropRenderer(config.INPUT_SIZE, config.RANDOM_NOISE_SCALE)

    def poses(
        self, frames: Generator[Frame], animals: int, locate: Locate | Tracker
    ) -> Iterator[Poses]:
        """Poses of all frames in order, crops being made while the network works.

        A tracker needs each frame's keypoints before the next crop, so its batches are one frame.

        Raises:
            DataError: as `locate`.
        """
        if isinstance(locate, Tracker):
            with closing(frames):
                yield from self._tracked(frames, locate)
            return
        per_batch = max(1, self.config.BATCH_SIZE // animals)
        crops = ahead(self._cropped(frames, animals, locate, per_batch), _BATCHES_AHEAD)
        with closing(crops):
            for crop in crops:
                yield self._run(crop, animals)

    def _tracked(self, frames: Generator[Frame], tracker: Tracker) -> Iterator[Poses]:
        for frame in frames:
            poses = self._look(frame, tracker)
            searched = poses.scores.shape[1] > 1
            if searched:
                means = poses.scores[0].mean(axis=1)
                poses = poses.of(int(np.nan_to_num(means, nan=-np.inf).argmax()))
            tracker.update(*_first(poses))
            if searched and tracker.finds(poses.scores[0, 0]):
                again = self._look(frame, tracker)
                if again.scores.mean() >= poses.scores.mean() and tracker.finds(again.scores[0, 0]):
                    poses = again
                    tracker.update(*_first(poses))
            yield poses

    def _look(self, frame: Frame, tracker: Tracker) -> Poses:
        """Poses of one frame in each of the tracker's windows, as if those were animals."""
        crop, windows = Crop(), np.full((1, 4), np.nan)
        if frame.image is not None:
            height, width = frame.image.shape[:2]
            windows = tracker.windows(frame.number, width, height)
        with self.clock.of("crop"):
            self._add(crop, frame, len(windows), lambda *_: windows)
        return self._run(crop, len(windows))

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
            sides = np.full(len(there), width), np.full(len(there), height)
            plan = make_crop_transforms(
                self.config, shares[there], *sides, no_augmentation(self.config, len(there))
            )
            for row, animal in enumerate(there):
                warped = self._painter.warp(image, plan, row)
                crop.images.append(cv2.cvtColor(warped, cv2.COLOR_BGR2RGB))
                crop.to_image.append(plan.crop_to_image[row].astype(np.float64))
                crop.place.append((len(crop.numbers), int(animal)))
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
            with self.clock.of("network"):
                images = torch.from_numpy(np.stack(crop.images)).to(self.network.device)
                heatmaps = self.network(images)[-1]
            with self.clock.of("peaks"):
                cells, heights = heatmap_peaks(heatmaps, self.config.DECODE)
                points = geometry.apply(cells.double().cpu().numpy(), np.stack(crop.to_image))
                frame, animal = np.array(crop.place).T
                keypoints[frame, animal] = points
                scores[frame, animal] = heights.float().cpu().numpy()
        return Poses(
            first=crop.numbers[0],
            times=np.array(crop.times),
            keypoints=keypoints,
            scores=scores,
            boxes=np.stack(crop.boxes),
            sizes=np.array(crop.sizes, np.int32),
        )
