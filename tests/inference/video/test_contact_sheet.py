"""Which frames a contact sheet shows, and what it says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from drawn_rows import STYLE, pose, rows
from moving_dots import write_video

from fasthg.inference.video import contact_sheet
from fasthg.inference.video.contact_sheet import least_sure, write_contact_sheet
from fasthg.inference.video.row_store import Rows
from fasthg.inference.video.sources import find_sources


def film(frames: int = 400) -> Rows:
    """One animal that moves evenly and is sure of all parts."""
    return rows(np.stack([pose(100 + 0.5 * k, 200) for k in range(frames)])[:, None])


def test_low_scores_and_jumps_are_found_in_turn() -> None:
    made = film()
    made.scores[50] = 0.2
    made.scores[300, 0, 0] = 0.4
    made.keypoints[200, 0, 2] += (0, 45)
    found = least_sure(made, 3)
    assert [(d.frame, d.by_jump) for d in found] == [(50, False), (200, True), (300, False)]
    assert found[0].score == pytest.approx(0.2)
    # 45 px of a length of 90.6.
    assert found[1].jump == pytest.approx(45 / 90.6, rel=1e-3)


def test_frames_are_apart_in_time() -> None:
    made = film()
    made.scores[100:120] = 0.1
    made.scores[110] = 0.05
    frames = sorted(doubt.frame for doubt in least_sure(made, 20))
    assert len(frames) == 20 and 110 in frames
    assert min(np.diff(frames)) >= 400 // 40


def test_a_short_film_gives_all_that_it_has() -> None:
    assert sorted(doubt.frame for doubt in least_sure(film(6), 20)) == list(range(6))


def test_missing_animals_are_no_poses() -> None:
    made = film(50)
    made.keypoints[10:40], made.scores[10:40] = np.nan, np.nan
    frames = {doubt.frame for doubt in least_sure(made, 50)}
    assert frames == {*range(10), *range(40, 50)}
    assert least_sure(replace(made, keypoints=np.full_like(made.keypoints, np.nan)), 5) == []


def test_images_do_not_jump() -> None:
    made = replace(film(20), names=tuple(f"{k}.png" for k in range(20)))
    made.keypoints[7] += 100
    assert not any(doubt.by_jump for doubt in least_sure(made, 20))


def test_the_sheet_shows_the_animal_and_says_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    made = film(12)
    made.scores[4] = 0.1
    images = [np.full((480, 640, 3), 100, np.uint8) for _ in range(12)]
    source = find_sources([write_video(tmp_path / "film.mp4", images)])[0]
    told: list[str] = []
    sheet = contact_sheet.sheet

    def kept(cells, *rest):
        told.extend(text for _, text in cells)
        return sheet(cells, *rest)

    monkeypatch.setattr(contact_sheet, "sheet", kept)
    path = tmp_path / "film.sheet.png"
    assert write_contact_sheet(source, made, path, STYLE, 2)
    assert len(told) == 2 and "frame 4  0:00.16, score 0.10" in told
    picture = cv2.imread(str(path))
    # Hollow in the unsure frame, solid in the other; both in the colours of the parts.
    for colour in STYLE.colours:
        assert (picture == colour[::-1]).all(axis=2).sum() > 20


def test_nothing_to_show(tmp_path: Path) -> None:
    made = replace(film(3), keypoints=np.full((3, 1, 3, 2), np.nan))
    path = tmp_path / "film.sheet.png"
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9, 3), np.uint8))
    source = find_sources([tmp_path / "a.png"])[0]
    assert not write_contact_sheet(source, made, path, STYLE)
    assert not path.exists()
