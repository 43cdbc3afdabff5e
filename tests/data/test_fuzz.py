"""Thousands of damaged inputs, the damage that was once let through, and the bounds of a record."""

from __future__ import annotations

import itertools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fuzz_records
import numpy as np
import oracle
import pytest
from mutate import Mutator
from samples import delimited, images, records, varint

from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records import protobuf, schema
from fasthg.data.records.schema import Record, decode, encode
from fasthg.data.records.tfrecord import frame
from fasthg.errors import DataError

SEED = 1


@pytest.mark.slow
def test_no_promise_is_broken(tmp_path: Path) -> None:
    report = fuzz_records.run(SEED, range(3000), tmp_path)
    assert report.findings == []
    # The changes get past the framing and into every part of the parser.
    reached = " ".join(report.outcomes)
    for outcome in (
        *("record: sound", "image: sound", "file: sound", "broken integer", "unknown wire type"),
        *("runs past its message", "impossible field number", "second value", "floats of N bytes"),
        *("integers belong", "floats belong", "N is missing", "no boxes", "values where parts/x"),
        *("values for N objects", "N is N, N is N", "not a TFRecord file", "length is wrong"),
        *("data is wrong", "ends inside the record;", "record's header", "no end marker"),
        *("truncated PNG", "neither JPEG nor PNG", "no readable header", "its record says"),
    ):
        assert outcome.replace("parts/x", "N") in reached.replace("parts/x", "N"), outcome


def test_protobuf_reads_the_same() -> None:
    pytest.importorskip("google.protobuf")
    compare = oracle.comparison()
    for payload in records():
        compare(payload)
    for number in range(1500):
        compare(Mutator(SEED, number).record())


def test_broken_promises_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(module: object, name: str, broken: Callable[..., object]) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            return str(fuzz_records.run(SEED, range(10), tmp_path).findings)

    def hangs(_: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz_records, "HANG_S", 0.05)
    assert "IndexError" in found(protobuf, "features", lambda data: data[len(data)])
    assert "Hang" in found(schema, "scan", hangs)
    assert "AssertionError" in found(fuzz_records, "jpeg_size", lambda data: (0, 1))
    assert "AssertionError" in found(fuzz_records, "salvage_frames", lambda path: [])
    assert "AssertionError" in found(fuzz_records, "encode", lambda record: records()[0])
    peaks = itertools.count(0, 100 << 20)
    assert "MiB for" in found(fuzz_records, "_peak_bytes", lambda: next(peaks))


def features_of(*entries: bytes) -> bytes:
    return delimited(1, *(delimited(1, entry) for entry in entries))


def feature(key: bytes, *value: bytes) -> bytes:
    return delimited(1, key) + delimited(2, *value)


def packed(*values: float) -> bytes:
    return delimited(1, struct.pack(f"<{len(values)}f", *values))


INTS = delimited(3, delimited(1, b"\x07"))
TEXTS = delimited(1, delimited(1, b"text"))


def test_a_tag_in_more_bytes_than_it_needs_is_the_same_tag() -> None:
    entry = feature(b"k", INTS)
    payload = b"\x8a\x00" + varint(len(entry) + 4) + b"\x8a\x80\x00" + varint(len(entry)) + entry
    assert protobuf.ints(payload, protobuf.features(payload)[b"k"]) == [7]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (b"\x00\x01", "impossible field number 0"),
        (varint(1 << 32) + b"\x01", "impossible field number"),
        (varint(9 << 3, 5) + b"\x01", "broken integer"),
        (b"\x4a" + varint(0, 5), "broken integer"),
        (b"\x4b\x4c", "unknown wire type 3"),
        (b"\x4a\x05", "runs past its message"),
        (delimited(1, feature(b"k", INTS) + delimited(2, INTS)), "second value of a feature"),
    ],
)
def test_what_protobuf_refuses_is_refused(field: bytes, message: str) -> None:
    for payload in (field, delimited(1, field)):
        with pytest.raises(ValueError, match=message):
            protobuf.features(payload if message[:6] != "second" else delimited(1, field))


def test_the_last_kind_of_list_replaces_those_before() -> None:
    broken = delimited(2, delimited(1, b"\x00" * 3))
    payload = features_of(
        feature(b"ints", TEXTS, INTS),
        feature(b"texts", delimited(2, packed(1.0)), TEXTS),
        feature(b"odd", b"\x48\x01", b"\x11" + bytes(8), TEXTS),
        feature(b"floats", delimited(2, delimited(1, b"\x00") + delimited(1, b"\x00" * 3))),
        feature(b"broken", TEXTS, broken),
    )
    spans = protobuf.features(payload)
    assert protobuf.ints(payload, spans[b"ints"]) == [7]
    assert protobuf.strings(payload, spans[b"ints"]) == [b"7"]
    assert protobuf.strings(payload, spans[b"texts"]) == [b"text"]
    assert protobuf.strings(payload, spans[b"odd"]) == [b"text"]
    with pytest.raises(ValueError, match="holds bytes where integers belong"):
        protobuf.ints(payload, spans[b"texts"])
    # Pieces are broken even where their lengths add up.
    for key in (b"floats", b"broken"):
        with pytest.raises(ValueError, match=r"floats of [13] bytes"):
            protobuf.float_bytes(payload, spans[key])


def one(**changes: object) -> Record:
    points = np.array([[[0.1, 0.2], [0.3, 0.4]]], np.float32)
    values = {"bbox": np.array([[0, 0, 1, 1]], np.float32), "keypoints": points, **changes}
    return Record(images()[0], 640, 480, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [str(1 << 64), str(1 << 63), "9" * 5000, "007", "-1", "٣"])
def test_a_name_that_only_looks_like_a_number_stays(name: str) -> None:
    assert decode(encode(one(object_id=(name,))), "here").object_id == (name,)


def test_an_area_below_a_pixel_stays_below_two() -> None:
    tiny = one(area=np.array([1e-9], np.float32))
    for _ in range(3):
        tiny = decode(encode(tiny), "here")
        assert tiny.area is not None and 1 < tiny.area[0] < 2


def test_boxes_without_bounds_warn_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    bbox = np.array([[-3e38, -3e38, 3e38, np.inf]], np.float32)
    decode(encode(one(bbox=bbox, area=np.array([np.inf], np.float32))), "here")
    assert not recwarn.list


def changed(**values: protobuf.Value) -> bytes:
    """A sound record of one object and two parts with other values under some of its keys."""
    return encode(one()) + protobuf.encode_example(
        {f"image/{key}": value for key, value in values.items()}
    )


def with_list(kind: int, piece: bytes, times: int, key: bytes = b"parts/v") -> bytes:
    """A sound record with a list of that kind, made of one piece many times, under one key."""
    values = feature(b"image/object/" + key, delimited(kind, piece * times))
    return encode(one()) + features_of(values)


def counted(count: int) -> bytes:
    return changed(**{"object/bbox/count": [count], "object/count": [count]})


VALUES, FEATURES = protobuf.MAX_VALUES + 1, protobuf.MAX_FEATURES + 1
TOO_LONG, TOO_MANY = "more than 262144 values", "more than 4096 features"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (lambda: changed(width=[schema.MAX_SIDE + 1]), "an image of 65536x480 px, more than 65535"),
        (lambda: changed(height=[1 << 62]), "more than 65535 a side"),
        (lambda: counted(schema.MAX_OBJECTS + 1), "32768 objects, more than 32767"),
        (lambda: with_list(3, delimited(1, b"\x02" * VALUES), 1), TOO_LONG),
        (lambda: with_list(3, delimited(1, b"\xac\x02" * VALUES), 1), TOO_LONG),
        (lambda: with_list(3, delimited(1, b"\xac\x02" * 10 * VALUES), 1), TOO_LONG),
        (lambda: with_list(3, b"\x08\x02", VALUES), TOO_LONG),
        (lambda: with_list(2, delimited(1, bytes(4 * VALUES)), 1, b"parts/x"), TOO_LONG),
        (lambda: with_list(1, b"\x0a\x00", VALUES, b"id"), TOO_LONG),
        (lambda: features_of(*[feature(b"%d" % i) for i in range(FEATURES)]), TOO_MANY),
        (lambda: b"".join(features_of(feature(b"%d" % i)) for i in range(FEATURES)), TOO_MANY),
        (lambda: delimited(1, b"\x10\x01" * FEATURES), TOO_MANY),
    ],
)
def test_bounds_of_a_record(payload: Callable[[], bytes], message: str) -> None:
    data = payload()
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"here: .*{message}.*; convert"):
            decode(data, "here")
        assert tracemalloc.get_traced_memory()[1] < fuzz_records.allowed_bytes(len(data))
    finally:
        tracemalloc.stop()


def test_a_record_at_its_bounds_is_read() -> None:
    parts = protobuf.MAX_VALUES // 8
    points = np.full((8, parts, 2), 0.5, np.float32)
    record = Record(
        b"x", *[schema.MAX_SIDE] * 2, bbox=np.ones((8, 4), np.float32), keypoints=points
    )
    assert decode(encode(record), "here").keypoints.shape == (8, parts, 2)
    values = {str(i): [i] for i in range(protobuf.MAX_FEATURES)}
    assert len(protobuf.features(protobuf.encode_example(values))) == protobuf.MAX_FEATURES


def test_messages_stay_one_line_whatever_the_id_is(tmp_path: Path) -> None:
    name = "one\ntwo\x1b[31m\u2028" + "x" * 5000
    path = tmp_path / "set"
    wanted = {}
    for bbox in ([0, 0, 1, 1], [0.5, 0, 0, 1]):
        record = one(bbox=np.array([bbox], np.float32))
        record.image_id = name
        wanted[bbox[0]] = frame(encode(record))
    path.write_bytes(wanted[0])
    index = RecordIndex.build(path, 2)
    assert index.describe(0).isprintable() and index.image_id(0) == name
    for content, parts in ((wanted[0], 3), (wanted[0.5], 2)):
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            RecordIndex.build(path, parts)
        assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_boxes_and_parts_without_bounds_warn_of_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "set"
    points = np.full((2, 2, 2), 3e38, np.float32)
    bbox = np.array([[0, 0, 1, 1], [-3e38, -3e38, 3e38, np.inf]], np.float32)
    path.write_bytes(frame(encode(one(bbox=bbox, keypoints=points))))
    assert len(RecordIndex.build(path, 2, faults=[])) == 1
    assert not recwarn.list
