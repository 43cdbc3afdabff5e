"""Shared by all converters: boxes, and writing of records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Unpack

import numpy as np
import numpy.typing as npt

from fasthg.data.boxes import box_around
from fasthg.data.convert.images import Jpeg
from fasthg.data.convert.kept import Kept, records_of_others
from fasthg.data.convert.pictures import Pictures, examine
from fasthg.data.convert.progress import progress
from fasthg.data.convert.ready import write_ready
from fasthg.data.convert.report import Report
from fasthg.data.convert.splits import NAME, SPLITS, Item, SplitOptions, divide, load_splits
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.errors import ConfigError, DataError
from fasthg.files import written_together
from fasthg.words import counted

# One part gives no size and thus no sensible crop, unless there is a box.
MIN_PARTS = 2

Array = npt.NDArray[np.float64]


class WriteOptions(SplitOptions, total=False):
    """Parameters of `write_splits`. shard_size: records per file; replace: remove all other files
    of records, whoever wrote them, instead of keeping those of other sources; exif: as in
    `pictures.examine`; ready: whether to write a configuration beside the records."""

    shard_size: int
    replace: bool
    exif: str | None
    ready: bool


@dataclass(frozen=True)
class Labelled:
    """One frame of a project and its animals.

    image: its file, or the path that it would have, whose name and folder go into the record.
    image_id: what the frame is called, unique in the data set; MARS reads a number, its place in
    `splits.json`, in its stead (see `records.schema`).
    keypoints: (animals, parts, 2) float64, image px, NaN where unlabelled. names: the animals'.
    video: what the frame was taken from, as `video_of` gives it. split: where the project says that
    it belongs. boxes: (animals, 4) x1 y1 x2 y2, image px, NaN for an animal without; area:
    (animals,) px², NaN where unknown; visibility: (animals, parts) uint8, 0..2. size: (width,
    height) px that the labels refer to. shown: whether they refer to the image as EXIF turns it,
    None where the format does not say; likely_size: as `size`, a hint at this alone. read: gives
    the JPEG where it is not that of the file. where: file and line of the labels, for messages.
    source: index of the one of `write_splits`' sources that the frame is of. whole: whether the box
    of its one animal is the whole frame, in place of `boxes`.
    """

    image: PurePath
    image_id: str
    keypoints: Array
    names: tuple[str, ...] = ()
    video: str = ""
    split: str | None = None
    boxes: Array | None = None
    area: Array | None = None
    visibility: npt.NDArray[np.uint8] | None = None
    size: tuple[int, int] | None = None
    shown: bool | None = False
    likely_size: tuple[int, int] | None = None
    read: Callable[[], Jpeg] | None = None
    where: str = ""
    source: int = 0
    whole: bool = False


def video_of(image_id: str) -> str:
    """The video that a frame belongs to, by its id: the folder, or where there is none the name
    before its last number (`mouse1_0042` is of `mouse1`)."""
    folder, _, name = image_id.rpartition("/")
    return folder or re.sub(r"[\W_]*\d+$", "", name)


def write_splits(
    frames: Sequence[Labelled],
    out: Path,
    report: Report,
    *,
    sources: Sequence[str],
    shard_size: int = 1000,
    replace: bool = False,
    exif: str | None = None,
    ready: bool = True,
    **options: Unpack[SplitOptions],
) -> Report:
    """Write the frames as `{split}_dataset-0000i-of-0000n` in `out` and complete the report.

    sources: names of what is converted, by `kept.source_name`. Records of an earlier conversion of
    the same sources are replaced, those of others are kept, and written again with the new ones.
    All files appear at the end, `splits.json` last; then those of an earlier conversion that are
    not needed any more go, and with `replace` all others named like them. A split without frames
    writes no file. With `ready`, `config.yaml` follows, as `ready.write_ready` says.
    Raises DataError for unreadable images, frames labelled twice, frames or parts that do not fit
    what is kept, files that no conversion wrote, and where no frame is left to write; and as
    `splits.divide`.
    """
    if not frames:
        raise DataError(f"{out}: no labelled frame to write; check the project's annotations")
    frames = _told_once(frames, report, given=options.get("split_by") is None)
    before = load_splits(out)
    kept: list[Kept] = []
    if before is not None and not replace:
        kept, notes = records_of_others(out, before, sources)
        report.notes += notes
        if kept:
            _check_fit(frames, kept, before.parts, report, out)
    known = set() if before is None else {*before.frames}
    splits, notes = divide(
        [Item(f.image_id, f.video or video_of(f.image_id), f.split) for f in frames],
        out,
        kept=[Item(k.image_id, video_of(k.image_id), k.split) for k in kept],
        **options,
    )
    report.notes += notes
    rank = {image_id: number for number, image_id in enumerate(splits.frames)}
    everything: list[Kept | Labelled] = [*kept, *frames]
    ordered = sorted(everything, key=lambda frame: rank[frame.image_id])
    files: dict[str, list[Kept | Labelled]] = {}
    for split in SPLITS:
        chosen = [frame for frame in ordered if splits.frames[frame.image_id] == split]
        report.frames[split] = sum(isinstance(frame, Labelled) for frame in chosen)
        shards = -(-len(chosen) // shard_size)
        for shard in range(shards):
            part = chosen[shard * shard_size : (shard + 1) * shard_size]
            files[f"{split}_dataset-{shard:05d}-of-{shards:05d}"] = part
    former = {} if before is None else before.files
    if before is not None and former and not before.sources:
        # Of a version that converted one source to a folder, and replaced its files.
        if any(frame.image_id in known for frame in frames):
            report.notes.append(f"replaced: {len(former)} files that an older version wrote")
        else:
            former = {}
    for name in files:
        if name not in former and (out / name).exists() and not replace:
            raise DataError(
                f"{out / name}: is there, but no conversion that {NAME} knows wrote it; convert to "
                f"another folder, or write over it with --replace"
            )
    pictures = examine([frame for frame in frames if frame.read is None], exif)
    report.notes += pictures.notes
    with written_together(out) as folder, progress("writing", len(ordered)) as done:
        for name, part in files.items():
            write_frames(folder / name, _payloads(part, rank, report, pictures, done))
        if load_splits(out) != before:
            raise DataError(f"{out}: another conversion wrote there meanwhile; convert again")
    report.files += [out / name for name in files]
    why = "does not label any more"
    if report.skipped.get("frames without an image"):
        why += ", or whose images are missing"
    report.notes += _gone(former, {} if before is None else before.sources, ordered, sources, why)
    splits.files = {name: [frame.image_id for frame in part] for name, part in files.items()}
    splits.sources = {}
    for frame in ordered:
        name = frame.source if isinstance(frame, Kept) else sources[frame.source]
        splits.sources.setdefault(name, []).append(frame.image_id)
    splits.parts = [*report.parts]
    if report.measured or not kept:
        splits.measured = report.measured
    report.splits = splits.save(out)
    unneeded = {Path(name).name for name in former}
    if replace:
        unneeded.update(_records_in(out))
    for name in sorted(unneeded.difference(files)):
        (out / name).unlink(missing_ok=True)
        if name not in former:
            report.notes.append(f"removed: {out / name}, which no conversion listed")
    strange = {path.name for path in out.glob("[!.]*_dataset-*-of-*")}.difference(files)
    if strange:
        names = ", ".join(sorted(strange))
        report.notes.append(f"also in {out}, not of this conversion, but globs find it: {names}")
    if ready:
        there = [split for split in SPLITS if any(name.startswith(split) for name in files)]
        write_ready(out, report, there, sources=[*splits.sources], kept=bool(kept))
    return report


def _records_in(folder: Path) -> list[str]:
    """Names of the files in a folder that are called as those of a conversion."""
    paths = [path for split in SPLITS for path in folder.glob(f"{split}_dataset-*-of-*")]
    return [path.name for path in paths if path.is_file()]


def _told_once(frames: Sequence[Labelled], report: Report, *, given: bool) -> list[Labelled]:
    """The frames, each once. Raises DataError for two of one image whose labels differ, or their
    splits where the source gives these, and for two images that would have one id."""
    by_id: dict[str, Labelled] = {}
    by_image: dict[PurePath, Labelled] = {}
    for frame in frames:
        same = by_image.setdefault(frame.image, frame)
        if same is not frame:
            differ = "and differ" if not _alike(same, frame) else ""
            if not differ and given and same.split != frame.split:
                differ = f"one for {same.split}, one for {frame.split}"
            if differ:
                raise DataError(
                    f"{same.where} and {frame.where}: both label {frame.image}, {differ}; "
                    f"keep one of them"
                )
            report.skip("frames labelled twice, the same way")
        elif by_id.setdefault(frame.image_id, frame) is not frame:
            other = by_id[frame.image_id]
            raise DataError(
                f"{frame.where}: {frame.image} would have the id {frame.image_id}, as "
                f"{other.image} of {other.where}; rename one of them"
            )
    return list(by_id.values())


def _alike(one: Labelled, two: Labelled) -> bool:
    """Whether two frames have the same labels."""
    seen = np.array_equal(np.asarray(one.visibility), np.asarray(two.visibility))
    if one.names != two.names or not seen:
        return False
    pairs = [(one.keypoints, two.keypoints), (given_boxes(one), given_boxes(two))]
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _check_fit(
    frames: Sequence[Labelled], kept: Sequence[Kept], parts: list[str], report: Report, out: Path
) -> None:
    """Raise DataError where records to keep and frames to write cannot be in one data set."""
    if parts != [*report.parts]:
        raise DataError(
            f"{out}: holds records of {kept[0].source} with the parts {', '.join(parts)}, these "
            f"have {', '.join(report.parts)}; choose the same with --parts"
        )
    sources = {record.image_id: record.source for record in kept}
    for frame in frames:
        if frame.image_id in sources:
            raise DataError(
                f"{out}: {frame.image_id} is there already, of {sources[frame.image_id]}; convert "
                f"to another folder, or remove what is there with --replace"
            )


def _gone(
    files: Mapping[str, list[str]],
    before: Mapping[str, list[str]],
    now: Sequence[Kept | Labelled],
    sources: Sequence[str],
    why: str,
) -> list[str]:
    """Notes on records of `files` that are not written any more. why: what `sources` did."""
    there = {each for ids in files.values() for each in ids}
    there -= {frame.image_id for frame in now}
    notes = []
    for name, ids in before.items():
        count = len(there.intersection(ids))
        if count and name in sources:
            notes.append(f"removed: {counted(count, 'record')} of frames that {name} {why}")
        elif count:
            notes.append(f"removed: {counted(count, 'record')} of {name}")
    return notes


def _payloads(
    frames: Iterable[Kept | Labelled],
    numbers: Mapping[str, int],
    report: Report,
    pictures: Pictures,
    done: Callable[[], None],
) -> Iterator[bytes]:
    """The records, in MARS' format; `done` is called as each is asked for."""
    for frame in frames:
        done()
        if isinstance(frame, Kept):
            yield frame.payload(numbers[frame.image_id])
            continue
        encoded, width, height = frame.read() if frame.read else pictures.read(frame.image)
        if frame.size and frame.size != (width, height):
            raise DataError(
                f"{frame.image}: is {width}x{height} px, but its labels are for "
                f"{frame.size[0]}x{frame.size[1]}; put the image there that was labelled"
            )
        keypoints = (frame.keypoints / (width, height)).astype(np.float32)
        report.animals += len(keypoints)
        report.unlabelled_parts += int(np.isnan(keypoints[..., 0]).sum())
        yield encode(
            Record(
                encoded=encoded,
                width=width,
                height=height,
                image_id=frame.image_id,
                number=numbers[frame.image_id],
                filename=frame.image.name,
                path=frame.image.parent.name,
                bbox=_boxes(frame, keypoints, (width, height)),
                keypoints=keypoints,
                visibility=frame.visibility,
                area=None if frame.area is None else frame.area.astype(np.float32),
                object_id=frame.names,
            )
        )


def given_boxes(frame: Labelled) -> Array:
    """(animals, 4) x1 y1 x2 y2, image px: what the project says, NaN for a side below 2 px."""
    if frame.boxes is None:
        return np.full((len(frame.keypoints), 4), np.nan)
    usable = (frame.boxes[:, 2:] - frame.boxes[:, :2] >= 2).all(axis=1, keepdims=True)
    return np.where(usable, frame.boxes, np.nan)


def _boxes(
    frame: Labelled, keypoints: npt.NDArray[np.float32], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    if frame.whole:
        return np.array([[0, 0, 1, 1]], np.float32)
    boxes = (given_boxes(frame) / (*size, *size)).astype(np.float32)
    for row in np.flatnonzero(~np.isfinite(boxes).all(axis=1)):
        boxes[row] = box_around(keypoints[row])
    return boxes


def keep_labelled(
    frames: Iterable[Labelled], report: Report, boxes: str | None = None
) -> list[Labelled]:
    """Drop animals with too few labelled parts for a box, and frames left without animals.

    boxes: "whole" makes the frame the box of its animal. Then, as where the source gives a box, one
    labelled part is enough. Raises DataError for a frame with several animals, ConfigError for
    other `boxes`.
    """
    if boxes not in (None, "whole"):
        raise ConfigError(
            f"--boxes {boxes}: use whole, or leave it out for boxes around the animals"
        )
    whole = boxes == "whole"
    kept = []
    for frame in frames:
        labels = np.isfinite(frame.keypoints).all(axis=2).sum(axis=1)
        boxed = np.isfinite(given_boxes(frame)).all(axis=1) | whole
        enough = labels >= np.where(boxed, 1, MIN_PARTS)
        few = int(((labels > 0) & ~enough).sum())
        report.skip(f"animals with fewer than {MIN_PARTS} labelled parts", few)
        if not enough.any():
            report.skip("frames without a labelled animal")
            continue
        if whole and enough.sum() > 1:
            raise DataError(
                f"{frame.where}: {enough.sum()} animals in {frame.image}, of which the whole frame "
                "cannot be the box of each; leave out --boxes whole"
            )
        kept.append(
            replace(
                frame,
                keypoints=frame.keypoints[enough],
                names=tuple(n for n, keep in zip(frame.names, enough, strict=False) if keep),
                boxes=None if frame.boxes is None else frame.boxes[enough],
                area=None if frame.area is None else frame.area[enough],
                visibility=None if frame.visibility is None else frame.visibility[enough],
                whole=whole,
            )
        )
    return kept
