"""Rows as files of text: tidy CSV, MARS's json and COCO's results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fasthg.inference.video import hdf5
from fasthg.inference.video.row_store import Rows

_PX, _SCORE = 3, 5
"""Decimals of coordinates (px) and scores."""


def write_csv(rows: Rows, path: Path) -> None:
    """One line a part: frame, time_s, animal, part, x, y, score, and the image's name for images.

    Empty cells are what is not there.
    """

    def cell(value: float, digits: int) -> str:
        return "" if np.isnan(value) else f"{value:.{digits}f}"

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        extra = ["image"] if rows.names else []
        writer.writerow(["frame", "time_s", "animal", "part", "x", "y", "score", *extra])
        for frame in range(len(rows)):
            time = cell(float(rows.times[frame]), 6)
            name = [rows.names[frame]] if rows.names else []
            points, scores = rows.keypoints[frame].tolist(), rows.scores[frame].tolist()
            for animal, xy, heights in zip(rows.animals, points, scores, strict=True):
                for part, (x, y), height in zip(rows.parts, xy, heights, strict=True):
                    cells = [cell(x, _PX), cell(y, _PX), cell(height, _SCORE)]
                    writer.writerow([rows.first + frame, time, animal, part, *cells, *name])


def write_mars(rows: Rows, path: Path) -> None:
    """`keypoints[frame][animal][x|y][part]`, `scores[frame][animal][part]`, `bbox[frame][animal]`
    divided by width and height, `bscores[frame][animal]`.

    MARS knows no gaps: a frame without keypoints repeats those before it (the first ones, those of
    the first frame that has them) with scores 0. So do frames before the first that was asked for.
    """
    rows = rows.from_zero()
    parts: npt.NDArray[np.bool_] = np.all(np.isfinite(rows.keypoints), axis=3)
    there: npt.NDArray[np.bool_] = np.any(parts, axis=2)
    sizes = rows.sizes[:, None, [0, 1, 0, 1]].clip(1)
    boxes = (rows.boxes / sizes).clip(0, 1)
    # A part alone is missing where a filter left it out.
    each = rows.keypoints.reshape(len(rows), -1, 2).round(_PX)
    points = _filled(each, parts.reshape(len(rows), -1)).reshape(rows.keypoints.shape)
    content = {
        "keypoints": points.swapaxes(2, 3).tolist(),
        "scores": np.where(parts, rows.scores, 0).astype(float).round(_SCORE).tolist(),
        "bbox": _filled(boxes.round(6), there).tolist(),
        "bscores": there.astype(float).tolist(),
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _filled(
    values: npt.NDArray[np.float64], there: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """values (frames, n, ...), there (frames, n): gaps filled from the frame before, then after,
    else 0."""
    frames = np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(there, frames, -1), axis=0)
    first = np.where(there.any(axis=0), there.argmax(axis=0), 0)
    filled = values[np.where(before >= 0, before, first), np.arange(values.shape[1])]
    return np.nan_to_num(filled)


def write_coco(rows: Rows, path: Path) -> None:
    """Results as COCO's tools load them: one entry an animal and frame that has keypoints.

    `image_id` is the id in the COCO file of the boxes, else the frame's number. A keypoint is x, y
    and its score, or 0 0 0 where a filter left it out; `score` is their mean.
    """
    results: list[dict[str, Any]] = []
    for frame in range(len(rows)):
        for animal in range(len(rows.animals)):
            points, heights = rows.keypoints[frame, animal], rows.scores[frame, animal]
            there = np.isfinite(points).all(axis=1)
            if not there.any():
                continue
            points, heights = (np.where(there, each.T, 0).T for each in (points, heights))
            x1, y1, x2, y2 = rows.boxes[frame, animal].tolist()
            flat = np.concatenate([points.round(_PX), heights[:, None]], axis=1).ravel()
            results.append(
                {
                    "image_id": rows.image_ids.get(rows.first + frame, rows.first + frame),
                    "category_id": 1,
                    "keypoints": flat.tolist(),
                    "score": float(heights.mean()),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    path.write_text(json.dumps(results), encoding="utf-8")


class Format(NamedTuple):
    """suffix: added to the source's name. modules: packages it needs, and the extra with them."""

    suffix: str
    write: Callable[[Rows, Path], None]
    modules: tuple[str, ...] = ()
    extra: str = ""


FORMATS: dict[str, Format] = {
    "csv": Format(".pose.csv", write_csv),
    "mars": Format(".mars.json", write_mars),
    "coco": Format(".coco.json", write_coco),
    "dlc_h5": Format(".dlc.h5", hdf5.write_dlc, ("pandas", "tables"), "dlc"),
    "sleap_h5": Format(".analysis.h5", hdf5.write_sleap, ("h5py",), "predict"),
    "netcdf": Format(".poses.nc", hdf5.write_netcdf, ("h5py",), "predict"),
}
