"""`check` finds each kind of problem, names the record, and stays silent about sound data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from fasthg.data.check import Report, check, page, problems
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.records.schema import Record, encode
from fasthg.data.records.tfrecord import frame, write_frames
from fasthg.data.synthetic.dataset import write_dataset
from fasthg.errors import DataError

NAMES = ("nose", "left ear", "right ear", "tail")
# Image px; the animal looks up, its left at the smaller x.
POINTS = np.array([[50, 20], [40, 30], [60, 30], [50, 60]], np.float32)


def picture(number: int, **changes: float) -> npt.NDArray[np.uint8]:
    """Blocks of 20 px in greys of their own."""
    greys = np.random.default_rng(number).integers(40, 200, (8, 10))
    image = np.repeat(np.repeat(greys, 20, 0), 20, 1) + changes.get("brighter", 0)
    return np.asarray(image, np.uint8)


def jpeg(image: npt.NDArray[np.uint8], quality: int = 95) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def record(number: int) -> Record:
    return Record(
        encoded=jpeg(picture(number)),
        width=200,
        height=160,
        image_id=f"id{number}",
        bbox=np.array([[0.3, 0.2, 0.7, 0.8]], np.float32),
        keypoints=POINTS[None] / np.array([100, 80], np.float32),
        area=np.array([4000], np.float32),
    )


Change = Callable[[Record], None]


def put(part: int, x: float, y: float) -> Change:
    def change(record: Record) -> None:
        record.keypoints[0, part] = np.array([x / 200, y / 160])

    return change


def swap(record: Record) -> None:
    record.keypoints[0, [1, 2]] = record.keypoints[0, [2, 1]]


def setting(**values: object) -> Change:
    def change(record: Record) -> None:
        for name, value in values.items():
            setattr(record, name, value)

    return change


def box(*edges: float) -> Change:
    return setting(bbox=np.array([edges], np.float32))


def area(px: float) -> Change:
    return setting(area=np.array([px], np.float32))


def shrink(record: Record) -> None:
    record.keypoints[:] = np.nan
    record.bbox[:] = (0.5, 0.5, 0.55, 0.55)


def looked(tmp_path: Path, *, val: bytes | None = None) -> Report:
    splits = {"train": str(tmp_path / "set")}
    if val is not None:
        (tmp_path / "val").write_bytes(val)
        splits["val"] = str(tmp_path / "val")
    return check(splits, 4, names=NAMES, pairs=[(1, 2)])[0]


def report(tmp_path: Path, change: Change, val: bytes | None = None) -> Report:
    """Ten sound records with number 7 changed."""
    records = [record(number) for number in range(10)]
    change(records[7])
    write_frames(tmp_path / "set", map(encode, records))
    return looked(tmp_path, val=val)


def kinds(found: Report) -> dict[str, int]:
    return dict(Counter(problem.kind for problem in found.problems))


def framed(record: Record) -> bytes:
    return frame(encode(record))


def test_sound_data(tmp_path: Path) -> None:
    found = report(tmp_path, setting(), framed(record(20)))
    assert found.lines() == ["no problem found"]
    assert found.table() == [["frames", 10, 1], ["animals", 10, 1]]
    found.notes.append("a note")
    assert found.lines() == ["no problem found", "a note"]
    assert found.as_json()["notes"] == ["a note"]


SOUND = jpeg(picture(7))


@pytest.mark.parametrize(
    ("change", "kind", "detail"),
    [
        (setting(encoded=SOUND[:-30]), problems.BAD_IMAGE, "truncated JPEG"),
        (setting(encoded=b"no image"), problems.BAD_IMAGE, "neither JPEG nor PNG"),
        (setting(height=100), problems.BAD_IMAGE, "200x160 px but its record says 200x100"),
        (
            setting(encoded=SOUND[: SOUND.index(b"\xff\xda")] + b"\xff\xd9"),
            problems.BAD_IMAGE,
            "cannot be decoded",
        ),
        (setting(encoded=b""), problems.BROKEN_RECORD, "image/encoded is missing"),
        (setting(image_id="id3"), problems.SAME_ID, "first in train: set record 3 (id 'id3')"),
        (setting(encoded=jpeg(picture(3))), problems.SAME_IMAGE, "train: set record 3"),
        (put(0, 100, -9), problems.OUTSIDE_IMAGE, "nose at 100,-9"),
        (put(3, 40, 120), problems.OUTSIDE_BOX, "tail at 40,120"),
        (box(0.3, -0.1, 0.7, 0.8), problems.BOX_OUTSIDE, "box 60 -16 140 128 px"),
        (box(np.nan, 0.2, 0.7, 0.8), problems.BAD_BOX, "nan 0.2 0.7 0.8"),
        (box(0.3, 0.2, 0.3, 0.8), problems.BAD_BOX, "0.3 0.2 0.3 0.8"),
        (box(0.7, 0.2, 0.3, 0.8), problems.BAD_BOX, "object 0 has an impossible box"),
        (put(1, 120, 60), problems.IDENTICAL, "left ear and right ear at 120.0,60.0"),
        (swap, problems.SWAPPED, "left ear and right ear"),
        (area(4000 / 400), problems.WRONG_AREA, "10 px² in a square of 96 px"),
        (area(4000 * 400), problems.WRONG_AREA, "1.6e+06 px²"),
    ],
)
def test_each_problem_alone_is_found_and_named(
    tmp_path: Path, change: Change, kind: str, detail: str
) -> None:
    found = report(tmp_path, change)
    assert kinds(found) == {kind: 1}
    (problem,) = found.problems
    assert problem.where.startswith("set record 7")
    assert detail in problem.detail


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_areas_as_shares_of_the_image_are_fine(tmp_path: Path, share: float) -> None:
    assert report(tmp_path, area(share)).problems == []


def test_tiny_box_and_unlabelled_animal(tmp_path: Path) -> None:
    found = report(tmp_path, shrink)
    assert kinds(found) == {problems.TINY: 1, problems.UNLABELLED: 1, problems.WRONG_AREA: 1}
    assert found.splits["train"].unlabelled.tolist() == [1, 1, 1, 1]
    assert ["tail: unlabelled in", 1] in found.table()


def test_trailing_zeros_are_no_damage(tmp_path: Path) -> None:
    assert report(tmp_path, setting(encoded=SOUND + b"\0\0")).problems == []


@pytest.mark.parametrize("change", ["bits", "length", "end", "counts", "parts"])
def test_damaged_records_cost_no_other(tmp_path: Path, change: str) -> None:
    records = [record(number) for number in range(10)]
    frames = [framed(one) for one in records]
    kind = problems.BROKEN_RECORD
    if change == "bits":
        frames[7] = frames[7][:-40] + bytes([frames[7][-40] ^ 1]) + frames[7][-39:]
    elif change == "length":
        frames[7] = b"\xff" + frames[7][1:]
    elif change == "end":
        frames, kind = [*frames[:7], frames[7][:-100]], problems.BROKEN_RECORD
    elif change == "counts":
        payload = encode(records[7]).replace(b"bbox/xmax", b"bbox/nmax")
        frames[7], kind = frame(payload), problems.WRONG_COUNTS
    else:
        records[7].keypoints = records[7].keypoints[:, :3]
        frames[7], kind = framed(records[7]), problems.WRONG_COUNTS
    (tmp_path / "set").write_bytes(b"".join(frames))
    found = looked(tmp_path)
    assert kinds(found) == {kind: 1}
    assert found.problems[0].where.startswith("set record 7")
    assert found.splits["train"].instances == (7 if change == "end" else 9)


@pytest.mark.parametrize("records", [0, 2])
def test_a_split_that_training_refuses(tmp_path: Path, records: int) -> None:
    empty = replace(
        record(0), keypoints=np.zeros((0, 4, 2), np.float32), bbox=np.zeros((0, 4), np.float32)
    )
    empty = replace(empty, visibility=None, area=None, object_id=())
    write_frames(
        tmp_path / "set", [encode(replace(empty, image_id=f"i{n}")) for n in range(records)]
    )
    with pytest.raises(DataError, match="no annotated animal"):
        RecordIndex.build(str(tmp_path / "set"), 4)
    found = looked(tmp_path)
    assert found.of(problems.NOTHING)[0].detail.startswith(f"{records} records; check DATA")


def test_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "set").write_bytes(b"no records at all")
    assert kinds(looked(tmp_path)) == {problems.BROKEN_RECORD: 1}


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (jpeg(picture(3), quality=40), True),
        (jpeg(picture(3, brighter=20)), True),
        (jpeg(np.asarray(cv2.resize(picture(3), (100, 80)), np.uint8)), True),
        (jpeg(np.roll(picture(3), 4, axis=1)), False),
        (jpeg(picture(30)), False),
    ],
)
def test_near_duplicates_across_splits(tmp_path: Path, image: bytes, found: bool) -> None:
    other = record(20)
    other.encoded = image
    size = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR).shape  # type: ignore[union-attr]
    other.height, other.width = size[:2]
    seen = report(tmp_path, setting(), framed(other))
    assert [p.detail.partition(" differs")[0] for p in seen.of(problems.NEAR_IMAGE)] == (
        ["train: set record 3 (id 'id3')"] if found else []
    )
    assert kinds(seen).keys() <= {problems.NEAR_IMAGE, problems.WRONG_AREA}


def test_the_same_bytes_in_two_splits_count_once(tmp_path: Path) -> None:
    other = record(20)
    other.encoded = jpeg(picture(3))
    found = report(tmp_path, setting(), framed(other))
    assert kinds(found) == {problems.SAME_IMAGE: 1}
    assert found.problems[0].split == "val"


def test_repeats_are_found_in_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_frames(tmp_path / folder / "set", [encode(record(0))])
    found, _ = check({"train": str(tmp_path / "*" / "set")}, 4)
    assert kinds(found) == {problems.SAME_ID: 1, problems.SAME_IMAGE: 1}


def test_a_midline_part_that_is_never_labelled_is_no_hindrance(tmp_path: Path) -> None:
    records = [record(number) for number in range(10)]
    for one in records:
        one.keypoints[0, 3] = np.nan
    swap(records[7])
    write_frames(tmp_path / "set", map(encode, records))
    assert kinds(looked(tmp_path)) == {problems.SWAPPED: 1}


def test_absurd_places_can_be_drawn(tmp_path: Path) -> None:
    write_frames(tmp_path / "set", map(encode, [record(0)]))
    one = record(0)
    put(0, 1e9, 1e9)(one)
    one.bbox[0, 2] = 1e7
    write_frames(tmp_path / "set", [encode(one)])
    found, indices = check({"train": str(tmp_path / "set")}, 4)
    assert "data:image/jpeg" in page.write(found, indices)


def test_views_without_a_fixed_order_are_not_judged(tmp_path: Path) -> None:
    records = [record(number) for number in range(10)]
    for changed in records[:5]:
        swap(changed)
    write_frames(tmp_path / "set", map(encode, records))
    assert looked(tmp_path).problems == []


def test_long_reports_are_cut_and_json_is_not(tmp_path: Path) -> None:
    write_frames(tmp_path / "set", [encode(record(0))] * 9)
    found = looked(tmp_path)
    lines = found.lines()
    assert lines[0] == f"{problems.SAME_ID}: 8" and lines[6] == "  and 3 more"
    assert len(found.as_json()["problems"]) == 16


def test_the_page_shows_the_worst(tmp_path: Path) -> None:
    records = [record(number) for number in range(10)]
    for number in range(1, 10):
        put(0, 100, -9 - number)(records[number])
    records[0].bbox[:] = np.nan
    write_frames(tmp_path / "set", map(encode, records))
    found, indices = check({"train": str(tmp_path / "set")}, 4, names=NAMES, pairs=[(1, 2)])
    text = page.write(found, indices)
    assert text.count("data:image/jpeg;base64,") == 10
    assert text.index("nose at 100,-18") < text.index("nose at 100,-10")
    assert "http" not in text


def test_nothing_is_invented_about_real_mice(test_data: Path) -> None:
    folder = test_data / "mars" / "one_mouse"
    splits = {s: str(folder / f"{s}_dataset-*") for s in ("train", "val", "test")}
    names = ["snout", "leftear", "rightear", "tailbase"]
    found, _ = check(splits, 4, names=names, pairs=[(1, 2)])
    # The mouse looks to the left there, and its left ear is labelled above the right one.
    assert kinds(found) == {problems.SWAPPED: 1}
    assert "record 29" in found.problems[0].where


def test_nothing_is_invented_about_synthetic_mice(tmp_path: Path) -> None:
    write_dataset(tmp_path, seed=0, frames={"train": 12, "val": 6}, size=(192, 160))
    splits = {s: str(tmp_path / f"{s}_dataset-*") for s in ("train", "val")}
    assert check(splits, 7, pairs=[(2, 1), (5, 4)])[0].problems == []


def test_the_page_tells_how_problems_are_found_and_what_is_labelled(tmp_path: Path) -> None:
    records = [record(number) for number in range(10)]
    swap(records[7])
    records[3].visibility = np.full((1, 4), 2, np.uint8)
    records[3].visibility[0, 0] = 1
    write_frames(tmp_path / "set", map(encode, records))
    found, indices = check({"train": str(tmp_path / "set")}, 4, names=NAMES, pairs=[(1, 2)])
    text = page.write(found, indices, [(1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)])
    assert "At least 80 % of the animals agree" in text
    assert text.count("background:rgb(4, 5, 6)") == 1
    assert set(problems.FOUND_BY) == set(problems.KINDS)
    row = re.search(rf"<tr><td>{NAMES[0]}</td>(.*?)</tr>", text.split("Labels by part")[1])
    assert row is not None and re.findall(r">(\d+)<", row[1]) == ["9", "1"]
    assert "data:image/png" in text.split("Positions of labels")[1]


def test_the_animal_is_cropped_and_its_parts_are_named(tmp_path: Path) -> None:
    records = [record(number) for number in range(10)]
    swap(records[7])
    write_frames(tmp_path / "set", map(encode, records))
    found, indices = check({"train": str(tmp_path / "set")}, 4, names=NAMES, pairs=[(1, 2)])
    (problem,) = found.problems
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]

    def shown(names: Sequence[str]) -> np.ndarray:
        jpeg = page._picture(problem, indices["train"], names, colours)
        return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)

    named, nameless = shown(NAMES), shown([""] * 4)
    assert named.shape[0] == named.shape[1] == page._SIDE
    assert (np.abs(named - nameless).max(axis=2) > 120).sum() > 100
    # Green, part 1, lies where the crop's map has it.
    index = indices["train"]
    size = np.array([index.width[7], index.height[7]] * 2)
    view = np.array(page._view(index.bbox[7] * size, index.keypoints[7], size)).reshape(2, 2)
    half = (0.5 + page._MARGIN) * np.ptp(view, axis=0).max()
    wanted = (index.keypoints[7, 1] - view.mean(axis=0) + half) * page._SIDE / (2 * half)
    y, x = np.nonzero((nameless[..., 1] > 180) & (nameless[..., (0, 2)].max(axis=2) < 110))
    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx(wanted.tolist(), abs=1.0)


def test_a_contradicted_label_is_shown_from_near_with_a_cross(tmp_path: Path) -> None:
    write_frames(tmp_path / "set", map(encode, [record(0)]))
    _, indices = check({"train": str(tmp_path / "set")}, 4, names=NAMES, pairs=[(1, 2)])
    index = indices["train"]
    label, seen = index.keypoints[0, 3], index.keypoints[0, 3] + [0, -16]
    found = problems.Problem(
        *(problems.CONTRADICTED, "train", "", "", 0, 0, (3,)), seen=((seen[0], seen[1]),)
    )
    colours = [(255, 0, 0), (0, 0, 0), (255, 255, 255), (0, 255, 0)]
    jpeg = page._picture(found, index, [""] * 4, colours)
    assert jpeg is not None
    shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
    green = (shown[..., 1] > 170) & (shown[..., (0, 2)].max(axis=2) < 120)
    # The animal's longer side, 96 px, would be as wide as the picture; here half of it is.
    px = page._SIDE / (0.5 * 96 * (1 + 2 * page._MARGIN))
    y, x = np.nonzero(green)
    assert np.ptp(y) == pytest.approx((label[1] - seen[1]) * px, abs=16)
    assert y.min() < page._SIDE / 2 < y.max()
    assert abs(np.median(x) - page._SIDE / 2) < 4
