"""Pictures of predicted against annotated parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fasthg import geometry
from fasthg.config import Config
from fasthg.data.convert.images import decode
from fasthg.data.index.record_index import RecordIndex
from fasthg.drawing.crops import CAPTION, sheet, square_crop
from fasthg.drawing.lettering import shorten
from fasthg.drawing.marks import CROSS, RING, Mark, Pixels, draw_line, draw_marks
from fasthg.drawing.palette import Rgb, part_colours
from fasthg.files import write_bytes
from fasthg.inference.predictor import Predictions

MARGIN = 0.2
"""Image shown around the annotated box, as a fraction of its longer side."""
SIDE = 340
"""px of a picture of one animal."""


def draw_instances(
    index: RecordIndex,
    predictions: Predictions,
    rows: Sequence[int],
    config: Config,
    title: str,
    columns: int = 4,
) -> Pixels:
    """A grid of instances: rings are annotations, crosses predictions, joined by their error.

    Args:
        index: where images and annotations come from; instances without a readable image are left
            out.
        predictions: of any number of instances.
        rows: which of them to draw.
        config: names, colours and skeleton of the parts.
        title: above the grid.

    Returns:
        uint8 RGB (height, width, 3).
    """
    distances, cells = predictions.errors(), []
    for row in rows:
        record = int(index.record[predictions.instance[row]])
        image = decode(index.jpeg(record))
        if image is None:
            continue
        picture = draw_instance(image, index, predictions, row, config)
        known = distances[row][~np.isnan(distances[row])]
        mean = f"{known.mean():.1f} px" if len(known) else "no labels"
        name = shorten(index.image_id(record), CAPTION, SIDE - 110)
        animal = f"#{index.object_number[predictions.instance[row]]}"
        cells.append((picture[..., ::-1], f"{name} {animal}: {mean}"))
    head = [title, "Ring: label; cross: prediction; the line between is the error."]
    colours = part_colours(config.PARTS)
    return sheet(cells, columns, head, config.PARTS.NAMES, colours)


def draw_instance(
    image: Pixels, index: RecordIndex, predictions: Predictions, row: int, config: Config
) -> Pixels:
    """One animal of the predictions with its labels, cropped around its annotated box.

    image: BGR uint8 (height, width, 3), its frame. Returns BGR uint8 (SIDE, SIDE, 3).
    """
    height, width = image.shape[:2]
    box = index.bbox[predictions.instance[row]] * np.array([width, height] * 2)
    crop, to_crop = square_crop(image, box, MARGIN, SIDE)
    labelled = predictions.visibility[row] > 0
    true = geometry.apply(predictions.truth[row], to_crop)
    compare_parts(
        crop,
        np.where(labelled[:, None], true, np.nan),
        geometry.apply(predictions.keypoints[row], to_crop),
        [rgb[::-1] for rgb in part_colours(config.PARTS)],
        6.5,
    )
    return crop


def compare_parts(
    image: Pixels,
    labels: NDArray[np.float64],
    predicted: NDArray[np.float64],
    colours: Sequence[Rgb],
    radius: float,
) -> None:
    """Draw a ring at each label, a cross at each prediction and a line between.

    image: uint8 (height, width, 3), changed. labels, predicted: (parts, 2) px, NaN where there is
    none. colours: of the parts, in the order of the image's channels. radius: of a mark, px.
    """
    for true, found, colour in zip(labels, predicted, colours, strict=True):
        draw_line(image, [true, found], colour)
    marks = []
    for true, found, colour in zip(labels, predicted, colours, strict=True):
        marks.append(Mark(RING, float(true[0]), float(true[1]), colour, radius))
        marks.append(Mark(CROSS, float(found[0]), float(found[1]), colour, 0.7 * radius))
    draw_marks(image, marks)


def save_picture(picture: Pixels, path: Path) -> None:
    """Write a PNG atomically. picture: RGB uint8 (height, width, 3)."""
    write_bytes(path, cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
