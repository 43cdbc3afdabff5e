"""Images of a labelling project: located by paths of any operating system, read as JPEG."""

from __future__ import annotations

import functools
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.data.records.exif import orientation, turned, upright
from fasthg.data.records.jpeg import jpeg_size
from fasthg.errors import DataError

# (the file's bytes, width, height), px.
Jpeg = tuple[bytes, int, int]

_JPEG_QUALITY = 95
_NAMED = 3
# Orientations that are undone by another; the rest undo themselves.
_BACK = {6: 8, 8: 6}
_NO_NAME = re.compile(r"\.\.|[A-Za-z]:")


def relative_parts(path: str) -> tuple[str, ...]:
    """The components of a path written on any system: `a\\\\b/c.png` gives a, b, c.png."""
    return tuple(part for part in re.split(r"[\\/]+", path) if part not in ("", "."))


def find_image(folder: Path, path: str) -> Path | None:
    """The image that `path`, written on any system, names below `folder`: by as many trailing
    components as there are there, at least the file's name."""
    return find_among([folder], path)


def find_among(folders: Sequence[Path], path: str) -> Path | None:
    """`find_image` in several folders: the longest match wins, then the first folder.

    Where one of them has the folder that `path` names, only files in that one count: a file of the
    same name elsewhere is another image. A name counts as there, too, where another system wrote
    it: composed or decomposed letters (Unicode NFC and NFD), the suffix in upper or lower case,
    spaces and others as %20. The exact name goes first, and one that fits several files fits none.
    """
    return next(iter(find_all(folders, path)), None)


def find_all(folders: Sequence[Path], path: str) -> list[Path]:
    """The files in different folders that match as long as that of `find_among`, which is first."""
    parts = relative_parts(path)
    named: list[Path] = []
    for start in range(len(parts)):
        for find in (_exact, _alike):
            found = [file for folder in folders if (file := find(folder, parts[start:]))]
            found = [f for f in found if not named or any(f.is_relative_to(own) for own in named)]
            if found:
                return found
        if parts[start:-1]:
            places = (_place(folder, parts[start:-1]) for folder in folders)
            named += [place for place in places if place is not None and place.is_dir()]
    return []


def _exact(folder: Path, parts: Sequence[str]) -> Path | None:
    candidate = folder.joinpath(*parts)
    return candidate if _is_file(candidate) else None


def _is_file(path: Path) -> bool:
    """Whether there is such a file; no system has one of a name that it refuses."""
    try:
        return path.is_file()
    except OSError:
        return False


def _alike(folder: Path, parts: Sequence[str]) -> Path | None:
    place = _place(folder, parts)
    return place if place is not None and _is_file(place) else None


def _place(folder: Path, parts: Sequence[str]) -> Path | None:
    """What `parts` name in a folder, as any system writes them; None where it is not there."""
    place = folder
    for part in parts:
        if not _there(place / part):
            names = _names(place).get(_plain(part), ())
            if len(names) != 1:
                return None
            part = names[0]
        place /= part
    return place


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _names(folder: Path) -> dict[str, list[str]]:
    """What a folder holds, by `_plain` names."""
    try:
        return _listing(str(folder), folder.stat().st_mtime_ns)
    except OSError:
        return {}


@functools.lru_cache(maxsize=64)
def _listing(folder: str, _time: int) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(_plain(name), []).append(name)
    return names


def _plain(name: str) -> str:
    """A name as all systems write it, for comparisons."""
    stem, dot, suffix = unicodedata.normalize("NFC", unquote(name)).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"


def locate(path: str, root: Path | None, folders: Sequence[Path]) -> Path | None:
    """The file that `path` names: below the folder `root` if there is one; otherwise where an
    absolute path says, or as `find_among` in `folders`."""
    if root is not None:
        return find_among([root], path)
    anchor, *parts = Path(path).parts if Path(path).is_absolute() else ("",)
    if anchor and (file := _exact(Path(anchor), parts) or _alike(Path(anchor), parts)):
        return file
    return find_among(folders, path)


def trailing(paths: Iterable[str], least: int) -> dict[str, tuple[str, ...]]:
    """The last components of each path, without drive and "..": `least`, or as many more as tell it
    from the paths before it. They stay the same when a project moves or gains further paths."""
    taken: dict[tuple[str, ...], str] = {}
    short: dict[str, tuple[str, ...]] = {}
    for path in paths:
        parts = [part for part in relative_parts(path) if not _NO_NAME.fullmatch(part)]
        for depth in range(least, max(least, len(parts)) + 1):
            short[path] = tuple(parts[-depth:])
            if taken.setdefault(short[path], path) == path:
                break
    return short


def is_absolute(path: str) -> bool:
    """Whether a path written on any system starts at a root, a drive or a server."""
    return bool(re.match(r"[\\/]|[A-Za-z]:|\w+://", path))


def some(names: Sequence[object]) -> str:
    """The first few of a list's names, for messages."""
    return ", ".join(map(str, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def missing_images(
    missing: Sequence[str], total: int, where: Path, option: str | None = None
) -> DataError:
    """The error for images that are not there: the first few by name. option: names their
    folder on the command line."""
    return DataError(
        f"{where}: {len(missing)} of {total} labelled images are missing ({some(missing)}); "
        f"copy them there{f', name their folder with {option},' if option else ''} or skip them "
        f"with --skip-missing"
    )


def decode(data: bytes, bits: int = 16) -> npt.NDArray[np.uint8] | None:
    """Decode an image in full, as stored: (height, width, 3) uint8 BGR, or None where that fails.

    bits: that a 16-bit image uses, 8 to 16; the upper eight of them are kept.
    """
    image = _decode(data)
    if image is None:
        return None
    if image.dtype == np.uint16:
        image = np.minimum(image >> (bits - 8), 255)
    return np.asarray(image, np.uint8)


def deepest(data: bytes) -> int | None:
    """The largest value of an image with 16 bits a channel; None for others."""
    if data.startswith(b"\x89PNG") and data[24:25] != b"\x10":
        return None  # without decoding it
    if not data.startswith((b"\x89PNG", b"II", b"MM")):
        return None
    image = _decode(data)
    return None if image is None or image.dtype != np.uint16 else int(image.max())


def _decode(data: bytes) -> npt.NDArray[Any] | None:
    """As `decode`, but uint16 for 16 bits a channel."""
    if not data:
        return None
    # The tag is read by `as_jpeg`, as labels are not always of the image that it makes.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None  # larger than OpenCV allows, or damaged
    if image is None or image.dtype not in (np.uint8, np.uint16):
        return None
    if data.startswith((b"II", b"MM")):
        # OpenCV turns a TIFF whatever the flag says.
        image = turned(image, _BACK.get(orientation(data), orientation(data)))
    return image


def as_jpeg(data: bytes, where: str, *, turn: int = 1, bits: int = 16) -> Jpeg:
    """The image as a JPEG that no EXIF tag turns.

    A JPEG to be taken as stored keeps its bytes, but for the tag; anything else is encoded by
    `encode_jpeg`. turn: the orientation by which to turn the stored pixels; bits: as in `decode`.
    Raises DataError, beginning with `where`, for bytes that cannot be read as an image.
    """
    size = jpeg_size(data)
    if size is not None and turn == 1:
        return upright(data), *size
    image = decode(data, bits)
    if image is None:
        raise DataError(f"{where}: not an image that OpenCV can read; replace or remove it")
    return encode_jpeg(turned(image, turn))


def encode_jpeg(image: npt.NDArray[np.uint8]) -> Jpeg:
    """Encode (height, width, 3) uint8 BGR at quality 95, without chroma subsampling."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded = cv2.imencode(".jpg", image, options)[1].tobytes()
    return encoded, image.shape[1], image.shape[0]
