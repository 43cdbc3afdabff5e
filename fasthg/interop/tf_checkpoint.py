"""TensorFlow's checkpoint format V2, read without TensorFlow.

`<prefix>.index` is a sorted table of name -> BundleEntryProto, `<prefix>.data-0000x-of-0000N` hold
the values one after the other. All numbers are little-endian; a checksum is a masked CRC-32C, as in
TFRecords. The table::

    block  = entries, uint32 restart positions, uint32 their number
    entry  = varint shared, varint fresh, varint length, `fresh` bytes of the key, `length` of value
             (the key's first `shared` bytes are those of the key before)
    stored = block, uint8 compression (0 = none), uint32 checksum of both
    file   = blocks of entries ..., index block (its values: offset and size of a block), footer
    footer = varints offset and size of a block of metadata and of the index block, padded to 40
             bytes; uint64 magic number

    BundleHeaderProto { int32 num_shards = 1; Endianness endianness = 2; VersionDef version = 3; }
    BundleEntryProto  { DataType dtype = 1; TensorShapeProto shape = 2; int32 shard_id = 3;
                        int64 offset = 4; int64 size = 5; fixed32 crc32c = 6; slices = 7; }
    TensorShapeProto  { Dim dim = 2; }   Dim { int64 size = 1; }

The header's key is empty. Sources: tensorflow/core/protobuf/tensor_bundle.proto,
tensorflow/core/lib/io/format.cc and LevelDB's table_format.md.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fasthg.data.records.protobuf import DELIMITED, FIXED32, VARINT, fields, varint
from fasthg.data.records.tfrecord import masked_crc
from fasthg.errors import DataError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5
_LONGEST = 4096  # of a variable's name
_READS = 1
"""Newest version of the format that this reader knows; a file names the oldest that may read it."""
_DTYPES = {
    **{1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 10: "?"},
    **{17: "u2", 19: "f2", 22: "u4", 23: "u8"},
}
"""Number in tensorflow/core/framework/types.proto -> type of NumPy, without its byte order."""
_AGAIN = "copy the checkpoint again"


class Entry(NamedTuple):
    """Type, shape and position of a variable's values."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool
    """Saved in several pieces: a partitioned variable."""


class Checkpoint(Mapping[str, np.ndarray]):
    """Variables of a checkpoint by name; each access reads the values and verifies their checksum.

    Args:
        prefix: the path less `.index`.

    Attributes:
        entries: name -> type, shape and position of the values.

    Raises:
        DataError: the index is missing, damaged, cut off or of another format.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index = prefix.with_name(f"{prefix.name}.index")
        self.entries: dict[str, Entry] = {}
        self._order = "<"
        shards = 0
        try:
            for key, value in _table(self.index):
                if not key:
                    shards = self._header(value)
                elif not key.startswith(b"\0"):  # else a piece of a partitioned variable
                    self.entries[key.decode(errors="replace")] = _entry(value)
        except FileNotFoundError:
            raise DataError(
                f"{self.index}: no such file; give a checkpoint's prefix, such as model.ckpt-700000"
            ) from None
        except ValueError as error:
            raise DataError(f"{self.index}: {error}; {_AGAIN}") from error
        if not shards:
            raise DataError(f"{self.index}: has no header; {_AGAIN}")
        self._shards = shards

    def _header(self, data: bytes) -> int:
        """Set the byte order from the header; returns the number of shards."""
        shards = needed = 0
        for number, wire, start, end in fields(data, 0, len(data)):
            if wire == VARINT and number == 1:
                shards = varint(data, start, end)[0]
            elif wire == VARINT and number == 2:
                self._order = ">" if varint(data, start, end)[0] else "<"
            elif wire == DELIMITED and number == 3:
                for inner, kind, at, stop in fields(data, start, end):
                    if inner == 2 and kind == VARINT:
                        needed = varint(data, at, stop)[0]
        if needed > _READS:
            raise DataError(
                f"{self.index}: only readers of format {needed} can read it; "
                "save the checkpoint with TensorFlow 1 or 2"
            )
        return shards

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of a variable.

        Raises:
            KeyError: there is none of that name.
            DataError: its values are damaged, missing, partitioned or no numbers.
        """
        entry = self.entries[name]
        where = f"{self.index}: {name}"
        if entry.sliced:
            raise DataError(f"{where}: a partitioned variable; save the checkpoint unpartitioned")
        if entry.dtype not in _DTYPES:
            raise DataError(
                f"{where}: TensorFlow's type {entry.dtype} is not read; save it as float32"
            )
        dtype = np.dtype(self._order + _DTYPES[entry.dtype])
        if entry.size != math.prod(entry.shape) * dtype.itemsize or entry.shard >= self._shards:
            raise DataError(f"{where}: contradicts itself; {_AGAIN}")
        shard = f"{self.prefix.name}.data-{entry.shard:05d}-of-{self._shards:05d}"
        path = self.prefix.with_name(shard)
        try:
            with path.open("rb") as file:
                if entry.offset + entry.size > _length(file):
                    raise DataError(f"{path}: cut off before the end of {name}; {_AGAIN}")
                file.seek(entry.offset)
                data = file.read(entry.size)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, but {name} is in it; {_AGAIN}") from None
        if masked_crc(data) != entry.crc:
            raise DataError(f"{path}: {name} is damaged, its checksum is wrong; {_AGAIN}")
        return np.frombuffer(data, dtype).reshape(entry.shape).astype(dtype.newbyteorder("="))

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def find_prefix(path: Path) -> Path:
    """The prefix of a checkpoint from any of the paths that name it.

    Args:
        path: the prefix itself, one of its files, a folder of checkpoints, or the file `checkpoint`
            in it. Of a folder, the prefix that `checkpoint` names, else that of the last step.

    Raises:
        DataError: there is none.
    """
    if path.is_dir():
        if (path / "checkpoint").is_file():
            return _newest(path / "checkpoint")
        prefixes = [p.with_suffix("") for p in path.glob("[!.]*.index")]
        if not prefixes:
            raise DataError(f"{path}: no checkpoint in it (*.index); give the folder that has one")
        return max(prefixes, key=lambda prefix: (_step(prefix), prefix.name))
    if path.name == "checkpoint" and path.is_file():
        return _newest(path)
    name = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    if not name:
        raise DataError(f"{path}: names no checkpoint; give its prefix, such as model.ckpt-700000")
    prefix = path.with_name(name)
    if path.is_file() and not prefix.with_name(f"{name}.index").is_file():
        raise DataError(
            f"{path}: not a checkpoint of format V2, which has {name}.index; "
            "give its prefix, such as model.ckpt-700000"
        )
    return prefix


def _step(prefix: Path) -> int:
    number = re.search(r"-(\d+)$", prefix.name)
    return int(number[1]) if number else -1


def _newest(path: Path) -> Path:
    """The prefix that the text file `checkpoint` names; in its folder if the path has changed."""
    match = re.search(r'^model_checkpoint_path:\s*"(.*)"', path.read_text("utf-8", "replace"), re.M)
    if match is None:
        raise DataError(f"{path}: names no model_checkpoint_path; give a checkpoint's prefix")
    if not re.split(r"[/\\]", match[1])[-1]:
        raise DataError(f"{path}: its model_checkpoint_path is no file; give a checkpoint's prefix")
    named = path.parent / match[1]
    there = named.with_name(f"{named.name}.index").is_file()
    return named if there else path.parent / re.split(r"[/\\]", match[1])[-1]


def _length(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _table(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted table. Raises ValueError where it is not sound."""
    with path.open("rb") as file:
        size = _length(file)
        file.seek(max(size - _FOOTER, 0))
        footer = file.read()
        if len(footer) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
            raise ValueError("cut off, or not the index of a checkpoint")
        _, _, at = _handle(footer, 0)
        offset, length, _ = _handle(footer, at)
        for _, handle in _block(file, offset, length):
            start, length, _ = _handle(handle, 0)
            yield from _block(file, start, length)


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and the position after them."""
    offset, at = varint(data, at, len(data))
    size, at = varint(data, at, len(data))
    return offset, size, at


def _block(file: BinaryIO, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    where = f"block at byte {offset}"
    if offset + size + _TRAILER > _length(file) - _FOOTER or size < 4:
        raise ValueError(f"{where} runs past the end")
    file.seek(offset)
    data = file.read(size + _TRAILER)
    compression, crc = struct.unpack_from("<BI", data, size)
    if crc != masked_crc(data[: size + 1]):
        raise ValueError(f"{where} is damaged, its checksum is wrong")
    if compression:
        raise DataError(
            f"{file.name}: {where} is compressed (type {compression}), which is not read; "
            "save it as tf.train.Saver does, uncompressed"
        )
    end = size - 4 - 4 * struct.unpack_from("<I", data, size - 4)[0]
    key, at = b"", 0
    while at < end:
        shared, at = varint(data, at, end)
        fresh, at = varint(data, at, end)
        length, at = varint(data, at, end)
        if shared > len(key) or shared + fresh > _LONGEST or at + fresh + length > end:
            raise ValueError(f"{where} has a broken entry")
        key = key[:shared] + data[at : at + fresh]
        at += fresh + length
        yield key, data[at - length : at]


def _entry(data: bytes) -> Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    sliced = False
    for number, wire, start, end in fields(data, 0, len(data)):
        if number in numbers and wire == VARINT:
            numbers[number] = varint(data, start, end)[0]
        elif number == 6 and wire == FIXED32:
            numbers[6] = int.from_bytes(data[start:end], "little")
        elif number == 2 and wire == DELIMITED:
            shape = tuple(_dims(data, start, end))
        elif number == 7:
            sliced = True
    dtype, shard, offset, size, crc = (numbers[number] for number in (1, 3, 4, 5, 6))
    return Entry(dtype, shape, shard, offset, size, crc, sliced)


def _dims(data: bytes, start: int, end: int) -> Iterator[int]:
    for number, wire, at, stop in fields(data, start, end):
        if number == 2 and wire == DELIMITED:
            size = 0
            for inner, kind, begin, last in fields(data, at, stop):
                if inner == 1 and kind == VARINT:
                    size = varint(data, begin, last)[0]
            yield size
