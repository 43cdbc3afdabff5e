"""The index: what it holds, what it refuses and in which words, and what it costs."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from fasthg.data.index.record_index import RecordIndex, expand
from fasthg.data.records.protobuf import Value, encode_example
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import write_frames
from fasthg.errors import DataError

PARTS = 3


def jpeg(number: int) -> bytes:
    """Not decodable: the index never looks inside."""
    return b"\xff\xd8" + b"%06d" % number * (1 + number % 5) + b"\xff\xd9"


def record(number: int, objects: int = 1) -> Record:
    keypoints = np.linspace(0.2, 0.8, objects * PARTS * 2, dtype=np.float32)
    return Record(
        encoded=jpeg(number),
        width=100 + number,
        height=50,
        image_id=f"img{number:04d}",
        bbox=np.tile(np.array([[0.1, 0.2, 0.5, 0.8]], np.float32), (objects, 1)),
        keypoints=keypoints.reshape(objects, PARTS, 2),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of three records with 1, 0, 2 and 3, 1, 0 animals."""
    for shard, counts in enumerate(((1, 0, 2), (3, 1, 0))):
        write_frames(
            tmp_path / f"train_dataset-{shard:05d}-of-00002",
            [encode(record(3 * shard + i, count)) for i, count in enumerate(counts)],
        )
    return tmp_path


def test_contents(folder: Path) -> None:
    index = RecordIndex.build(str(folder / "train_dataset-*"), PARTS)
    assert [os.path.basename(name)[-14:-9] for name in index.files] == ["00000", "00001"]
    assert (len(index), index.num_records, index.num_parts) == (7, 6, PARTS)
    assert index.record.tolist() == [0, 2, 2, 3, 3, 3, 4]
    assert index.object_number.tolist() == [0, 0, 1, 0, 1, 2, 0]
    assert index.file_id.tolist() == [0, 0, 0, 1, 1, 1]
    assert index.width.tolist() == [100, 101, 102, 103, 104, 105]
    assert [index.jpeg(i) for i in range(6)] == [jpeg(i) for i in range(6)]
    assert [index.image_id(i) for i in range(6)] == [f"img{i:04d}" for i in range(6)]
    assert index.describe(5) == "train_dataset-00001-of-00002 record 0 (id 'img0003'), object 2"

    size = np.array([102, 50], np.float32)
    np.testing.assert_allclose(index.keypoints[1:3], record(2, 2).keypoints * size, rtol=1e-6)
    np.testing.assert_allclose(index.bbox[6], [0.1, 0.2, 0.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(index.area[6], 0.4 * 104 * 0.6 * 50, rtol=1e-5)
    assert (index.visibility == 2).all()
    assert index.bbox.dtype == index.keypoints.dtype == index.area.dtype == np.float32
    assert index.jpeg_offset.dtype == np.int64 and index.visibility.dtype == np.uint8


def test_many_chunks_equal_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RecordIndex.build(str(folder / "*"), PARTS)
    monkeypatch.setattr("fasthg.data.index.builder._CHUNK", 2)
    pieces = RecordIndex.build(str(folder / "*"), PARTS)
    for name, value in vars(whole).items():
        if name != "_open":
            np.testing.assert_array_equal(value, getattr(pieces, name), err_msg=name)


def test_lists_of_patterns(folder: Path) -> None:
    first, second = sorted(map(str, folder.iterdir()))
    assert expand(str(folder / "*")) == [first, second]
    assert expand([second, str(folder / "train*")]) == [second, first]
    assert expand(Path(first)) == [first]
    strange = folder / "a[1]-00000"
    strange.write_bytes(b"")
    assert expand(str(strange)) == [str(strange)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("val_dataset-*", "val_dataset-.*: no file matches this glob; "),
        ("absent", "absent: no such file; "),
        (".", "is a folder; give files or a glob"),
    ],
)
def test_patterns_without_files(folder: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RecordIndex.build([str(folder / "train*"), os.path.join(folder, name)], PARTS)


def test_no_patterns() -> None:
    with pytest.raises(DataError, match="no data files given; set DATA"):
        RecordIndex.build([], PARTS)


def test_only_empty_records(tmp_path: Path) -> None:
    write_frames(tmp_path / "set", [encode(record(0, 0))])
    with pytest.raises(DataError, match="set: no annotated animal in any record"):
        RecordIndex.build(str(tmp_path / "set"), PARTS)


def test_wrong_number_of_parts(folder: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"00000-of-00002: record 0 \(id 'img0000'\): 3 parts an object, "
        r"but PARTS.NUM_PARTS is 7; set PARTS",
    ):
        RecordIndex.build(str(folder / "*"), 7)
    with pytest.raises(DataError, match=r"3 parts an object, but PARTS.NUM_PARTS is 2"):
        RecordIndex.build(str(folder / "*"), 2)


@pytest.mark.parametrize(
    "box",
    [
        (0.1, 0.2, 0.1, 0.8),
        (0.5, 0.2, 0.1, 0.8),
        (0.1, np.nan, 0.5, 0.8),
        (0.1, 0.2, np.inf, 0.8),
        (0.1, 0.2, 0.5, 0.201),
    ],
)
def test_impossible_boxes(
    folder: Path, box: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fasthg.data.index.builder._CHUNK", 2)
    bad = record(9, 2)
    bad.bbox[1] = box
    write_frames(
        folder / "train_dataset-extra", [encode(record(7)), encode(record(8)), encode(bad)]
    )
    with pytest.raises(
        DataError,
        match=r"extra: record 2 \(id 'img0009'\): object 1 has an impossible box .*; correct",
    ):
        RecordIndex.build(str(folder / "*"), PARTS)


def raw(**changes: Value | None) -> bytes:
    values: dict[str, Value | None] = {
        "image/id": [b"raw"],
        "image/encoded": [jpeg(1)],
        "image/width": [100],
        "image/height": [50],
        "image/object/parts/x": np.array([0.1, 0.2, np.nan], np.float32),
        "image/object/parts/y": np.array([0.3, 0.4, 0.5], np.float32),
        "image/object/parts/v": [2, 0, 2],
        "image/object/area": np.array([0.1], np.float32),
    }
    for name, value in (("xmin", 0.1), ("ymin", 0.2), ("xmax", 0.3), ("ymax", 0.6)):
        values[f"image/object/bbox/{name}"] = np.array([value], np.float32)
    values.update({f"image/{name}": value for name, value in changes.items()})
    return encode_example({key: value for key, value in values.items() if value is not None})


def test_nan_and_invisible_keypoints_are_unlabelled(tmp_path: Path) -> None:
    write_frames(tmp_path / "set", [raw()])
    index = RecordIndex.build(str(tmp_path / "set"), PARTS)
    assert index.visibility.tolist() == [[2, 0, 0]]
    np.testing.assert_allclose(index.keypoints[0], [[10, 15], [np.nan] * 2, [np.nan] * 2])
    np.testing.assert_allclose(index.area, [500], rtol=1e-6)


NO_BOXES: dict[str, Value | None] = {
    f"object/bbox/{edge}": None for edge in ("xmin", "ymin", "xmax", "ymax")
}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (raw(**NO_BOXES), r"record 1 \(id 'raw'\): annotated animals but no boxes"),
        (raw(width=[0]), r"record 1 \(id 'raw'\): no image/width and image/height"),
        (raw(encoded=None), r"record 1 \(id 'raw'\): image/encoded is missing"),
        (raw(**{"object/bbox/count": [4]}), r"record 1 \(id 'raw'\): .*1 values for 4 objects"),
        (raw()[:-5], "record 1: not a tf.train.Example"),
    ],
)
def test_bad_records(tmp_path: Path, payload: bytes, message: str) -> None:
    write_frames(tmp_path / "set", [raw(), payload])
    with pytest.raises(DataError, match=message) as caught:
        RecordIndex.build(str(tmp_path / "set"), PARTS)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)


def test_sizes_come_from_the_jpeg_where_the_record_has_none(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    data = cv2.imencode(".jpg", np.zeros((30, 70, 3), np.uint8))[1].tobytes()
    write_frames(tmp_path / "set", [raw(encoded=[data], width=None, height=[0])])
    index = RecordIndex.build(str(tmp_path / "set"), PARTS)
    assert (index.width[0], index.height[0]) == (70, 30)
    np.testing.assert_allclose(index.keypoints[0, 0], [7, 9], rtol=1e-6)


def test_damaged_files(folder: Path) -> None:
    path = folder / "train_dataset-00001-of-00002"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"00001-of-00002: record 2 at byte .*CRC"):
        RecordIndex.build(str(folder / "*"), PARTS)
    path.write_bytes(content[:-20])
    with pytest.raises(DataError, match=r"00001-of-00002: record 2 at byte .*the file ends"):
        RecordIndex.build(str(folder / "*"), PARTS)


def test_files_that_change_after_indexing(folder: Path) -> None:
    index = RecordIndex.build(str(folder / "*"), PARTS)
    path = folder / "train_dataset-00001-of-00002"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"record 1 \(id 'img0004'\): the file became shorter"):
        index.jpeg(4)
    (folder / "train_dataset-00000-of-00002").unlink()
    with pytest.raises(DataError, match=r"record 0 \(id 'img0000'\): No such file"):
        index.jpeg(0)


def read_all(index: RecordIndex) -> list[bytes]:
    return [index.jpeg(i) for i in range(index.num_records)]


def test_pickled_and_forked(folder: Path) -> None:
    index = RecordIndex.build(str(folder / "*"), PARTS)
    expected = read_all(index)
    assert read_all(pickle.loads(pickle.dumps(index))) == expected
    with get_context("fork").Pool(2) as pool:
        # The parent's handles are open here: the children must not move their positions.
        assert pool.map(read_all, [index] * 4) == [expected] * 4


def test_threads_with_more_files_than_handles(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fasthg.data.index.record_index._OPEN_FILES", 1)
    index = RecordIndex.build(str(folder / "*"), PARTS)
    expected = read_all(index)
    with ThreadPoolExecutor(4) as pool:
        assert all(rows == expected for rows in pool.map(read_all, [index] * 50))


def many(count: int) -> Iterator[bytes]:
    """`count` records of one animal with tiny images and ids like MARS'."""
    template = record(0)
    template.image_id = "000000000"
    payload = encode(template)
    for number in range(count):
        yield payload.replace(b"000000000", b"%09d" % number)


def overhead(index: RecordIndex, held: int) -> float:
    """Bytes an instance of `held` beyond its annotations."""
    annotations = (index.bbox, index.keypoints, index.visibility, index.area)
    return (held - sum(array.nbytes for array in annotations)) / len(index)


@pytest.mark.slow
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many chunks as 10,000 records have."""
    monkeypatch.setattr("fasthg.data.index.builder._CHUNK", 1024)
    write_frames(tmp_path / "set", many(2500))
    tracemalloc.start()
    index = RecordIndex.build(str(tmp_path / "set"), PARTS)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.nbytes <= held
    assert overhead(index, held) < 200
    assert peak < 3 * held


@pytest.mark.slow
def test_many_records(tmp_path: Path) -> None:
    """benchmarks/scale.py has a million."""
    write_frames(tmp_path / "set", many(70_000))  # more than 16 bits number
    index = RecordIndex.build(str(tmp_path / "set"), PARTS)
    assert len(index) == 70_000
    assert overhead(index, index.nbytes) < 200
    assert index.image_id(69_999) == "000069999"


def test_files_of_the_reference(test_data: Path) -> None:
    folder = test_data / "mars" / "one_mouse"
    index = RecordIndex.build([str(folder / f"{split}_*") for split in ("train", "val", "test")], 4)
    assert len(index) == index.num_records == 116
    assert index.image_id(115) == "000115"
    np.testing.assert_allclose(index.keypoints[98, 0], [57.902, 421.201], atol=1e-3)
    assert all(index.jpeg(i).endswith(b"\xff\xd9") for i in range(116))
