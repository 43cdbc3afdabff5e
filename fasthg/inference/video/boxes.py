"""Where the animals are, from a file; or the whole frame.

CSV: a header `frame,x1,y1,x2,y2` with an optional `animal`, image px with x2, y2 exclusive;
`frame` counts from 0, or is an image's file name. MARS's json: `bbox[frame][animal]`, x1 y1 x2 y2
divided by width and height. COCO's json: `images` and `annotations` with `bbox` x y width height in
px, for images alone, found by file name. An animal without a box in a frame gets NaN keypoints.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fasthg.data.convert.text import read_text
from fasthg.errors import ConfigError, DataError
from fasthg.inference.video.frame import Source

_AGAIN = "write the file again"


@dataclass
class Boxes:
    """Boxes of `animals` in every frame; `whole` where no file says."""

    animals: tuple[str, ...] = ("animal1",)
    where: dict[int, npt.NDArray[np.float64]] | None = None
    """Frame -> (animals, 4) x1 y1 x2 y2, NaN without a box; None for the whole frame."""
    normalised: bool = False
    """Whether they are shares of width and height rather than px."""
    path: Path = Path()
    image_ids: dict[int, int] = field(default_factory=dict)
    """Frame -> id in the COCO file the boxes come from."""

    def shares(self, frame: int, width: int, height: int) -> npt.NDArray[np.float64]:
        """(animals, 4) x1 y1 x2 y2 divided by width and height.

        Raises:
            DataError: a box is empty or lies outside the image.
        """
        if self.where is None:
            return np.array([[0.0, 0.0, 1.0, 1.0]])
        boxes = self.where.get(frame)
        if boxes is None:
            return np.full((len(self.animals), 4), np.nan)
        size = np.array([width, height] * 2, np.float64)
        given, boxes = boxes, boxes if self.normalised else boxes / size
        with np.errstate(invalid="ignore"):
            empty: npt.NDArray[np.bool_] = np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)
            outside = np.any(boxes[:, :2] >= 1, axis=1) | np.any(boxes[:, 2:] <= 0, axis=1)
        for animal in np.flatnonzero(empty | outside):
            box = " ".join(f"{edge:g}" for edge in given[animal])
            what = "is empty" if empty[animal] else f"lies outside the {width}x{height} px image"
            raise DataError(
                f"{self.path}: frame {frame}, {self.animals[animal]}: box {box} {what}; "
                "correct it (x1 y1 x2 y2, x2 and y2 exclusive)"
            )
        return boxes

    def of(self, animals: Sequence[str]) -> Boxes:
        """Those of `animals`, in their order; animal number n is the n-th where no name fits."""
        if self.where is None or tuple(animals) == self.animals:
            return self
        places = [
            animals.index(name) if name in animals else int(name.removeprefix("animal")) - 1
            for name in self.animals
        ]
        where = {}
        for frame, boxes in self.where.items():
            where[frame] = np.full((len(animals), 4), np.nan)
            where[frame][places] = boxes
        return replace(self, animals=tuple(animals), where=where)

    def check(self, source: Source) -> None:
        """Raise what `shares` would raise later, where the size of all frames is known."""
        if source.size is not None:
            for frame in self.where or {}:
                self.shares(frame, *source.size)


def read_boxes(path: Path, source: Source) -> Boxes:
    """The boxes of a source's frames.

    Raises:
        DataError: the file cannot be used, with line or place.
        ConfigError: COCO boxes for a video, or an unknown suffix.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".json"):
        raise ConfigError(f"--boxes {path}: neither .csv nor .json; give one of them")
    try:
        text = read_text(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; check the path") from None
    if kind == ".csv":
        return _from_csv(path, text, source)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}); {_AGAIN}") from None
    if isinstance(content, dict) and "bbox" in content:
        return _from_mars(path, content["bbox"])
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return _from_coco(path, content, source)
    raise DataError(f"{path}: neither MARS's bbox nor COCO's images and annotations; {_AGAIN}")


def _from_csv(path: Path, text: str, source: Source) -> Boxes:
    reader = csv.DictReader(text.splitlines())
    missing = {"frame", "x1", "y1", "x2", "y2"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(sorted(missing))}; start with frame,x1,y1,x2,y2"
        )
    known = {name: number for number, name in enumerate(source.names)}
    rows: list[tuple[int, str, list[float]]] = []
    counts: dict[int, int] = {}
    for line in reader:
        at = f"{path}:{reader.line_num}"
        try:
            box = [float(line[key] or "nan") for key in ("x1", "y1", "x2", "y2")]
        except (TypeError, ValueError):
            raise DataError(f"{at}: a box is four numbers; correct the line") from None
        if any(map(math.isinf, box)):
            raise DataError(f"{at}: a box is four finite numbers; correct the line")
        name = (line["frame"] or "").strip()
        frame = int(name) if name.isdecimal() else known.get(name)
        if frame is None:
            raise DataError(f"{at}: {source.path} has no frame {name!r}; count from 0")
        counts[frame] = counts.get(frame, 0) + 1
        animal = (line.get("animal") or "").strip() or f"animal{counts[frame]}"
        rows.append((frame, animal, box))
    return _gather(path, rows)


def _from_mars(path: Path, content: Any) -> Boxes:
    try:
        boxes = np.array(content, np.float64)
        if boxes.ndim != 3 or boxes.shape[2] != 4 or not boxes.shape[1]:
            raise ValueError(f"its shape is {boxes.shape}")
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: bbox is not [frame][animal][4] ({error}); {_AGAIN}") from None
    animals = tuple(f"animal{number + 1}" for number in range(boxes.shape[1]))
    return Boxes(animals, dict(enumerate(boxes)), True, path)


def _from_coco(path: Path, content: dict[str, Any], source: Source) -> Boxes:
    if not source.names:
        raise ConfigError(f"--boxes {path}: COCO names images; give a video's boxes as csv or MARS")
    known = {name: number for number, name in enumerate(source.names)}
    try:
        frames = {
            entry["id"]: known[name]
            for entry in content["images"]
            if (name := Path(str(entry["file_name"]).replace("\\", "/")).name) in known
        }
        rows = []
        counts: dict[int, int] = {}
        for entry in content["annotations"]:
            frame = frames.get(entry["image_id"])
            if frame is None or entry.get("iscrowd"):
                continue
            x, y, width, height = map(float, entry["bbox"])
            counts[frame] = counts.get(frame, 0) + 1
            rows.append((frame, f"animal{counts[frame]}", [x, y, x + width, y + height]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: an image or annotation lacks {error}; {_AGAIN}") from None
    boxes = _gather(path, rows)
    boxes.image_ids = {frame: identity for identity, frame in frames.items()}
    return boxes


def _gather(path: Path, rows: Sequence[tuple[int, str, list[float]]]) -> Boxes:
    if not rows:
        raise DataError(f"{path}: no box for these frames; check names and numbers of frames")
    animals = tuple(dict.fromkeys(animal for _, animal, _ in rows))
    where: dict[int, npt.NDArray[np.float64]] = {}
    for frame, animal, box in rows:
        boxes = where.setdefault(frame, np.full((len(animals), 4), np.nan))
        if np.isfinite(boxes[animals.index(animal)]).all():
            raise DataError(f"{path}: two boxes of {animal} in frame {frame}; leave one out")
        boxes[animals.index(animal)] = box
    return Boxes(animals, where, False, path)


Locate = Callable[[int, int, int], npt.NDArray[np.float64]]
"""(frame, width, height) -> (animals, 4), as `Boxes.shares`."""
