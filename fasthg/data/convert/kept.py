"""Records that a folder holds already: those of other sources stay when one is converted to it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from fasthg.data.convert.splits import NAME, Splits
from fasthg.data.records.schema import decode, encode
from fasthg.data.records.tfrecord import read_frames
from fasthg.errors import DataError
from fasthg.words import counted


@dataclass(frozen=True)
class Kept:
    """A record in a file of the folder. split: that of its file; offset, size: of its payload."""

    image_id: str
    source: str
    split: str
    path: Path
    offset: int
    size: int

    def payload(self, number: int) -> bytes:
        """The record's bytes, without their frame, with `number` for the frame's: it is another
        than before where `splits.json` was edited."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            payload = file.read(self.size)
        record = decode(payload, f"{self.path}: {self.image_id}")
        return payload if record.number == number else encode(replace(record, number=number))


def source_name(path: Path, out: Path, choice: str = "") -> str:
    """The name in `splits.json` of what is converted: its path from the folder `out`, which stays
    the same when both move. choice: what else decides which labels of it are written."""
    try:
        name = Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
    except ValueError:  # on another drive
        name = path.resolve().as_posix()
    return f"{name} ({choice})" if choice else name


def records_of_others(
    out: Path, splits: Splits, sources: Collection[str]
) -> tuple[list[Kept], list[str]]:
    """The records in `out` that are of none of the `sources`, by what `splits` says of the files
    there; and notes for the report.

    Raises DataError for a file that cannot be read, or holds other records than listed.
    """
    source_of = {each: name for name, ids in splits.sources.items() for each in ids}
    kept: list[Kept] = []
    notes = []
    for name, ids in splits.files.items():
        others = [each for each in ids if source_of.get(each) not in sources]
        path = out / Path(name).name
        if others and not path.exists():
            notes.append(
                f"{path} is gone, and with it {counted(len(others), 'record')} of other sources"
            )
        elif others:
            places: list[tuple[int, int]] = []
            found: list[str] = []
            for frame in read_frames(path):
                places.append((frame.offset, len(frame.payload)))
                found.append(decode(frame.payload, f"{path}: record {len(found)}").image_id)
            if found != ids:
                raise DataError(
                    f"{path}: its {len(found)} records are not the {len(ids)} that {out / NAME} "
                    f"lists; convert to another folder"
                )
            split = name.partition("_")[0]
            kept += [
                Kept(image_id, source_of.get(image_id, ""), split, path, *place)
                for image_id, place in zip(ids, places, strict=True)
                if image_id in {*others}
            ]
    for source, count in Counter(record.source for record in kept).items():
        notes.append(f"kept: {counted(count, 'record')} of {source}")
    return kept, notes
