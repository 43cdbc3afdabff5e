"""A writer of TensorFlow's checkpoint format V2, for the cases that no file at hand has."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fasthg.data.records.tfrecord import masked_crc

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def block(entries: Sequence[tuple[bytes, bytes]], restart_every: int) -> bytes:
    out, restarts, last = bytearray(), [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % restart_every == 0:
            restarts.append(len(out))
        else:
            pairs = zip(last, key, strict=False)
            shared = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(last), len(key)))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def write_bundle(
    prefix: Path,
    variables: Mapping[str, np.ndarray],
    *,
    shards: int = 1,
    per_block: int = 7,
    compression: int = 0,
    sliced: Sequence[str] = (),
    big_endian: bool = False,
    needs: int = 0,
) -> None:
    """Write `<prefix>.index` and its shards; variables go to the shards in turn.

    per_block: entries in a block of the index; sliced: variables that say they are partitioned;
    needs: the oldest reader's version.
    """
    data = [bytearray() for _ in range(shards)]
    entries = [(b"", number(1, shards) + number(2, big_endian) + message(3, number(2, needs)))]
    for i, name in enumerate(sorted(variables)):
        value = variables[name]
        raw = value.astype(value.dtype.newbyteorder(">" if big_endian else "<")).tobytes()
        shape = b"".join(message(2, number(1, size)) for size in value.shape)
        entry = number(1, DTYPES[str(value.dtype)]) + message(2, shape) + number(3, i % shards)
        entry += number(4, len(data[i % shards])) + number(5, len(raw))
        entry += varint(6 << 3 | 5) + struct.pack("<I", masked_crc(raw))
        entries.append((name.encode(), entry + (message(7, b"") if name in sliced else b"")))
        data[i % shards] += raw
    out = bytearray()

    def store(content: bytes) -> bytes:
        stored = content + bytes([compression])
        handle = varint(len(out)) + varint(len(content))
        out.extend(stored + struct.pack("<I", masked_crc(stored)))
        return handle

    groups = [entries[at : at + per_block] for at in range(0, len(entries), per_block)]
    index = [(group[-1][0], store(block(group, 3))) for group in groups]
    handles = store(block([], 1)) + store(block(index, 1))
    out += handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.with_name(f"{prefix.name}.index").write_bytes(out)
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
