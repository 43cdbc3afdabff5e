"""A film's mistakes are suggested, and what is labelled is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from moving_dots import Dots, DotsLocator, write_video

from fasthg.config.keys import Data
from fasthg.errors import ConfigError, DataError
from fasthg.inference.video.predict_source import Options
from fasthg.inference.video.suggest.doubts import SCORE
from fasthg.inference.video.suggest.suggest import as_json, suggest
from fasthg.inference.video.video_file import VideoSource

FRAMES, DIM, SHIFTED, LABELLED, SEEN_BEFORE = 40, 12, 21, (3, 6), 34


def test_mistakes_are_found_labelled_frames_are_not(labelling) -> None:
    found = labelling.choose()
    by_frame = {each.frame: each for each in found.frames}
    assert len(found.frames) == 6
    assert {DIM, SHIFTED} <= {*by_frame}
    assert (by_frame[DIM].reason, by_frame[DIM].about) == (SCORE, "blue")
    assert by_frame[SHIFTED].about in ("green", "red-green", "green-blue")
    assert sum(each.reason == "" for each in found.frames) == 1
    assert list(by_frame) == sorted(by_frame)
    times = np.array([each.time for each in found.frames])
    np.testing.assert_allclose(times, np.array(list(by_frame)) / 25)
    assert np.diff(times).min() >= 0.25 * 39 / 25 / 6 - 1e-9
    # Every frame is asked for: those left out are labelled, or have a labelled picture.
    every = labelling.choose(FRAMES)
    numbers = {each.frame for each in every.frames}
    assert not numbers & {*LABELLED, SEEN_BEFORE, 18}
    assert len(every.frames) < FRAMES
    assert any("2 labelled frames of these films" in note for note in every.notes)


def test_two_choices_of_one_seed_are_the_same(labelling) -> None:
    assert as_json(labelling.choose(seed=3)) == as_json(labelling.choose(seed=3))


@pytest.mark.parametrize("labelling", [2], indirect=True)
def test_animals_are_called_as_in_the_records(labelling) -> None:
    found = labelling.choose(4)
    assert found.rows[0].animals == ("left", "right")
    assert any("left, right" in note for note in found.notes)


def test_films_of_one_name_and_films_without_a_frame_to_label_are_refused(labelling) -> None:
    other = labelling.folder / "b"
    other.mkdir()
    twice = [labelling.film, VideoSource((labelling.film.path).replace(other / "film.mp4"))]
    with pytest.raises(ConfigError, match="2 films are called film"):
        labelling.choose(films=twice)


def test_a_film_whose_pictures_are_all_labelled_has_nothing_to_suggest(labelling) -> None:
    still = cv2.imread(str(labelling.folder / "lab/labeled-data/film/img03.png"))
    path = write_video(labelling.folder / "still.mp4", [still] * 12)
    with pytest.raises(DataError, match=r"still\.mp4: no frame is left to label"):
        labelling.choose(films=[VideoSource(path)])


def test_unreadable_records_are_told_of(labelling, config) -> None:
    settings = config.model_copy(update={"DATA": Data(TRAIN=["gone/train-*"])})
    found = suggest([labelling.film], 3, Dots(), settings, Options(), DotsLocator())  # type: ignore[arg-type]
    assert found is not None
    assert "labelled frames may be suggested again" in found.notes[0]
    assert "gone/train-*" in found.notes[0]


def test_stop_ends_without_a_choice(labelling) -> None:
    found = suggest(
        *([labelling.film], 3, Dots(), labelling.config, Options(), DotsLocator()),  # type: ignore[arg-type]
        stop=lambda: True,
    )
    assert found is None
