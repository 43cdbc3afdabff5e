"""Splits: by frame, video and session; kept when a project is converted again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
import pytest
from samples import images

from fasthg.data.convert.common import Labelled, keep_labelled, write_splits
from fasthg.data.convert.report import new_report
from fasthg.data.convert.splits import NAME, Item, divide, parse_fractions, session_of
from fasthg.data.index.record_index import RecordIndex
from fasthg.errors import ConfigError, DataError


def items(*videos: tuple[str, int]) -> list[Item]:
    return [Item(f"{video}/{n}", video) for video, count in videos for n in range(count)]


def run(given: Sequence[Item], folder: Path, **options: object) -> dict[str, str]:
    splits, _ = divide(given, folder, **options)
    splits.save(folder)
    return splits.frames


def splits_by_video(frames: dict[str, str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for image_id, split in frames.items():
        found.setdefault(image_id.rpartition("/")[0], set()).add(split)
    return found


def counts(frames: dict[str, str]) -> tuple[int, int, int]:
    values = list(frames.values())
    return values.count("train"), values.count("val"), values.count("test")


def test_by_frame_as_in_mars(tmp_path: Path) -> None:
    assert counts(run(items(("v", 116)), tmp_path)) == (98, 6, 12)
    stored = json.loads((tmp_path / NAME).read_text())
    assert stored["by"] == "frame" and stored["seed"] == 0 and len(stored["frames"]) == 116
    assert stored["fractions"] == [0.85, 0.05, 0.1] and stored["groups"] == {}


@pytest.mark.parametrize("seed", range(5))
def test_a_video_lands_in_one_split(tmp_path: Path, seed: int) -> None:
    frames = run(items(*((f"v{n}", 50) for n in range(20))), tmp_path, split_by="video", seed=seed)
    assert all(len(splits) == 1 for splits in splits_by_video(frames).values())
    assert counts(frames) == (850, 50, 100)


@pytest.mark.parametrize(
    ("videos", "expected"),
    [
        ([("a", 9)], (9, 0, 0)),
        ([("a", 5), ("b", 5)], (5, 5, 0)),
        ([("a", 5), ("b", 5), ("c", 5)], (5, 5, 5)),
        ([("a", 5), ("b", 5), ("c", 5), ("d", 5)], (10, 5, 5)),
    ],
)
def test_few_videos(
    tmp_path: Path, videos: list[tuple[str, int]], expected: tuple[int, int, int]
) -> None:
    splits, notes = divide(items(*videos), tmp_path, split_by="video")
    assert counts(splits.frames) == expected
    lacking = [s for s, n in zip(("train", "val", "test"), expected, strict=True) if not n]
    told = [note for note in notes if note.startswith("too few videos")]
    assert (
        told
        == ([f"too few videos for {', '.join(lacking)}; --split-by frame has more"] * 1)[
            : len(lacking)
        ]
    )


def test_too_few_frames_are_told_and_new_ones_fill_the_gap(tmp_path: Path) -> None:
    splits, notes = divide(items(("v", 12)), tmp_path)
    assert counts(splits.frames) == (10, 0, 2)
    assert notes[:1] == [
        "too few frames for val: label more and convert again, or leave DATA.VAL unset"
    ]
    splits.save(tmp_path)
    splits, notes = divide(items(("v", 13)), tmp_path)
    assert counts(splits.frames) == (10, 1, 2)
    assert len(notes) == 2 and notes[-1].startswith("splits from ")
    (note,) = divide(items(("v", 9)), tmp_path / "o", fractions=(0.5, 0.0, 0.5))[1]
    assert note.startswith("all frames are of one video"), "val has no share, so it is not missed"


def test_a_split_without_share_stays_empty(tmp_path: Path) -> None:
    given = items(*((f"v{n}", 1 + 7 * n) for n in range(9)))
    frames = run(given, tmp_path, split_by="video", fractions=(0.5, 0.5, 0.0))
    assert counts(frames)[2] == 0 and min(counts(frames)[:2]) > 0


def test_videos_cut_from_one_another_are_one(tmp_path: Path) -> None:
    names = ["m1", "m1_cropped", "m1_cropped2", "m2DownSampled", "m2", "m3_cut-1", "haircut"]
    items = [Item(f"{name}/{n}", name) for name in names for n in range(4)]
    splits, notes = divide(items, tmp_path, split_by="video")
    for group in (names[:3], names[3:5]):
        assert len({splits.frames[f"{name}/{n}"] for name in group for n in range(4)}) == 1
    assert {*splits.groups} == {"m1", "m2", "m3_cut-1", "haircut"}
    assert "counted as one video, by their names: m1, m1_cropped, m1_cropped2" in notes

    kept = [replace(item, given=splits.frames[item.image_id]) for item in items]
    splits.save(tmp_path)
    added, _ = divide([Item("m4/0", "m4"), Item("m2_copy/0", "m2_copy")], tmp_path, kept=kept)
    assert added.frames["m2_copy/0"] == splits.frames["m2/0"]


@pytest.mark.parametrize("folder", ["", "train/", "my videos/- ", "copy/"])
def test_a_suffix_without_a_name_is_of_no_other_video(tmp_path: Path, folder: str) -> None:
    names = [f"{folder}clip_{number}" for number in range(1, 4)] + [f"{folder}crop"]
    given = [*items(*((name, 2) for name in names)), Item("0", folder.rstrip("/"))]
    splits, notes = divide(given, tmp_path, split_by="video")
    assert not any("counted as one" in note for note in notes)
    assert {*names} <= {*splits.groups}


def test_frames_of_one_video_in_several_splits_are_told(tmp_path: Path) -> None:
    one = [Item(f"a/{n}", "a") for n in range(40)]
    assert any("all frames are of one video" in note for note in divide(one, tmp_path)[1])
    two = [*one, *(Item(f"b/{n}", "b") for n in range(40))]
    assert any(note.startswith("frames of 2 of 2 videos") for note in divide(two, tmp_path)[1])
    by_video = divide(two, tmp_path, split_by="video")[1]
    assert not any("several splits" in note for note in by_video)


def test_sessions(tmp_path: Path) -> None:
    names = [f"mouse{n}_day{d}_cam{c}" for n in range(4) for d in range(3) for c in range(2)]
    frames = run(items(*((name, 3) for name in names)), tmp_path, split_by="session")
    by_session: dict[str, set[str]] = {}
    for video, splits in splits_by_video(frames).items():
        by_session.setdefault(video.rpartition("_")[0], set()).update(splits)
    assert len(by_session) == 12 and all(len(splits) == 1 for splits in by_session.values())
    assert min(counts(frames)) > 0


@pytest.mark.parametrize(
    ("video", "pattern", "session"),
    [
        ("mouse3_day1_cam2", None, "mouse3_day1"),
        ("mouse3-day1", None, "mouse3"),
        ("a_b/mouse3", None, "a_b/mouse3"),
        ("mouse3", None, "mouse3"),
        ("mouse3_day1_cam2", r"day\d+", "day1"),
        ("mouse3_day1_cam2", r"^(mouse\d+)_day", "mouse3"),
    ],
)
def test_session_of(video: str, pattern: str | None, session: str) -> None:
    assert session_of(video, pattern) == session


def test_bad_session_patterns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--session-pattern '\(': .*correct it"):
        session_of("v", "(")
    with pytest.raises(ConfigError, match="no match in video 'v'"):
        session_of("v", "mouse")
    with pytest.raises(ConfigError, match="needs --split-by session"):
        divide(items(("v", 3)), tmp_path, session_pattern="v")
    with pytest.raises(ConfigError, match="--split-by day: use frame, video, session"):
        divide(items(("v", 3)), tmp_path, split_by="day")


@pytest.mark.parametrize("by", ["frame", "video"])
def test_known_frames_stay_whatever_changes(tmp_path: Path, by: str) -> None:
    first = items(*((f"v{n}", 10) for n in range(8)))
    before = run(first, tmp_path, split_by=by)
    more = items(*((f"v{n}", 14) for n in range(12)))
    splits, notes = divide(more[::-1], tmp_path, seed=9)
    assert {image_id: splits.frames[image_id] for image_id in before} == before
    assert len(splits.frames) == 14 * 12
    assert f"splits from {tmp_path / NAME}: 88 new frames" in notes[-1]
    if by == "video":
        # New frames of a known video go with it, new videos are not cut either.
        assert all(len(found) == 1 for found in splits_by_video(splits.frames).values())
    train, val, test = (count / 168 for count in counts(splits.frames))
    assert abs(train - 0.85) < 0.1 and val > 0 and test > 0


def test_new_frames_fill_what_lacks(tmp_path: Path) -> None:
    assert counts(run(items(("a", 20)), tmp_path)) == (17, 1, 2)
    assert counts(run(items(("a", 40)), tmp_path)) == (34, 2, 4)


def test_frames_that_are_gone_keep_their_place(tmp_path: Path) -> None:
    before = run(items(("a", 20)), tmp_path)
    after = run(items(("a", 5)), tmp_path)
    assert after == before
    assert run(items(("a", 20)), tmp_path) == before


def test_the_file_may_be_edited(tmp_path: Path) -> None:
    run(items(("a", 4), ("b", 4), ("c", 4)), tmp_path, split_by="video")
    path = tmp_path / NAME
    stored = json.loads(path.read_text())
    stored["frames"] = {}
    stored["groups"] = {"a": "test", "b": "test", "c": "val"}
    path.write_text(json.dumps(stored))
    found = splits_by_video(run(items(("a", 4), ("b", 4), ("c", 4)), tmp_path))
    assert found == {"a": {"test"}, "b": {"test"}, "c": {"val"}}


def test_frames_decide_over_groups_and_make_up_for_them(tmp_path: Path) -> None:
    given = items(("a", 4), ("b", 4), ("c", 4))
    run(given, tmp_path, split_by="video")
    path = tmp_path / NAME
    stored = json.loads(path.read_text())
    stored["groups"] = {"a": "train"}
    stored["frames"] = {"a/0": "test", "b/0": "val", "c/0": "test"}
    path.write_text(json.dumps(stored))
    frames = run(given, tmp_path)
    assert [frames[f"a/{n}"] for n in range(4)] == ["test", "train", "train", "train"]
    assert {frames[f"b/{n}"] for n in range(4)} == {"val"}
    assert {frames[f"c/{n}"] for n in range(4)} == {"test"}


def test_another_rule_is_refused(tmp_path: Path) -> None:
    run(items(("a", 4)), tmp_path)
    with pytest.raises(DataError, match=r"splits.json: made by frame, not by video; delete it"):
        divide(items(("a", 4)), tmp_path, split_by="video")
    with pytest.raises(DataError, match="not by given; divide these frames, too: --split-by frame"):
        divide([Item("a/0", "a", "train")], tmp_path)


def test_given_splits(tmp_path: Path) -> None:
    given = [Item("a/0", "a", "val"), Item("a/1", "a", "train")]
    assert run(given, tmp_path) == {"a/0": "val", "a/1": "train"}
    with pytest.raises(DataError, match="a/1 is in train, but the source says test; delete it"):
        divide([Item("a/1", "a", "test")], tmp_path)
    with pytest.raises(DataError, match="made by given, not by frame; convert to another"):
        divide([Item("a/1", "a")], tmp_path)
    with pytest.raises(DataError, match="some frames name their split and some do not"):
        divide([*given, Item("a/2", "a")], tmp_path / "other")
    assert set(run(given, tmp_path / "new", split_by="frame")) == {"a/0", "a/1"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "splits.json: .*restore it"),
        ("[]", "splits.json: .*restore it"),
        ('{"by": "frame"}', "splits.json: .*restore it"),
        (
            '{"by": "frame", "seed": 0, "fractions": [1, 0, 0], "frames": {"a/0": "dev"}}',
            "no split named dev; use train, val, test",
        ),
        ('{"by": "day", "seed": 0, "fractions": [1, 0, 0]}', "splits.json: by: day; use"),
        *(
            (json.dumps({"by": "frame", "seed": 0, "fractions": [1, 0, 0], **wrong}), message)
            for wrong, message in (
                ({"files": {"train_dataset-00000-of-00001": "a/0"}}, "files, .* no lists"),
                ({"sources": {"../a": [0]}}, "sources or parts hold what is no text"),
            )
        ),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / NAME).write_text(text)
    with pytest.raises(DataError, match=message):
        divide(items(("a", 4)), tmp_path)


def test_numbers_of_frames_are_unique_and_stay(tmp_path: Path) -> None:
    """MARS reads `image/id` as an integer, and tells the frames of all splits by it."""

    def convert(*names: str, source: str = "a") -> dict[str, int]:
        frames = [
            Labelled(
                image=PurePath(f"{name}.jpg"),
                image_id=name,
                keypoints=np.array([[[25.0, 50.0], [75.0, 50.0]]]),
                read=lambda: (images()[0], 100, 100),
            )
            for name in names
        ]
        report = new_report({"a": "a", "b": "b"})
        write_splits(frames, tmp_path, report, sources=[source], fractions=(0.5, 0.2, 0.3))
        index = RecordIndex.build([str(path) for path in report.files], 2)
        return {index.image_id(r): int(index.image_number[r]) for r in range(index.num_records)}

    first = convert(*(f"day1/img{n:03}" for n in range(9)))
    assert sorted(first.values()) == [*range(9)]
    more = convert("day0/img001", *reversed(first))
    assert more == {**first, "day0/img001": 9}
    two = convert("day2/img001", "day2/img002", source="b")
    assert two == {**more, "day2/img001": 10, "day2/img002": 11}
    assert convert(*more) == two

    # By hand a frame goes to the end and another out: the numbers of kept records change, too.
    stored = json.loads((tmp_path / NAME).read_text())
    moved = next(iter(stored["frames"]))
    del stored["frames"][moved], stored["frames"]["day2/img001"]
    (tmp_path / NAME).write_text(json.dumps(stored))
    again = convert("day2/img001", "day2/img002", source="b")
    assert sorted(again.values()) == [*range(12)] and again != two
    stored = json.loads((tmp_path / NAME).read_text())
    assert [*stored["frames"]] == sorted(again, key=lambda name: again[name])


def runs_of(frames: dict[str, str], video: str, count: int) -> list[str]:
    """The splits of a video's frames in time, each run of one split once."""
    placed = [frames[f"{video}/{n}"] for n in range(count)]
    return [s for n, s in enumerate(placed) if n == 0 or placed[n - 1] != s]


def test_by_block_cuts_one_film_into_a_piece_for_each_split(tmp_path: Path) -> None:
    frames = run(items(("v", 116)), tmp_path, split_by="block")
    assert counts(frames) == (98, 6, 12)
    # By number, not by letters: v/10 is after v/9.
    assert sorted(runs_of(frames, "v", 116)) == ["test", "train", "val"]
    orders = {
        tuple(runs_of(run(items(("v", 40)), tmp_path / str(seed), split_by="block", seed=seed), *v))
        for seed in range(12)
        for v in [("v", 40)]
    }
    assert len(orders) > 2


def test_by_block_fills_the_shares_over_many_short_films(tmp_path: Path) -> None:
    frames = run(items(*((f"v{n}", 7) for n in range(20))), tmp_path, split_by="block")
    assert counts(frames) == (119, 7, 14)
    assert all(
        len({*runs_of(frames, f"v{n}", 7)}) == len(runs_of(frames, f"v{n}", 7)) for n in range(20)
    )


def test_new_frame_joins_the_block_around_it(tmp_path: Path) -> None:
    every = items(("v", 60))
    first = run([item for n, item in enumerate(every) if n % 3], tmp_path, split_by="block")
    again = run(every, tmp_path)
    assert first.items() <= again.items() and len(again) == 60
    assert sorted(runs_of(again, "v", 60)) == ["test", "train", "val"]
    _, notes = divide(every, tmp_path, split_by="block")
    assert "split by block: 1 videos, where a frame follows one of another split 2 times" in notes


def test_fractions_hold_for_new_frames_alone(tmp_path: Path) -> None:
    first = run(items(("v", 20)), tmp_path, fractions=(0.5, 0.25, 0.25))
    assert counts(first) == (10, 5, 5)
    splits, notes = divide(items(("v", 40)), tmp_path, fractions=(0.5, 0.0, 0.5))
    assert first.items() <= splits.frames.items() and counts(splits.frames) == (18, 5, 17)
    assert any("--split holds for new frames alone" in note for note in notes)
    assert splits.fractions == (0.5, 0.0, 0.5)
    # Without the option, a third conversion goes on with what splits.json says.
    splits.save(tmp_path)
    assert [*divide(items(("v", 40)), tmp_path)[0].fractions] == [0.5, 0, 0.5]


@pytest.mark.parametrize("text", ["0.9/0.1", "0.9/0.05/0.06", "a/b/c", "1.2/-0.1/-0.1", "nan/0/1"])
def test_fractions_that_are_no_shares(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--split {text}: give three shares .* sum to 1"):
        parse_fractions(text)


def test_fractions_as_typed() -> None:
    assert parse_fractions("0.9/0.05/0.05") == (0.9, 0.05, 0.05)
    assert parse_fractions("1/0/0") == (1, 0, 0) and parse_fractions(None) is None
    with pytest.raises(ConfigError, match="nothing to train on"):
        parse_fractions("0/0.5/0.5")


def test_whole_frames_as_boxes(tmp_path: Path) -> None:
    frames = [
        Labelled(
            PurePath(f"{n}.jpg"),
            f"v/{n}",
            np.array([[[3.0, 4], [np.nan, np.nan]]]),
            boxes=np.array([[1.0, 2, 30, 40]]),
            read=lambda: (images()[0], 100, 100),
        )
        for n in range(3)
    ]
    report = new_report({"a": "a", "b": "b"})
    kept = keep_labelled(frames, report, "whole")
    write_splits(kept, tmp_path / "out", report, sources=["x"], fractions=(1, 0, 0))
    index = RecordIndex.build([str(path) for path in report.files], 2)
    assert np.array_equal(index.bbox, np.tile([0, 0, 1, 1], (3, 1)))
    assert not keep_labelled([replace(f, boxes=None) for f in frames], report)

    two = replace(frames[0], keypoints=np.ones((2, 2, 2)), boxes=None, where="table.csv: row 1")
    with pytest.raises(DataError, match=r"table.csv: row 1: 2 animals in .*--boxes whole"):
        keep_labelled([two], report, "whole")
    with pytest.raises(ConfigError, match="--boxes half: use whole"):
        keep_labelled(frames, report, "half")
