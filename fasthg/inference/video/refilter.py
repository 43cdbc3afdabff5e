"""A film's finished table as rows once more, so that another filter needs no other prediction.

The table holds what was predicted, unfiltered, to a thousandth of a px. It has no boxes and no
sizes of frames: what is made of those (drawings, COCO, MARS) takes another prediction.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fasthg.inference.video.made_from import Record
from fasthg.inference.video.row_store import Rows


def finished_rows(
    before: Record | None,
    recorded: Mapping[str, Any],
    table: Path,
    source: Path,
    animals: Sequence[str],
    parts: Sequence[str],
    first: int,
) -> Rows | None:
    """Rows of a film's CSV; boxes NaN, sizes 0. None where it is not finished, was changed, or is
    of anything other than is asked for but for the filter.

    Args:
        before: the record beside the table.
        recorded: what would be recorded of a prediction now.
        first: number of the first row's frame.
    """
    if before is None or not before.finished or not before.unchanged("csv", table):
        return None
    if before.differs({key: value for key, value in recorded.items() if key != "filter"}):
        return None
    with table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if len(lines) != before.rows * len(animals) * len(parts):
        return None

    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(frames, animals, parts)."""
        values = [float(line[name] or "nan") for line in lines]
        return np.array(values).reshape(before.rows, len(animals), len(parts))

    return Rows(
        *(source, (), tuple(animals), tuple(parts)),
        times=column("time_s")[:, 0, 0],
        keypoints=np.stack([column("x"), column("y")], axis=-1),
        scores=column("score").astype(np.float32),
        boxes=np.full((before.rows, len(animals), 4), np.nan),
        sizes=np.zeros((before.rows, 2), np.int32),
        image_ids={},
        first=first,
    )
