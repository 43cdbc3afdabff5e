"""Frames as pictures: those with the largest errors, and some drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fasthg.config import Config
from fasthg.data.convert.images import decode
from fasthg.inference.plots import draw_instance
from fasthg.report.evaluate import Evaluation, worst_rows

Pixels = NDArray[Any]

_QUALITY = 82


def worst_frames(evaluation: Evaluation, config: Config, count: int) -> list[tuple[bytes, str]]:
    """JPEG and caption of the frames with the largest mean error of an animal, the worst first.

    A frame is shown once, at its worst animal; one that cannot be decoded is left out.
    """
    rows = worst_rows(evaluation.predictions, len(evaluation.predictions))
    return _frames(evaluation, config, rows, count)


def random_frames(
    evaluation: Evaluation, config: Config, count: int, seed: int
) -> list[tuple[bytes, str]]:
    """JPEG and caption of frames of labelled animals drawn at random, each around that animal.

    A frame is shown once; one that cannot be decoded is left out.
    """
    labelled = np.isfinite(evaluation.predictions.errors()).any(axis=1)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(labelled))
    return _frames(evaluation, config, rows.tolist(), count)


def _frames(
    evaluation: Evaluation, config: Config, rows: Sequence[int], count: int
) -> list[tuple[bytes, str]]:
    """The first frames of these rows of the predictions, once each."""
    predictions, index = evaluation.predictions, evaluation.index
    distances, names = predictions.errors(), config.PARTS.NAMES
    found: list[tuple[bytes, str]] = []
    seen: set[int] = set()
    for row in rows:
        instance = int(predictions.instance[row])
        record = int(index.record[instance])
        if len(found) == count:
            break
        if record in seen:
            continue
        seen.add(record)
        image = decode(index.jpeg(record))
        if image is None:
            continue
        known = np.flatnonzero(~np.isnan(distances[row]))
        worst = int(known[np.argmax(distances[row, known])])
        mean = distances[row, known].mean()
        name = index.image_id(record) or index.describe_record(record)
        caption = (
            f"{mean:.1f} px; worst {names[worst]}, {distances[row, worst]:.1f} px at a peak of "
            f"{predictions.scores[row, worst]:.2f}; {name} #{index.object_number[instance]}"
        )
        found.append((_picture(image, evaluation, row, config), caption))
    return found


def _picture(image: Pixels, evaluation: Evaluation, row: int, config: Config) -> bytes:
    """The animal of a row of the predictions, with its parts, as JPEG."""
    crop = draw_instance(image, evaluation.index, evaluation.predictions, row, config)
    return bytes(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())
