"""Everybody's labels of a MARS project, before any consensus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fasthg.data.boxes import box_around
from fasthg.data.convert.common import MIN_PARTS
from fasthg.data.convert.crowd import consensus, repair_swaps
from fasthg.data.convert.images import find_image
from fasthg.data.convert.mars_files import CrowdFrame, Project, read_frames, read_project

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_VOTERS = 3
"""Workers that `repair_swaps` needs to outvote one."""


@dataclass(frozen=True)
class Crowd:
    """A animals (of all frames) with P parts, labelled by up to W workers each.

    source: where the labels come from, for messages; parts: names; pairs: left and right, indices
    into parts; workers: everybody's name; frames (A): frame and animal in words; animals (A): the
    animal's name; labels
    (A, W, P, 2) float64 image px, NaN where left out; who (A, W) int64 rows of `workers`, -1 where
    fewer than W answered; size (A, 2) float64 image width and height in px, NaN where the image is
    not there.
    """

    source: str
    parts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    workers: tuple[str, ...]
    frames: tuple[str, ...]
    animals: tuple[str, ...]
    labels: Floats
    who: Ints
    size: Floats

    def of(self, animal: str) -> Crowd:
        """The labels of one animal, by its name."""
        rows = [row for row, name in enumerate(self.animals) if name == animal]
        return replace(
            self,
            frames=tuple(self.frames[row] for row in rows),
            animals=(animal,) * len(rows),
            labels=self.labels[rows],
            who=self.who[rows],
            size=self.size[rows],
        )


@dataclass(frozen=True)
class Repair:
    """A worker's left and right part that were exchanged, all by name."""

    frame: str
    worker: str
    left: str
    right: str


def read_crowd(project: Path) -> Crowd:
    """The labels of all animals in a MARS project.

    Where the file names no workers, "worker 2" is whoever stands second in a frame's list. Raises
    DataError, naming file, line and remedy, as the converter does.
    """
    config = read_project(project)
    source = config.annotations
    return crowd_of(config, source, read_frames(source, config).frames)


def crowd_of(config: Project, source: Path, found: Sequence[CrowdFrame]) -> Crowd:
    """As `read_crowd`, of frames that were read from `source` already."""
    most = max((len(xy) for frame in found for xy in frame.workers.values()), default=0)
    places = [f"worker {number + 1}" for number in range(most)]
    everybody: dict[str, int] = {}
    frames, animals, labels, sizes, who = [], [], [], [], []
    for frame in found:
        size = _image_size(find_image(config.folder / "annotation_data/raw_images", frame.image))
        names = frame.names or places
        rows = [everybody.setdefault(name, len(everybody)) for name in names]
        for name, xy in frame.workers.items():
            frames.append(f"{frame.image}, {name}")
            animals.append(name)
            sizes.append(size)
            labels.append(np.full((most, len(config.keypoints), 2), np.nan))
            labels[-1][: len(xy)] = xy
            who.append(np.full(most, -1))
            who[-1][: len(xy)] = rows[: len(xy)]
    shape = (len(frames), most, len(config.keypoints), 2)
    stacked = np.stack(labels) if labels else np.empty(shape)
    answered = np.any(np.isfinite(stacked).all(axis=3), axis=2)
    return Crowd(
        source=str(source),
        parts=config.keypoints,
        pairs=config.pairs,
        workers=tuple(everybody),
        frames=tuple(frames),
        animals=tuple(animals),
        labels=stacked,
        who=np.where(answered, np.array(who, np.int64).reshape(len(who), most), -1),
        size=np.array(sizes, np.float64).reshape(-1, 2),
    )


def _image_size(path: Path | None) -> tuple[float, float]:
    """Width and height in px from an image's header; NaN where there is none to read."""
    try:
        if path is not None:
            with Image.open(path) as image:
                return image.size
    except (OSError, UnidentifiedImageError):
        pass
    return np.nan, np.nan


def repair(crowd: Crowd) -> tuple[Crowd, list[Repair], Ints, Ints]:
    """Exchange left and right where the other workers agree on the opposite.

    Returns the repaired crowd, each exchange, and for each worker `(workers,)` the pairs exchanged
    and the pairs on which others voted: those that three or more workers labelled in full.
    """
    labels = crowd.labels.copy()
    repairs: list[Repair] = []
    swapped, judged = np.zeros((2, len(crowd.workers)), np.int64)
    for animal, frame in enumerate(crowd.frames):
        for pair in crowd.pairs:
            before = labels[animal][:, list(pair)]
            both = np.isfinite(before).all(axis=(1, 2))
            if both.sum() < _VOTERS:
                continue
            labels[animal], _ = repair_swaps(labels[animal], [pair])
            moved = both & (labels[animal][:, list(pair)] != before).any(axis=(1, 2))
            np.add.at(judged, crowd.who[animal][both], 1)
            np.add.at(swapped, crowd.who[animal][moved], 1)
            left, right = (crowd.parts[part] for part in pair)
            for worker in crowd.who[animal][moved].tolist():
                repairs.append(Repair(frame, crowd.workers[worker], left, right))
    return replace(crowd, labels=labels), repairs, swapped, judged


def without(crowd: Crowd, workers: Sequence[int]) -> Crowd:
    """The crowd less some workers, given as rows of `workers`."""
    gone = np.isin(crowd.who, workers)
    return replace(crowd, labels=np.where(gone[..., None, None], np.nan, crowd.labels))


def areas(crowd: Crowd) -> Floats:
    """`(animals,)` area in image px² of the box that a converted record has.

    NaN where the image is not there or the workers together labelled fewer than two parts.
    """
    middle = consensus(np.moveaxis(crowd.labels, 1, 0)) / crowd.size[:, None]
    found = np.full(len(middle), np.nan)
    for animal in np.flatnonzero(np.isfinite(middle).all(axis=2).sum(axis=1) >= MIN_PARTS):
        x1, y1, x2, y2 = box_around(middle[animal]).astype(np.float64)
        found[animal] = (x2 - x1) * (y2 - y1) * crowd.size[animal].prod()
    return found
