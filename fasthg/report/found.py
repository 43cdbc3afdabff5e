"""Evaluation with the boxes that a run's locator finds, in place of annotated ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from fasthg import metrics
from fasthg.config import Config
from fasthg.data.frame_sampler import class_numbers, whole_animals
from fasthg.data.index.record_index import RecordIndex
from fasthg.data.opencv_loader import decode_image
from fasthg.inference.locator import JudgedFrame, Locator, agreement, annotated, match_boxes
from fasthg.inference.predictor import Forward, Predictions
from fasthg.inference.video.keypoints import Predictor
from fasthg.inference.video.pipeline import Clock
from fasthg.model import StackedHourglass
from fasthg.runtime.device import choose_precision
from fasthg.words import counted

_TOGETHER = 16
"""Frames looked at together."""


def found_boxes(
    locator: Locator,
    model: StackedHourglass,
    index: RecordIndex,
    config: Config,
    predictions: Predictions,
) -> dict[str, Any]:
    """How well boxes are found, and the errors of poses in them beside those in annotated boxes.

    A found box is that of an annotated animal where they overlap by `locator.MATCH_IOU`; each has
    one at most. Errors are those of the animals that were found, in image px.

    Args:
        model: the pose network, in evaluation mode, on its device.
        index: the annotated frames; those whose image cannot be decoded are left out.
        predictions: of the same index, in annotated boxes.

    Returns:
        Numbers for `metrics.json`.
    """
    settings = locator.settings
    device = next(model.parameters()).device
    precision: torch.dtype = choose_precision(config.PRECISION, device, config.FEATURES).dtype
    looker = Predictor(Forward(model, config, precision), config, Clock())
    classes, whole = class_numbers(index, settings.classes), whole_animals(index)
    judged: list[JudgedFrame] = []
    instances, keypoints = [], []
    for records, images in _frames(index):
        found = locator.find(images, settings.most)
        found = [
            each.take(np.flatnonzero(each.scores >= settings.threshold)[: settings.most])
            for each in found
        ]
        poses = looker.look([(i, f.boxes) for i, f in zip(images, found, strict=True)])
        found, poses = looker.look_closely(images, found, poses, settings)
        for record, each, (points, _) in zip(records, found, poses, strict=True):
            own, truth = annotated(index, record)
            judged.append(JudgedFrame(each, truth, classes[own], whole[own]))
            for place, other, _ in match_boxes(each.boxes, truth):
                if not whole[own[other]]:
                    continue
                instances.append(int(own[other]))
                keypoints.append(points[place])
    result = agreement(judged, settings.threshold, settings.most)
    row = {int(instance): place for place, instance in enumerate(predictions.instance)}
    both = [
        (row[instance], points)
        for instance, points in zip(instances, keypoints, strict=True)
        if instance in row
    ]
    rows = np.array([place for place, _ in both], np.int64)
    given = predictions.errors()[rows]
    parts = index.num_parts
    mine = metrics.errors(
        np.array([points for _, points in both]).reshape(-1, parts, 2),
        predictions.truth[rows],
        predictions.visibility[rows],
    )
    return {
        "animals": result.animals,
        "found": result.found,
        "recall": result.found / result.animals if result.animals else None,
        "precision": result.found / (result.found + result.false)
        if result.found + result.false
        else None,
        "false": result.false,
        "frames": result.frames,
        "centre_error_px": result.centre_px,
        "mean_iou": result.overlap / result.found if result.found else None,
        "named_right": result.class_right if settings.told_apart else None,
        "threshold": settings.threshold,
        "error_px": asdict(metrics.spread(mine)),
        "error_px_given_boxes": asdict(metrics.spread(given)),
    }


def _frames(index: RecordIndex) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Records with an image that can be decoded, and their images, some together."""
    records: list[int] = []
    images: list[np.ndarray] = []
    for record in range(index.num_records):
        image = decode_image(index.jpeg(record)) if index.jpeg_length[record] else None
        if image is None:
            continue
        records.append(record)
        images.append(image)
        if len(records) == _TOGETHER:
            yield records, images
            records, images = [], []
    if records:
        yield records, images


def sentence(found: dict[str, Any]) -> str:
    """The result in one line."""
    if not found["animals"]:
        return "found boxes: no annotated animal"
    text = (
        f"boxes found by the locator: {found['found']} of {counted(found['animals'], 'animal')} "
        f"({found['recall']:.1%}), {found['false']} boxes more in "
        f"{counted(found['frames'], 'frame')}"
    )
    if found["named_right"] is not None:
        text += f", {found['named_right']} named right"
    mean, given = found["error_px"]["mean"], found["error_px_given_boxes"]["mean"]
    if found["found"] and mean is not None:
        text += (
            f"; centres {found['centre_error_px']:.1f} px off; mean error {mean:.2f} px, in the "
            f"annotated boxes {given:.2f} px"
        )
    return text
