"""From batches to keypoints in image px: forward pass, optional flip average, decode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasthg import geometry, metrics
from fasthg.config import Config
from fasthg.data.batch import Batch
from fasthg.data.index.record_index import RecordIndex
from fasthg.model import StackedHourglass, fold_batch_norm, normalise
from fasthg.model.loss import heatmap_loss
from fasthg.ops import heatmap_peaks
from fasthg.ops.heatmap_peaks import Method
from fasthg.runtime.cuda_graph import GraphedCallable
from fasthg.runtime.device import autocast


@dataclass(frozen=True)
class Predictions:
    """Predicted and annotated parts of `n` instances, in image px."""

    instance: np.ndarray
    """int64 `(n,)`: index into the RecordIndex."""
    keypoints: np.ndarray
    """float64 `(n, parts, 2)`: predicted x, y."""
    scores: np.ndarray
    """float32 `(n, parts)`: height of the heatmap's peak."""
    truth: np.ndarray
    """float64 `(n, parts, 2)`: annotated x, y; NaN where unlabelled."""
    visibility: np.ndarray
    """uint8 `(n, parts)`: 0 not visible, 1 occluded, 2 visible."""
    area: np.ndarray
    """float64 `(n,)`: annotated area, px²."""
    crop_area: np.ndarray
    """float64 `(n,)`: area of the padded crop, px²."""
    loss: float
    """Heatmap loss, summed over stacks, mean over instances."""

    def __len__(self) -> int:
        return len(self.instance)

    @classmethod
    def merged(cls, parts: Sequence[Predictions]) -> Predictions:
        """Those of several processes as one, in the order of the index."""
        if len(parts) == 1:
            return parts[0]
        order = np.argsort(np.concatenate([part.instance for part in parts]), kind="stable")
        arrays = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])[order]
            for field in fields(cls)
            if field.name != "loss"
        }
        total = sum(part.loss * len(part) for part in parts)
        return cls(**arrays, loss=total / max(len(order), 1))

    def errors(self) -> np.ndarray:
        """`metrics.errors` of these predictions, `(n, parts)` image px; NaN where unlabelled."""
        return metrics.errors(self.keypoints, self.truth, self.visibility)


def certainty(scores: np.ndarray) -> Any:
    """How certain poses are: the mean of the better half of their scores, `(...,)`.

    The other half may be covered. scores: `(..., parts)`; NaN where any is.
    """
    half = (scores.shape[-1] + 1) // 2
    return np.sort(scores, axis=-1)[..., -half:].mean(axis=-1)


def flip_back(heatmaps: Tensor, pairs: Sequence[Sequence[int]]) -> Tensor:
    """Heatmaps of mirrored images, as those of the images themselves.

    A keypoint at cell `u` lies at `width - u` in the mirrored crop, so mirrored maps move one
    cell to the right after `flip`.

    Args:
        heatmaps: `(batch, parts, height, width)`.
        pairs: left/right partners that change places.
    """
    order = list(range(heatmaps.shape[1]))
    for a, b in pairs:
        order[a], order[b] = b, a
    mirrored = heatmaps[:, order].flip(3)
    return torch.cat([mirrored[..., :1], mirrored[..., :-1]], dim=3)


@torch.no_grad()
def forward(
    model: StackedHourglass, images: Tensor, config: Config, precision: torch.dtype
) -> Tensor:
    """Heatmaps of all stacks, float32 `(stacks, batch, parts, height, width)`.

    Args:
        images: uint8 `(batch, height, width, 3)` on the model's device.
    """
    with autocast(images.device, precision):
        heatmaps: Tensor = model(normalise(images)).float()
        if config.FLIP_TEST:
            mirrored = model(normalise(images.flip(2))).float()
            pairs = config.PARTS.LEFT_RIGHT_PAIRS
            last = (heatmaps[-1] + flip_back(mirrored[-1], pairs)) / 2
            heatmaps = torch.cat([heatmaps[:-1], last[None]])
    return heatmaps


class Forward:
    """`forward` of one network, as fast as its device allows.

    Batch norm is folded into a copy's convolutions unless FUSED is off. On a GPU, images of a shape
    that came three times running are from then on replayed as a CUDA graph, unless STEP is eager.

    Args:
        model: in evaluation mode; its weights of now are used.
        precision: dtype of the forward pass.
    """

    def __init__(self, model: StackedHourglass, config: Config, precision: torch.dtype) -> None:
        folded = config.FUSED != "off"
        self.model = fold_batch_norm(model, precision) if folded else model
        self.config, self.precision = config, precision
        self.device = next(model.parameters()).device
        self._captures = self.device.type == "cuda" and config.STEP != "eager"
        self._replayed = GraphedCallable(self._run, self.device, eager=2)

    def __call__(self, images: Tensor) -> Tensor:
        """As `forward`; the next call may write over the result."""
        return self._replayed(images) if self._captures else self._run(images)

    def _run(self, images: Tensor) -> Tensor:
        return forward(self.model, images, self.config, self.precision)


def predict(
    model: StackedHourglass,
    batches: Iterable[Batch],
    index: RecordIndex,
    config: Config,
    precision: torch.dtype,
    *,
    methods: Sequence[Method] | None = None,
) -> dict[str, Predictions]:
    """Predict every instance of `batches`.

    Args:
        model: in evaluation mode; its device is used. See `Forward`.
        batches: not augmented.
        index: where the annotations come from.
        precision: dtype of the forward pass.
        methods: decodes of `heatmap_peaks`; config's DECODE where None.

    Returns:
        method -> predictions, all from one forward pass.
    """
    methods = [config.DECODE] if methods is None else methods
    run = Forward(model, config, precision)
    points: dict[str, list[np.ndarray]] = {m: [] for m in methods}
    scores: dict[str, list[np.ndarray]] = {m: [] for m in methods}
    instances, areas, crop_areas, loss = [], [], [], 0.0
    for batch in batches:
        batch = batch.to(run.device)
        heatmaps = run(batch.images)
        loss += float(
            heatmap_loss(
                *(heatmaps, batch.keypoints, batch.visibility, batch.sigmas),
                subpixel=config.SUBPIXEL_TARGETS,
                scaling=config.LOSS_SCALING,
            ).sum()
        ) * (len(batch.images) if config.LOSS_SCALING == "mean" else 1)
        matrices = batch.crop_to_image.double().numpy()
        instances.append(batch.instance.numpy())
        areas.append(batch.area.double().numpy())
        crop_areas.append(batch.crop_area.double().numpy())
        for method in methods:
            xy, score = heatmap_peaks(heatmaps[-1], method)
            points[method].append(geometry.apply(xy.double().cpu().numpy(), matrices))
            scores[method].append(score.float().cpu().numpy())
    parts = config.PARTS.NUM_PARTS
    instance = np.concatenate(instances) if instances else np.zeros(0, np.int64)
    return {
        method: Predictions(
            instance=instance,
            keypoints=np.concatenate(points[method]) if instances else np.zeros((0, parts, 2)),
            scores=np.concatenate(scores[method])
            if instances
            else np.zeros((0, parts), np.float32),
            truth=index.keypoints[instance].astype(np.float64),
            visibility=index.visibility[instance],
            area=np.concatenate(areas) if instances else np.zeros(0),
            crop_area=np.concatenate(crop_areas) if instances else np.zeros(0),
            loss=loss / max(len(instance), 1),
        )
        for method in methods
    }
