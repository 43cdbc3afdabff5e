"""The frames with the largest errors, as pictures."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.convert.images import decode
from fasthg.drawing.palette import part_colours
from fasthg.report.evaluate import Evaluation, worst_rows

Pixels = NDArray[Any]

MARGIN = 0.2
"""Image shown around the annotated box, as a fraction of its longer side."""
_SIDE = 340  # px
_FINE = 4  # binary digits of a position below 1 px, as OpenCV draws
_QUALITY = 82


def worst_frames(evaluation: Evaluation, config: Config, count: int) -> list[tuple[bytes, str]]:
    """JPEG and caption of the frames with the largest mean error of an animal, the worst first.

    A frame is shown once, at its worst animal; one that cannot be decoded is left out.
    """
    predictions, index = evaluation.predictions, evaluation.index
    distances, names = predictions.errors(), config.PARTS.NAMES
    found: list[tuple[bytes, str]] = []
    seen: set[int] = set()
    for row in worst_rows(predictions, len(predictions)):
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
    predictions, index = evaluation.predictions, evaluation.index
    height, width = image.shape[:2]
    x1, y1, x2, y2 = index.bbox[predictions.instance[row]] * np.array([width, height] * 2)
    half = (0.5 + MARGIN) * max(x2 - x1, y2 - y1, 8.0)
    corner = np.array([(x1 + x2) / 2 - half, (y1 + y2) / 2 - half])
    scale = _SIDE / (2 * half)
    matrix = np.array([[scale, 0, -corner[0] * scale], [0, scale, -corner[1] * scale]])
    by_centre = geometry.from_pixel_centres(matrix)
    crop = cv2.warpAffine(
        image, by_centre, (_SIDE, _SIDE), flags=cv2.INTER_CUBIC, borderValue=(127, 127, 127)
    )
    # OpenCV draws from pixel centres, too.
    true = (predictions.truth[row] - corner) * scale - 0.5
    predicted = (predictions.keypoints[row] - corner) * scale - 0.5
    shown = (predictions.visibility[row] > 0) & np.isfinite(true).all(axis=1)
    # All rims first, so that none hides another part's mark.
    for rim in (True, False):
        for part, rgb in enumerate(part_colours(config.PARTS)):
            if np.isfinite(predicted[part]).all():
                _marks(crop, true[part] if shown[part] else None, predicted[part], rgb[::-1], rim)
    return bytes(cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


def _marks(
    crop: Pixels,
    true: NDArray[np.float64] | None,
    predicted: NDArray[np.float64],
    bgr: tuple[int, int, int],
    rim: bool,
) -> None:
    """A ring at the label, a cross at the prediction, a line between; black and wider as a rim."""
    colour, more = ((0, 0, 0), 2) if rim else (bgr, 0)
    if true is not None:
        cv2.line(crop, _fine(true), _fine(predicted), colour, 1 + more, cv2.LINE_AA, _FINE)
        radius = 5 << _FINE
        cv2.circle(crop, _fine(true), radius, colour, 2 + more, cv2.LINE_AA, _FINE)
    for sign in (-1, 1):
        reach = np.array([4.5, 4.5 * sign])
        ends = _fine(predicted - reach), _fine(predicted + reach)
        cv2.line(crop, *ends, colour, 2 + more, cv2.LINE_AA, _FINE)


def _fine(at: NDArray[np.float64]) -> tuple[int, int]:
    x, y = (np.clip(at, -9999, 9999) * (1 << _FINE)).round().astype(int).tolist()
    return x, y
