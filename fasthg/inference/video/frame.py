"""What a source of frames gives, and what it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fasthg.data.opencv_loader import Image


@dataclass(frozen=True)
class Frame:
    """One frame of a source."""

    number: int
    """From 0, in the order of presentation."""
    time: float
    """Seconds from the video's zero; NaN for images."""
    image: Image | None
    """BGR uint8 (height, width, 3); None where it cannot be decoded or was skipped."""
    name: str
    """The image's file name; empty for videos."""


class Source(Protocol):
    """A sequence of frames and where its results go."""

    path: Path
    """What to name in messages."""
    stem: Path
    """Results are named by this path and a suffix each, unless another folder is given."""
    names: tuple[str, ...]
    """File names of the images; empty for a video."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in px, where all frames have one."""

    @property
    def count(self) -> int | None:
        """How many frames there seem to be."""

    def identity(self) -> str:
        """Changes when the source does."""

    def frames(self, start: int = 0) -> Iterator[Frame]:
        """All frames from `start` on."""
