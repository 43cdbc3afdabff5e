"""Pictures of one frame of an evaluation: labels and predictions, and the heatmaps behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fasthg.config import Config
from fasthg.data.convert.images import decode
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.opencv_loader import PortableLoader
from fasthg.data.sampler import BatchSampler
from fasthg.errors import DataError
from fasthg.inference.plots import part_colors, save_figure
from fasthg.inference.predictor import Forward, Predictions
from fasthg.report.evaluate import Evaluation, check_frame
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import WeightsFile, load_model
from fasthg.runtime.device import choose_device, choose_precision

_CELL = 1.6  # inches a side of a heatmap's picture
_INK = matplotlib.colors.LinearSegmentedColormap.from_list("heat", [(1, 0, 0, 0), (1, 0, 0, 1)])
"""Red, the more opaque the higher the heatmap."""


def picture_frame(
    run: RunFolder | WeightsFile, config: Config, evaluation: Evaluation, number: int
) -> list[Path]:
    """Draw one frame of what was evaluated, as MARS's notebook and its evaluation show them.

    Args:
        run: whose best weights make the heatmaps.
        evaluation: of the same run and configuration; the files lie in its folder.
        number: of the frame's record in the files, from 0.

    Returns:
        `frame_<number>.png`, the frame with the labels and predictions of all its animals; then for
        each animal `frame_<number>_animal<k>_heatmaps.png`, a row a stack and a column a part.

    Raises:
        ConfigError: there is no such frame, or a colour of PARTS.COLORS is none.
        DataError: its image cannot be read, or no animal is annotated in it.
    """
    index, predictions = evaluation.index, evaluation.predictions
    check_frame(index, evaluation.metrics["split"], number)
    rows = np.flatnonzero(index.record[predictions.instance] == number)
    image = decode(index.jpeg(number)) if len(rows) else None
    if image is None:
        raise DataError(
            f"--frame {number}: {index.describe_record(number)} has no animal that was evaluated; "
            "choose another"
        )
    stem = evaluation.folder / f"frame_{number:07d}"
    paths = [stem.with_suffix(".png")]
    save_figure(_frame(image[..., ::-1], index, predictions, rows, config), paths[0])
    device = choose_device(config.DEVICE)
    model = load_model(run.best, config)[0].to(device)
    forward = Forward(
        model, config, choose_precision(config.PRECISION, device, config.FEATURES).dtype
    )
    sampler = BatchSampler(
        index, config, training=False, seed=int(config.RANDOM_SEED), batch_size=1, final=True
    )
    loader = PortableLoader(sampler, 0)
    try:
        for row in rows.tolist():
            instance = int(predictions.instance[row])
            batch = next(loader.batches(instance, instance + 1))
            heatmaps = forward(batch.images.to(device))[:, 0].cpu().numpy()
            known = predictions.visibility[row] > 0
            labels = np.where(known[:, None], batch.keypoints[0].numpy(), np.nan)
            animal = int(index.object_number[instance])
            title = f"{index.image_id(number)} #{animal}: heatmaps, a row a stack"
            figure = draw_heatmaps(batch.images[0].numpy(), heatmaps, labels, config, title)
            paths.append(stem.with_name(f"{stem.name}_animal{animal}_heatmaps.png"))
            save_figure(figure, paths[-1])
    finally:
        loader.close()
    return paths


def _frame(
    image: NDArray[Any],
    index: RecordIndex,
    predictions: Predictions,
    rows: NDArray[np.int64],
    config: Config,
) -> Figure:
    """image: RGB (height, width, 3), px. rows: of the predictions, its animals."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(10, 10 * height / width + 1), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    # Positions count from the corner of a pixel.
    axis.imshow(image, extent=(0, width, height, 0))
    colors = part_colors(config)
    for row in rows:
        labelled = predictions.visibility[row] > 0
        for part, color in enumerate(colors):
            axis.plot(*predictions.keypoints[row, part], "x", color=color, ms=7, mew=1.8)
            if labelled[part]:
                axis.plot(*predictions.truth[row, part], "o", color=color, ms=8, fillstyle="none")
    name = index.image_id(int(index.record[predictions.instance[rows[0]]]))
    axis.set_title(f"{name}; ring: annotated, cross: predicted", fontsize=10)
    handles = [
        matplotlib.lines.Line2D([], [], color=c, marker="x", linestyle="", label=n)
        for n, c in zip(config.PARTS.NAMES, colors, strict=True)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, fontsize=8, facecolor="0.75"
    )
    return figure


def draw_heatmaps(
    image: NDArray[Any],
    heatmaps: NDArray[np.float32],
    labels: NDArray[np.floating],
    config: Config,
    title: str,
) -> Figure:
    """Heatmaps over the crop: a row a stack, a column a part, the last row the network's answer.

    Values are shown from 0 to 1. Under each picture: the height of the peak, and how far it is from
    the label, in heatmap cells. A cross marks the peak, a ring the label.

    Args:
        image: RGB (input, input, 3), grey levels.
        heatmaps: (stacks, parts, heatmap, heatmap).
        labels: (parts, 2) heatmap cells, NaN where unlabelled.
    """
    stacks, parts, cells = heatmaps.shape[:3]
    figure = Figure(
        figsize=(_CELL * parts, (_CELL + 0.3) * stacks + 0.6), dpi=110, layout="constrained"
    )
    axes = figure.subplots(stacks, parts, squeeze=False)
    # The value of a cell is that at its number: cell 0 is the crop's corner.
    crop, around = (0, cells, cells, 0), (-0.5, cells - 0.5, cells - 0.5, -0.5)
    for stack, row in enumerate(axes):
        for part, axis in enumerate(row):
            heatmap = heatmaps[stack, part]
            y, x = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
            axis.imshow(np.asarray(image).round().astype(np.uint8), extent=crop)
            axis.imshow(heatmap.clip(0, 1), cmap=_INK, vmin=0, vmax=1, extent=around)
            axis.plot(x, y, "x", color="white", ms=5)
            axis.plot(*labels[part], "o", color="cyan", ms=6, fillstyle="none")
            axis.set(xlim=(0, cells), ylim=(cells, 0), xticks=[], yticks=[])
            away = float(np.hypot(*(labels[part] - (x, y))))
            off = "no label" if np.isnan(away) else f"{away:.1f} cells off"
            axis.set_xlabel(f"{heatmap.max():.2f}, {off}", fontsize=6)
            if stack == 0:
                axis.set_title(config.PARTS.NAMES[part], fontsize=7)
        row[0].set_ylabel(f"stack {stack}", fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure
