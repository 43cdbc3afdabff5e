"""Division of frames into train, val and test: drawn once and kept in `splits.json`.

`splits.json` is in the folder of the records::

    {"by": "video", "seed": 0, "fractions": [0.85, 0.05, 0.1], "session_pattern": null,
     "frames": {"<image id>": "train", ...}, "groups": {"<video>": "train", ...},
     "files": {"train_dataset-00000-of-00001": ["<image id>", ...], ...},
     "sources": {"../my_project": ["<image id>", ...], ...}, "parts": ["nose", ...],
     "measured": {"OKS_SIGMAS": [0.031, ...], "workers": 5}}

`by` is frame, video, session, block, or `given` where the source itself names the splits. `frames`
and `groups` may be edited by hand. A frame whose id is listed keeps its split, also while its
source lacks it; a new one joins its video or session, or the block of the frame next to it; only
the remaining frames are drawn. `files` holds the records of each file in their order (of older
versions, the files alone), `sources` says what was converted to which of them (paths from the
folder of the records), `parts` are those of all records. `measured` is empty unless several workers
labelled the frames; its sigmas follow `parts`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from fasthg.data.convert.blocks import changes, in_blocks
from fasthg.errors import ConfigError, DataError
from fasthg.files import write_bytes

SPLITS = ("train", "val", "test")
FRACTIONS = (0.85, 0.05, 0.10)
NAME = "splits.json"
RULES = ("frame", "video", "session", "block")
# What tools add to the name of a video that they made from another: `mouse1_cropped`,
# `mouse1DownSampled`, `mouse1_cut_2`. Before it is a name: `train/clip_1` is of no video `train/`.
_CUT = re.compile(
    r"(?<=[^/ _.-])([ _.-]?"
    r"(cropped|crop|cut|clip|trimmed|shortened|short|downsampled|resized|rotated|copy)"
    r"([ _-]?\d{1,3})?)+$",
    re.IGNORECASE,
)
_REDRAW = "delete it and convert with --replace, which removes all records there, to draw again"


class SplitOptions(TypedDict, total=False):
    """How to divide frames. seed: of a first draw; fractions: shares of train, val, test, by
    default those of `splits.json` or FRACTIONS; split_by: one of RULES, by default what
    `splits.json` was made with, or frame; session_pattern: see `session_of`."""

    seed: int
    fractions: Sequence[float] | None
    split_by: str | None
    session_pattern: str | None


@dataclass(frozen=True)
class Item:
    """Properties of a frame that decide its split. given: the split that the source names."""

    image_id: str
    video: str
    given: str | None = None


@dataclass
class Splits:
    """The content of `splits.json`, described above."""

    by: str
    seed: int
    fractions: tuple[float, ...]
    session_pattern: str | None = None
    frames: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    def measured_sigmas(self) -> tuple[tuple[float, ...], int] | None:
        """The sigmas of OKS by part and the number of workers that they were measured on."""
        sigmas, workers = self.measured.get("OKS_SIGMAS"), self.measured.get("workers")
        return (tuple(sigmas), workers) if sigmas and workers else None

    def save(self, folder: Path) -> Path:
        """Write `splits.json` in `folder`, atomically; returns its path."""
        path = folder / NAME
        write_bytes(path, json.dumps(asdict(self), indent=1, ensure_ascii=False).encode())
        return path


def load_splits(folder: Path) -> Splits | None:
    """The splits of an earlier conversion into `folder`, or None. Raises DataError."""
    path = folder / NAME
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values.get("files"), list):
            # Of a version that did not note the records.
            values["files"] = {name: [] for name in values["files"]}
        splits = Splits(**values)
        named = [*splits.frames.items(), *splits.groups.items()]
        lists = [*splits.files.values(), *splits.sources.values(), splits.parts]
        if not all(isinstance(names, list) for names in lists):
            raise TypeError("files, sources or parts are no lists")
        _check_measured(splits)
        texts = [splits.by, *splits.files, *(name for names in lists for name in names)]
        texts += [text for pair in named for text in pair]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("by, frames, groups, files, sources or parts hold what is no text")
        wrong = {*splits.frames.values(), *splits.groups.values()} - {*SPLITS}
        check_fractions(splits.fractions)
        np.random.default_rng(splits.seed)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; restore it, or {_REDRAW}") from None
    except (ValueError, TypeError, AttributeError, RecursionError, DataError) as error:
        raise DataError(f"{path}: {error}; restore it, or {_REDRAW}") from None
    if splits.by not in (*RULES, "given"):
        raise DataError(f"{path}: by: {splits.by}; use {', '.join(RULES)}")
    if wrong:
        names = ", ".join(sorted(map(str, wrong)))
        raise DataError(f"{path}: no split named {names}; use {', '.join(SPLITS)}")
    return splits


def _check_measured(splits: Splits) -> None:
    measured = splits.measured_sigmas()
    if measured is None:
        return
    numbers = [*measured[0], measured[1]]
    if not all(isinstance(n, int | float) and n > 0 for n in numbers) or len(numbers) != (
        len(splits.parts) + 1
    ):
        raise TypeError("measured is no number above 0 for each part")


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise DataError unless there are three fractions, none negative, that sum to 1."""
    if len(fractions) != 3 or min(fractions) < 0 or not abs(sum(fractions) - 1) <= 1e-6:
        given = " ".join(f"{value:g}" for value in fractions)
        raise DataError(f"split {given}: give three fractions for train, val, test that sum to 1")


def parse_fractions(text: str | None) -> tuple[float, ...] | None:
    """`0.9/0.05/0.05` as shares of train, val, test; None for None. Raises ConfigError."""
    if text is None:
        return None
    try:
        fractions = tuple(float(part) for part in text.split("/"))
        check_fractions(fractions)
    except (ValueError, DataError):
        raise ConfigError(
            f"--split {text}: give three shares for train, val and test that sum to 1, for example "
            "--split 0.9/0.05/0.05"
        ) from None
    if fractions[0] == 0:
        raise ConfigError(f"--split {text}: leaves nothing to train on; give train a share above 0")
    return fractions


def session_of(video: str, pattern: str | None = None) -> str:
    """The session that a video belongs to.

    pattern: a regular expression searched in the video's name; its first group, or else all it
    matches, is the session. By default the name less its last token after "_" or "-", such as the
    camera in `mouse3_day1_cam2`. Raises ConfigError for a bad expression or one without a match.
    """
    if pattern is None:
        return re.sub(r"[_-][^_/-]*$", "", video)
    try:
        match = re.search(pattern, video)
    except re.error as error:
        raise ConfigError(f"--session-pattern {pattern!r}: {error}; correct it") from None
    if match is None:
        raise ConfigError(
            f"--session-pattern {pattern!r}: no match in video {video!r}; make it match every video"
        )
    return str(match[1] if match.re.groups else match[0])


def divide(
    items: Sequence[Item],
    folder: Path,
    *,
    seed: int = 0,
    fractions: Sequence[float] | None = None,
    split_by: str | None = None,
    session_pattern: str | None = None,
    kept: Sequence[Item] = (),
) -> tuple[Splits, list[str]]:
    """Decide the split of every frame, as `splits.json` in `folder` has it or by a new draw.

    kept: frames of other sources whose records stay in `folder`, each with its split; they count
    when splits are filled.

    A first draw by frame is a permutation of all frames, cut at the cumulative fractions rounded
    down, as in MARS (116 frames: 98, 6, 12). Otherwise frames or groups are taken in random order,
    and each goes to the split that lacks most frames of its share; no split with a share stays
    empty while there are groups enough. Both are functions of the frames' order and the seed.
    By block, each video is cut in at most three pieces, one for each split, in random order: frames
    of two splits are neighbours in time only where two pieces meet.

    Returns the splits, which are not saved yet, and notes for the report. Raises DataError where
    `splits.json` contradicts the options or the source, ConfigError for options that do not fit.
    """
    if fractions is not None:
        check_fractions(fractions)
    joined, cut = _as_filmed([*kept, *items])
    kept, items = joined[: len(kept)], joined[len(kept) :]
    known = load_splits(folder)
    by = _rule(folder, known, split_by, [item.given is not None for item in items])
    if session_pattern is not None and by != "session":
        raise ConfigError("--session-pattern: needs --split-by session")
    if known is not None:
        session_pattern = session_pattern or known.session_pattern
    splits = known or Splits(by, seed, tuple(fractions or FRACTIONS))
    if fractions is not None:
        splits.fractions = tuple(fractions)
        if by == "given":
            cut.append(
                "--split has no effect, as the source names the splits; add --split-by frame"
            )
        elif known is not None:
            cut.append(f"--split holds for new frames alone: {folder / NAME} keeps the others")
    splits.session_pattern = session_pattern
    before = len(splits.frames)
    for item in kept:
        splits.frames.setdefault(item.image_id, str(item.given))
    if by == "given":
        _take_given(splits, items, folder / NAME)
    elif by == "frame" and not splits.frames:
        _cut(splits, items)
    elif by == "block":
        shares = dict(zip(SPLITS, splits.fractions, strict=True))
        splits.frames |= in_blocks(_by_video(joined), splits.frames, shares, splits.seed)
    else:
        _fill(splits, joined)
    return splits, cut + _notes(folder / NAME, splits, joined, before)


def _as_filmed(items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """The frames, with videos that were cut from one another as one; and a note on these."""
    origins = {item.video: _CUT.sub("", item.video) for item in items}
    of: dict[str, list[str]] = {}
    for video, origin in origins.items():
        of.setdefault(origin, []).append(video)
    several = {origin: videos for origin, videos in of.items() if origin and len(videos) > 1}
    joined = [
        replace(i, video=origins[i.video]) if origins[i.video] in several else i for i in items
    ]
    return joined, [
        f"counted as one video, by their names: {', '.join(videos)}" for videos in several.values()
    ]


def _rule(folder: Path, known: Splits | None, rule: str | None, given: Sequence[bool]) -> str:
    if rule is not None and rule not in RULES:
        raise ConfigError(f"--split-by {rule}: use {', '.join(RULES)}")
    if rule is None and any(given):
        if not all(given):
            raise DataError("some frames name their split and some do not; name all or none")
        rule = "given"
    if known is None:
        return rule or "frame"
    if rule not in (None, known.by) or (known.by == "given" and not all(given)):
        asked = rule or "frame"
        # Another source's records may be there, which a new draw would remove.
        remedy = _REDRAW
        if asked == "given":
            remedy = f"divide these frames, too: --split-by {known.by}"
        elif known.by == "given":
            remedy = "convert to another folder"
        raise DataError(f"{folder / NAME}: made by {known.by}, not by {asked}; {remedy}")
    return known.by


def _take_given(splits: Splits, items: Sequence[Item], path: Path) -> None:
    for item in items:
        kept = splits.frames.setdefault(item.image_id, str(item.given))
        if kept != item.given:
            raise DataError(
                f"{path}: {item.image_id} is in {kept}, but the source says {item.given}; {_REDRAW}"
            )


def _cut(splits: Splits, items: Sequence[Item]) -> None:
    order = np.random.default_rng(splits.seed).permutation(len(items))
    # The small addend keeps 0.85 + 0.05 = 0.8999... from losing a frame.
    bounds = [int(sum(splits.fractions[: i + 1]) * len(items) + 1e-6) for i in range(2)]
    for split, piece in zip(SPLITS, np.split(order, bounds), strict=True):
        for index in piece.tolist():
            splits.frames.setdefault(items[index].image_id, split)


def _by_video(items: Sequence[Item]) -> dict[str, list[str]]:
    videos: dict[str, list[str]] = {}
    for item in items:
        videos.setdefault(item.video, []).append(item.image_id)
    return videos


def _fill(splits: Splits, items: Sequence[Item]) -> None:
    """Place the frames that `splits.frames` lacks: with their group, or by a draw of groups."""
    group_of = {item.image_id: _group(splits, item) for item in items}
    chosen = dict(splits.groups)
    for image_id, group in group_of.items():
        if image_id in splits.frames:
            chosen.setdefault(group, splits.frames[image_id])
    free = [image_id for image_id in group_of if image_id not in splits.frames]
    counts = Counter(splits.frames.get(i) or chosen.get(group) for i, group in group_of.items())
    sizes = Counter(group_of[i] for i in free if group_of[i] not in chosen)
    shares = dict(zip(SPLITS, splits.fractions, strict=True))
    names = list(sizes)
    for done, index in enumerate(np.random.default_rng(splits.seed).permutation(len(names))):
        empty = [split for split in SPLITS if shares[split] and not counts[split]]
        if len(names) - done <= len(empty):
            split = empty[0]
        else:
            split = max(SPLITS, key=lambda s: shares[s] * len(group_of) - counts[s])
        chosen[names[index]] = split
        counts[split] += sizes[names[index]]
    splits.frames.update((image_id, chosen[group_of[image_id]]) for image_id in free)
    if splits.by != "frame":
        splits.groups = chosen


def _group(splits: Splits, item: Item) -> str:
    if splits.by == "frame":
        return item.image_id
    return item.video if splits.by == "video" else session_of(item.video, splits.session_pattern)


def _empty(splits: Splits) -> list[str]:
    """A note on splits with a share and without a frame."""
    counts = Counter(splits.frames.values())
    empty = [s for s, f in zip(SPLITS, splits.fractions, strict=True) if f and not counts[s]]
    keys = ", ".join(f"DATA.{split.upper()}" for split in empty)
    if not empty:
        return []
    return [
        f"too few frames for {', '.join(empty)}: label more and convert again, "
        f"or leave {keys} unset"
    ]


def _notes(path: Path, splits: Splits, items: Sequence[Item], before: int) -> list[str]:
    notes = []
    if splits.by == "given":
        notes.append("splits as the source names them")
    elif splits.by == "frame":
        notes += _empty(splits)
        splits_of: dict[str, set[str]] = {}
        for item in items:
            splits_of.setdefault(item.video, set()).add(splits.frames[item.image_id])
        shared = sum(len(found) > 1 for found in splits_of.values())
        if shared and len(splits_of) == 1:
            (found,) = splits_of.values()
            others = " and ".join(split for split in ("val", "test") if split in found)
            notes.append(
                f"all frames are of one video: those of {others} are much like those of train; "
                "label frames of another video for an honest test, or divide with --split-by block"
            )
        elif shared:
            notes.append(
                f"frames of {shared} of {len(splits_of)} videos are in several splits, and near "
                "frames are much alike; --split-by video keeps each video in one"
            )
    elif splits.by == "block":
        videos = _by_video(items)
        notes.append(
            f"split by block: {len(videos)} videos, where a frame follows one of another split "
            f"{changes(videos, splits.frames)} times"
        )
        notes += _empty(splits)
    else:
        groups = {_group(splits, item) for item in items}
        counts = Counter(splits.groups[group] for group in groups)
        share = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
        notes.append(f"split by {splits.by}: {len(groups)} {splits.by}s ({share})")
        empty = [s for s, f in zip(SPLITS, splits.fractions, strict=True) if f and not counts[s]]
        if empty:
            notes.append(f"too few {splits.by}s for {', '.join(empty)}; --split-by frame has more")
    if before:
        kept = f"{len(splits.frames) - before} new frames, the others stay where they were"
        notes.append(f"splits from {path}: {kept}; {_REDRAW}")
    return notes
