"""What a source of frames gives, and what it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from fasthg.data.opencv_loader import Image
from fasthg.errors import ConfigError


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


@dataclass(frozen=True)
class FrameRange:
    """Frames `first` up to, without, `stop`; to the end where `stop` is None."""

    first: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> FrameRange:
        """Of `A:B`, `A:` or `:B`, counted from 0, B exclusive.

        Raises:
            ConfigError: it is something else, or holds no frame.
        """
        match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", text)
        if match is None:
            why = "give A:B, two numbers from 0, B exclusive; either may be left out"
            if text.count(":") > 1:
                why = "steps are not possible, animals are followed from frame to frame; give A:B"
            elif "-" in text:
                why = "frames are counted from the first one, 0, not from the end; give A:B"
            raise ConfigError(f"--frames {text}: {why}")
        first, stop = (int(each) if each else None for each in match.groups())
        if stop is not None and stop <= (first or 0):
            raise ConfigError(f"--frames {text}: holds no frame; B, exclusive, is greater than A")
        return cls(first or 0, stop)

    def __str__(self) -> str:
        return f"{self.first}:{'' if self.stop is None else self.stop}"

    def of(self, count: int | None) -> int | None:
        """How many of `count` frames these are; None where that is not known."""
        ends = [each for each in (count, self.stop) if each is not None]
        return max(0, min(ends) - self.first) if ends else None

    def read(self, source: Source, done: int = 0) -> Iterator[Frame]:
        """These frames of a source, without the first `done` of them."""
        frames = source.frames(self.first + done)
        if self.stop is None:
            return frames
        return islice(frames, max(0, self.stop - self.first - done))


WHOLE_FILM = FrameRange()


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
