"""What MARS's notebooks read of an evaluation: `performance_pose.json`, and the PCK figure."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fasthg import metrics
from fasthg.config import Config
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.sampler import evaluation_transforms
from fasthg.drawing.crops import sheet
from fasthg.drawing.marks import BLACK, Pixels
from fasthg.files import write_text
from fasthg.inference.plots import save_picture
from fasthg.report.calibration import Floats
from fasthg.report.chart import Axis
from fasthg.report.evaluate import Evaluation
from fasthg.report.human import Human, people
from fasthg.report.raster import Band, Line, panel

log = logging.getLogger(__name__)

FILE, FIGURE = "performance_pose.json", "pck.png"
_COLUMNS = 4
_RADII = 201
_HUMAN = (0, 114, 178)


def write_performance(config: Config, evaluation: Evaluation) -> list[Path]:
    """Write `pose/<model>_evaluation/{performance_pose.json, pck.png}` of the run's project.

    In place of an older one. Nothing is written without MARS_PROJECT and POSE_MODEL, and for other
    data than the project's test records: the notebooks look its frames up there.

    Returns:
        The files written.

    Raises:
        FasthgError: one cannot be written.
    """
    project, model = config.MARS_PROJECT, config.POSE_MODEL
    if project is None or model is None or evaluation.metrics["split"] != "test":
        return []
    folder = Path(project) / "pose" / f"{model}_evaluation"
    write_text(folder / FILE, json.dumps(as_coco(config, evaluation)) + "\n")
    human, _ = people(project, config.PARTS.NAMES)
    picture = draw_pck(
        config.PARTS.NAMES,
        evaluation.predictions.errors(),
        float(max(config.PCK_RADII)),
        human,
        config.PIXELS_PER_CM,
    )
    save_picture(picture, folder / FIGURE)
    return [folder / FILE, folder / FIGURE]


def as_coco(config: Config, evaluation: Evaluation) -> dict[str, Any]:
    """`{gt_keypoints, pred_keypoints, partNames}` as MARS writes it, for its fork of the COCO API.

    An image is a frame, its id the integer in `image/id`, by which the notebooks find it; its
    animals share it. Category 1 has all parts, 2 and up a single one each; every animal has an
    entry in every category, because the notebooks ask for it. `keypoints` are x, y in image px and
    v: of labels their visibility, of predictions 1; 0, 0, 0 stands for what is missing. `bbox` (x,
    y, width, height) and `area` are those of the padded crop, by which MARS divides; `score` is the
    height of the peak, in category 1 the mean.
    """
    predictions = evaluation.predictions
    found = np.isfinite(predictions.keypoints).all(axis=2)
    labelled = np.isfinite(predictions.truth).all(axis=2) & (predictions.visibility > 0)
    points = _triples(predictions.keypoints, found.astype(int), found)
    truth = _triples(predictions.truth, predictions.visibility, labelled)
    scores = np.where(found & np.isfinite(predictions.scores), predictions.scores, 0.0)
    boxes = _crops(config, evaluation).tolist()
    images = _image_ids(evaluation.index)[predictions.instance].tolist()
    parts = truth.shape[1]
    categories = [slice(None), *(slice(part, part + 1) for part in range(parts))]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for row, image in enumerate(images):
        for category, chosen in enumerate(categories, 1):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "area": boxes[row][2] * boxes[row][3],
                    "bbox": boxes[row],
                    "iscrowd": 0,
                    "keypoints": truth[row, chosen].ravel().tolist(),
                    "num_keypoints": int(labelled[row, chosen].sum()),
                }
            )
            detections.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "keypoints": points[row, chosen].ravel().tolist(),
                    "score": float(scores[row, chosen].mean()),
                }
            )
    return {
        "gt_keypoints": {
            "annotations": annotations,
            "images": [{"id": image} for image in sorted(set(images))],
            "categories": [{"id": category} for category in range(1, parts + 2)],
        },
        "pred_keypoints": detections,
        "partNames": list(config.PARTS.NAMES),
    }


def _image_ids(index: RecordIndex) -> NDArray[np.int64]:
    """(animals,) the integer in `image/id` of each animal's frame.

    Where a frame has none, or two have the same, frames are counted from 1 instead, with a warning:
    the metrics are right, but the notebooks cannot show these frames.
    """
    numbers = index.image_number
    if (numbers < 0).any() or len(np.unique(numbers)) < len(numbers):
        log.warning(
            "%s: image/id is not a number of its own in each record, so MARS's notebooks cannot "
            "show single frames; convert the annotations again",
            ", ".join(index.files[:2]),
        )
        numbers = np.arange(1, index.num_records + 1)
    return np.asarray(numbers[index.record], np.int64)


def _triples(xy: Floats, v: NDArray[Any], known: NDArray[Any]) -> Floats:
    """(animals, parts, 3) x, y, v from (animals, parts, 2) and (animals, parts); 0 if not known."""
    return np.where(known[..., None], np.concatenate([xy, v[..., None]], axis=2), 0.0)


def _crops(config: Config, evaluation: Evaluation) -> Floats:
    """(animals, 4) x, y, width, height of the padded crops, image px."""
    index, rows = evaluation.index, evaluation.predictions.instance
    records = index.record[rows]
    crops = evaluation_transforms(
        config, index.bbox[rows], index.width[records], index.height[records]
    )
    # Where the heatmap's first cell lies is the crop's corner.
    return np.concatenate([crops.crop_to_image[:, :, 2].astype(float), crops.side], axis=1)


def draw_pck(
    names: Sequence[str],
    distances: Floats,
    limit: float,
    human: Human | None,
    scale: float | None,
) -> Pixels:
    """PCK over the radius, for all parts and for each, as MARS's notebooks draw it.

    Args:
        names: of the parts.
        distances: (instances, parts) image px, from `metrics.errors`.
        limit: largest radius, image px.
        human: the band of people, their middle dashed, where known.
        scale: image px in a cm; None draws pixels.

    Returns:
        uint8 RGB (height, width, 3).
    """
    radii = np.linspace(0.0, limit, _RADII)
    shares = metrics.pck(distances, radii)
    unit, per = ("pixels", 1.0) if scale is None else ("cm", scale)
    x, y = Axis(0.0, limit / per, ""), Axis(0.0, 1.0, "")
    panels = []
    for row, title in [(len(names), "all"), *enumerate(names)]:
        band = human.band(None if row == len(names) else title) if human else None
        lines, bands = [Line(radii / per, shares[:, row], BLACK, "model")], []
        if human is not None and band is not None:
            low, middle, high = band
            bands = [Band(human.radii / per, low, high, _HUMAN)]
            lines.insert(0, Line(human.radii / per, middle, _HUMAN, "median (human)", dashed=True))
        panels.append((panel(title, x, y, lines, bands, legend=row == len(names)), ""))
    head = [f"Share of correct keypoints (PCK) by error radius in {unit}"]
    return sheet(panels, _COLUMNS, head)
