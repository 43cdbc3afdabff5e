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

from fasthg import __version__
from fasthg.config import Config
from fasthg.errors import ConfigError, DataError, missing_package
from fasthg.files import write_atomically
from fasthg.inference.locator import Locator
from fasthg.inference.video.boxes import Boxes, read_boxes
from fasthg.inference.video.contact_sheet import write_contact_sheet
from fasthg.inference.video.filtering import Filter, filtered, irregular
from fasthg.inference.video.formats import FORMATS
from fasthg.inference.video.frame import WHOLE_FILM, FrameRange, Source
from fasthg.inference.video.keypoints import Network, Predictor
from fasthg.inference.video.made_from import read_record, write_record
from fasthg.inference.video.overlay import overlay
from fasthg.inference.video.painter import Style
from fasthg.inference.video.pipeline import Clock, ahead
from fasthg.inference.video.plan import Plan
from fasthg.inference.video.refilter import finished_rows
from fasthg.inference.video.row_store import Rows, RowStore, rows_of_another
from fasthg.inference.video.sources import RecordSource
from fasthg.inference.video.tracking import Animals, Tracker
from fasthg.inference.video.video_file import VideoSource
from fasthg.words import counted

_FRAMES_AHEAD = 8
_POSES_AHEAD = 4
_MARS = (2, 7)
# Share of poses with few sure parts, and of empty rows, beyond which a person is told.
_UNSURE = 0.2
_FILTERED = "filtered "
# What records of older versions do not name.
_UNNAMED = ("fasthg", "precision", "filter", "colours", "skeleton", "nothing_to_draw")
WHOLE = Path("whole")
"""In place of a file of boxes: every frame is the box of one animal."""
STAGES = ("decode", "locator", "crop", "network", "peaks", "write", "overlay")


@dataclass(frozen=True)
class Options:
    """What is asked of every source."""

    formats: tuple[str, ...] = ("csv",)
    folder: Path | None = None
    """Where results go; next to the source where None."""
    boxes: Path | None = None
    """A file of boxes, of all frames or some, or WHOLE."""
    animals: int | None = None
    """How many animals there are at most; None: as many as the locator's training frames hold."""
    frames_are_crops: bool = False
    """Whether the network was trained on crops of one animal, so that a frame is its box."""
    confidence: float = 0.3
    """Least score of a part that is drawn as found."""
    overlay: bool = False
    trail: int = 0
    """Over how many frames the overlay shows where each animal came from."""
    sheet: bool = False
    """Whether a contact sheet of the least sure frames is written."""
    resume: bool = False
    frames: FrameRange = WHOLE_FILM
    """Of each source, the frames that are predicted; they keep their numbers and times."""
    filter: Filter | None = None
    """What the rows of a film go through for files of their own, and for the drawing."""
    again: bool = False
    """Whether what is done is made once more; else it is left as it is, where weights, options,
    source and files are what they were."""
    recursive: bool = False
    """Whether the folders in a folder are inputs too."""

    def check(self) -> None:
        """Raise ConfigError for an unknown format or a contradiction, EnvironmentFault for a
        package that a format needs."""
        if self.again and self.resume:
            raise ConfigError("--again: starts anew, --resume goes on; give one of them")
        if self.trail and not self.overlay:
            raise ConfigError("--trail: shown in the overlay alone; add --overlay")
        for name in self.formats:
            if name not in FORMATS:
                raise ConfigError(f"--to {name}: unknown format; use {', '.join(FORMATS)}")
            for module in FORMATS[name].modules:
                try:
                    importlib.import_module(module)
                except ImportError:
                    raise missing_package(f"--to {name}", module, FORMATS[name].extra) from None


@dataclass
class SourceResult:
    """What became of a source."""

    rows: int
    new: int
    """Rows made now; the others were there (`resume`)."""
    stopped: bool
    """Whether it was interrupted; the rows so far are written, and kept for `resume`."""
    files: list[Path] = field(default_factory=list)
    replaced: list[Path] = field(default_factory=list)
    """Those of `files` that were there before, of another prediction."""
    finished: bool = False
    """Whether all was done before, so that nothing was written now."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of the rows."""
    poses: Rows | None = field(default=None, repr=False)
    """The rows themselves; None where they were not read now (`finished`)."""


def targets(source: Source, options: Options) -> dict[str, Path]:
    """Format -> the file it goes to, "filtered " before it for filtered rows; "overlay", "rows" and
    "made" (`made_from`) too."""
    folder = options.folder or source.stem.parent
    name = source.stem.name
    found = {kind: folder / f"{name}{FORMATS[kind].suffix}" for kind in options.formats}
    if options.filter is not None and not source.names:
        for kind in options.formats:
            found[f"{_FILTERED}{kind}"] = folder / f"{name}.filtered{FORMATS[kind].suffix}"
    if options.overlay:
        suffix = ".overlay.mp4" if isinstance(source, VideoSource) else ".overlay"
        found["overlay"] = folder / f"{name}{suffix}"
    if options.sheet:
        found["sheet"] = folder / f"{name}.sheet.png"
    return {**found, "rows": folder / f".{name}.rows", "made": folder / f".{name}.made.json"}


def check_targets(sources: Sequence[Source], options: Options) -> None:
    """Raise ConfigError where two sources would write one file, or one of another source."""
    taken: dict[Path, Source] = {}
    for source in sources:
        for path in targets(source, options).values():
            if path in taken:
                raise ConfigError(
                    f"{source.path} and {taken[path].path}: both would write {path.name}; "
                    "predict them one after the other with different -o"
                )
            taken[path] = source
        paths = targets(source, options)
        other = rows_of_another(paths["rows"], source.path, source.identity())
        if other is not None:
            raise ConfigError(
                f"{source.path}: {paths['rows']} holds the unfinished rows of {other}; give "
                "another folder with -o"
            )
        record = read_record(paths["made"])
        if record is None:
            continue
        for path in paths.values():
            other = record.of_another(path, source.path, source.identity())
            if other is not None:
                raise ConfigError(
                    f"{source.path}: {path} exists and is of {other}; give another folder with -o"
                )


def predict_source(
    source: Source,
    network: Network,
    config: Config,
    options: Options,
    locator: Locator | None = None,
    *,
    weights: str,
    clock: Clock,
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> SourceResult:
    """Predict all frames of a source and write its files.

    Args:
        config: the run's, with overrides.
        locator: the run's; None where it has none.
        weights: which weights these are, so that other ones do not go on with their rows.
        progress: called with the number of rows so far, and of those made now.
        stop: asked after every batch; True ends the source with the rows so far.

    Raises:
        DataError: no frame, or boxes that do not fit.
        FasthgError: a file cannot be written.
    """
    span, whole = options.frames, options.boxes == WHOLE
    given = read_boxes(options.boxes, source) if options.boxes and not whole else None
    if given is None and options.frames_are_crops and not isinstance(source, RecordSource):
        whole = True
    plan = Plan.of(
        *(source, config.PARTS.NUM_PARTS, locator),
        boxes=given,
        whole=whole,
        most=options.animals,
        span=span,
    )
    boxes, locator, animals = plan.boxes, plan.locator, plan.animals
    paths, parts = targets(source, options), tuple(config.PARTS.NAMES)
    made_from: dict[str, Any] = {
        "source": source.identity(),
        "weights": weights,
        "boxes": hashlib.sha256(options.boxes.read_bytes()).hexdigest()
        if options.boxes and options.boxes != WHOLE
        else str(options.boxes),
        "locator": None if locator is None else (locator.weights, locator.settings.to_json()),
        "animals": animals,
        "parts": parts,
        "frames": None if span == WHOLE_FILM else str(span),
        "decode": config.DECODE,
        "flip_test": config.FLIP_TEST,
        "crop": (
            config.INPUT_SIZE,
            config.LOOSE_BBOX_CROP,
            config.LOOSE_BBOX_PAD_FACTOR,
            config.CROP_BORDER,
        ),
    }
    # Rows are the same whatever is drawn of them, so this is of the record alone. Rows of another
    # version may be gone on with; what is finished by another one is made anew.
    recorded = {**made_from, "fasthg": __version__, "precision": config.PRECISION}
    style = Style.of(config, options.confidence, options.trail)
    if options.overlay or options.sheet:
        recorded |= {"confidence": style.confidence, "trail": style.trail}
        recorded |= {"colours": style.colours, "skeleton": style.skeleton}
    if options.filter is not None and not source.names:
        recorded["filter"] = str(options.filter)
    elif options.overlay:
        recorded["filter"] = None  # a drawing shows what was filtered
    asked = {kind: path for kind, path in paths.items() if kind not in ("rows", "made")}
    before = None if paths["rows"].exists() or options.again else read_record(paths["made"])
    anew = None
    if before and before.made_from.get("nothing_to_draw"):
        asked.pop("sheet", None)
        recorded["nothing_to_draw"] = True
    if before and before.finished and all(before.unchanged(*item) for item in asked.items()):
        anew = before.differs(recorded, _UNNAMED if options.resume else ())
        if anew == "frames" and before.made_from.get("frames") is None:
            raise DataError(
                f"{paths['made']}: the whole of {source.path} is predicted there; give another "
                "folder with -o, or --again to replace it"
            )
        if anew is not None and options.resume:
            raise DataError(
                f"{paths['made']}: these results were made with another {anew}; "
                "leave out --resume to start anew"
            )
        if anew is None:
            names = ", ".join(path.name for path in asked.values())
            note = f"done before ({names}); --again makes it anew"
            return SourceResult(before.rows, 0, False, finished=True, notes=[note])
    if options.filter is not None and set(asked) == {"csv", f"{_FILTERED}csv"}:
        there = finished_rows(
            *(before, recorded, paths["csv"], source.path, animals, parts, span.first)
        )
        if there is not None:
            with clock.of("write"):
                result = _filter_again(there, options.filter, paths[f"{_FILTERED}csv"])
            write_record(paths["made"], source.path, recorded, result.rows, True, asked)
            return result
    predictor = Predictor(network, config, clock)
    stopped = False
    with RowStore(
        *(paths["rows"], source.path, len(animals), len(parts), made_from, options.resume)
    ) as store:

        def rows() -> Rows:
            return store.rows(
                *(source.path, source.names, animals, parts, boxes.image_ids, span.first)
            )

        if plan.tracker is not None:
            _recall(plan.tracker, rows())
        frames = ahead(clock.each("decode", span.read(source, store.done)), _FRAMES_AHEAD)
        made = ahead(plan.poses(predictor, frames), _POSES_AHEAD)
        done = store.done
        with closing(made):
            for poses in made:
                with clock.of("write"):
                    store.append(poses)
                done += len(poses)
                progress(done, done - store.done)
                if stop():
                    stopped = True
                    break
        if not done:
            store.remove()
            if stopped:
                return SourceResult(0, 0, True)
            if span.first:
                known = source.reached if isinstance(source, VideoSource) else source.count
                raise DataError(
                    f"{source.path}: --frames {span}: it has {known} frames; begin before its end"
                )
            raise DataError(f"{source.path}: no frame in it; check the file")
        result = SourceResult(done, done - store.done, stopped)
        if not store.done:
            result.replaced = [path for path in asked.values() if path.exists()]
        found = result.poses = rows()
        with clock.of("write"):
            for name in options.formats:
                write_atomically(paths[name], lambda at, n=name: FORMATS[n].write(found, at))  # type: ignore[misc]
                result.files.append(paths[name])
            treated = found
            if options.filter is not None and not source.names:
                treated = filtered(found, options.filter)
                for name in options.formats:
                    path = paths[f"{_FILTERED}{name}"]
                    write_atomically(path, lambda at, n=name: FORMATS[n].write(treated, at))  # type: ignore[misc]
                    result.files.append(path)
        if not stopped and options.overlay:
            with clock.of("overlay"):
                overlay(source, treated.from_zero(), paths["overlay"], style)
            result.files.append(paths["overlay"])
        if not stopped and options.sheet:
            if write_contact_sheet(source, found.from_zero(), paths["sheet"], style):
                result.files.append(paths["sheet"])
            else:
                recorded["nothing_to_draw"] = True
                result.notes.append("no pose in it, so there is no contact sheet")
        written = {kind: path for kind, path in asked.items() if path in result.files}
        write_record(paths["made"], source.path, recorded, done, not stopped, written)
        if not stopped:
            store.remove()
    if anew is not None:
        what = "range of frames" if anew == "frames" else anew
        result.notes.append(f"made anew: what was there is of another {what}")
    if options.filter is not None and options.filter.method:
        result.notes += irregular(found.times)
    if options.filter is not None and source.names:
        result.notes.append("images do not follow each other; not filtered")
    result.notes += _notes(source, boxes, found, stopped, options, locator is not None)
    if "mars" in options.formats and (len(animals), len(parts)) != _MARS:
        result.notes.append(
            f"{counted(len(animals), 'animal')} of {counted(len(parts), 'part')}; "
            "MARS's classifiers want 2 of 7"
        )
    return result


def _filter_again(rows: Rows, settings: Filter, path: Path) -> SourceResult:
    """Filter finished rows into a CSV."""
    result = SourceResult(len(rows), 0, False, [path], [path] if path.exists() else [])
    result.poses, treated = rows, filtered(rows, settings)
    write_atomically(path, lambda at: FORMATS["csv"].write(treated, at))
    result.notes.append("filtered what was predicted before; --again predicts it anew")
    if settings.method:
        result.notes += irregular(rows.times)
    return result


def _recall(tracker: Tracker, rows: Rows) -> None:
    """Bring a tracker to its state after the rows that are there."""
    for boxes, keypoints, scores in zip(rows.boxes, rows.keypoints, rows.scores, strict=True):
        tracker.learn(Animals(boxes, keypoints, scores.astype(np.float64)))


def _notes(
    source: Source, boxes: Boxes, rows: Rows, stopped: bool, options: Options, located: bool
) -> list[str]:
    notes = []
    if isinstance(source, VideoSource) and source.turned:
        width, height = source.size
        notes.append(
            f"turned as its rotation tag says; keypoints are in the picture of {width}x{height} px "
            "that players show"
        )
    blind = int((rows.sizes[:, 0] == 0).sum())
    if blind:
        notes.append(f"{counted(blind, 'frame')} cannot be decoded; the rows are empty")
    end, span = rows.first + len(rows), options.frames
    if stopped or end == span.stop:
        return notes + ([] if stopped else _unsure(rows, options, located))
    if span.stop is not None:
        notes.append(f"--frames {span}: it ends after {counted(end, 'frame')}")
    declared = source.declared if isinstance(source, VideoSource) else None
    if declared is not None and declared > end:
        notes.append(f"the header tells of {counted(declared, 'frame')}, {end} there: cut off?")
    if isinstance(source, VideoSource) and source.broken:
        notes.append(
            f"the file breaks off after {counted(end, 'frame')} ({source.broken}); repair or copy "
            "it again"
        )
    beyond = sum(frame >= end for frame in boxes.where or {})
    if beyond:
        notes.append(f"{boxes.path} has {counted(beyond, 'frame')} beyond the last one")
    return notes + _unsure(rows, options, located)


def _unsure(rows: Rows, options: Options, located: bool) -> list[str]:
    """Notes where many rows are empty, or many poses have few sure parts, as they do in frames and
    boxes unlike those of training."""
    there = np.isfinite(rows.keypoints).all(axis=(2, 3))
    empty = there.size - int(there.sum())
    if located and empty > _UNSURE * there.size:
        return [
            f"{empty} of {there.size} rows are empty, as no animal was found (rows are frames x "
            "animals); if there are animals, label some frames like these and train again"
        ]
    sure = (rows.scores >= options.confidence).sum(axis=2)
    unsure = int((there & (2 * sure < len(rows.parts))).sum())
    if unsure <= _UNSURE * there.sum():
        return []
    remedy = "check that the boxes are like those of training"
    if options.boxes is None:
        remedy = "label some frames like these and train again"
    return [
        f"{unsure} of {there.sum()} poses have scores below {options.confidence:g} in most parts; "
        f"{remedy}"
    ]
