"""Labels of YOLO pose models: a data YAML, images, and a text file of labels for each image.

Read of the YAML are `path`, `train`, `val` and `test` (a folder of images, a text file that lists
them, or several of these), `kpt_shape` ([keypoints, 2 or 3]), `flip_idx` (as LEFT_RIGHT_PAIRS) and
`kpt_names` (a list, or one for each class); without it, keypoints are part0, part1, ... The labels
of `images/a/1.jpg` are in `labels/a/1.txt`; where no folder is called images, next to the image. A
line is an animal: class, box (x and y of its centre, width, height), then x y or x y v of each
keypoint. Coordinates are fractions of the image as EXIF turns it. v: 0 unlabelled, 1 occluded, 2
visible, and any other above 0 a score of a visible one. Without v, 0 0 or a negative coordinate is
unlabelled. All classes are converted.

Where the YAML names several splits, a frame stays in its own, unless the caller divides them. A
frame's id is its path in the data set less the folder `images` and the suffix.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import yaml

from fasthg.data.convert.common import (
    Labelled,
    WriteOptions,
    keep_labelled,
    video_of,
    write_splits,
)
from fasthg.data.convert.images import missing_images
from fasthg.data.convert.kept import source_name
from fasthg.data.convert.names import choose_parts
from fasthg.data.convert.pictures import shown_size
from fasthg.data.convert.report import Report, new_report
from fasthg.data.convert.splits import SPLITS
from fasthg.data.convert.text import read_text, read_yaml
from fasthg.errors import DataError

SHAPE = "kpt_shape"
"""The key that tells a YAML of a pose data set from others."""

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# Beyond the image by as much as this is no fraction but a number of pixels.
_FAR = 2.0


@dataclass(frozen=True)
class _Set:
    """A data YAML. names: of the keypoints; numbers: of a keypoint in a line, 2 or 3; flips: pairs
    of indices."""

    path: Path
    values: Mapping[str, Any]
    names: list[str]
    numbers: int
    flips: list[tuple[int, int]]


def convert(
    source: Path,
    out: Path,
    *,
    parts: Mapping[str, str] | None = None,
    skip_missing: bool = False,
    boxes: str | None = None,
    **options: Unpack[WriteOptions],
) -> Report:
    """Write the labelled images of a YOLO pose data set to `out` as TFRecords of MARS' format.

    source: the data YAML, or a folder that holds one. parts: also names the keypoints, all and in
    their order, where the YAML does not. The rest as in `dlc.convert`; a video is a folder below
    that of the split, or what an image's name says before its last number. Raises DataError, naming
    file, line and remedy, for what cannot be used.
    """
    content = _read(find_yaml(Path(source)), parts)
    report = new_report(choose_parts(content.names, parts, content.path))
    order = [content.names.index(name) for name in report.mapping]
    written = {own: place for place, own in enumerate(order)}
    report.take_pairs(
        (written[a], written[b]) for a, b in content.flips if a in written and b in written
    )
    listed = {split: [*_images(content, split)] for split in SPLITS}
    divided = sum(map(bool, listed.values())) < 2
    frames: list[Labelled] = []
    missing: list[str] = []
    for split, images in listed.items():
        for image in images:
            if not image.is_file():
                missing.append(str(image))
                continue
            labels = _labels_of(image)
            if not labels.is_file():
                report.skip("images without a file of labels")
                continue
            frames.append(_labelled(content, image, labels, order, None if divided else split))
    if not any(listed.values()):
        raise DataError(f"{content.path}: no image in train, val or test; correct path and train")
    if missing and not skip_missing:
        raise missing_images(missing, len(missing) + len(frames), content.path)
    if missing:
        report.skip("frames without an image", len(missing))
    if not any(len(frame.keypoints) for frame in frames):
        looked = _labels_of(next(image for images in listed.values() for image in images))
        raise DataError(f"{content.path}: no label in any file, for example {looked}; label images")
    name = source_name(content.path, Path(out))
    kept = keep_labelled(frames, report, boxes)
    return write_splits(kept, Path(out), report, sources=[name], **options)


def find_yaml(source: Path) -> Path:
    """The data YAML that a path is, or that the folder holds. Raises DataError without one, or for
    several."""
    if not source.is_dir():
        return source
    found = [path for path in sorted(source.glob("*.y*ml")) if is_data_yaml(path)]
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        what = f"several data YAMLs ({names}); give one" if found else f"no YAML with {SHAPE} in it"
        raise DataError(f"{source}: {what}; give the data YAML of a YOLO pose data set")
    return found[0]


def is_data_yaml(path: Path) -> bool:
    """Whether a file is the YAML of a pose data set."""
    try:
        values = yaml.safe_load(read_text(path))
    except (OSError, yaml.YAMLError, RecursionError, DataError):
        return False
    return isinstance(values, dict) and SHAPE in values


def _read(path: Path, parts: Mapping[str, str] | None) -> _Set:
    values = read_yaml(path, "give the data YAML of a YOLO pose data set")
    shape = values.get(SHAPE) if isinstance(values, dict) else None
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(type(number) is int for number in shape)
        and shape[0] > 0
        and shape[1] in (2, 3)
    ):
        raise DataError(f"{path}: {SHAPE} is {shape}; write [keypoints, 2] or [keypoints, 3]")
    return _Set(
        path=path,
        values=values,
        names=_names(path, values.get("kpt_names"), shape[0], parts),
        numbers=shape[1],
        flips=_flips(path, values.get("flip_idx"), shape[0]),
    )


def _names(path: Path, names: Any, count: int, parts: Mapping[str, str] | None) -> list[str]:
    if isinstance(names, dict) and names:
        lists = [*names.values()]
        if any(other != lists[0] for other in lists):
            raise DataError(f"{path}: kpt_names differ between the classes; convert them apart")
        names = lists[0]
    if not names:
        plain = [f"part{number}" for number in range(count)]
        named = parts is not None and len(parts) == count and not {*parts} & {*plain}
        return [*(parts or ())] if named else plain
    if not isinstance(names, list) or len(names) != count:
        raise DataError(f"{path}: kpt_names are no list of {count} names, as {SHAPE} has")
    return [str(name) for name in names]


def _flips(path: Path, indices: Any, count: int) -> list[tuple[int, int]]:
    if indices is None:
        return []
    numbers = isinstance(indices, list) and all(type(number) is int for number in indices)
    if not numbers or sorted(indices) != [*range(count)]:
        raise DataError(f"{path}: flip_idx is no order of the numbers 0 to {count - 1}; correct it")
    wrong = [number for number, other in enumerate(indices) if indices[other] != number]
    if wrong:
        raise DataError(
            f"{path}: flip_idx sends {wrong[0]} to {indices[wrong[0]]}, but that not back; "
            "correct it"
        )
    return [(number, other) for number, other in enumerate(indices) if number < other]


def _images(content: _Set, split: str) -> Iterator[Path]:
    """The images of a split, in order; files that a list names need not be there."""
    entries = content.values.get(split)
    for entry in entries if isinstance(entries, list) else [entries]:
        if entry is None or entry == "":
            continue
        place = _place(content, str(entry))
        if place is None:
            raise DataError(f"{content.path}: {split}: {entry} is not there; correct it, or path")
        if place.is_dir():
            yield from (
                path
                for path in sorted(place.rglob("*"))
                if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
            )
        else:
            for line in read_text(place).splitlines():
                if line.strip():
                    yield place.parent / line.strip().replace("\\", "/")


def _roots(content: _Set) -> list[Path]:
    """Where entries of the YAML are looked for: in `path`, as written or from the folders around
    the YAML, as data sets are moved; and beside the YAML."""
    own = content.path.parent
    root = str(content.values.get("path") or "").replace("\\", "/")
    return [own / root, own.parent / root, own] if root else [own]


def _place(content: _Set, entry: str) -> Path | None:
    """What an entry names, None where it is not there."""
    entry = entry.replace("\\", "/")
    # Some exports write ../train/images for a folder next to the YAML.
    for name in (entry, entry.removeprefix("../")):
        for folder in _roots(content):
            if (folder / name).exists():
                return folder / name
    return None


def _labels_of(image: Path) -> Path:
    parts = [*image.parts]
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _labelled(
    content: _Set, image: Path, labels: Path, order: Sequence[int], split: str | None
) -> Labelled:
    size = np.array(shown_size(image), np.float64)
    rows = [*_rows(content, labels)]
    values = np.array(rows, np.float64).reshape(len(rows), 5 + len(content.names) * content.numbers)
    centre, extent = values[:, 1:3] * size, values[:, 3:5] * size
    points = values[:, 5:].reshape(len(rows), len(content.names), content.numbers)[:, order]
    seen = _seen(points)
    xy = np.where(seen[..., None] > 0, points[..., :2] * size, np.nan)
    image_id = _id(content, image)
    return Labelled(
        image=image,
        image_id=image_id,
        keypoints=xy,
        video=video_of(_within_split(image_id, split)),
        split=split,
        boxes=np.concatenate([centre - extent / 2, centre + extent / 2], axis=1),
        visibility=seen,
        size=(int(size[0]), int(size[1])),
        shown=True,
        where=str(labels),
    )


def _rows(content: _Set, path: Path) -> Iterator[list[float]]:
    """The numbers of each line. Raises DataError, naming file and line."""
    count = 5 + len(content.names) * content.numbers
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = [float(word) for word in line.split()]
        except ValueError as error:
            raise DataError(f"{where}: {error}; write numbers alone") from None
        if len(row) != count:
            raise DataError(
                f"{where}: {len(row)} numbers, but class, box and {SHAPE} "
                f"[{len(content.names)}, {content.numbers}] make {count}; correct one of them"
            )
        if not all(map(math.isfinite, row)):
            raise DataError(f"{where}: holds nan or inf; write 0 0 for what is not labelled")
        points = np.array(row[5:]).reshape(-1, content.numbers)[:, :2]
        if max(map(abs, (*row[1:5], *points.ravel()))) > _FAR:
            raise DataError(
                f"{where}: coordinates are no fractions of the image; divide px by its width and "
                "height"
            )
        yield row


def _seen(points: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """(animals, parts) v of keypoints (animals, parts, 2 or 3)."""
    if points.shape[-1] == 3:
        v = points[..., 2]
        return np.where(np.isin(v, (0, 1, 2)), v, 2.0 * (v > 0)).astype(np.uint8)
    labelled = (points >= 0).all(axis=-1) & (points > 0).any(axis=-1)
    return np.where(labelled, 2, 0).astype(np.uint8)


def _id(content: _Set, image: Path) -> str:
    path = Path(os.path.abspath(image))
    for root in _roots(content):
        if path.is_relative_to(os.path.abspath(root)):
            path = path.relative_to(os.path.abspath(root))
            break
    else:
        path = Path(*path.parts[-3:])
    return PurePosixPath(*(p for p in path.parts if p != "images")).with_suffix("").as_posix()


def _within_split(image_id: str, split: str | None) -> str:
    """An id less a first folder that is a split's, which tells nothing of the video."""
    first, slash, rest = image_id.partition("/")
    return rest if slash and (first == split or first in (*SPLITS, "valid")) else image_id
