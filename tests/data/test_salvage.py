"""What is read of a damaged file: every record but the damaged one, in time."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from fasthg.data.index.builder import Fault
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.tfrecord import (
    MAX_BYTES,
    Damage,
    Frame,
    frame,
    masked_crc,
    read_frames,
    salvage_frames,
)
from fasthg.errors import DataError

WHOLE = [b"first", b"second" * 100, b"", b"fourth" * 9, b"last"]
FRAMES = [frame(payload) for payload in WHOLE]


def salvaged(path: Path, *pieces: bytes) -> tuple[list[bytes], list[Damage], float]:
    """Payloads and damages of a file of these pieces, and the seconds that it took."""
    path.write_bytes(b"".join(pieces))
    began = time.perf_counter()
    found = list(salvage_frames(path))
    seconds = time.perf_counter() - began
    payloads = [item.payload for item in found if isinstance(item, Frame)]
    return payloads, [item for item in found if isinstance(item, Damage)], seconds


def header(length: int) -> bytes:
    """A sound header."""
    data = struct.pack("<Q", length)
    return data + struct.pack("<I", masked_crc(data))


@pytest.mark.parametrize(
    ("filling", "times"),
    [
        (bytes(1), 50 << 20),
        (bytes(1), 11),
        (bytes(1), 4096),
        (bytes(12) + b"x", 1 << 17),
        (struct.pack("<Q", 3), 1 << 18),
        (b"\xff", 1 << 21),
    ],
    ids=["hole", "few", "piece", "runs", "integers", "ones"],
)
def test_a_filled_stretch_is_passed_in_time(tmp_path: Path, filling: bytes, times: int) -> None:
    filled = filling * times
    payloads, damages, seconds = salvaged(
        tmp_path / "set", *FRAMES[:2], filled, *FRAMES[2:], filled
    )
    assert payloads == WHOLE and seconds < 8
    first, last = damages
    assert first.offset == len(FRAMES[0] + FRAMES[1])
    assert first.what == f"the CRC of the record's length is wrong, {len(filled)} bytes are lost"
    assert last.what.endswith(f"{len(filled)} bytes are lost")


def test_damage_costs_no_other_record(tmp_path: Path) -> None:
    path = tmp_path / "set"
    others = WHOLE[:1] + WHOLE[2:]
    second = FRAMES[1]
    for broken, what in (
        (second[:300] + second[310:], "the CRC of the record's data is wrong"),
        (second[:300] + b"more" + second[300:], "the CRC of the record's data is wrong"),
        (second[:5] + second[6:], "the CRC of the record's length is wrong"),
        (second[: len(second) // 2], "the file ends inside the record"),
        (header(20) + second[12:], "the CRC of the record's data is wrong"),
        (header(10**6) + second[12:], "the file ends inside the record"),
        (header(1 << 63) + second[12:], "the file ends inside the record"),
        (header(0), "the CRC of the record's data is wrong"),
        (b"garbage that is no record", "the CRC of the record's length is wrong"),
    ):
        payloads, damages, _ = salvaged(path, FRAMES[0], broken, *FRAMES[2:])
        assert payloads == others, broken
        assert damages == [Damage(len(FRAMES[0]), f"{what}, {len(broken)} bytes are lost")], broken


@pytest.mark.parametrize("cut", [1, 4, 8, 16, 19])
def test_a_cut_file_keeps_what_is_whole(tmp_path: Path, cut: int) -> None:
    whole = b"".join(FRAMES)
    payloads, damages, _ = salvaged(tmp_path / "set", whole[:-cut])
    assert payloads == WHOLE[:-1]
    assert [damage.offset for damage in damages] == [len(whole) - len(FRAMES[-1])]
    assert damages[0].what.endswith(f"{len(FRAMES[-1]) - cut} bytes are lost")


def test_broken_records_within_each_other_are_read_a_few_times_at_most(tmp_path: Path) -> None:
    # Each header is sound, and each record reaches nearly to the end of the file.
    count = 5000
    headers = [header(12 * (count - i) - 16) for i in range(count - 1)]
    payloads, damages, _ = salvaged(tmp_path / "set", *headers, bytes(12), b"trail")
    assert payloads == [] and len(damages) < 10
    assert damages[-1].offset == 12 * count


@pytest.mark.parametrize("verify_crc", [True, False])
def test_a_record_above_what_protobuf_allows(tmp_path: Path, verify_crc: bool) -> None:
    path = tmp_path / "set"
    with path.open("wb") as file:
        file.write(FRAMES[0] + header(MAX_BYTES + 1))
        file.seek(MAX_BYTES + 1 + 4, os.SEEK_CUR)  # a hole, which takes no space on the disk
        file.write(FRAMES[4])
    frames = read_frames(path, verify_crc=verify_crc)
    assert next(frames).payload == WHOLE[0]
    with pytest.raises(DataError, match="record 1 at byte 21: the record is larger than the 2 GiB"):
        next(frames)
    found = list(salvage_frames(path))
    assert [item.payload for item in found if isinstance(item, Frame)] == [WHOLE[0], WHOLE[4]]
    assert isinstance(found[1], Damage) and "2 GiB" in found[1].what


def test_a_file_of_broken_records_only_is_an_index_of_faults(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.write_bytes(b"no record here" + b"".join(FRAMES))
    faults: list[Fault] = []
    index = RecordIndex.build(path, 2, faults=faults)
    assert len(index) == 0 and len(faults) == index.num_records == 1 + len(FRAMES)
