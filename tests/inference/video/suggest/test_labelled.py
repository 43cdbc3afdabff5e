"""Which frames records hold, by their names and pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from fasthg.inference.video.suggest.labelled import SAME, labelled_frames


@pytest.mark.parametrize("labelling", [1], indirect=True)
def test_names_and_pictures_of_records(labelling) -> None:
    film = labelling.film
    known = labelled_frames(labelling.config, ["film"], [film.size])
    assert known.numbers == {"film": {3, 6}}
    assert known.note == ""
    pictures = {frame.number: frame.image for frame in film.frames()}
    # 18 and 34 are in records of another name; the animal moves 2 px a frame.
    assert [n for n, image in pictures.items() if known.has(image)] == [3, 6, 18, 34]
    worn = cv2.imencode(".jpg", pictures[18], [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
    assert known.has(cv2.imdecode(worn, cv2.IMREAD_COLOR))
    assert not known.has(np.clip(pictures[18].astype(int) + SAME + 2, 0, 255).astype(np.uint8))
    assert not known.has(cv2.resize(pictures[18], (128, 96)))
    other = labelled_frames(labelling.config, ["day2"], [(128, 96)])
    assert (other.numbers, dict(other.pictures)) == ({}, {})
