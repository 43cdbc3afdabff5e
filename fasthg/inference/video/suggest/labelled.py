"""Which frames of films are labelled already: those of the records that a run was trained on.

A record is a frame of a film where its id says so, `film/img0042` or `film/000042` as DeepLabCut's
and SLEAP's frames are called, or where its picture is the frame: no pixel of the two, as 64x64
shades of grey, differs by more than `SAME`. A picture of an animal that has not moved since is the
same, too, and would teach nothing new.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.opencv_loader import Image
from fasthg.errors import DataError

SIDE = 64
SAME = 12
"""Grey levels: more than JPEG changes, and less than a moved animal does."""
_NUMBER = re.compile(r"(?:^|\D)(\d+)$")
Grey = npt.NDArray[np.int16]


@dataclass
class Labelled:
    """The labelled frames that concern some films."""

    numbers: dict[str, set[int]] = field(default_factory=dict)
    """Name of a film, without its suffix -> numbers of its frames."""
    pictures: Mapping[tuple[int, int], Grey] = field(default_factory=dict)
    """(width, height) px -> (n, 64, 64) shades of the records' pictures of that size."""
    names: tuple[str, ...] = ()
    """What the records call their animals."""
    note: str = ""
    """Why none was, where that is so."""

    def has(self, image: Image) -> bool:
        """Whether a frame, BGR uint8 (height, width, 3), is one of the pictures."""
        known = self.pictures.get((image.shape[1], image.shape[0]))
        if known is None:
            return False
        differences = np.abs(known - shades(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)))
        return bool((differences.max(axis=(1, 2)) <= SAME).any())


def shades(grey: Image) -> Grey:
    """A picture, uint8 (height, width), as (64, 64) shades."""
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small.astype(np.int16)


def labelled_frames(
    config: Config, films: Collection[str], sizes: Collection[tuple[int, int]]
) -> Labelled:
    """What the records of DATA say of films.

    films: their names, without suffixes. sizes: (width, height) of their frames, px; pictures of
    other sizes are not looked at.
    """
    known = Labelled()
    names: dict[str, None] = {}
    pictures: dict[tuple[int, int], list[Grey]] = {}
    patterns = [config.DATA.TRAIN, config.DATA.VAL, config.DATA.TEST]
    try:
        for pattern in filter(None, patterns):
            index = RecordIndex.open(pattern, config.PARTS.NUM_PARTS)
            names |= dict.fromkeys(index.names)
            for record in range(index.num_records):
                film, number = _frame_of(index.image_id(record))
                if film in films:
                    known.numbers.setdefault(film, set()).add(number)
                size = (int(index.width[record]), int(index.height[record]))
                if size in sizes:
                    grey = _grey(index.jpeg(record), size)
                    if grey is not None:
                        pictures.setdefault(size, []).append(grey)
    except DataError as error:
        known.note = f"labelled frames may be suggested again, the records cannot be read: {error}"
    if not any(patterns):
        known.note = "labelled frames may be suggested again: no records are known of these weights"
    known.names = tuple(names)
    known.pictures = {size: np.stack(each) for size, each in pictures.items()}
    return known


def _frame_of(image_id: str) -> tuple[str, int]:
    """The film and the number in it that an id names; "" and -1 for another id."""
    path = PurePosixPath(image_id)
    number = _NUMBER.search(path.name)
    if number is None or not path.parent.name:
        return "", -1
    return path.parent.name, int(number[1])


def _grey(encoded: bytes, size: tuple[int, int]) -> Grey | None:
    """Shades of a record's picture; None where it cannot be decoded."""
    flag = cv2.IMREAD_GRAYSCALE
    # JPEGs are decoded smaller, where that leaves enough of them.
    for times, reduced in (
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    ):
        if min(size) >= 2 * times * SIDE:
            flag = reduced
            break
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if image is None else shades(image)
