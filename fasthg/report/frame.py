"""Pictures of one frame of an evaluation: labels and predictions, and the heatmaps behind them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fasthg.config import Config
from fasthg.data.convert.images import decode
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.opencv_loader import PortableLoader
from fasthg.data.sampler import BatchSampler
from fasthg.drawing.crops import sheet
from fasthg.drawing.marks import BLACK, WHITE, Pixels, draw_line, fine
from fasthg.drawing.palette import part_colours
from fasthg.errors import DataError
from fasthg.inference.plots import compare_parts, save_picture
from fasthg.inference.predictor import Forward, Predictions
from fasthg.report.evaluate import Evaluation, check_frame
from fasthg.runs.run_folder import RunFolder
from fasthg.runs.weights import WeightsFile, load_model
from fasthg.runtime.device import choose_device, choose_precision

_FRAME = 900  # px, least length of a frame's longer side
_CELL = 256  # px, about the side of a heatmap's picture
_RED, _LABEL = (255, 0, 0), (0, 255, 255)


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
    save_picture(_frame(image, index, predictions, rows, config), paths[0])
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
            title = f"{index.image_id(number)} #{animal}: heatmaps"
            picture = draw_heatmaps(batch.images[0].numpy(), heatmaps, labels, config, title)
            paths.append(stem.with_name(f"{stem.name}_animal{animal}_heatmaps.png"))
            save_picture(picture, paths[-1])
    finally:
        loader.close()
    return paths


def _frame(
    image: Pixels,
    index: RecordIndex,
    predictions: Predictions,
    rows: NDArray[np.int64],
    config: Config,
) -> Pixels:
    """The whole frame as RGB; a small one is enlarged.

    image: BGR uint8 (height, width, 3). rows: of the predictions, its animals.
    """
    scale = max(1.0, _FRAME / max(image.shape[:2]))
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    picture = np.ascontiguousarray(picture[..., ::-1])
    # Sides are rounded to whole px.
    scales = np.array(picture.shape[1::-1]) / image.shape[1::-1]
    colours = part_colours(config.PARTS)
    for row in rows:
        labelled = predictions.visibility[row] > 0
        true = np.where(labelled[:, None], predictions.truth[row], np.nan) * scales
        radius = max(5.5, max(picture.shape[:2]) / 180)
        compare_parts(picture, true, predictions.keypoints[row] * scales, colours, radius)
    name = index.image_id(int(index.record[predictions.instance[rows[0]]]))
    head = [name, "Ring: label; cross: prediction; the line between is the error."]
    return sheet([(picture, "")], 1, head, config.PARTS.NAMES, colours)


def draw_heatmaps(
    image: Pixels,
    heatmaps: NDArray[np.float32],
    labels: NDArray[np.floating],
    config: Config,
    title: str,
) -> Pixels:
    """Heatmaps over the crop: a line a stack, a column a part, the last line the network's answer.

    Values are shown from 0 to 1, the higher the more red. Under each picture: the height of the
    peak, and how far it is from the label, in heatmap cells. White strokes point at the peak, and
    a ring lies around the label.

    Args:
        image: RGB (input, input, 3), grey levels.
        heatmaps: (stacks, parts, heatmap, heatmap).
        labels: (parts, 2) heatmap cells, NaN where unlabelled.

    Returns:
        uint8 RGB (height, width, 3).
    """
    cells = heatmaps.shape[-1]
    side = cells * max(1, round(_CELL / cells))
    crop = cv2.resize(
        np.asarray(image).round().astype(np.uint8), (side, side), interpolation=cv2.INTER_AREA
    )
    pictures = []
    for maps in heatmaps:
        for part, heatmap in enumerate(maps):
            picture, told = _heatmap(crop, heatmap, labels[part])
            pictures.append((picture, f"{config.PARTS.NAMES[part]}: {told}"))
    key = "Red: the heatmap, from 0 to 1; white: its peak; ring: the label. A line a stack."
    return sheet(pictures, heatmaps.shape[1], [title, key])


def _heatmap(
    crop: Pixels, heatmap: NDArray[np.float32], label: NDArray[np.floating]
) -> tuple[Pixels, str]:
    """One heatmap over the crop, RGB uint8 (side, side, 3), and its peak in words."""
    cells, side = len(heatmap), len(crop)
    cell = side / cells
    # The value of a cell is that at its number: cell 0 is the crop's corner.
    # OpenCV counts from pixel centres.
    warp = np.array([[cell, 0, -0.5], [0, cell, -0.5]])
    shown = cv2.warpAffine(
        heatmap.clip(0, 1),
        warp,
        (side, side),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )[..., None]
    picture = (crop * (1 - shown) + np.array(_RED) * shown + 0.5).astype(np.uint8)
    y, x = np.unravel_index(int(heatmap.argmax()), heatmap.shape)
    _outline(picture, np.array([x, y]) * cell, np.asarray(label, float) * cell)
    away = float(np.hypot(*(label - (x, y))))
    off = "no label" if np.isnan(away) else f"{away:.1f} cells off"
    return picture, f"{heatmap.max():.2f}, {off}"


def _outline(picture: Pixels, peak: NDArray[np.floating], label: NDArray[np.floating]) -> None:
    """Thin marks that leave the heatmap visible: strokes towards the peak, a ring about the label.

    peak, label: px of the picture; a label at NaN has no ring.
    """
    if np.isfinite(label.sum()):
        for colour, width in ((BLACK, 3), (_LABEL, 1)):
            cv2.circle(picture, fine(label), 12 << 4, colour, width, cv2.LINE_AA, 4)
    for step in np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]):
        draw_line(picture, [peak + 5 * step, peak + 11 * step], WHITE)
