"""What every converter shares: boxes, the split, writing, the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fasthg.data.boxes import box_around
from fasthg.data.convert.images import read_jpeg
from fasthg.data.records import Record, encode
from fasthg.data.tfrecord import write_frames
from fasthg.errors import DataError

SPLITS = ("train", "val", "test")
FRACTIONS = (0.85, 0.05, 0.10)
# One part gives no size and thus no sensible crop.
MIN_PARTS = 2


@dataclass(frozen=True)
class Labelled:
    """One frame of a project: its image and (animals, parts, 2) float64 keypoints in image px,
    NaN where unlabelled. `names` are the animals'."""

    image: Path
    image_id: str
    keypoints: npt.NDArray[np.float64]
    names: tuple[str, ...] = ()


@dataclass
class Report:
    """What a conversion did. frames: records by split; parts: names in the order written;
    mapping: names in the project to those written; skipped: reason and count; swaps: exchanges of
    left and right that were repaired; notes: whatever else the user should read."""

    files: list[Path]
    parts: tuple[str, ...]
    frames: dict[str, int] = field(default_factory=dict)
    animals: int = 0
    unlabelled_parts: int = 0
    mapping: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    swaps: int = 0
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for a terminal."""
        counts = ", ".join(f"{count} {split}" for split, count in self.frames.items())
        lines = [
            f"{sum(self.frames.values())} frames ({counts}), {self.animals} animals, "
            f"{self.unlabelled_parts} parts unlabelled",
            "parts: " + ", ".join(f"{i} {name}" for i, name in enumerate(self.parts)),
        ]
        renamed = [f"{old} -> {new}" for old, new in self.mapping.items() if old != new]
        if renamed:
            lines.append("renamed: " + ", ".join(renamed))
        lines += [f"skipped: {count} {reason}" for reason, count in self.skipped.items() if count]
        return lines + self.notes + [f"wrote {path}" for path in self.files]


def split_frames(
    frames: Sequence[Labelled], seed: int, fractions: Sequence[float] = FRACTIONS
) -> dict[str, list[Labelled]]:
    """Divide frames at random among train, val and test: a function of their number and the seed.

    Bounds are the cumulative fractions rounded down, as in MARS (116 frames: 98, 6, 12). Raises
    DataError unless there are three fractions, none negative, that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        given = " ".join(f"{value:g}" for value in fractions)
        raise DataError(f"split {given}: give three fractions for train, val, test that sum to 1")
    order = np.random.default_rng(seed).permutation(len(frames))
    # The small addend keeps 0.85 + 0.05 = 0.8999... from losing a frame.
    bounds = [int(sum(fractions[: i + 1]) * len(frames) + 1e-6) for i in range(2)]
    pieces = np.split(order, bounds)
    return {split: [frames[i] for i in piece] for split, piece in zip(SPLITS, pieces, strict=True)}


def write_splits(
    frames: Sequence[Labelled],
    out: Path,
    report: Report,
    *,
    seed: int,
    fractions: Sequence[float] = FRACTIONS,
    shard_size: int = 1000,
) -> Report:
    """Write the frames as `{split}_dataset-0000i-of-0000n` in `out` and complete the report.

    Each file appears when it is complete. A split without frames writes no file. Raises DataError
    for unreadable images and where no frame is left to write.
    """
    if not frames:
        raise DataError(f"{out}: no labelled frame to write; check the project's annotations")
    for split, chosen in split_frames(frames, seed, fractions).items():
        report.frames[split] = len(chosen)
        shards = -(-len(chosen) // shard_size)
        for shard in range(shards):
            path = out / f"{split}_dataset-{shard:05d}-of-{shards:05d}"
            part = chosen[shard * shard_size : (shard + 1) * shard_size]
            write_frames(path, _payloads(part, report))
            report.files.append(path)
    return report


def _payloads(frames: Iterable[Labelled], report: Report) -> Iterator[bytes]:
    for frame in frames:
        encoded, width, height = read_jpeg(frame.image)
        keypoints = (frame.keypoints / (width, height)).astype(np.float32)
        report.animals += len(keypoints)
        report.unlabelled_parts += int(np.isnan(keypoints[..., 0]).sum())
        yield encode(
            Record(
                encoded=encoded,
                width=width,
                height=height,
                image_id=frame.image_id,
                filename=frame.image.name,
                path=frame.image.parent.name,
                bbox=np.stack([box_around(points) for points in keypoints]),
                keypoints=keypoints,
                object_id=frame.names,
            )
        )


def keep_labelled(
    frames: Iterable[Labelled], report: Report, min_parts: int = MIN_PARTS
) -> list[Labelled]:
    """Drop animals with fewer than `min_parts` labelled parts, and frames left without animals."""
    kept = []
    for frame in frames:
        labels = np.isfinite(frame.keypoints).all(axis=2).sum(axis=1)
        enough = labels >= min_parts
        few = int(((labels > 0) & ~enough).sum())
        _count(report, f"animals with fewer than {min_parts} labelled parts", few)
        if not enough.any():
            _count(report, "frames without a labelled animal", 1)
            continue
        names = tuple(name for name, keep in zip(frame.names, enough, strict=False) if keep)
        kept.append(Labelled(frame.image, frame.image_id, frame.keypoints[enough], names))
    return kept


def _count(report: Report, reason: str, number: int) -> None:
    report.skipped[reason] = report.skipped.get(reason, 0) + number
