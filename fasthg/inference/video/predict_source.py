"""One source from its frames to its files."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fasthg.config import Config
from fasthg.data.boxes import GROWTH
from fasthg.errors import ConfigError, DataError, EnvironmentFault
from fasthg.files import write_atomically
from fasthg.inference.plots import part_rgb
from fasthg.inference.video.boxes import Boxes, read_boxes
from fasthg.inference.video.formats import FORMATS
from fasthg.inference.video.frame import Source
from fasthg.inference.video.keypoints import Network, Predictor
from fasthg.inference.video.overlay import overlay
from fasthg.inference.video.pipeline import Clock, ahead
from fasthg.inference.video.row_store import Rows, RowStore
from fasthg.inference.video.sources import RecordSource
from fasthg.inference.video.tracking import Tracker
from fasthg.inference.video.video_file import VideoSource

_FRAMES_AHEAD = 8
_POSES_AHEAD = 4
_MARS = (2, 7)
# Share of poses with few sure parts beyond which a person is told.
_UNSURE = 0.2
STAGES = ("decode", "crop", "network", "peaks", "write", "overlay")


@dataclass(frozen=True)
class Options:
    """What is asked of every source."""

    formats: tuple[str, ...] = ("csv",)
    folder: Path | None = None
    """Where results go; next to the source where None."""
    boxes: Path | None = None
    track: bool = False
    confidence: float = 0.3
    """Least score of a part that counts for tracking and is drawn as found."""
    margin: float = GROWTH
    """Growth of a tracked box on each side, as a share of the image."""
    overlay: bool = False
    resume: bool = False

    def check(self) -> None:
        """Raise ConfigError for an unknown format or a contradiction, EnvironmentFault for a
        package that a format needs."""
        for name in self.formats:
            if name not in FORMATS:
                raise ConfigError(f"--to {name}: unknown format; use {', '.join(FORMATS)}")
            for module in FORMATS[name].modules:
                try:
                    importlib.import_module(module)
                except ImportError:
                    raise EnvironmentFault(
                        f"--to {name}: needs {module}; "
                        f"run: pip install 'fasthg[{FORMATS[name].extra}]'"
                    ) from None


@dataclass
class SourceResult:
    """What became of a source."""

    rows: int
    new: int
    """Rows made now; the others were there (`resume`)."""
    stopped: bool
    """Whether it was interrupted; the rows so far are written, and kept for `resume`."""
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a person should know of the rows."""


def targets(source: Source, options: Options) -> dict[str, Path]:
    """Format -> the file it goes to; "overlay" and "rows" too."""
    folder = options.folder or source.stem.parent
    name = source.stem.name
    found = {kind: folder / f"{name}{FORMATS[kind].suffix}" for kind in options.formats}
    if options.overlay:
        suffix = ".overlay.mp4" if isinstance(source, VideoSource) else ".overlay"
        found["overlay"] = folder / f"{name}{suffix}"
    return {**found, "rows": folder / f".{name}.rows"}


def check_targets(sources: Sequence[Source], options: Options) -> None:
    """Raise ConfigError where two sources would write one file."""
    taken: dict[Path, Source] = {}
    for source in sources:
        for path in targets(source, options).values():
            if path in taken:
                raise ConfigError(
                    f"{source.path} and {taken[path].path}: both would write {path.name}; "
                    "predict them one after the other with different -o"
                )
            taken[path] = source


def predict_source(
    source: Source,
    network: Network,
    config: Config,
    options: Options,
    *,
    weights: str,
    clock: Clock,
    progress: Callable[[int], None],
    stop: Callable[[], bool],
) -> SourceResult:
    """Predict all frames of a source and write its files.

    Args:
        config: the run's, with overrides.
        weights: which weights these are, so that other ones do not go on with their rows.
        progress: called with the number of rows so far.
        stop: asked after every batch; True ends the source with the rows so far.

    Raises:
        DataError: no frame, or boxes that do not fit.
        FasthgError: a file cannot be written.
    """
    if options.boxes is not None:
        boxes = read_boxes(options.boxes, source)
    else:
        boxes = source.boxes if isinstance(source, RecordSource) else Boxes()
    boxes.check(source)
    tracker = None
    if options.track:
        if len(boxes.animals) > 1:
            raise ConfigError(
                f"--track follows one animal, {boxes.path} has boxes of {len(boxes.animals)}; "
                "leave out --track or the other animals"
            )
        tracker = Tracker(options.confidence, options.margin, boxes)
    paths, parts = targets(source, options), tuple(config.PARTS.NAMES)
    made_from: dict[str, Any] = {
        "source": source.identity(),
        "weights": weights,
        "boxes": hashlib.sha256(options.boxes.read_bytes()).hexdigest() if options.boxes else None,
        "animals": boxes.animals,
        "parts": parts,
        "decode": config.DECODE,
        "flip_test": config.FLIP_TEST,
        "crop": (
            config.INPUT_SIZE,
            config.LOOSE_BBOX_CROP,
            config.LOOSE_BBOX_PAD_FACTOR,
            config.CROP_BORDER,
        ),
        "track": (options.confidence, options.margin) if options.track else None,
    }
    predictor = Predictor(network, config, clock)
    stopped = False
    with RowStore(
        paths["rows"], len(boxes.animals), len(parts), made_from, options.resume
    ) as store:

        def rows() -> Rows:
            return store.rows(source.path, source.names, boxes.animals, parts, boxes.image_ids)

        if tracker is not None:
            _recall(tracker, rows())
        frames = ahead(clock.each("decode", source.frames(store.done)), _FRAMES_AHEAD)
        made = ahead(
            predictor.poses(frames, len(boxes.animals), tracker or boxes.shares), _POSES_AHEAD
        )
        done = store.done
        with closing(made):
            for poses in made:
                with clock.of("write"):
                    store.append(poses)
                done += len(poses)
                progress(done)
                if stop():
                    stopped = True
                    break
        if not done:
            store.remove()
            if stopped:
                return SourceResult(0, 0, True)
            raise DataError(f"{source.path}: no frame in it; check the file")
        result = SourceResult(done, done - store.done, stopped)
        found = rows()
        with clock.of("write"):
            for name in options.formats:
                write_atomically(paths[name], lambda at, n=name: FORMATS[n].write(found, at))  # type: ignore[misc]
                result.files.append(paths[name])
        if not stopped:
            if options.overlay:
                with clock.of("overlay"):
                    colors = part_rgb(config)
                    overlay(source, found, paths["overlay"], colors, options.confidence)
                result.files.append(paths["overlay"])
            store.remove()
    result.notes += _notes(source, boxes, found, stopped, options)
    if "mars" in options.formats and (len(boxes.animals), len(parts)) != _MARS:
        result.notes.append(
            f"{len(boxes.animals)} animals of {len(parts)} parts; MARS's classifiers want 2 of 7"
        )
    return result


def _recall(tracker: Tracker, rows: Rows) -> None:
    """Bring a tracker to its state after the rows that are there."""
    there = zip(rows.keypoints, rows.scores, rows.sizes, strict=True)
    for frame, (keypoints, scores, (width, height)) in enumerate(there):
        if width:
            tracker.windows(frame, int(width), int(height))
        tracker.update(keypoints[0], scores[0], (float(width), float(height)))


def _notes(source: Source, boxes: Boxes, rows: Rows, stopped: bool, options: Options) -> list[str]:
    notes = []
    blind = int((rows.sizes[:, 0] == 0).sum())
    if blind:
        notes.append(f"{blind} frames cannot be decoded; their rows are empty")
    if stopped:
        return notes
    declared = source.declared if isinstance(source, VideoSource) else None
    if declared is not None and declared > len(rows):
        notes.append(f"the header tells of {declared} frames, {len(rows)} are there: cut off?")
    beyond = sum(frame >= len(rows) for frame in boxes.where or {})
    if beyond:
        notes.append(f"{beyond} frames of {boxes.path} are beyond the last one")
    return notes + _unsure(rows, options)


def _unsure(rows: Rows, options: Options) -> list[str]:
    """A note where many poses have few sure parts, as they do in boxes unlike those of training."""
    there = np.isfinite(rows.keypoints).all(axis=(2, 3))
    sure = (rows.scores >= options.confidence).sum(axis=2)
    unsure = int((there & (2 * sure < len(rows.parts))).sum())
    if unsure <= _UNSURE * there.sum():
        return []
    if options.boxes is not None:
        remedy = "check that the boxes are like those of training"
    elif options.track:
        remedy = "where the animal is lost give --boxes, or train with a larger RANDOM_PADDING_MAX"
    else:
        remedy = "the whole frame was the box; give --track or --boxes if training had others"
    return [
        f"{unsure} of {there.sum()} poses have scores below {options.confidence:g} in most parts; "
        f"{remedy}"
    ]
