"""`check` finds each kind of problem, names the record, and stays silent about sound data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fasthg.data import check as module
from fasthg.data.check import check
from fasthg.data.convert.images import decode as decode_image
from fasthg.data.index import RecordIndex
from fasthg.data.records import Record, encode
from fasthg.data.tfrecord import write_frames

JPEG = cv2.imencode(".jpg", np.full((80, 100, 3), 128, np.uint8))[1].tobytes()
NAMES = ("nose", "left ear", "right ear", "tail")
# Image px; the animal looks up, its left at the smaller x.
POINTS = np.array([[50, 20], [40, 30], [60, 30], [50, 60]], np.float32)


def record(number: int) -> Record:
    return Record(
        encoded=JPEG,
        width=100,
        height=80,
        image_id=f"id{number}",
        bbox=np.array([[0.3, 0.2, 0.7, 0.8]], np.float32),
        keypoints=POINTS[None] / np.array([100, 80], np.float32),
    )


def put(part: int, x: float, y: float) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        record.keypoints[0, part] = np.array([x / 100, y / 80])

    return change


def swap(record: Record) -> None:
    record.keypoints[0, [1, 2]] = record.keypoints[0, [2, 1]]


def setting(**values: object) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        for name, value in values.items():
            setattr(record, name, value)

    return change


def box(*edges: float) -> Callable[[Record], None]:
    return setting(bbox=np.array([edges], np.float32))


def report(tmp_path: Path, change: Callable[[Record], None], decode: bool = False) -> module.Report:
    """Ten sound records with number 7 changed."""
    records = [record(number) for number in range(10)]
    change(records[7])
    write_frames(tmp_path / "set", map(encode, records))
    index = RecordIndex.build(str(tmp_path / "set"), 4)
    return check(index, names=NAMES, pairs=[(1, 2)], decode=decode_image if decode else None)


def test_sound_data(tmp_path: Path) -> None:
    found = report(tmp_path, setting(), decode=True)
    assert found.lines() == ["10 animals in 10 records", "no problem found"]


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        (setting(encoded=JPEG[:-30]), module.BAD_IMAGE, "truncated JPEG"),
        (setting(encoded=b"no image"), module.BAD_IMAGE, "neither JPEG nor PNG"),
        (setting(height=100), module.BAD_IMAGE, "100x80 px but its record says 100x100"),
        (setting(image_id="id3"), module.DUPLICATE, "first in set record 3 (id 'id3')"),
        (put(0, 50, -9), module.OUTSIDE_IMAGE, "nose at 50,-9"),
        (put(3, 20, 60), module.OUTSIDE_BOX, "tail at 20,60"),
        (box(0.3, -0.1, 0.7, 0.8), module.BOX_OUTSIDE, "box 30 -8 70 64 px"),
        (swap, module.SWAPPED, "left ear and right ear"),
    ],
)
def test_problems(tmp_path: Path, change: Callable[[Record], None], kind: str, detail: str) -> None:
    problems = [p for p in report(tmp_path, change).problems if p.kind == kind]
    assert len(problems) == 1
    assert problems[0].where.startswith("set record 7 (id '")
    assert detail in problems[0].detail


def test_only_what_was_changed_is_found(tmp_path: Path) -> None:
    assert report(tmp_path, swap).counts == {module.SWAPPED: 1}
    assert report(tmp_path, put(0, 50, -9)).counts == {module.OUTSIDE_IMAGE: 1}


def test_trailing_zeros_are_no_damage(tmp_path: Path) -> None:
    assert report(tmp_path, setting(encoded=JPEG + b"\0\0")).problems == []


def test_damage_inside_needs_decoding(tmp_path: Path) -> None:
    header = JPEG[: JPEG.index(b"\xff\xc0") + 19]
    hollow = header + b"\xff\xd9"
    assert report(tmp_path, setting(encoded=hollow)).problems == []
    (problem,) = report(tmp_path, setting(encoded=hollow), decode=True).problems
    assert problem.detail == "image cannot be decoded"


def test_tiny_box_and_unlabelled_animal(tmp_path: Path) -> None:
    def shrink(record: Record) -> None:
        record.keypoints[:] = np.nan
        record.bbox[:] = (0.5, 0.5, 0.6, 0.6)

    found = report(tmp_path, shrink)
    assert found.counts == {module.TINY: 1, module.UNLABELLED: 1}
    assert found.unlabelled.tolist() == [1, 1, 1, 1]
    assert "tail: unlabelled in 1 animals" in found.lines()


def test_views_without_a_fixed_order_are_not_judged(tmp_path: Path) -> None:
    records = [record(number) for number in range(10)]
    for changed in records[:5]:
        swap(changed)
    write_frames(tmp_path / "set", map(encode, records))
    index = RecordIndex.build(str(tmp_path / "set"), 4)
    assert check(index, pairs=[(1, 2)]).problems == []


def test_long_reports_are_cut(tmp_path: Path) -> None:
    write_frames(tmp_path / "set", [encode(record(0))] * 9)
    lines = check(RecordIndex.build(str(tmp_path / "set"), 4)).lines()
    assert lines[1] == f"{module.DUPLICATE}: 8" and lines[-1] == "  and 3 more"
    assert len(lines) == 1 + 1 + 5 + 1


def test_a_file_that_vanished_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    write_frames(tmp_path / "set", [encode(record(0))])
    index = RecordIndex.build(str(tmp_path / "set"), 4)
    (tmp_path / "set").unlink()
    assert check(index).counts == {module.BAD_IMAGE: 1}


def test_a_swapped_pair_in_a_published_data_set(test_data: Path) -> None:
    """In this frame the animal looks left and its left ear is labelled on the upper, right side."""
    index = RecordIndex.build(str(test_data / "mars" / "one_mouse" / "*"), 4)
    found = check(index, names=("snout", "leftear", "rightear", "tailbase"), pairs=[(1, 2)])
    (problem,) = found.problems
    assert problem.kind == module.SWAPPED
    assert problem.where == "train_dataset-00000-of-00001 record 29 (id '000029'), object 0"
