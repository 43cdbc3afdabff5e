"""Batches of whole frames: slots of classes, boxes after the transform, no hidden state."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.frame_sampler import (
    PARTLY_SIGMA,
    FrameSampler,
    animal_spans,
    frame_crop,
    name_classes,
    turned_boxes,
    whole_animals,
)
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.schema import Record, decode, encode
from fasthg.data.records.tfrecord import read_frames, write_frames
from fasthg.data.synthetic.dataset import make_record

SIZE = (192, 144)
CONFIG = Config(INPUT_SIZE=128, HEATMAP_SIZE=32, LOOSE_BBOX_CROP=False, CROP_BORDER="edge")


def index_of(folder: Path, records: list[Record]) -> RecordIndex:
    path = folder / "records"
    write_frames(path, map(encode, records))
    return RecordIndex.build(str(path), 7)


@pytest.fixture
def records() -> list[Record]:
    return [make_record(3, "train", number, SIZE) for number in range(12)]


def sampler(index: RecordIndex, training: bool, **more) -> FrameSampler:
    classes = more.pop("classes", ("black", "white"))
    return FrameSampler(index, CONFIG, classes=classes, most=2, training=training, seed=1, **more)


def test_names_come_from_the_records(tmp_path: Path, records: list[Record]) -> None:
    index = index_of(tmp_path, records)
    assert index.names == ("black", "white")
    assert index.name.tolist() == [0, 1] * 12
    assert name_classes(index) == ("black", "white")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"bbox_text": ("mouse", "mouse")}, ("mouse",)),
        ({"bbox_text": (), "object_id": ("resident", "intruder")}, ("resident", "intruder")),
        # Numbers of animals, and a class that all have, name nobody.
        ({"bbox_text": (), "bbox_label": (0, 0)}, ("0",)),
    ],
)
def test_which_field_names_an_animal(tmp_path, records, change, names) -> None:
    for record in records:
        for field, value in change.items():
            setattr(record, field, value)
    index = index_of(tmp_path, records)
    assert index.names == names
    assert name_classes(index) == (names if len(names) > 1 else ())


def test_names_that_cannot_be_classes(tmp_path: Path, records: list[Record]) -> None:
    records[0].bbox_text = ("black", "black")  # twice in a frame
    assert name_classes(index_of(tmp_path, records)) == ()
    records[0].bbox_text = ("black", "grey")  # on one animal only
    assert name_classes(index_of(tmp_path, records)) == ()


def test_an_animal_labelled_in_part_is_no_target(tmp_path: Path, records: list[Record]) -> None:
    records[2].keypoints[1, 2:] = np.nan
    records[2].visibility[1, 2:] = 0
    records[2].bbox[1] = (0.4, 0.4, 0.45, 0.45)
    index = index_of(tmp_path, records)
    partly = 2 * 2 + 1
    assert np.flatnonzero(~whole_animals(index)).tolist() == [partly]
    plan = sampler(index, training=False).plan(0)
    assert plan.visibility[:, :2].tolist() == [[2, 1 if row == 2 else 2] for row in range(8)]
    # It may be anywhere within the size that the others have.
    usual = np.median(np.delete(animal_spans(index), partly)) * CONFIG.HEATMAP_SIZE
    assert plan.sigmas[2, 1] == pytest.approx(PARTLY_SIGMA * usual, rel=1e-3)


def test_names_survive_the_files_order_and_processes(tmp_path: Path, records) -> None:
    for record in records[6:]:
        record.bbox_text = ("white", "black")
    whole = index_of(tmp_path, records)
    for number, part in enumerate((records[6:], records[:6])):
        write_frames(tmp_path / f"part{number}", map(encode, part))
    parts = RecordIndex.build([str(tmp_path / f"part{n}") for n in (1, 0)], 7, processes=2)
    named = [[index.names[n] for n in index.name] for index in (whole, parts)]
    assert named[0] == named[1]
    first = next(read_frames(tmp_path / "part0"))
    assert decode(first.payload, "").bbox_text == ("white", "black")


def test_an_evaluation_shows_the_frames_as_they_are(tmp_path: Path, records) -> None:
    index = index_of(tmp_path, records)
    plan = sampler(index, False).plan(0)
    np.testing.assert_array_equal(plan.instances, np.arange(8))
    # A square around the frame: 192 px are 32 cells, the frame's upper edge lies 24 px below.
    np.testing.assert_array_equal(frame_crop([192], [144]), [[0, -24, 192, 168]])
    for row in range(8):
        box = index.bbox[2 * row : 2 * row + 2] * [192, 144, 192, 144]
        centre = ((box[:, :2] + box[:, 2:]) / 2 + [0, 24]) / 6
        np.testing.assert_allclose(plan.keypoints[row, :2], centre, atol=1e-3)
        np.testing.assert_allclose(
            plan.keypoints[row, 2:], (box[:, 2:] - box[:, :2]) / 6, atol=1e-3
        )
    assert plan.visibility[:, :2].all()


def test_classes_have_slots_whatever_the_order(tmp_path: Path, records) -> None:
    plan = sampler(index_of(tmp_path, records), False).plan(0)
    for record in records:
        record.bbox_text = ("white", "black")
    swapped = index_of(tmp_path, records)
    other = sampler(swapped, False, classes=("black", "white")).plan(0)
    np.testing.assert_array_equal(other.keypoints[:, [1, 0]], plan.keypoints[:, [0, 1]])


def test_training_is_a_function_of_the_step(tmp_path: Path, records) -> None:
    index = index_of(tmp_path, records)
    one, other = sampler(index, True), sampler(index, True)
    one.plan(0)
    first, second = one.plan(7), other.plan(7)
    for field in fields(first):
        if field.name != "draws":
            np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    ranks = [sampler(index, True, rank=r, ranks=2).plan(1) for r in range(2)]
    np.testing.assert_array_equal(
        np.concatenate([plan.records for plan in ranks]),
        np.concatenate([one.plan(step).records for step in (2, 3)]),
    )


def test_an_animal_outside_the_crop_is_absent(tmp_path: Path, records) -> None:
    index = index_of(tmp_path, records)
    plans = [sampler(index, True).plan(step) for step in range(30)]
    there = np.concatenate([plan.visibility[:, :2] > 0 for plan in plans])
    centres = np.concatenate([plan.keypoints[:, :2] for plan in plans])
    assert 0.02 < 1 - there.mean() < 0.5
    assert np.isnan(centres[~there]).all()
    assert ((centres[there] >= 0) & (centres[there] < 32)).all()


def test_boxes_after_a_turn() -> None:
    box = np.array([[10.0, 20, 50, 40]])
    points = np.array([[[12.0, 22], [48, 38], [30, 30]]])
    for angle, half in ((0, (20, 10)), (90, (10, 20))):
        matrix = geometry.image_to_input([[0, 0, 100, 100]], 100, False, angle)[0]
        turned = turned_boxes(box, points, matrix)[0]
        centre = geometry.apply(np.array([[30.0, 30]]), matrix)[0]
        np.testing.assert_allclose(turned, [*(centre - half), *(centre + half)], atol=1e-9)
    # Parts along the diagonal lie along an axis after 45 degrees less: the box is flat there.
    line = np.array([[[10.0, 10], [30, 30], [50, 50]]])
    matrix = geometry.image_to_input([[0, 0, 100, 100]], 100, False, 45)[0]
    turned = turned_boxes(np.array([[5.0, 5, 55, 55]]), line, matrix)[0]
    extent = geometry.apply(line[0], matrix)
    np.testing.assert_allclose(turned[:2], extent.min(axis=0) - 5, atol=1e-9)
    np.testing.assert_allclose(turned[2:], extent.max(axis=0) + 5, atol=1e-9)
    # Without parts it is an ellipse: a circle stays one.
    circle = turned_boxes(np.array([[10.0, 10, 30, 30]]), np.full((1, 3, 2), np.nan), matrix)[0]
    np.testing.assert_allclose(circle[2:] - circle[:2], 20)
