"""Where the animals of a source's frames are from, and which rows each frame has."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from fasthg.errors import ConfigError
from fasthg.inference.locator import Locator
from fasthg.inference.video.boxes import Boxes
from fasthg.inference.video.frame import WHOLE_FILM, Frame, FrameRange, Source
from fasthg.inference.video.keypoints import Poses, Predictor
from fasthg.inference.video.sources import RecordSource
from fasthg.inference.video.tracking import Tracker

# What animals without a name are called: animal1, animal2, ...
_NUMBERED = re.compile(r"animal([1-9][0-9]*)")


@dataclass(frozen=True)
class Plan:
    """How the animals of one source are found."""

    boxes: Boxes
    """Those that are known, of `animals`."""
    locator: Locator | None
    """Finds the others; None where all are known."""
    tracker: Tracker | None
    """Follows the animals of a film; None for images."""

    @property
    def animals(self) -> tuple[str, ...]:
        """Names of a frame's rows."""
        return self.boxes.animals

    @classmethod
    def of(
        cls,
        source: Source,
        parts: int,
        locator: Locator | None,
        *,
        boxes: Boxes | None = None,
        whole: bool = False,
        most: int | None = None,
        span: FrameRange = WHOLE_FILM,
    ) -> Plan:
        """The plan for a source.

        Args:
            parts: number of parts of an animal.
            locator: of the run; None where it has none.
            boxes: given ones, of all frames or some.
            whole: every frame is the box of one animal.
            most: how many animals there are at most; None: as many as the locator knows.
            span: the frames that are wanted.

        Raises:
            ConfigError: nothing says where the animals are, or the boxes are not of the locator's.
            DataError: a box is empty or lies outside its image.
        """
        boxes, locator = _where(source, locator, boxes, whole, most, span)
        boxes.check(source)
        if locator is None:
            return cls(boxes, None, None)
        count = _count(locator, boxes, most)
        if locator.settings.told_apart and count != len(locator.settings.classes):
            locator = locator.without_classes()
        boxes = boxes.of(_names(locator, boxes, count))
        film = not source.names
        return cls(boxes, locator, Tracker(locator.settings, count, parts) if film else None)

    def poses(self, predictor: Predictor, frames: Generator[Frame]) -> Iterator[Poses]:
        """Poses of all frames in order.

        Raises:
            DataError: a given box is empty or lies outside its image.
        """
        if self.locator is None:
            return predictor.poses(frames, len(self.animals), self.boxes.shares)
        return predictor.located(frames, len(self.animals), self.locator, self.tracker, self.boxes)


def _where(
    source: Source,
    locator: Locator | None,
    boxes: Boxes | None,
    whole: bool,
    most: int | None,
    span: FrameRange,
) -> tuple[Boxes, Locator | None]:
    """The boxes that are known, and the locator that finds the others, where it is needed.

    Raises:
        ConfigError: nothing says where the animals are.
    """
    if whole:
        return Boxes(), None
    if boxes is not None:
        if locator is None or _complete(boxes, source, span, _count(locator, boxes, most)):
            return boxes, None
        return boxes, locator
    if isinstance(source, RecordSource):
        return source.boxes, None
    if locator is None:
        raise ConfigError(
            f"{source.path}: nothing says where the animals are; train a locator, once, with: "
            "fasthg train --locator RUN (a weights file has none: give its run). Or give --boxes "
            "FILE, or --boxes whole where each image shows one animal from border to border"
        )
    return Boxes(animals=(), where={}), locator


def _complete(boxes: Boxes, source: Source, span: FrameRange, animals: int) -> bool:
    """Whether all animals have a box in all frames, so that nothing is left to find."""
    if boxes.where is None:
        return True
    if source.count is None or len(boxes.animals) < animals:
        return False
    there = [
        frame
        for frame, each in boxes.where.items()
        if span.first <= frame < min(source.count, span.stop or source.count)
        if np.isfinite(each).all()
    ]
    return len(there) == span.of(source.count)


def _count(locator: Locator, boxes: Boxes, most: int | None) -> int:
    """How many rows a frame has.

    Raises:
        ConfigError: there are boxes of more animals than `most`.
    """
    settings = locator.settings
    usual = len(settings.classes) if settings.told_apart else settings.most
    numbers = [_NUMBERED.fullmatch(name) for name in boxes.animals]
    least = max([len(boxes.animals), *(int(match[1]) for match in numbers if match)])
    if most is not None and least > most:
        raise ConfigError(f"--animals {most}: {boxes.path} has boxes of {least}; raise it")
    return most or max(usual, least)


def _names(locator: Locator, boxes: Boxes, count: int) -> tuple[str, ...]:
    """Names of the animals' rows: the locator's classes, those of given boxes, or numbers.

    Raises:
        ConfigError: boxes of others than the locator's classes.
    """
    named = tuple(name for name in boxes.animals if not _NUMBERED.fullmatch(name))
    if locator.settings.told_apart:
        classes = locator.settings.classes
        strange = [name for name in named if name not in classes]
        if strange:
            raise ConfigError(
                f"{boxes.path}: boxes of {', '.join(strange)}, the locator's animals are "
                f"{', '.join(classes)}; name them so"
            )
        return classes
    return (*named, *(f"animal{number + 1}" for number in range(len(named), count)))
