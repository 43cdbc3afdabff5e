"""TFRecord framing: the checksum, damage of every kind, atomic writing."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fasthg.data.records.tfrecord import (
    Damage,
    Frame,
    frame,
    masked_crc,
    read_frames,
    salvage_frames,
    write_frames,
)
from fasthg.errors import DataError

PAYLOADS = [b"first", b"", b"third" * 1000]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train_dataset-00000-of-00001"
    assert write_frames(path, PAYLOADS) == 3
    return path


def test_masked_crc_of_the_standard_check_value() -> None:
    # CRC32C of "123456789" is 0xe3069283 (RFC 3720, B.4 gives the polynomial).
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32


def test_frame_layout() -> None:
    data = frame(b"abc")
    assert len(data) == 8 + 4 + 3 + 4
    assert struct.unpack("<Q", data[:8]) == (3,)
    assert data[12:15] == b"abc"


def test_round_trip_with_offsets(file: Path) -> None:
    frames = list(read_frames(file))
    assert [payload for _, payload in frames] == PAYLOADS
    content = file.read_bytes()
    for offset, payload in frames:
        assert content[offset : offset + len(payload)] == payload
    assert list(read_frames(file, verify_crc=False)) == frames


@pytest.mark.parametrize("verify_crc", [True, False])
@pytest.mark.parametrize("cut", [1, 5000, 5020, 5025])
def test_truncation_names_file_record_and_byte(file: Path, cut: int, verify_crc: bool) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    number = 2 if cut <= 5000 + 4 + 12 else 1
    start = {1: 21, 2: 21 + 16}[number]
    with pytest.raises(DataError, match=rf"00001: record {number} at byte {start}: the file ends"):
        list(read_frames(file, verify_crc=verify_crc))


def test_wrong_data_crc(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="record 2 at byte 37: the CRC of the record's data"):
        list(read_frames(file))
    assert len(list(read_frames(file, verify_crc=False))) == 3


def test_wrong_length_crc(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[21 + 9] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="record 1 at byte 21: the CRC of the record's length"):
        list(read_frames(file))


@pytest.mark.parametrize("verify_crc", [True, False])
def test_foreign_and_missing_files(tmp_path: Path, verify_crc: bool) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("a text file that is no TFRecord, and long enough for a header")
    with pytest.raises(DataError, match=r"notes.txt: not a TFRecord file"):
        list(read_frames(text, verify_crc=verify_crc))
    with pytest.raises(DataError, match="absent: No such file"):
        list(read_frames(tmp_path / "absent", verify_crc=verify_crc))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda data: gzip.compress(data), "compressed with gzip; decompress it with gunzip"),
        (lambda data: zlib.compress(data), "compressed with zlib; write it without"),
        (lambda data: zlib.compress(data, 9), "compressed with zlib; write it without"),
        (lambda data: bytes(257) + b"ustar" + bytes(300), "a tar archive; unpack it"),
        (lambda data: b"PAR1" + bytes(300) + b"PAR1", "a Parquet table; convert it"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS; run"),
    ],
)
def test_files_of_known_kinds_are_named(
    file: Path, content: Callable[[bytes], bytes], message: str
) -> None:
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(DataError, match=f"no TFRecord file, it is {message}"):
        list(read_frames(file))
    (damage,) = salvage_frames(file)
    assert isinstance(damage, Damage) and message in damage.what


def test_a_damaged_length_is_not_taken_for_another_kind(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(b"\x78\x01" + data[2:])  # as zlib begins
    with pytest.raises(DataError, match="not a TFRecord file"):
        list(read_frames(file))
    file.write_bytes(b"\x1f\x8b\x08" + data[3:])
    assert len([one for one in salvage_frames(file) if isinstance(one, Frame)]) == 2


def test_empty_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert list(read_frames(tmp_path / "empty")) == []


def test_failed_write_keeps_the_old_file_and_leaves_nothing(file: Path) -> None:
    before = file.read_bytes()

    def broken() -> Iterator[bytes]:
        yield b"one"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_frames(file, broken())
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_write_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "set"
    write_frames(path, [b"x"])
    assert [payload for _, payload in read_frames(path)] == [b"x"]
