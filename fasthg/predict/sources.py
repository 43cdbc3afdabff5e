"""What is predicted on: sequences of frames, from image files, folders of images and videos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fasthg.data.portable import decode_image
from fasthg.errors import ConfigError, DataError
from fasthg.predict.frame import Frame, Source
from fasthg.predict.video import VideoSource

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"}
)


class ImageSource:
    """Image files as one sequence."""

    def __init__(self, path: Path, files: Sequence[Path], stem: Path) -> None:
        self.path, self.files, self.stem = path, list(files), stem
        self.names = tuple(file.name for file in files)

    @property
    def size(self) -> None:
        """None: every image may have its own."""
        return None

    @property
    def count(self) -> int:
        """The files."""
        return len(self.files)

    def identity(self) -> str:
        """Names and sizes of the files."""
        return repr([(file.name, file.stat().st_size) for file in self.files])

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """The images in the order of the files; orientation tags are ignored, as in training."""
        for number in range(start, len(self.files)):
            file = self.files[number]
            try:
                image = decode_image(file.read_bytes())
            except OSError as error:
                raise DataError(f"{file}: {error.strerror}; check the file") from None
            yield Frame(number, float("nan"), image, file.name)


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """The sequences that paths name: each video one, each folder of images one, and the image files
    given by themselves one for each folder they lie in.

    Raises:
        DataError: a path is missing, of an unknown type, or a folder without images.
        ConfigError: no path, or the same one twice.
    """
    if not inputs:
        raise ConfigError("no input; give images, folders of images or videos")
    found: list[Source] = []
    loose: dict[Path, list[Path]] = {}
    seen: set[Path] = set()
    for path in inputs:
        place = Path(os.path.abspath(path))
        if place in seen:
            raise ConfigError(f"{path}: is given twice; leave one out")
        seen.add(place)
        kind = path.suffix.lower()
        if path.is_dir():
            files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGES and f.is_file())
            if not files:
                raise DataError(f"{path}: no images in this folder; give images or a video")
            found.append(ImageSource(path, files, place))
        elif not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        elif kind in IMAGES:
            loose.setdefault(place.parent, []).append(path)
        elif kind in VIDEOS:
            found.append(VideoSource(path))
        else:
            known = " ".join(sorted(kind[1:] for kind in IMAGES | VIDEOS))
            raise DataError(f"{path}: unknown file type; use one of {known}")
    for folder, files in loose.items():
        found.append(ImageSource(files[0].parent, files, folder / folder.name))
    return found
