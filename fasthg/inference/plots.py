"""Pictures of predicted against annotated parts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.drawing.palette import part_colours
from fasthg.files import write_atomically
from fasthg.inference.predictor import Predictions

MARGIN = 0.6
"""Image shown around the annotated box, as a fraction of its longer side."""


def part_colors(config: Config) -> list[str]:
    """`palette.part_colours` as matplotlib takes them."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in part_colours(config.PARTS)]


def draw_instances(
    index: RecordIndex,
    predictions: Predictions,
    rows: Sequence[int],
    config: Config,
    title: str,
    columns: int = 4,
) -> Figure:
    """A grid of instances: rings are annotations, crosses predictions, joined by their error.

    Args:
        index: where images and annotations come from.
        predictions: of any number of instances.
        rows: which of them to draw.
        config: names and colours of the parts.
        title: above the grid.
    """
    columns = max(1, min(columns, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    figure = Figure(figsize=(3.0 * columns, 3.0 * lines + 0.9), dpi=110, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    colors = part_colors(config)
    for axis in axes:
        axis.set_axis_off()
    for axis, row in zip(axes, rows, strict=False):
        _draw_instance(axis, index, predictions, row, colors)
    handles = [
        matplotlib.lines.Line2D([], [], color=c, marker="x", linestyle="", label=n)
        for n, c in zip(config.PARTS.NAMES, colors, strict=True)
    ]
    figure.suptitle(f"{title}\nring: annotated, cross: predicted", fontsize=10)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=8, facecolor="0.75"
    )
    return figure


def _draw_instance(
    axis: matplotlib.axes.Axes,
    index: RecordIndex,
    predictions: Predictions,
    row: int,
    colors: Sequence[str],
) -> None:
    instance = int(predictions.instance[row])
    record = int(index.record[instance])
    try:
        image = np.asarray(Image.open(io.BytesIO(index.jpeg(record))).convert("RGB"))
    except (UnidentifiedImageError, OSError):
        return
    height, width = image.shape[:2]
    x1, y1, x2, y2 = index.bbox[instance] * np.array([width, height, width, height])
    half = (0.5 + MARGIN) * max(x2 - x1, y2 - y1, 8.0)
    centre = (x1 + x2) / 2, (y1 + y2) / 2
    axis.imshow(image)
    axis.set_xlim(centre[0] - half, centre[0] + half)
    axis.set_ylim(centre[1] + half, centre[1] - half)
    errors = []
    labelled = predictions.visibility[row] > 0
    for part, color in enumerate(colors):
        px, py = predictions.keypoints[row, part]
        axis.plot(px, py, "x", color=color, markersize=6, markeredgewidth=1.6)
        if labelled[part]:
            tx, ty = predictions.truth[row, part]
            axis.plot([tx, px], [ty, py], "-", color=color, linewidth=0.8)
            axis.plot(tx, ty, "o", color=color, markersize=7, fillstyle="none")
            errors.append(float(np.hypot(px - tx, py - ty)))
    mean = f"{np.mean(errors):.1f} px" if errors else "no labels"
    axis.set_title(
        f"{index.image_id(record)[-24:]} #{index.object_number[instance]}  {mean}", fontsize=7
    )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    write_atomically(path, lambda p: figure.savefig(p, format="png"))


def as_array(figure: Figure) -> np.ndarray:
    """The figure's pixels, uint8 `(height, width, 3)`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    buffer.seek(0)
    return np.asarray(Image.open(buffer).convert("RGB"))
