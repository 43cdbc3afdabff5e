"""Synthetic film: mice that walk, turn and pass over each other, with their identities.

For tests of trackers and for trying out `fasthg predict`. Truth and pixels before encoding are a
function of the `Film`: the same on every machine but for the last bits. Frames are rendered one by
one, so memory does not grow with the film.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from fasthg.data.synthetic import truth
from fasthg.data.synthetic.cage import SCENES, Image, scene, sensor
from fasthg.data.synthetic.motion import LEAST_SECONDS, Placed, walk
from fasthg.data.synthetic.mouse import (
    PART_NAMES,
    Array,
    Hair,
    Look,
    Mouse,
    fixed_hair,
    paint,
    random_fur,
    shape,
)
from fasthg.errors import ConfigError
from fasthg.files import write_atomically

MAX_ANIMALS = 4

# A film of this length shows an animal that leaves and comes back.
_LONG = 30
# Keypoints are in geometry's frame; OpenCV draws where pixel centres have whole coordinates.
_CENTRE = 0.5

WriteVideo = Callable[[Path, Iterator[Image], tuple[int, int], int], None]
"""(path, images, (width, height), frames a second)"""


@dataclass(frozen=True)
class Film:
    """What to render. frames: their number; size: width and height, px; fps: frames a second;
    same_colour: all animals are black, else every other one is white; leaves: one animal leaves the
    image and comes back, None for: in films of half a minute and more.

    Raises:
        ConfigError: a value is out of its bounds, or too few frames to leave and come back.
    """

    frames: int
    seed: int = 0
    size: tuple[int, int] = (512, 384)
    fps: int = 30
    animals: int = 2
    same_colour: bool = False
    leaves: bool | None = None

    def __post_init__(self) -> None:
        width, height = self.size
        if self.frames < 1:
            raise ConfigError(f"a film of {self.frames} frames; it needs at least 1")
        if not 1 <= self.animals <= MAX_ANIMALS:
            raise ConfigError(f"a film of {self.animals} animals; give 1 to {MAX_ANIMALS}")
        if min(self.size) < 128 or width % 2 or height % 2:
            raise ConfigError(
                f"a film of {width}x{height} px; both sides must be even and at least 128"
            )
        if not 5 <= self.fps <= 240:
            raise ConfigError(f"a film of {self.fps} frames a second; give 5 to 240")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed}; it must not be negative")
        if self.leaves and self.frames < LEAST_SECONDS * self.fps:
            raise ConfigError(
                f"a film of {self.frames} frames: to leave and come back takes an animal "
                f"{LEAST_SECONDS * self.fps} frames at {self.fps} a second; render more"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The animals' identities."""
        return tuple(f"mouse{number + 1}" for number in range(self.animals))

    @property
    def classes(self) -> tuple[str, ...]:
        """Colours of their coats."""
        return tuple(
            "white" if number % 2 and not self.same_colour else "black"
            for number in range(self.animals)
        )


@dataclass(frozen=True)
class FilmFrame:
    """image: (height, width, 3) uint8 BGR. boxes: (animals, 4) float64, NaN where one is absent;
    keypoints: (animals, 7, 2) float64; visibility: (animals, 7) uint8. Meaning and frame: see
    `truth`."""

    number: int
    image: Image
    boxes: npt.NDArray[np.float64]
    keypoints: npt.NDArray[np.float64]
    visibility: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Animal:
    """What of an animal stays the same throughout a film."""

    kind: str
    length: float
    fur: float
    hair: Hair


def poses(film: Film) -> Iterator[list[Mouse]]:
    """The animals of each frame, without pixels; keypoints as in `FilmFrame`."""
    for placed in _walk(film, animals := _animals(film)):
        yield [
            shape(animal.kind, where.posture, where.centre, animal.length)
            for animal, where in zip(animals, placed, strict=True)
        ]


def render_film(film: Film) -> Iterator[FilmFrame]:
    """The frames, one after the other."""
    animals = _animals(film)
    rng = np.random.default_rng([film.seed, 0xF117, 2])
    width, height = film.size
    background = scene(film.seed, int(rng.integers(SCENES)), film.size)
    light = _Light(rng, film)
    sigma, strength = float(rng.uniform(0.4, 0.9)), float(rng.uniform(1, 3))
    order = _Order(rng, film.animals)
    for number, placed in enumerate(_walk(film, animals)):
        canvas = background.copy()
        mice = [
            shape(animal.kind, where.posture, where.centre - _CENTRE, animal.length)
            for animal, where in zip(animals, placed, strict=True)
        ]
        keypoints = np.stack([mouse.keypoints for mouse in mice]) + _CENTRE
        covers: dict[int, npt.NDArray[np.uint8]] = {}
        for below in order.update(mice):
            look = _look(animals[below], placed[below])
            covers[below] = paint(canvas, mice[below], look)
        visibility = _visibility(keypoints, covers, film.size)
        light.shine(canvas, number / film.fps)
        corner = int(rng.integers(height)), int(rng.integers(width))
        yield FilmFrame(
            number,
            sensor(canvas, corner, sigma, strength),
            np.stack([truth.box_of(points, film.size) for points in keypoints]),
            keypoints,
            visibility,
        )


def write_film(folder: Path, film: Film, write_video: WriteVideo) -> tuple[Path, Path]:
    """Write `film.mp4` and `film.truth.csv` (see `truth`) in a folder, which is made.

    write_video: writes a video at a path from its images. Each file is complete or absent.

    Raises:
        FasthgError: the folder is a file or cannot be written; and what `write_video` raises.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; give a folder")
    video, table = folder / "film.mp4", folder / "film.truth.csv"

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            write_video(video, _noted(film, file), film.size, film.fps)

    write_atomically(table, write)
    return video, table


def _noted(film: Film, file: TextIO) -> Iterator[Image]:
    """The film's images; the truth of each goes to `file`."""
    file.write(truth.header(PART_NAMES))
    for frame in render_film(film):
        for animal, (name, kind) in enumerate(zip(film.names, film.classes, strict=True)):
            if np.isfinite(frame.boxes[animal]).all():
                file.write(
                    truth.row(
                        *(frame.number, name, kind, frame.boxes[animal]),
                        *(frame.keypoints[animal], frame.visibility[animal]),
                    )
                )
        yield frame.image


def _animals(film: Film) -> list[_Animal]:
    rng = np.random.default_rng([film.seed, 0xF117, 0])
    length = 0.25 * min(film.size[0], film.size[1] * 4 / 3) * rng.uniform(0.92, 1.08)
    animals = []
    for kind in film.classes:
        own = float(length * rng.uniform(0.94, 1.06))
        animals.append(_Animal(kind, own, random_fur(rng, kind), fixed_hair(rng, own)))
    return animals


def _walk(film: Film, animals: Sequence[_Animal]) -> Iterator[list[Placed]]:
    leaves = film.frames >= _LONG * film.fps if film.leaves is None else film.leaves
    rng = np.random.default_rng([film.seed, 0xF117, 1])
    lengths = [animal.length for animal in animals]
    return walk(rng, lengths, film.size, film.fps, film.frames, leaves)


def _look(animal: _Animal, placed: Placed) -> Look:
    """Paws step in diagonal pairs."""
    step = float(np.sin(placed.gait))
    fore, hind = 0.03 * step, 0.025 * step
    return Look(animal.fur, (fore, -fore), (-hind, hind), animal.hair)


def _visibility(
    keypoints: npt.NDArray[np.float64],
    covers: dict[int, npt.NDArray[np.uint8]],
    size: tuple[int, int],
) -> npt.NDArray[np.uint8]:
    """(animals, parts), see `truth`. covers: masks of bodies, the lowest first."""
    flags = np.where(truth.inside(keypoints, size), 2, 0).astype(np.uint8)
    limit = np.array(size) - 1
    x, y = np.moveaxis(np.floor(keypoints).astype(int).clip(0, limit), -1, 0)
    below: list[int] = []
    for animal, cover in covers.items():
        for other in below:
            flags[other, (flags[other] == 2) & (cover[y[other], x[other]] > 127)] = 1
        below.append(animal)
    return flags


class _Order:
    """Who is drawn over whom. It changes only while nobody touches anybody, so nothing jumps."""

    def __init__(self, rng: np.random.Generator, animals: int) -> None:
        self._rng = rng
        self._order = rng.permutation(animals)
        self._touched = False

    def update(self, mice: Sequence[Mouse]) -> list[int]:
        """Numbers of the animals in a frame, the lowest first."""
        extents = [_extent(mouse) for mouse in mice]
        touching = any(
            bool((one[0] < other[1]).all() and (other[0] < one[1]).all())
            for one, other in combinations(extents, 2)
        )
        if self._touched and not touching:
            self._order = self._rng.permutation(len(mice))
        self._touched = touching
        return [int(number) for number in self._order]


def _extent(mouse: Mouse) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least and greatest x and y, px, of all that is painted of an animal."""
    points = np.concatenate([mouse.spine, mouse.tail])
    reach = 0.25 * mouse.length
    return points.min(axis=0) - reach, points.max(axis=0) + reach


class _Light:
    """Light that slowly changes: brightness, and its fall across the cage."""

    def __init__(self, rng: np.random.Generator, film: Film) -> None:
        self._size = film.size
        self._base = float(rng.uniform(0.88, 1.08))
        seconds = rng.uniform((20, 7, 15, 15), (60, 20, 40, 40))
        self._frequency = 2 * np.pi / seconds
        self._phase = rng.uniform(0, 2 * np.pi, 4)

    def shine(self, canvas: Array, time: float) -> None:
        """Multiply canvas, (height, width, 3) float32, by the light after `time` seconds."""
        slow, fast, tilt_x, tilt_y = np.sin(self._frequency * time + self._phase)
        width, height = self._size
        base = self._base * (1 + 0.10 * slow + 0.03 * fast)
        x = np.linspace(-0.5, 0.5, width).repeat(3)
        y = np.linspace(-0.5, 0.5, height)[:, None]
        gain = (base * (1 + 0.08 * tilt_x * x)).astype(np.float32)
        gain = gain + (base * 0.08 * tilt_y * y).astype(np.float32)
        canvas *= gain.reshape(canvas.shape)
