"""Records against three independent readers: protobuf, TensorFlow, and MARS' own files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fasthg.data.records import protobuf
from fasthg.data.records.jpeg import jpeg_size
from fasthg.data.records.schema import Reader, Record, area_px, decode, encode, scan
from fasthg.data.records.tfrecord import read_frames, write_frames
from fasthg.errors import DataError

JPEG = b"\xff\xd8 not decoded here \xff\xd9"

SEED_KEYS = {
    "image/id": "bytes",
    "image/filename": "bytes",
    "image/encoded": "bytes",
    "image/height": "int64",
    "image/width": "int64",
    "image/colorspace": "bytes",
    "image/channels": "int64",
    "image/format": "bytes",
    "image/extra": "bytes",
    "image/class/label": "int64",
    "image/class/text": "bytes",
    "image/class/conf": "float",
    "image/object/count": "int64",
    "image/object/area": "float",
    "image/object/id": "int64",
    "image/object/bbox/xmin": "float",
    "image/object/bbox/xmax": "float",
    "image/object/bbox/ymin": "float",
    "image/object/bbox/ymax": "float",
    "image/object/bbox/score": "float",
    "image/object/bbox/label": "int64",
    "image/object/bbox/text": "bytes",
    "image/object/bbox/conf": "float",
    "image/object/parts/x": "float",
    "image/object/parts/y": "float",
    "image/object/parts/v": "int64",
    "image/object/parts/score": "float",
}
EXTRA_KEYS = {
    "image/path": "bytes",
    "image/object/bbox/count": "int64",
    "image/object/parts/count": "int64",
}


def full_record() -> Record:
    """Two animals of three parts with every field set and one part unlabelled."""
    keypoints = np.linspace(0.1, 0.9, 12, dtype=np.float32).reshape(2, 3, 2)
    keypoints[1, 2] = np.nan
    return Record(
        encoded=JPEG,
        width=640,
        height=480,
        image_id="000007",
        filename="img7.jpg",
        path="images",
        bbox=np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]], np.float32),
        keypoints=keypoints,
        visibility=np.array([[2, 1, 2], [2, 2, 0]], np.uint8),
        area=np.array([5000, 6000.5], np.float32),
        object_id=("black", "white"),
        bbox_score=np.array([0.5, 0.75], np.float32),
        bbox_label=(1, -1),
        bbox_text=("mouse", "mäuse"),
        bbox_conf=np.array([0.25, 1], np.float32),
        part_score=np.arange(6, dtype=np.float32).reshape(2, 3),
        extra='{"scorer": "me"}',
        class_label=3,
        class_text="top view",
        class_conf=0.5,
    )


def assert_same(one: Record, other: Record) -> None:
    for name in one.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("name", ["day 1/mäuse_0007", "", '"\\'])
def test_a_numbered_frame(name: str) -> None:
    record = replace(full_record(), image_id=name, number=7, extra="")
    payload = encode(record)
    reader = Reader(payload)
    assert int(reader.string(b"image/id")) == 7, "what MARS reads"
    assert not name or json.loads(reader.string(b"image/extra")) == {"name": name}
    if name:
        assert_same(decode(payload, "here"), record)
        assert scan(payload)[:2] == (name.encode(), 7)
    with pytest.raises(ValueError, match="extra holds the name"):
        encode(replace(record, extra="mine"))


@pytest.mark.parametrize(
    "extra",
    [
        *('{"name": 3}', '{"name": ""}', '{"name": "a", "by": "b"}', '{"name": "\\ud800"}'),
        *('{"name"', '{"name": ' + "[" * 9999, '{"name": "' + "a" * 20000 + '"}', "day1"),
    ],
    ids=lambda extra: extra[:12],
)
@pytest.mark.parametrize(("image_id", "number"), [("12", 12), ("img12", -1), ("-1", -1)])
def test_what_others_write_stays(extra: str, image_id: str, number: int) -> None:
    record = replace(full_record(), image_id=image_id, extra=extra)
    payload = encode(record)
    assert_same(decode(payload, "here"), record)
    assert scan(payload)[:2] == (image_id.encode(), number)


def message_class() -> Any:
    """`tf.train.Example` of the protobuf library, from a schema written out here."""
    pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    repeated, single = 3, 1
    file = pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    for name, kind in (("BytesList", 12), ("FloatList", 2), ("Int64List", 3)):
        file.message_type.add(name=name).field.add(
            name="value", number=1, type=kind, label=repeated
        )
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("Bytes", "Float", "Int64"), 1):
        feature.field.add(
            name=f"{name.lower()}_list",
            number=number,
            type=11,
            label=single,
            type_name=f".tensorflow.{name}List",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=single)
    entry.field.add(name="value", number=2, type=11, label=single, type_name=".tensorflow.Feature")
    features.field.add(
        name="feature",
        number=1,
        type=11,
        label=repeated,
        type_name=".tensorflow.Features.FeatureEntry",
    )
    file.message_type.add(name="Example").field.add(
        name="features", number=1, type=11, label=single, type_name=".tensorflow.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


def test_round_trip_of_every_field() -> None:
    assert_same(decode(encode(full_record()), "here"), full_record())


def test_protobuf_reads_what_is_written() -> None:
    message = message_class().FromString(encode(full_record())).features.feature
    assert {key: message[key].WhichOneof("kind") for key in message} == {
        key: f"{kind}_list"
        for key, kind in {**SEED_KEYS, **EXTRA_KEYS, "image/object/id": "bytes"}.items()
    }
    np.testing.assert_allclose(message["image/object/bbox/xmin"].float_list.value, [0.1, 0.5])
    np.testing.assert_allclose(message["image/object/bbox/ymax"].float_list.value, [0.4, 0.8])
    x = message["image/object/parts/x"].float_list.value
    np.testing.assert_array_equal(x[:5], full_record().keypoints.reshape(6, 2)[:5, 0])
    assert x[5] == 0
    assert list(message["image/object/parts/v"].int64_list.value) == [2, 1, 2, 2, 2, 0]
    assert list(message["image/object/parts/count"].int64_list.value) == [3, 3]
    assert list(message["image/object/bbox/label"].int64_list.value) == [1, -1]
    assert message["image/encoded"].bytes_list.value[0] == JPEG
    for key in ("image/object/count", "image/object/bbox/count"):
        assert list(message[key].int64_list.value) == [2]


def test_reads_what_protobuf_writes() -> None:
    message = message_class().FromString(encode(full_record()))
    assert_same(decode(message.SerializeToString(), "here"), full_record())


def test_object_ids_that_are_numbers_become_integers() -> None:
    record = full_record()
    record.object_id = ("0", "12")
    payload = encode(record)
    feature = message_class().FromString(payload).features.feature["image/object/id"]
    assert list(feature.int64_list.value) == [0, 12]
    assert decode(payload, "here").object_id == ("0", "12")


def test_no_objects() -> None:
    empty = decode(encode(Record(encoded=JPEG, width=8, height=8)), "here")
    assert empty.keypoints.shape == (0, 0, 2) and empty.bbox.shape == (0, 4)
    assert scan(encode(empty)).objects == 0


def packed_apart(*values: float) -> bytes:
    """A FloatList message, one unpacked field (tag 0x0d) a value."""
    return b"".join(b"\x0d" + np.float32(value).tobytes() for value in values)


def delimited(tag: int, data: bytes) -> bytes:
    assert len(data) < 128
    return bytes((tag, len(data))) + data


def test_wire_forms_that_protobuf_allows() -> None:
    floats = delimited(0x12, delimited(0x12, packed_apart(1.5, -2)))
    minus_one = b"\xff" * 9 + b"\x01"
    ints = delimited(0x12, delimited(0x1A, b"\x08\x03\x08" + minus_one + b"\x0a\x01\x05"))
    unknown = b"\x48\x96\x01" + b"\x4d1234" + b"\x5112345678"
    payload = (
        unknown
        + delimited(0x0A, unknown + delimited(0x0A, delimited(0x0A, b"a") + floats))
        + delimited(0x0A, delimited(0x0A, ints + delimited(0x0A, b"i")))
        + delimited(0x0A, delimited(0x0A, delimited(0x0A, b"none")))
        + delimited(0x0A, delimited(0x0A, b""))
    )
    spans = protobuf.features(payload)
    assert set(spans) == {b"a", b"i", b"none", b""}
    assert np.frombuffer(protobuf.float_bytes(payload, spans[b"a"]), "<f4").tolist() == [1.5, -2]
    assert protobuf.ints(payload, spans[b"i"]) == [3, -1, 5]
    assert protobuf.bytes_spans(payload, spans[b"none"]) == []
    message = message_class().FromString(payload).features.feature
    assert list(message["i"].int64_list.value) == [3, -1, 5]
    assert list(message["a"].float_list.value) == [1.5, -2]


def test_a_repeated_key_counts_once_and_last() -> None:
    payload = protobuf.encode_example({"k": [1]}) + protobuf.encode_example({"k": [2]})
    assert protobuf.ints(payload, protobuf.features(payload)[b"k"]) == [2]


def test_every_truncation_is_an_error_or_a_smaller_message() -> None:
    payload = encode(full_record())
    for end in range(len(payload)):
        with pytest.raises(DataError, match="here: "):
            decode(payload[:end], "here")


def test_random_damage_never_escapes_as_another_error() -> None:
    payload = encode(full_record())
    rng = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(payload)
        for at in rng.integers(0, len(payload), 3):
            damaged[at] = rng.integers(0, 256)
        try:
            decode(bytes(damaged), "here")
        except DataError as error:
            assert str(error).startswith("here: ") and "\n" not in str(error)


def changed(**changes: protobuf.Value | None) -> bytes:
    """A minimal record of one object and two parts with some keys replaced or (None) left out."""
    values: dict[str, protobuf.Value | None] = {
        "image/encoded": [JPEG],
        "image/width": [100],
        "image/height": [50],
        "image/object/bbox/count": [1],
        "image/object/parts/x": np.array([0.1, 0.2], np.float32),
        "image/object/parts/y": np.array([0.3, 0.4], np.float32),
        "image/object/parts/v": [2, 2],
    }
    for name, value in (("xmin", 0.1), ("ymin", 0.2), ("xmax", 0.3), ("ymax", 0.6)):
        values[f"image/object/bbox/{name}"] = np.array([value], np.float32)
    for name, change in changes.items():
        values[f"image/{name}"] = change
    return protobuf.encode_example(
        {key: value for key, value in values.items() if value is not None}
    )


BAD = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoded": None}, "image/encoded is missing"),
        ({"encoded": [1]}, "image/encoded cannot be read .*integers where bytes belong"),
        (
            {f"object/bbox/{edge}": None for edge in ("xmin", "ymin", "xmax", "ymax")},
            "annotated animals but no boxes",
        ),
        ({"object/bbox/xmin": BAD}, "xmin has 3 values for 1 objects"),
        ({"object/bbox/count": [2]}, "xmin has 1 values for 2 objects"),
        ({"object/parts/x": None}, "parts/x has 0 values for 1 objects"),
        ({"object/parts/y": BAD}, "parts/y has 3 values where parts/x has 2"),
        ({"object/parts/v": [2]}, "parts/v has 1 values where parts/x has 2"),
        ({"object/area": BAD}, "area has 3 values for 1 objects"),
        ({"object/parts/v": BAD}, "parts/v cannot be read .*floats where integers belong"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"here: .*{message}.*; "):
        decode(changed(**changes), "here")


def test_count_under_either_name_or_none() -> None:
    for changes in (
        {"object/bbox/count": None},
        {"object/bbox/count": None, "object/count": [1]},
    ):
        assert scan(changed(**changes)).objects == 1


def test_missing_visibility_is_visible_and_nan_is_unlabelled() -> None:
    record = decode(
        changed(**{"object/parts/v": None, "object/parts/y": np.array([0.5, np.nan], np.float32)}),
        "here",
    )
    assert record.visibility is not None and record.visibility.tolist() == [[2, 0]]
    assert np.isnan(record.keypoints[0, 1]).all()


def test_areas_in_px_and_normalised_and_missing() -> None:
    bbox = np.tile(np.array([[0, 0, 0.5, 0.5]], np.float32), (4, 1))
    area = np.array([300, 0.03, np.nan, 0], np.float32)
    np.testing.assert_allclose(
        area_px(area, bbox, np.full(4, 10000, np.float32)), [300, 300, 2500, 2500]
    )


def test_jpeg_size() -> None:
    cv2 = pytest.importorskip("cv2")
    image = np.zeros((37, 53, 3), np.uint8)
    for flag in (0, 1):
        options = [cv2.IMWRITE_JPEG_PROGRESSIVE, flag]
        data = cv2.imencode(".jpg", image, options)[1].tobytes()
        assert jpeg_size(data) == (53, 37)
        assert decode(changed(encoded=[data], width=None, height=None), "here").width == 53
    assert jpeg_size(b"\x89PNG\r\n") is None
    assert jpeg_size(data[:10]) is None


@pytest.mark.parametrize(("split", "count"), [("train", 98), ("val", 6), ("test", 12)])
def test_files_of_the_reference(test_data: Path, split: str, count: int) -> None:
    path = test_data / "mars" / "one_mouse" / f"{split}_dataset-00000-of-00001"
    records = [decode(payload, str(offset)) for offset, payload in read_frames(path)]
    assert len(records) == count
    for record in records:
        assert (record.width, record.height) == (640, 480) == jpeg_size(record.encoded)
        assert record.keypoints.shape == (1, 4, 2) and record.object_id == ("0",)
        assert record.encoded.startswith(b"\xff\xd8") and record.encoded.endswith(b"\xff\xd9")
        inside = (record.keypoints[0] >= record.bbox[0, :2]) & (
            record.keypoints[0] <= record.bbox[0, 2:]
        )
        assert inside.all()
        assert record.area is not None
        sides = record.bbox[0, 2:] - record.bbox[0, :2]
        np.testing.assert_allclose(record.area[0], sides.prod() * 640 * 480, rtol=1e-4)
        assert_same(decode(encode(record), "again"), record)


def test_tensorflow_reads_what_is_written(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "set"
    two, none = full_record(), Record(encoded=JPEG, width=8, height=8)
    write_frames(path, [encode(two), encode(none)])
    kinds = {"bytes": tf.string, "int64": tf.int64, "float": tf.float32}
    spec = {
        key: tf.io.VarLenFeature(kinds[kind])
        for key, kind in {**SEED_KEYS, **EXTRA_KEYS, "image/object/id": "bytes"}.items()
    }
    spec["image/encoded"] = tf.io.FixedLenFeature([], tf.string)
    rows = list(tf.data.TFRecordDataset(str(path)))
    first, second = (tf.io.parse_single_example(row, spec) for row in rows)
    assert first["image/encoded"].numpy() == JPEG
    y = tf.sparse.to_dense(first["image/object/parts/y"]).numpy()
    np.testing.assert_array_equal(y, np.nan_to_num(two.keypoints[..., 1]).ravel())
    assert tf.sparse.to_dense(first["image/object/bbox/text"]).numpy()[1].decode() == "mäuse"
    assert tf.sparse.to_dense(second["image/object/bbox/xmin"]).numpy().size == 0
    assert tf.sparse.to_dense(second["image/object/count"]).numpy().tolist() == [0]
