"""What is predicted on: frames of image files, folders of images, MARS's records and videos."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fasthg.data.convert.images import decode as decode_picture
from fasthg.data.convert.images import deepest
from fasthg.data.convert.pictures import depth, several
from fasthg.data.opencv_loader import decode_image
from fasthg.data.records.exif import orientation, turned
from fasthg.data.records.schema import Record, decode
from fasthg.data.records.tfrecord import read_frames
from fasthg.errors import ConfigError, DataError
from fasthg.files import natural
from fasthg.inference.video.boxes import Boxes
from fasthg.inference.video.frame import Frame, Source
from fasthg.inference.video.made_from import results_in
from fasthg.inference.video.video_file import VideoSource

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset(
    {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"}
)
# Images of a folder that are looked at before the first is predicted.
_SAMPLE = 16
log = logging.getLogger(__name__)
_RECORDS = re.compile(r".*(\.tfrecords?|-\d{5}-of-\d{5})")


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
        """Names, sizes and times of the files."""
        states = ((file.name, file.stat()) for file in self.files)
        return repr([(name, state.st_size, state.st_mtime_ns) for name, state in states])

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """The images in the order of the files, each as a viewer shows it: turned as EXIF says.

        Of 16-bit images the bits are kept that those of a sample use. Raises DataError for a file
        that cannot be read or holds several images.
        """
        bits, told = self._bits(), False
        for number in range(start, len(self.files)):
            file = self.files[number]
            data = _read(file)
            if error := several(file, data):
                raise error
            image, turn = decode_picture(data, bits), orientation(data)
            if image is not None and turn != 1:
                image = turned(image, turn)
                if not told:
                    log.warning(
                        "%s: EXIF turns it; positions are those in the image as shown", file
                    )
                told = True
            yield Frame(number, float("nan"), image, file.name)

    def _bits(self) -> int:
        """Bits that 16-bit images of a sample use: one scale for all frames, known before them."""
        step = max(1, len(self.files) // _SAMPLE)
        deep = [deepest(_read(file)) for file in self.files[::step]]
        return depth(max((value for value in deep if value is not None), default=0xFFFF))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; check the file") from None


class RecordSource:
    """The records of a TFRecord file, with their boxes."""

    def __init__(self, path: Path) -> None:
        """Reads through the file. Raises DataError where it is damaged or a record is wrong."""
        self.path, self.stem = path, Path(os.path.abspath(path))
        names, boxes = [], []
        for number, record in enumerate(self._records()):
            names.append(Path(record.filename or record.image_id or str(number)).name)
            boxes.append(record.bbox.astype(np.float64))
        self.names = tuple(names)
        most = max((len(found) for found in boxes), default=0)
        filled = {
            number: np.concatenate([found, np.full((most - len(found), 4), np.nan)])
            for number, found in enumerate(boxes)
        }
        animals = tuple(f"animal{number + 1}" for number in range(most))
        self.boxes = Boxes(animals, filled, True, path) if most else Boxes()

    @property
    def size(self) -> None:
        """None: every record may have its own."""
        return None

    @property
    def count(self) -> int:
        """The records."""
        return len(self.names)

    def identity(self) -> str:
        """Size and time of the file."""
        state = self.path.stat()
        return f"{self.path.name} {state.st_size} {state.st_mtime_ns}"

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """The records' images in the order of the file."""
        for number, record in enumerate(self._records()):
            if number >= start:
                yield Frame(number, float("nan"), decode_image(record.encoded), self.names[number])

    def _records(self) -> Iterator[Record]:
        for number, frame in enumerate(read_frames(self.path)):
            yield decode(frame.payload, f"{self.path}, record {number}")


def find_sources(inputs: Sequence[Path], recursive: bool = False) -> list[Source]:
    """The sequences that paths name: each video and TFRecord file one, and the image files given
    by themselves one for each folder they lie in. A folder is its images as one sequence, and each
    of its videos; what fasthg wrote there, such as drawings, is left out.

    recursive: take the folders in a folder too.

    Raises:
        DataError: a path is missing, of an unknown type, or a folder without images and videos.
        ConfigError: no path, or the same one twice.
    """
    if not inputs:
        raise ConfigError("no input; give images, videos, folders of them, or TFRecords")
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
            for source in _in_folder(path, recursive):
                # A film that is given by name, and again by its folder, is one.
                if source.path == path or Path(os.path.abspath(source.path)) not in seen:
                    found.append(source)
                    seen.add(Path(os.path.abspath(source.path)))
        elif not path.exists():
            raise DataError(f"{path}: no such file; check the path")
        elif kind in IMAGES:
            loose.setdefault(place.parent, []).append(path)
        elif kind in VIDEOS:
            found.append(VideoSource(path))
        elif _RECORDS.fullmatch(path.name):
            found.append(RecordSource(path))
        else:
            known = " ".join(sorted(kind[1:] for kind in IMAGES | VIDEOS))
            raise DataError(f"{path}: unknown file type; use one of {known} or a TFRecord file")
    for folder, files in loose.items():
        found.append(ImageSource(files[0].parent, _in_time(files), folder / folder.name))
    return found


def _in_folder(path: Path, recursive: bool) -> list[Source]:
    """A folder's images as one sequence, then its videos, then what its folders hold.

    Raises:
        DataError: there are none, or a video cannot be read.
    """
    found: list[Source] = []
    folders = [path]
    while folders:
        folder = folders.pop(0)
        own = results_in(folder)
        # `._` files are macOS's notes about a file of the same name and suffix.
        names = (file for file in folder.iterdir() if not file.name.startswith("."))
        there = sorted(file for file in names if file.name not in own)
        files = [file for file in there if file.is_file()]
        images = _in_time([file for file in files if file.suffix.lower() in IMAGES])
        if images:
            found.append(ImageSource(folder, images, Path(os.path.abspath(folder))))
        films = (file for file in files if file.suffix.lower() in VIDEOS)
        found += [VideoSource(film) for film in sorted(films, key=lambda each: natural(each.name))]
        if recursive:
            inner = (each for each in there if each.is_dir() and not each.is_symlink())
            folders[:0] = sorted(inner, key=lambda each: natural(each.name))
    if found:
        return found
    if drawn := sorted(results_in(path)):
        raise DataError(
            f"{path}: holds what fasthg wrote, such as {drawn[0]}; give films or images"
        )
    deeper = "" if recursive else ", or --recursive for those of its folders"
    raise DataError(f"{path}: no images or videos in this folder; give some{deeper}")


def _in_time(files: list[Path]) -> list[Path]:
    """Files in the order of their numbers, where they stand in that of their letters, as a shell
    writes them: img2 before img10. Another order was chosen, and stays."""
    names = [file.name for file in files]
    if names not in (sorted(names), sorted(names, key=str.casefold)):
        return files
    return sorted(files, key=lambda file: natural(file.name))
