"""Synthetic films: the same for one seed, smooth, with crossings; truth that fits the pixels."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from fasthg.data.synthetic import mouse as drawing
from fasthg.data.synthetic import truth
from fasthg.data.synthetic.film import Film, FilmFrame, poses, render_film, write_film
from fasthg.data.synthetic.mouse import PART_NAMES
from fasthg.errors import ConfigError, DataError
from fasthg.inference.video.boxes import read_boxes
from fasthg.inference.video.video_file import VideoSource
from fasthg.inference.video.video_writer import write_video

SMALL = (256, 192)


def keypoints_of(film: Film) -> np.ndarray:
    """(frames, animals, 7, 2) px."""
    return np.array([[mouse.keypoints for mouse in mice] for mice in poses(film)])


def boxes_of(film: Film) -> np.ndarray:
    """(frames, animals, 4) px."""
    return np.array([[truth.box_of(points, film.size) for points in f] for f in keypoints_of(film)])


def length_of(film: Film) -> float:
    """The longest body at its start, px."""
    return max(mouse.length for mouse in next(poses(film)))


@pytest.fixture(scope="module")
def crossing() -> tuple[Film, list[FilmFrame]]:
    """A film up to the end of its third crossing."""
    film = Film(400, seed=3, size=SMALL)
    third = truth.crossings(boxes_of(film))[2]
    return film, list(islice(render_film(film), third.last + 1))


def test_same_seed_same_labels_and_pixels(crossing: tuple[Film, list[FilmFrame]]) -> None:
    film, frames = crossing
    for frame, again in zip(frames[:12], render_film(film), strict=False):
        np.testing.assert_array_equal(frame.image, again.image)
        np.testing.assert_array_equal(frame.keypoints, again.keypoints)
        np.testing.assert_array_equal(frame.visibility, again.visibility)
        np.testing.assert_array_equal(frame.boxes, again.boxes)
    other = next(render_film(replace(film, seed=4)))
    assert not np.array_equal(frames[0].image, other.image)
    # The poses without pixels are those of the frames.
    expected = keypoints_of(film)[: len(frames)]
    np.testing.assert_allclose([f.keypoints for f in frames], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("animals", "fps"), [(1, 30), (2, 25), (4, 60)])
def test_motion_is_smooth(animals: int, fps: int) -> None:
    film = Film(300, seed=animals, animals=animals, fps=fps, leaves=False)
    points, length = keypoints_of(film), length_of(film)
    speed = np.linalg.norm(np.diff(points, axis=0), axis=-1) * fps / length
    assert speed.max() < 5.5, "body lengths a second"
    assert np.median(speed) > 0.3
    change = np.linalg.norm(np.diff(points, n=2, axis=0), axis=-1) * fps / length
    assert change.max() < 1.2, "body lengths a second, from one frame to the next"


def test_nobody_leaves_unasked_and_most_parts_are_inside() -> None:
    for seed in range(3):
        film = Film(150, seed=seed, animals=4, fps=10, leaves=False)
        inside = truth.inside(keypoints_of(film), film.size)
        assert inside.any(axis=2).all() and inside.mean() > 0.97


@pytest.mark.slow
def test_two_mice_cross_twenty_times_in_2000_frames() -> None:
    boxes = boxes_of(Film(2000, seed=0))
    found = truth.crossings(boxes)
    assert len(found) >= 20
    # A film of this length has an animal that leaves and comes back.
    absent = np.isnan(boxes).any(axis=-1)
    assert sorted(absent.any(axis=0)) == [False, True]
    first, last = np.flatnonzero(absent.any(axis=1))[[0, -1]]
    assert absent[first : last + 1].any(axis=1).all(), "it leaves once"
    assert last < len(boxes) - 1, "it comes back"
    assert not absent[[crossing.first for crossing in found]].any()


def test_asked_to_an_animal_leaves_a_short_film_and_comes_back() -> None:
    for seed in range(4):
        absent = np.isnan(boxes_of(Film(300, seed=seed, animals=1, leaves=True))).any(axis=-1)
        assert 20 < absent.sum() < 200 and not absent[0] and not absent[-1]


def test_parts_lie_on_their_animal(crossing: tuple[Film, list[FilmFrame]]) -> None:
    """The coat inwards of visible hips has its animal's colour, a covered part the other's."""
    film, frames = crossing
    assert film.classes == ("black", "white")
    hips = [PART_NAMES.index("right rear knee"), PART_NAMES.index("left rear knee")]
    seen: list[bool] = []
    covered: list[bool] = []
    for frame in frames:
        dark = cv2.blur(cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY), (3, 3)) < 85
        for animal, points in enumerate(frame.keypoints):
            under = frame.visibility[animal] == 1
            if not under.any():
                inwards = 0.6 * points[hips] + 0.4 * points[hips].mean(axis=0)
                x, y = np.floor(inwards).astype(int).T
                seen += (dark[y, x] == (animal == 0)).tolist()
            x, y = np.floor(points[under]).astype(int).T
            covered += (dark[y, x] == (animal == 1)).tolist()
    assert len(seen) > 50 and all(seen)
    assert len(covered) > 10 and np.mean(covered) > 0.9


def test_coordinates_count_from_the_corner_of_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []

    def paint(canvas: np.ndarray, *arguments: object) -> np.ndarray:
        masks.append(drawing.paint(canvas, *arguments))
        return masks[-1]

    monkeypatch.setattr("fasthg.data.synthetic.film.paint", paint)
    y, x = np.indices(SMALL[::-1]) + 0.5
    errors = []
    for seed in range(12):
        film = Film(1, seed=seed, size=SMALL, animals=1)
        (mouse,) = next(poses(film))
        next(render_film(film))
        mask = masks[-1] / masks[-1].sum()
        moments = cv2.moments(drawing._contour(mouse).astype(np.float32))
        expected = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
        errors.append([(mask * x).sum(), (mask * y).sum()] - expected)
    # Smoothed edges widen the nose and the tail's base, which shifts a centroid along the body.
    assert np.abs(np.mean(errors, axis=0)).max() < 0.2


def test_animals_have_classes_or_one_colour() -> None:
    assert Film(1, animals=4).classes == ("black", "white", "black", "white")
    assert Film(1, animals=3, same_colour=True).classes == ("black",) * 3
    assert Film(1, animals=3).names == ("mouse1", "mouse2", "mouse3")


def test_files_hold_every_frame_and_animal(tmp_path: Path) -> None:
    film = Film(60, seed=1, size=(128, 128), fps=5, same_colour=True, leaves=True)
    video, table = write_film(tmp_path / "new", film, write_video)
    source = VideoSource(video)
    assert (source.size, source.rate, source.declared) == (film.size, 5, 60)
    assert sum(frame.image is not None for frame in source.frames()) == 60
    found = truth.read_truth(table, 60)
    assert (found.animals, found.classes) == (film.names, film.classes)
    assert found.parts == PART_NAMES
    boxes = boxes_of(film)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    absent = np.isnan(boxes).any(axis=-1)
    assert 0 < absent.sum() == np.isnan(found.keypoints).all(axis=(2, 3)).sum()
    rows = table.read_text().splitlines()
    assert rows[0].startswith("frame,animal,class,x1,y1,x2,y2,nose_x,nose_y,nose_v,right ear_x,")
    assert len(rows) == 1 + 120 - absent.sum()
    points = keypoints_of(film)
    np.testing.assert_allclose(found.keypoints[~absent], points[~absent], atol=1e-3)
    outside = ~truth.inside(points, film.size)
    assert (found.visibility[~absent] == 0).tolist() == outside[~absent].tolist()
    # The truth is a file of boxes.
    given = read_boxes(table, source)
    assert given.animals == film.names and given.where is not None
    np.testing.assert_allclose(given.where[0], boxes[0], atol=1e-3)
    assert not list(video.parent.glob(".*"))


def test_who_lies_on_top_stays_on_top_through_a_crossing(
    crossing: tuple[Film, list[FilmFrame]],
) -> None:
    _, frames = crossing
    boxes = np.array([frame.boxes for frame in frames])
    hidden = np.array([(frame.visibility == 1).any(axis=1) for frame in frames])
    found = truth.crossings(boxes)
    assert len(found) == 3
    for each in found:
        assert hidden[each.first : each.last + 1].any(axis=0).sum() == 1
    assert not hidden.all(axis=1).any()


def test_the_light_changes_slowly() -> None:
    film = Film(120, seed=0, size=(128, 128), animals=1, fps=5)
    levels = np.array([np.median(frame.image) for frame in render_film(film)])
    assert np.ptp(levels) > 4
    assert np.abs(np.diff(levels)).max() <= 4


def test_crossings_are_intervals_of_overlap() -> None:
    boxes = np.zeros((30, 3, 4))
    boxes[:, 0] = 0, 0, 10, 10
    boxes[:, 1] = 20, 20, 30, 30
    boxes[:, 2] = np.nan
    boxes[4:9, 1] = boxes[11:14, 1] = 2, 0, 12, 10  # IoU 80 / 120
    boxes[20:22, 1] = 5, 0, 15, 10  # 50 / 150
    assert truth.crossings(boxes) == [
        truth.Crossing((0, 1), 4, 13),
        truth.Crossing((0, 1), 20, 21),
    ]
    assert truth.crossings(boxes, gap=1) == [
        *(truth.Crossing((0, 1), 4, 8), truth.Crossing((0, 1), 11, 13)),
        truth.Crossing((0, 1), 20, 21),
    ]
    assert truth.crossings(boxes, threshold=0.5) == [truth.Crossing((0, 1), 4, 13)]
    assert truth.crossings(boxes[:0]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "0 frames; it needs at least 1"),
        ({"animals": 5}, "5 animals; give 1 to 4"),
        ({"animals": 0}, "0 animals"),
        ({"size": (100, 200)}, "100x200 px; both sides must be even and at least 128"),
        ({"size": (129, 200)}, "129x200 px; both sides must be even"),
        ({"fps": 2}, "2 frames a second; give 5 to 240"),
        ({"seed": -1}, "seed -1"),
        ({"leaves": True}, "10 frames: to leave and come back takes an animal 300 frames"),
    ],
)
def test_what_cannot_be_rendered_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Film(**{"frames": 10, **options})  # type: ignore[arg-type]


def test_damaged_truth_is_named(tmp_path: Path) -> None:
    path = tmp_path / "film.truth.csv"
    with pytest.raises(DataError, match="No such file"):
        truth.read_truth(path)
    path.write_text("frame,animal\n")
    with pytest.raises(DataError, match="not the columns"):
        truth.read_truth(path)
    path.write_text(truth.header(["nose"]) + "0,mouse1,black,1,2,3,4,5,6,2\n1,mouse1,black,1\n")
    with pytest.raises(DataError, match=r"csv:3: not 10 values"):
        truth.read_truth(path)
    path.write_text(truth.header(["nose"]))
    assert truth.read_truth(path, 4).boxes.shape == (4, 0, 4)


def test_command_line(tmp_path: Path, fasthg) -> None:
    folder = tmp_path / "out"
    size = ["--width", 128, "--height", 128]
    code, out, err = fasthg("data", "synth", folder, "--film", 3, *size, "--animals", 3)
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == [str(folder / "film.mp4"), str(folder / "film.truth.csv")]
    assert out.splitlines()[2].startswith("3 frames, ")
    assert truth.read_truth(folder / "film.truth.csv").animals == ("mouse1", "mouse2", "mouse3")
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([folder, "--film", 0], "error: a film of 0 frames"),
        ([folder, "--film", 3, "--animals", 9], "9 animals; give 1 to 4"),
        ([tmp_path / "file", "--film", 3], "file: is a file; give a folder"),
        ([folder, "--film", 3, "--val", 3], "--val: not with --film"),
        ([folder, "--animals", 3], "--animals: for films only"),
    ):
        code, _, err = fasthg("data", "synth", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1
