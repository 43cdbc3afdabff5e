"""Shared by converters to other tools: the records of a configuration, and image file names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fasthg.config import Config
from fasthg.data.convert.images import relative_parts
from fasthg.data.convert.splits import SPLITS
from fasthg.data.index.record_index import expand
from fasthg.data.records.schema import Record, decode
from fasthg.data.records.tfrecord import read_frames
from fasthg.errors import ConfigError, DataError

_PNG = b"\x89PNG"
# What Windows does not allow in a file's name.
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]')
DECIMALS = 4


def records(config: Config, splits: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """(split, record) of the files that DATA names for `splits`, or of all splits for none.

    Raises ConfigError for a split without files, DataError for a file that cannot be used or holds
    another number of parts than PARTS.NUM_PARTS.
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ConfigError(f"--split {unknown[0]}: use {', '.join(SPLITS)}")
    patterns = {split: getattr(config.DATA, split.upper()) for split in splits or SPLITS}
    for split, pattern in patterns.items():
        if splits and not pattern:
            raise ConfigError(f"DATA.{split.upper()}: not set; set it or leave out --split {split}")
    if not any(patterns.values()):
        raise ConfigError("DATA names no split; set DATA.TRAIN to a glob")
    parts = config.PARTS.NUM_PARTS
    for split, pattern in patterns.items():
        for path in expand(pattern) if pattern else ():
            for number, frame in enumerate(read_frames(path)):
                where = f"{path}: record {number}"
                record = decode(frame.payload, where)
                count = record.keypoints.shape[1]
                if len(record.keypoints) and count != parts:
                    raise DataError(
                        f"{where}: {count} parts an object, but PARTS.NUM_PARTS is {parts}; set "
                        f"PARTS to the parts of this data set"
                    )
                if not (record.width and record.height):
                    raise DataError(f"{where}: no image size; convert the image again")
                yield split, record


class FileNames:
    """File names for images, made of their ids: none twice on any system."""

    def __init__(self, *, flat: bool = False) -> None:
        """flat: all folders of an id become one."""
        self._flat = flat
        self._taken: set[str] = set()

    def new(self, record: Record, split: str) -> tuple[str, ...]:
        """Folders and file name for a record's image; the split is its folder where the id names
        none."""
        parts = [_FORBIDDEN.sub("_", part).rstrip(". ") for part in relative_parts(record.image_id)]
        parts = [part for part in parts if part] or [f"{len(self._taken):06d}"]
        *folders, stem = parts if len(parts) > 1 else [split, *parts]
        if self._flat:
            folders = ["_".join(folders)]
        suffix = ".png" if record.encoded.startswith(_PNG) else ".jpg"
        name, copy = stem + suffix, 1
        while "/".join((*folders, name)).lower() in self._taken:
            copy += 1
            name = f"{stem}_{copy}{suffix}"
        self._taken.add("/".join((*folders, name)).lower())
        return (*folders, name)
