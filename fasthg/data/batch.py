"""Batch: the tensors that a loader gives to a training step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fasthg.data.sampler import BatchSpec

READ_BY_STEP = ("images", "keypoints", "visibility", "sigmas")
"""What the network and its loss read; the rest of a batch is of use on the host alone."""


@dataclass(frozen=True)
class Batch:
    """Images and their annotations; the loss renders the targets."""

    images: Tensor
    """uint8 (batch, input, input, 3), RGB; float32 where crops are those of MARS's evaluation."""
    keypoints: Tensor
    """float32 (batch, parts, 2) heatmap cells; NaN = unlabelled."""
    visibility: Tensor
    """uint8 (batch, parts); 0 = no target."""
    sigmas: Tensor
    """float32 (batch, parts) heatmap cells."""
    crop_to_image: Tensor
    """float32 (batch, 2, 3) heatmap cells -> image px."""
    area: Tensor
    """float32 (batch,) image px²."""
    crop_area: Tensor
    """float32 (batch,) area of the padded crop, image px²."""
    instance: Tensor
    """int64 (batch,) rows of the RecordIndex."""

    def __len__(self) -> int:
        return len(self.instance)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with READ_BY_STEP on a device; tensors that are there already stay."""
        return self.replace(**{name: getattr(self, name).to(device) for name in READ_BY_STEP})

    def replace(self, **tensors: Tensor) -> Batch:
        """The batch with other tensors in the fields named."""
        return replace(self, **tensors)


def make_batch(images: Tensor, plan: BatchSpec) -> Batch:
    """A Batch from its images and the plan they were made by, row for row."""
    return Batch(
        images=images,
        keypoints=torch.from_numpy(plan.keypoints),
        visibility=torch.from_numpy(plan.visibility),
        sigmas=torch.from_numpy(plan.sigmas),
        crop_to_image=torch.from_numpy(plan.crop_to_image),
        area=torch.from_numpy(plan.area),
        crop_area=torch.from_numpy(plan.crop_area),
        instance=torch.from_numpy(plan.instances),
    )
