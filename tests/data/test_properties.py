"""What holds for any record and any file, with examples chosen by hypothesis."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fasthg.data.records.schema import MAX_SIDE, Record, area_px, decode, encode
from fasthg.data.records.tfrecord import Damage, Frame, read_frames, salvage_frames, write_frames

FLOATS = st.floats(width=32)
INTS = st.integers(-(1 << 63), (1 << 63) - 1)
TEXT = st.text(max_size=12)
SIDES = st.integers(1, MAX_SIDE)
PAYLOADS = st.lists(st.binary(max_size=60), max_size=6)

quick = settings(deadline=None, max_examples=200, derandomize=True, database=None)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any record: each optional field with a value or without."""
    objects = draw(st.integers(0, 4))
    parts = draw(st.integers(1, 5))

    def floats(*shape: int) -> Any:
        return draw(arrays.arrays(np.float32, shape, elements=FLOATS))

    def some(values: Any) -> Any:
        return values if draw(st.booleans()) else None

    def each(one: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(one, min_size=objects, max_size=objects))) or ()

    ids = st.one_of(st.integers(0, 1 << 70).map(str), TEXT)
    flags = draw(arrays.arrays(np.uint8, (objects, parts), elements=st.integers(0, 2)))
    return Record(
        encoded=draw(st.binary(min_size=1, max_size=200)),
        width=draw(SIDES),
        height=draw(SIDES),
        image_id=draw(TEXT),
        filename=draw(TEXT),
        path=draw(TEXT),
        bbox=floats(objects, 4),
        keypoints=floats(objects, parts, 2),
        visibility=some(flags),
        area=some(floats(objects)),
        object_id=each(ids) if draw(st.booleans()) else (),
        bbox_score=some(floats(objects)),
        bbox_label=each(INTS) if draw(st.booleans()) else (),
        bbox_text=each(TEXT) if draw(st.booleans()) else (),
        bbox_conf=some(floats(objects)),
        part_score=some(floats(objects, parts)),
        colorspace=draw(TEXT),
        channels=draw(INTS),
        format=draw(TEXT),
        extra=draw(TEXT),
        class_label=draw(INTS),
        class_text=draw(TEXT),
        class_conf=draw(st.one_of(st.none(), FLOATS)),
    )


def as_read(record: Record) -> Record:
    """What is read of a record that was written: defaults filled in, a part unlabelled or not."""
    objects, parts = record.keypoints.shape[:2]
    flags = np.full((objects, parts), 2) if record.visibility is None else record.visibility
    unlabelled = ~np.isfinite(record.keypoints).all(axis=2) | (flags == 0)
    area = np.full(objects, np.nan, np.float32) if record.area is None else record.area
    image_px = np.full(objects, record.width * record.height, np.float32)
    read = dataclasses.replace(
        record,
        keypoints=np.where(unlabelled[..., None], np.float32(np.nan), record.keypoints),
        visibility=np.where(unlabelled, 0, flags),
        area=area_px(area, record.bbox, image_px),
        object_id=record.object_id or tuple(str(number) for number in range(objects)),
        bbox_label=record.bbox_label or (0,) * objects,
        bbox_score=np.ones(objects) if record.bbox_score is None else record.bbox_score,
    )
    if objects:
        return read
    # Without animals there is nothing to say of them, not even how many parts they would have.
    nothing = dict.fromkeys(("area", "bbox_score", "bbox_conf", "part_score"))
    keypoints, visibility = np.zeros((0, 0, 2)), np.zeros((0, 0))
    return dataclasses.replace(read, **nothing, keypoints=keypoints, visibility=visibility)


@pytest.mark.slow
@quick
@given(records())
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    read = decode(encode(record), "here")
    for got, wanted in ((read, as_read(record)), (decode(encode(read), "again"), read)):
        for name in record.__dataclass_fields__:
            one, other = getattr(got, name), getattr(wanted, name)
            np.testing.assert_array_equal(one, other, err_msg=name)
            assert type(one) is type(other), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"part_score": np.zeros(3, np.float32)}, r"part_score \(3,\) does not fit 1 objects"),
        ({"area": np.zeros(2, np.float32)}, r"area \(2,\) does not fit 1 objects"),
        ({"bbox": np.zeros((2, 4), np.float32)}, r"bbox \(2, 4\) does not fit 1 objects"),
        ({"visibility": np.zeros((1, 2), np.uint8)}, r"visibility \(1, 2\) does not fit 1 objects"),
        ({"keypoints": np.zeros((1, 0, 2), np.float32)}, "1 objects of 0 parts"),
        ({"keypoints": np.zeros((32768, 1, 2), np.float32)}, "32768 objects of 1 parts"),
        ({"keypoints": np.zeros((8, 32769, 2), np.float32)}, "8 objects of 32769 parts"),
        ({"width": 65536}, "an image of 65536x8 px"),
        ({"class_label": 1 << 63}, "does not fit 64 bits"),
        ({"channels": -(1 << 63) - 1}, "does not fit 64 bits"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(changes: dict[str, Any], message: str) -> None:
    one = np.zeros((1, 3, 2), np.float32)
    record = Record(encoded=b"x", width=8, height=8, bbox=one[:, :2].reshape(1, 4), keypoints=one)
    encode(record)
    with pytest.raises(ValueError, match=message):
        encode(dataclasses.replace(record, **changes))


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "set"


@pytest.mark.slow
@quick
@given(PAYLOADS)
def test_any_payloads_come_back_from_a_file(path: Path, payloads: list[bytes]) -> None:
    write_frames(path, payloads)
    frames = list(read_frames(path))
    assert [frame.payload for frame in frames] == payloads
    assert list(read_frames(path, verify_crc=False)) == frames == list(salvage_frames(path))


def test_one_damaged_byte_costs_one_record(path: Path) -> None:
    payloads = [b"first", b"", b"third" * 40, bytes(50), b"last"]
    write_frames(path, payloads)
    whole, content = list(salvage_frames(path)), path.read_bytes()
    for at in range(len(content)):
        for flip in (1, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[at] ^= flip
            path.write_bytes(damaged)
            hit = next(
                i for i, frame in enumerate(whole) if at < frame.offset + len(frame.payload) + 4
            )
            found = list(salvage_frames(path))
            assert found[:hit] + found[hit + 1 :] == whole[:hit] + whole[hit + 1 :], (at, flip)
            lost = len(payloads[hit]) + 16
            assert isinstance(found[hit], Damage) and found[hit].what.endswith(
                f"is wrong, {lost} bytes are lost"
            )


@pytest.mark.slow
@quick
@given(PAYLOADS.filter(len), st.data())
def test_bytes_lost_or_added_cost_no_other_record(
    path: Path, payloads: list[bytes], data: st.DataObject
) -> None:
    write_frames(path, payloads)
    content = path.read_bytes()
    frames = list(read_frames(path))
    hit = data.draw(st.integers(0, len(frames) - 1))
    start, end = frames[hit].offset - 12, frames[hit].offset + len(payloads[hit]) + 4
    at = data.draw(st.integers(start, end - 1))
    lost = data.draw(st.integers(0, end - at))
    # Of random bytes, one in four billion places looks like a header.
    added = data.draw(st.binary(max_size=40))
    path.write_bytes(content[:at] + added + content[at + lost :])
    found = [frame.payload for frame in salvage_frames(path) if isinstance(frame, Frame)]
    others = payloads[:hit] + payloads[hit + 1 :]
    assert found in (others, payloads)


@pytest.mark.slow
@quick
@example(b"")
@example(bytes(11))
@example(bytes(4109))
@given(st.binary(max_size=100))
def test_any_bytes_in_front_cost_no_record(path: Path, garbage: bytes) -> None:
    write_frames(path, [b"one", b"two"])
    path.write_bytes(garbage + path.read_bytes())
    found = list(salvage_frames(path))
    assert [frame.payload for frame in found if isinstance(frame, Frame)] == [b"one", b"two"]
    assert len(found) == 2 + bool(garbage)
