"""Images of a labelling project: located by paths of any operating system, read as JPEG."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.data.records.jpeg import jpeg_size
from fasthg.errors import DataError

# (the file's bytes, width, height), px.
Jpeg = tuple[bytes, int, int]

_JPEG_QUALITY = 95
_NAMED = 3
_NO_NAME = re.compile(r"\.\.|[A-Za-z]:")


def relative_parts(path: str) -> tuple[str, ...]:
    """The components of a path written on any system: `a\\\\b/c.png` gives a, b, c.png."""
    return tuple(part for part in re.split(r"[\\/]+", path) if part not in ("", "."))


def find_image(folder: Path, path: str) -> Path | None:
    """The image that `path`, written on any system, names below `folder`: by as many trailing
    components as there are there, at least the file's name."""
    return find_among([folder], path)


def find_among(folders: Sequence[Path], path: str) -> Path | None:
    """`find_image` in several folders: the longest match wins, then the first folder."""
    parts = relative_parts(path)
    for start in range(len(parts)):
        for folder in folders:
            candidate = folder.joinpath(*parts[start:])
            if _is_file(candidate):
                return candidate
    return None


def _is_file(path: Path) -> bool:
    """Whether there is such a file; no system has one of a name that it refuses."""
    try:
        return path.is_file()
    except OSError:
        return False


def locate(path: str, root: Path | None, folders: Sequence[Path]) -> Path | None:
    """The file that `path` names: below the folder `root` if there is one; otherwise where an
    absolute path says, or as `find_among` in `folders`."""
    if root is not None:
        return find_among([root], path)
    if is_absolute(path) and _is_file(Path(path)):
        return Path(path)
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


def missing_images(
    missing: Sequence[str], total: int, where: Path, option: str | None = None
) -> DataError:
    """The error for images that are not there: the first few by name. option: names their
    folder on the command line."""
    names = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    return DataError(
        f"{where}: {len(missing)} of {total} labelled images are missing ({names}); "
        f"copy them there{f', name their folder with {option},' if option else ''} or skip them "
        f"with --skip-missing"
    )


def decode(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode an image in full: (height, width, 3) uint8 BGR, or None where that fails."""
    if not data:
        return None
    # Annotation tools draw labels on the pixels as stored, whatever EXIF says about turning them.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if image is None else np.asarray(image, np.uint8)


def read_jpeg(path: Path) -> Jpeg:
    """The JPEG of an image file, as `as_jpeg` makes it."""
    return as_jpeg(path.read_bytes(), str(path))


def as_jpeg(data: bytes, where: str) -> Jpeg:
    """A JPEG is taken as it is; anything else is encoded by `encode_jpeg`.

    Raises DataError, beginning with `where`, for bytes that cannot be read as an image.
    """
    size = jpeg_size(data)
    if size is not None:
        return data, *size
    image = decode(data)
    if image is None:
        raise DataError(f"{where}: not an image that OpenCV can read; replace or remove it")
    return encode_jpeg(image)


def encode_jpeg(image: npt.NDArray[np.uint8]) -> Jpeg:
    """Encode (height, width, 3) uint8 BGR at quality 95, without chroma subsampling."""
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded = cv2.imencode(".jpg", image, options)[1].tobytes()
    return encoded, image.shape[1], image.shape[0]
