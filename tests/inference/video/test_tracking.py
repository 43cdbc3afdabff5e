"""Which candidate is which animal, and which are believed."""

from __future__ import annotations

import numpy as np
import pytest

from fasthg.inference.locator import Found, LocatorSettings
from fasthg.inference.video.tracking import Animals, Candidates, Tracker, add_one_by_one

IMAGE = (400, 300)
SHAPE = np.array([[-20.0, -16], [0, 0], [20, 16], [0, 8]])
NOTHING = np.full((2, 4), np.nan)
SETTINGS = LocatorSettings(
    classes=("black", "white"),
    told_apart=True,
    most=2,
    threshold=0.3,
    sizes=(0.1, 0.12, 0.15),
    margin=(0.0, 0.0),
    pose_scores=(0.6, 0.8),
)
ALIKE = LocatorSettings(most=2, threshold=0.3, sizes=(0.1, 0.12, 0.15), pose_scores=(0.6, 0.8))


def box(x: float, y: float) -> list[float]:
    return [x - 24, y - 20, x + 24, y + 20]


def seen(*animals: tuple[float, float, int, float], pose: float = 0.8) -> Candidates:
    """Candidates at (x, y) of a class with a score."""
    centres = np.array([a[:2] for a in animals]).reshape(-1, 2)
    found = Found(
        np.array([box(x, y) for x, y in centres]).reshape(-1, 4),
        np.array([a[3] for a in animals], float),
        np.array([a[2] for a in animals], int),
    )
    return Candidates(found, centres[:, None] + SHAPE, np.full((len(animals), 4), pose))


def blind(boxes, expected):
    """Sees an animal in every box, none of them sure."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return centres[:, None] + SHAPE, np.full((len(boxes), 4), 0.1)


def sharp(boxes, expected):
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return centres[:, None] + SHAPE, np.full((len(boxes), 4), 0.8)


def follow(tracker: Tracker, candidates: Candidates, look=sharp, given=NOTHING) -> Animals:
    return tracker.follow(candidates, given, IMAGE, look)


def centre(rows: Animals, animal: int) -> list[float]:
    return rows.keypoints[animal, 1].round(3).tolist()


def test_a_class_is_an_identity_wherever_the_animal_appears() -> None:
    tracker = Tracker(SETTINGS, 2, 4)
    rows = follow(tracker, seen((100, 100, 1, 0.9), (300, 200, 0, 0.5)))
    assert (centre(rows, 0), centre(rows, 1)) == ([300, 200], [100, 100])
    # The white one is alone, where the black one was.
    rows = follow(tracker, seen((300, 200, 1, 0.9)), blind)
    assert np.isnan(rows.boxes[0]).all()
    assert centre(rows, 1) == [300, 200]


def test_animals_that_look_alike_keep_their_rows_through_a_crossing() -> None:
    tracker = Tracker(ALIKE, 2, 4)
    first = follow(tracker, seen((100, 140, -1, 0.9), (300, 160, -1, 0.8)))
    rows_of = [0, 1] if centre(first, 0) == [100, 140] else [1, 0]
    for step in range(1, 21):
        a, b = (100 + 10 * step, 140, -1, 0.7), (300 - 10 * step, 160, -1, 0.9)
        # The order of candidates says nothing.
        rows = follow(tracker, seen(*((a, b) if step % 2 else (b, a))))
        assert centre(rows, rows_of[0]) == [100 + 10 * step, 140], step
        assert centre(rows, rows_of[1]) == [300 - 10 * step, 160], step


class Pair:
    """Two animals that walk through each other, and a network that sees the upper one, unless the
    parts are expected where the other is and not taken by it."""

    def __init__(self, covered: bool) -> None:
        self.step, self.covered = 0, covered

    @property
    def centres(self) -> np.ndarray:
        return np.array([[150.0 + 5 * self.step, 140], [250 - 5 * self.step, 146]])

    def look(self, boxes, expected):
        poses = self.centres[:, None] + SHAPE
        seen, scores = [], []
        for row in range(len(boxes)):
            animal = 0
            if expected is not None and np.isfinite(expected.keypoints[row]).all():
                apart = np.abs(poses - expected.keypoints[row]).sum(axis=(1, 2))
                taken = expected.taken[row]
                animal = int(apart.argmin())
                for other in taken[np.isfinite(taken).all(axis=(1, 2))]:
                    animal = 1 - int(np.abs(poses - other).sum(axis=(1, 2)).argmin())
            hidden = animal == 1 and self.covered and abs(self.step - 10) < 3
            seen.append(poses[animal])
            scores.append(np.full(4, 0.1 if hidden else 0.8 - 0.1 * animal))
        return np.array(seen), np.array(scores)

    def candidates(self) -> Candidates:
        """One box between both while they are near, with a pose of neither."""
        if abs(self.step - 10) > 3:
            return seen(*((*centre, -1, 0.9) for centre in self.centres))
        return seen((*self.centres.mean(axis=0), -1, 0.9))


@pytest.mark.parametrize("covered", [False, True])
def test_what_is_found_between_two_animals_in_contact_is_neither(covered: bool) -> None:
    tracker, pair = Tracker(ALIKE, 2, 4), Pair(covered)
    first = follow(tracker, pair.candidates(), pair.look)
    rows_of = [0, 1] if centre(first, 0) == [150, 140] else [1, 0]
    for pair.step in range(1, 21):
        rows = follow(tracker, pair.candidates(), pair.look)
        for animal, row in enumerate(rows_of):
            if animal and covered and abs(pair.step - 10) < 3:
                assert np.isnan(rows.boxes[row]).all()
            else:
                assert centre(rows, row) == pair.centres[animal].tolist(), pair.step


def test_an_animal_that_stays_covered_has_no_row_and_is_found_elsewhere() -> None:
    tracker, there = Tracker(ALIKE, 2, 4), np.array([[150.0, 140], [190, 146]])

    def look(boxes, expected):
        """Sees the first animal only, wherever it looks."""
        taken = 0 if expected is None else expected.taken.shape[1]
        return np.repeat((there[:1] + SHAPE)[None], len(boxes), axis=0), np.full(
            (len(boxes), 4), 0.1 if taken else 0.8
        )

    first = follow(tracker, seen(*((*centre, -1, 0.9) for centre in there)), sharp)
    covered = 1 if centre(first, 0) == [150, 140] else 0
    for frame in range(40):
        rows = follow(tracker, seen((150, 140, -1, 0.9)), look)
        assert centre(rows, 1 - covered) == [150, 140], frame
        assert np.isnan(rows.boxes[covered]).all(), frame
    rows = follow(tracker, seen((150, 140, -1, 0.9), (320, 60, -1, 0.9)), look)
    assert (centre(rows, 1 - covered), centre(rows, covered)) == ([150, 140], [320, 60])


def test_a_class_decides_in_contact_too() -> None:
    tracker, pair = Tracker(SETTINGS, 2, 4), np.array([[150.0, 140], [160, 146]])
    follow(tracker, seen(*((*c, animal, 0.9) for animal, c in enumerate(pair))))
    for _ in range(10):

        def look(boxes, expected):
            return np.repeat((pair[1:] + SHAPE)[None], len(boxes), axis=0), np.full(
                (len(boxes), 4), 0.8
            )

        rows = follow(tracker, seen((*pair[1], 1, 0.9)), look)
        assert centre(rows, 1) == [160, 146]
        assert np.isnan(rows.boxes[0]).all()


def test_a_lost_animal_has_an_empty_row_and_comes_back() -> None:
    tracker = Tracker(ALIKE, 1, 4)
    given = NOTHING[:1]
    assert centre(follow(tracker, seen((100, 100, -1, 0.9)), given=given), 0) == [100, 100]
    for _ in range(20):
        rows = follow(tracker, seen(), blind, given)
        assert np.isnan(rows.boxes).all()
        assert np.isnan(rows.keypoints).all()
    assert centre(follow(tracker, seen((350, 40, -1, 0.9)), blind, given), 0) == [350, 40]


@pytest.mark.parametrize(
    ("score", "pose", "there"), [(0.2, 0.8, False), (0.9, 0.3, False), (0.9, 0.5, True)]
)
def test_an_animal_appears_only_with_a_centre_and_a_pose(score, pose, there) -> None:
    tracker = Tracker(ALIKE, 1, 4)
    rows = follow(tracker, seen((100, 100, -1, score), pose=pose), blind, NOTHING[:1])
    assert np.isfinite(rows.boxes).all() == there


def test_a_box_from_afar_must_beat_the_place_where_the_animal_was() -> None:
    given = NOTHING[:1]
    for pose, where in ((0.7, [100, 100]), (0.9, [300, 200])):
        tracker = Tracker(ALIKE, 1, 4)
        follow(tracker, seen((100, 100, -1, 0.9)), given=given)
        rows = follow(tracker, seen((300, 200, -1, 0.9), pose=pose), given=given)
        assert centre(rows, 0) == where


def test_one_animal_has_one_row() -> None:
    tracker = Tracker(SETTINGS, 2, 4)
    rows = follow(tracker, seen((100, 100, 0, 0.9), (101, 100, 1, 0.5)))
    assert np.isfinite(rows.boxes[0]).all()
    assert np.isnan(rows.boxes[1]).all()


def test_a_box_does_not_shrink_or_grow_at_once() -> None:
    tracker, given = Tracker(ALIKE, 1, 4), NOTHING[:1]
    for _ in range(5):
        follow(tracker, seen((100, 100, -1, 0.9)), given=given)
    small = seen((100, 100, -1, 0.9))
    small.found.boxes[0] = [95, 95, 105, 105]
    rows = follow(tracker, small, given=given)
    sides = rows.boxes[0, 2:] - rows.boxes[0, :2]
    assert np.sqrt(sides.prod()) >= 0.6 * np.sqrt(48 * 40) - 1e-6


def test_rows_bring_a_tracker_to_its_state() -> None:
    whole, resumed = Tracker(ALIKE, 2, 4), Tracker(ALIKE, 2, 4)
    for step in range(6):
        rows = follow(whole, seen((100 + 9 * step, 100, -1, 0.9), (300, 200 - 7 * step, -1, 0.8)))
        resumed.learn(rows)
    last = seen((154, 100, -1, 0.8), (300, 158, -1, 0.9))
    for one, other in zip(
        vars(follow(whole, last)).values(), vars(follow(resumed, last)).values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_images_have_the_most_certain_animals() -> None:
    three = seen((50, 50, -1, 0.9), (150, 150, -1, 0.8), (250, 250, -1, 0.4))
    rows = Animals.missing(2, 4)
    add_one_by_one(rows, three, ALIKE)
    assert [centre(rows, animal) for animal in range(2)] == [[50, 50], [150, 150]]
    classed = Animals.missing(2, 4)
    add_one_by_one(classed, seen((50, 50, 1, 0.9), (90, 90, 1, 0.5)), SETTINGS)
    assert np.isnan(classed.boxes[0]).all()
    assert centre(classed, 1) == [50, 50]


def test_setting_one_animal_right_leaves_the_other_to_what_is_found() -> None:
    """A person exchanges two animals that were exchanged, with one box."""
    tracker = Tracker(ALIKE, 2, 4)
    both = seen((100, 100, -1, 0.9), (300, 200, -1, 0.8))
    first = follow(tracker, both)
    other = 1 if centre(first, 0) == [100, 100] else 0
    given = NOTHING.copy()
    given[other] = box(100, 100)
    for frame in range(3):
        boxes = given if not frame else NOTHING
        rows = follow(tracker, both.apart_from(boxes), given=boxes)
        assert centre(rows, other) == [100, 100]
        assert centre(rows, 1 - other) == [300, 200]
