"""The images of a project: found by paths of any system, read as JPEG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fasthg.data.jpeg import jpeg_size
from fasthg.errors import DataError

_JPEG_QUALITY = 95
_NAMED = 3


def relative_parts(path: str) -> tuple[str, ...]:
    """The components of a path written on any system: `a\\\\b/c.png` gives a, b, c.png."""
    return tuple(part for part in re.split(r"[\\/]+", path) if part not in ("", "."))


def find_image(folder: Path, path: str) -> Path | None:
    """The image that `path`, written on any system, names below `folder`: by as many trailing
    components as there are there, at least the file's name."""
    parts = relative_parts(path)
    for start in range(len(parts)):
        candidate = folder.joinpath(*parts[start:])
        if candidate.is_file():
            return candidate
    return None


def missing_images(missing: Sequence[str], total: int, where: Path) -> DataError:
    """The error for images that are not there: the first few by name."""
    names = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    return DataError(
        f"{where}: {len(missing)} of {total} labelled images are missing ({names}); "
        f"copy them there or skip them with --skip-missing"
    )


def decode(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode an image in full: (height, width, 3) uint8 BGR, or None where that fails."""
    if not data:
        return None
    # Annotation tools draw labels on the pixels as stored, whatever EXIF says about turning them.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if image is None else np.asarray(image, np.uint8)


def read_jpeg(path: Path) -> tuple[bytes, int, int]:
    """(JPEG bytes, width, height) of an image file.

    A JPEG is taken as it is; anything else is encoded at quality 95 without chroma subsampling.
    Raises DataError for a file that cannot be read as an image.
    """
    data = path.read_bytes()
    size = jpeg_size(data)
    if size is not None:
        return data, *size
    image = decode(data)
    if image is None:
        raise DataError(f"{path}: not an image that OpenCV can read; replace or remove it")
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded = cv2.imencode(".jpg", image, options)[1].tobytes()
    return encoded, image.shape[1], image.shape[0]
