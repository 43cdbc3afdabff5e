"""The locator: boxes of all animals in whole frames, and what a validation said about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.augment import no_augmentation
from fasthg.data.boxes import GROWTH
from fasthg.data.frame_sampler import frame_crop
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.opencv_loader import CropRenderer, Image
from fasthg.data.sampler import transforms_of_crops
from fasthg.errors import DataError
from fasthg.inference.predictor import Forward
from fasthg.model.loss import SIZE_UNIT
from fasthg.runs.checkpoint import CHECKSUM
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import load_model
from fasthg.runtime.device import choose_device, choose_precision

SETTINGS = "locator"
"""Key of a locator's `LocatorSettings` in the metadata of its weights file."""
NO_LOCATOR = "locator.json"
"""File of a run folder that says why the run has no locator."""
LEAST_SCORE = 0.05
"""Height of a centre below which it is not even a candidate."""
SAME_IOU = 0.7
"""Overlap from which two centres of one map are of one animal."""
GHOST_SHARE = 0.5
"""Share of another class's score below which a class's centre at the same place does not count."""
SURE = 0.3
"""Score of a sure part, times the median of its pose."""
SURE_PARTS = 0.7
"""Share of parts that must be sure to put a box around a pose."""
REFINED_SIZE = 1.4
"""Greatest ratio of the sizes of a box before and after."""
MATCH_IOU = 0.5
"""Overlap from which a found box is that of an annotated animal."""
SEEN_IOU = 0.1
"""Overlap from which an animal is seen: its box may be wrong, but there is an animal."""

Boxes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What a locator sees in one frame, the most certain first."""

    boxes: Boxes
    """(n, 4) x1 y1 x2 y2, image px, cut at the image border."""
    scores: npt.NDArray[np.float64]
    """(n,) height of the centre map, about 0..1."""
    classes: npt.NDArray[np.int64]
    """(n,) into `LocatorSettings.classes`; -1 without classes."""

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Found:
        """Some of them."""
        return Found(self.boxes[rows], self.scores[rows], self.classes[rows])

    @classmethod
    def nothing(cls) -> Found:
        """Of a frame without an animal, or without an image."""
        return cls(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


@dataclass(frozen=True)
class JudgedFrame:
    """What was found in a frame, and what is annotated there."""

    found: Found
    truth: Boxes
    """(animals, 4) annotated boxes, image px."""
    classes: npt.NDArray[np.int64]
    """(animals,) into `LocatorSettings.classes`; -1 without."""
    whole: npt.NDArray[np.bool_]
    """(animals,) see `frame_sampler.whole_animals`; the box of another is not known."""


@dataclass(frozen=True)
class LocatorSettings:
    """What training and validation know about the animals."""

    classes: tuple[str, ...] = ()
    """Names with a centre map each."""
    told_apart: bool = False
    """Whether validation says that images tell the classes apart; else they are not used."""
    most: int = 1
    """Animals in a training frame at most."""
    threshold: float = 0.3
    """Score from which a centre counts: that by which validation sees the animals best."""
    sizes: tuple[float, float, float] = (0.0, 0.1, 1.0)
    """Root of a training box's area by the frame's longer side: 1st, 50th and 99th percentile."""
    margin: tuple[float, float] = (GROWTH, GROWTH)
    """Median distance from the outermost parts to the sides of training boxes, as shares of the
    frame's width and height."""
    pose_scores: tuple[float, float] = (0.0, 1.0)
    """`predictor.certainty` of poses in annotated boxes, in validation: 1st and 50th percentile."""

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LocatorSettings:
        """Raises ValueError, KeyError or TypeError for another content."""
        values = json.loads(text)
        for name in ("classes", "sizes", "margin", "pose_scores"):
            values[name] = tuple(values[name])
        return cls(**values)


def find_centres(
    maps: Tensor, most: int, *, classes: int, by_class: bool
) -> list[tuple[Boxes, npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    """Boxes in heatmap cells, scores and classes of each frame, the highest first.

    A centre is a cell that no neighbour exceeds, refined by the parabola through the logarithms of
    it and its neighbours; of two that overlap by SAME_IOU in one map the higher counts.

    maps: (batch, 1 + classes + 2, height, width), see `model.loss.locator_loss`. most: candidates
    of each map. by_class: look into the classes' maps, not into that of any animal.
    """
    chosen = (maps[:, 1 : 1 + classes] if by_class else maps[:, :1]).float()
    batch, channels, height, width = chosen.shape
    peaks = torch.where(functional.max_pool2d(chosen, 3, 1, 1) == chosen, chosen, 0.0)
    scores, places = (t.cpu().numpy() for t in peaks.flatten(2).topk(min(most, height * width)))
    found = []
    maps_np = maps.float().cpu().numpy()
    chosen_np = chosen.cpu().numpy()
    for row in range(batch):
        boxes, kept, names = [], [], []
        for channel in range(channels):
            own: list[npt.NDArray[np.float64]] = []
            for score, place in zip(scores[row, channel], places[row, channel], strict=True):
                if score < LEAST_SCORE:
                    break
                y, x = divmod(int(place), width)
                plane = chosen_np[row, channel]
                centre = np.array([_vertex(plane[y], x), _vertex(plane[:, x], y)])
                log_size = maps_np[row, -2:, y, x].astype(np.float64)
                size = SIZE_UNIT * np.exp(np.clip(log_size, -4, 4))
                box = np.concatenate([centre - size / 2, centre + size / 2])
                if own and geometry.box_iou(box, np.stack(own)).max() > SAME_IOU:
                    continue
                own.append(box)
                boxes.append(box)
                kept.append(float(score))
                names.append(channel if by_class else -1)
        order = np.argsort([-score for score in kept], kind="stable")
        found.append(
            (
                np.array(boxes).reshape(-1, 4)[order],
                np.array(kept, np.float64)[order],
                np.array(names, np.int64)[order],
            )
        )
    return found


def _vertex(line: npt.NDArray[np.floating], at: int) -> float:
    """Place of the peak near cell `at`; a cell's own place at the border."""
    if not 0 < at < len(line) - 1:
        return float(at)
    low, middle, high = np.log(np.maximum(line[at - 1 : at + 2].astype(np.float64), 1e-3))
    curvature = 2 * middle - low - high
    return at + (float(np.clip((high - low) / (2 * curvature), -0.5, 0.5)) if curvature > 0 else 0)


def boxes_of_poses(
    boxes: Boxes,
    keypoints: npt.NDArray[np.float64],
    scores: npt.NDArray[np.floating],
    settings: LocatorSettings,
    image_size: tuple[int, int],
) -> Boxes:
    """Boxes put around the poses that were seen in them, as training boxes are around labels.

    A box stays where fewer than SURE_PARTS of the parts are sure, or where the new one would have
    another size by more than REFINED_SIZE: a pose of the head alone must not shrink it.

    boxes: (n, 4) image px. keypoints: (n, parts, 2). scores: (n, parts). image_size: width, height.
    """
    refined = boxes.copy()
    margin = np.array(settings.margin) * image_size
    for row, (box, points, heights) in enumerate(zip(boxes, keypoints, scores, strict=True)):
        sure = heights >= SURE * np.median(heights)
        if not np.isfinite(points).all() or sure.mean() < SURE_PARTS:
            continue
        low, high = points[sure].min(axis=0) - margin, points[sure].max(axis=0) + margin
        new = np.concatenate([low, high]).clip(0, [*image_size, *image_size])
        sizes = [np.sqrt(max((each[2:] - each[:2]).prod(), 1.0)) for each in (box, new)]
        if 1 / REFINED_SIZE < sizes[1] / sizes[0] < REFINED_SIZE:
            refined[row] = new
    return refined


def without_ghosts(found: Found) -> Found:
    """Less the centres that lie on a much higher one of another class."""
    if len(found) < 2 or (found.classes < 0).all():
        return found
    overlap = geometry.box_iou(found.boxes[:, None], found.boxes)
    lower = found.scores[:, None] < GHOST_SHARE * found.scores[None]
    ghost: npt.NDArray[np.bool_] = np.any((overlap > MATCH_IOU) & lower, axis=1)
    return found.take(~ghost)


class Locator:
    """Finds animals in images.

    Args:
        forward: the network, uint8 images to `(stacks, batch, maps, cells, cells)`.
        config: the locator's own configuration.
        settings: of its weights file.
    """

    def __init__(
        self, forward: Forward, config: Config, settings: LocatorSettings, weights: str = ""
    ) -> None:
        """weights: which weights these are."""
        self.forward, self.config, self.settings = forward, config, settings
        self.weights = weights
        self._painter = CropRenderer(config.INPUT_SIZE, config.RANDOM_NOISE_SCALE)
        self._nothing_drawn = no_augmentation(config, 1)

    def without_classes(self) -> Locator:
        """The same, that looks for any animal: where there are more than the classes can tell."""
        settings = replace(self.settings, told_apart=False)
        return Locator(self.forward, self.config, settings, self.weights)

    def letterbox(self, image: Image) -> tuple[Image, npt.NDArray[np.float64]]:
        """The network's input for a BGR image, (input, input, 3) RGB, and cells -> image px."""
        height, width = image.shape[:2]
        crop = np.rint(frame_crop([width], [height])).astype(np.int64)
        plan = transforms_of_crops(self.config, crop, [width], [height], self._nothing_drawn)
        drawn = cv2.cvtColor(self._painter.warp(image, plan, 0), cv2.COLOR_BGR2RGB)
        return drawn, plan.crop_to_image[0].astype(np.float64)

    def find(self, images: Sequence[Image | None], most: int) -> list[Found]:
        """Animals of each BGR image, candidates below the threshold included; nothing for None.

        most: candidates of each class, or of all where classes are not told apart.
        """
        there = [row for row, image in enumerate(images) if image is not None]
        found = [Found.nothing() for _ in images]
        if not there:
            return found
        inputs, to_image = zip(*(self.letterbox(images[row]) for row in there), strict=True)  # type: ignore[arg-type]
        pixels = torch.from_numpy(np.stack(inputs)).to(self.forward.device)
        maps = self.forward(pixels)[-1]
        settings = self.settings
        decoded = find_centres(
            maps, most, classes=len(settings.classes), by_class=settings.told_apart
        )
        for row, matrix, cells in zip(there, to_image, decoded, strict=True):
            height, width = images[row].shape[:2]  # type: ignore[union-attr]
            found[row] = in_image(*cells, matrix, width, height)
        return found


def in_image(
    boxes: Boxes,
    scores: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    to_image: npt.NDArray[np.float64],
    width: int,
    height: int,
) -> Found:
    """Boxes in cells as boxes in the image, cut at its border; those outside are left out.

    to_image: (2, 3), cells -> image px, without rotation.
    """
    corners = geometry.apply(boxes.reshape(-1, 2), to_image).reshape(-1, 4)
    corners = corners.clip(0, [width, height] * 2)
    found = Found(corners, scores, classes)
    there: npt.NDArray[np.bool_] = np.all(corners[:, 2:] - corners[:, :2] >= 1, axis=1)
    return without_ghosts(found.take(there))


def load_locator(run: RunFolder, config: Config) -> Locator | None:
    """The locator of a run; None where it has none.

    config: the run's configuration, with overrides; DEVICE, PRECISION, FUSED and STEP are its.

    Raises:
        DataError: its weights are damaged or of another version.
    """
    folder = RunFolder(locator_folder(run.path))
    if not folder.best.exists():
        return None
    same = {key: getattr(config, key) for key in ("DEVICE", "PRECISION", "FUSED", "STEP")}
    own = folder.config().model_copy(update=same)
    model, metadata = load_model(folder.best, own)
    try:
        settings = LocatorSettings.from_json(metadata[SETTINGS])
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{folder.best}: has no settings of a locator; run: fasthg train --locator {run.path}"
        ) from None
    device = choose_device(own.DEVICE)
    precision = choose_precision(own.PRECISION, device, own.FEATURES).dtype
    forward = Forward(model.to(device), own, precision)
    return Locator(forward, own, settings, metadata.get(CHECKSUM, ""))


def locator_folder(run: Path) -> Path:
    """The run folder of a run's locator."""
    return run / "locator"


def frames_are_crops(run: RunFolder) -> bool:
    """Whether a run has no locator because its frames are crops of one animal."""
    note = run.path / NO_LOCATOR
    try:
        return bool(json.loads(note.read_text(encoding="utf-8"))["frames_are_crops"])
    except (OSError, ValueError, KeyError):
        return False


@dataclass(frozen=True)
class Agreement:
    """Found boxes against annotated ones, over frames."""

    threshold: float
    animals: int
    """Annotated ones, less those that are labelled in part."""
    found: int
    """Annotated animals whose box was found, at MATCH_IOU or what was asked."""
    false: int
    """Found boxes that are no annotated animal's."""
    frames: int
    overlap: float
    """Sum of the IoU of the boxes that were found."""
    centre_px: float
    """Mean distance of centres of the boxes that were found, image px; NaN without any."""
    class_right: int
    """Boxes found whose class is right as well."""

    @property
    def f1(self) -> float:
        """Twice the animals found, by those there are and those found or false; 0..1."""
        both = self.animals + self.found + self.false
        return 2 * self.found / both if both else 0.0

    @property
    def quality(self) -> float:
        """Panoptic quality: the IoU of what was found, less what was missed or is false; 0..1.

        Source: Kirillov et al., "Panoptic segmentation", CVPR 2019.
        """
        whole = self.found + (self.false + self.animals - self.found) / 2
        return self.overlap / whole if whole else 0.0


def annotated(index: RecordIndex, record: int) -> tuple[npt.NDArray[np.int64], Boxes]:
    """The animals of a record: rows of the index, (animals,), and boxes, (animals, 4) image px."""
    instances = np.flatnonzero(index.record == record)
    size = np.tile([index.width[record], index.height[record]], 2)
    return instances, index.bbox[instances].astype(np.float64) * size


def match_boxes(
    found: Boxes, truth: Boxes, least: float = MATCH_IOU
) -> list[tuple[int, int, float]]:
    """Pairs (found, annotated, IoU) with the greatest overlap in all, at least `least` each."""
    if not len(found) or not len(truth):
        return []
    overlap = geometry.box_iou(found[:, None], truth)
    overlap = np.where(overlap >= least, overlap, 0)
    pairs = zip(*linear_sum_assignment(-overlap), strict=True)
    return [(int(a), int(b), float(overlap[a, b])) for a, b in pairs if overlap[a, b]]


def agreement(
    frames: Sequence[JudgedFrame], threshold: float, most: int, least: float = MATCH_IOU
) -> Agreement:
    """Compare what was found with what is annotated.

    most: boxes of a frame that count, the most certain first. least: overlap of a found animal.
    """
    animals = hits = false = right = 0
    overlap, distances = 0.0, []
    for frame in frames:
        found, whole = frame.found, frame.whole
        sure = found.take(np.flatnonzero(found.scores >= threshold)[:most])
        pairs = match_boxes(sure.boxes, frame.truth, least)
        animals += int(whole.sum())
        # A box on an animal that is labelled in part is neither right nor wrong.
        free = set(range(len(sure))) - {mine for mine, _, _ in pairs}
        partly = frame.truth[~whole]
        false += sum(not geometry.box_iou(sure.boxes[mine], partly).any() for mine in free)
        for mine, other, iou in pairs:
            if not whole[other]:
                continue
            hits += 1
            overlap += iou
            apart = (sure.boxes[mine].reshape(2, 2) - frame.truth[other].reshape(2, 2)).mean(axis=0)
            distances.append(float(np.hypot(*apart)))
            right += bool(sure.classes[mine] == frame.classes[other])
    return Agreement(
        threshold=threshold,
        animals=animals,
        found=hits,
        false=false,
        frames=len(frames),
        overlap=overlap,
        centre_px=float(np.mean(distances)) if distances else float("nan"),
        class_right=right,
    )


def best_agreement(frames: Sequence[JudgedFrame], most: int) -> Agreement:
    """That of the threshold by which animals are seen best (`f1`); of several, the middle one."""
    thresholds = np.arange(0.1, 0.81, 0.05).round(2)
    seen = [agreement(frames, threshold, most, SEEN_IOU).f1 for threshold in thresholds]
    tied = [t for t, f1 in zip(thresholds, seen, strict=True) if f1 >= max(seen) - 1e-9]
    return agreement(frames, tied[len(tied) // 2], most)
