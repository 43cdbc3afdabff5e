"""The image files of a conversion, examined before the first record is written.

Examined are the properties that would otherwise show late or never: files that are damaged, hold
several images, or are too large for OpenCV; EXIF tags that turn an image; and how many of 16 bits
are used.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from PIL import Image, TiffImagePlugin

from fasthg.data.convert.images import Jpeg, as_jpeg, deepest, some
from fasthg.data.convert.progress import progress
from fasthg.data.records.exif import orientation
from fasthg.data.records.jpeg import image_fault, image_size
from fasthg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fasthg.data.convert.common import Labelled

EXIF = ("shown", "stored")
# Kinds of files that can hold several images.
_SEVERAL = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"RIFF", b"GIF8", b"\x89PNG")
_DEPTHS = (8, 10, 12, 14, 16)
_WIDTH, _HEIGHT = 256, 257  # tags of a TIFF


@dataclass(frozen=True)
class Pictures:
    """How to read the files. turned: the orientation of those to turn, by path; bits: that the
    16-bit ones use, by folder; notes: for the report."""

    turned: dict[PurePath, int]
    bits: dict[PurePath, int]
    notes: list[str]

    def read(self, path: PurePath) -> Jpeg:
        """The JPEG of an image file, as `as_jpeg` makes it. Raises DataError."""
        turn, bits = self.turned.get(path, 1), self.bits.get(path.parent, 16)
        return as_jpeg(_bytes(path), str(path), turn=turn, bits=bits)


def several(path: PurePath, data: bytes) -> DataError | None:
    """The error for a file of several images: pages of a stack, frames of an animation."""
    count = _count(data)
    if count <= 1:
        return None
    return DataError(f"{path}: holds {count} images or pages, one is expected; save each as a file")


def depth(value: int) -> int:
    """The bits that a 16-bit image uses whose largest value is given, as cameras have them."""
    return next(bits for bits in _DEPTHS if value < 1 << bits)


def examine(frames: Sequence[Labelled], exif: str | None = None) -> Pictures:
    """Examine the files of frames, of which none is read any other way.

    exif: whether labels refer to images as EXIF shows them or as they are stored, "shown" or
    "stored"; by default what each frame says or, where it does not know, what the sizes tell.
    Raises DataError, naming file and remedy, for one that cannot be used or where nothing tells;
    ConfigError for another `exif`.
    """
    if exif not in (None, *EXIF):
        raise ConfigError(f"--exif {exif}: use {' or '.join(EXIF)}")
    tagged: list[tuple[Labelled, int, tuple[int, int]]] = []
    deep: dict[PurePath, int] = {}
    faults: dict[PurePath, str] = {}
    with progress("checking", len(frames)) as done:
        for frame in frames:
            done()
            path = frame.image
            data = _bytes(path)
            size = image_size(data)
            fault = image_fault(data, *size) if size else None
            if fault and data.startswith(b"\x89PNG"):
                raise DataError(f"{path}: {fault}; replace or remove it")
            if fault:
                faults[path] = fault
            if error := several(path, data):
                raise error
            if (turn := orientation(data)) != 1:
                tagged.append((frame, turn, size or _size(data)))
            if (value := deepest(data)) is not None:
                deep[path.parent] = max(deep.get(path.parent, 0), value)
    bits = {folder: depth(value) for folder, value in deep.items()}
    turned, notes = _turned(tagged, exif)
    for used in sorted({*bits.values()} - {16}):
        folders = [folder for folder, own in bits.items() if own == used]
        notes.append(f"16-bit images that use {used} bits, taken as such: {some(folders)}")
    if faults:
        named = some([f"{path.name} {fault}" for path, fault in faults.items()])
        notes.append(f"{len(faults)} images that training will leave out: {named}")
    return Pictures(turned, bits, notes)


def _turned(
    tagged: Sequence[tuple[Labelled, int, tuple[int, int]]], exif: str | None
) -> tuple[dict[PurePath, int], list[str]]:
    """Orientations of the files to turn, and notes."""
    known: dict[PurePath, bool] = {}
    for frame, turn, size in tagged:
        shown = frame.shown if exif is None else exif == "shown"
        if shown is None and turn >= 5 and size[0] != size[1]:
            shown = {size: False, size[::-1]: True}.get(frame.size or frame.likely_size or (0, 0))
        if shown is not None:
            known[frame.image] = shown
    unknown = [frame.image for frame, _, _ in tagged if frame.image not in known]
    # One tool made all labels: what the sizes of some images tell holds for the others.
    told = {*known.values()}
    if unknown and len(told) != 1:
        raise DataError(
            f"{unknown[0]}: EXIF turns this image ({len(unknown)} in all), and nothing tells "
            "whether labels are of it as shown or as stored; say --exif shown or --exif stored"
        )
    known |= dict.fromkeys(unknown, *told)
    notes = []
    for shown, what in ((True, "as shown: turned"), (False, "as stored: not turned")):
        paths = [path.name for path, value in known.items() if value is shown]
        if paths:
            notes.append(
                f"EXIF turns {len(paths)} images, labels are of them {what} ({some(paths)})"
            )
    return {frame.image: turn for frame, turn, _ in tagged if known[frame.image]}, notes


def shown_size(path: PurePath) -> tuple[int, int]:
    """(width, height) px of an image file as EXIF turns it. Raises DataError where it is none."""
    data = _bytes(path)
    width, height = image_size(data) or _size(data)
    if not width or not height:
        raise DataError(f"{path}: not an image that OpenCV can read; replace or remove it")
    return (height, width) if orientation(data) >= 5 else (width, height)


def _bytes(path: PurePath) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; check the file") from None


def _count(data: bytes) -> int:
    """Images in a file: pages of a stack, frames of an animation; 1 where that cannot be told."""
    if not data.startswith(_SEVERAL):
        return 1
    try:
        with _opened(data) as image:
            return int(getattr(image, "n_frames", 1))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        return 1  # OpenCV decides


def _size(data: bytes) -> tuple[int, int]:
    """(width, height) px as stored, of what is neither JPEG nor PNG; 0, 0 where unknown."""
    try:
        with _opened(data) as image:
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                # Pillow gives that of a TIFF as shown.
                return image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
            return image.size
    except (OSError, ValueError, LookupError, SyntaxError, EOFError, Image.DecompressionBombError):
        return 0, 0


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data))
