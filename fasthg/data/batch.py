"""What a loader hands to a training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch

from fasthg.data.plan import BatchPlan


@dataclass(frozen=True)
class Batch:
    """Images and what is known about them; targets are rendered by the loss, not carried here."""

    images: torch.Tensor
    """uint8 (batch, input, input, 3), RGB."""
    keypoints: torch.Tensor
    """float32 (batch, parts, 2) heatmap cells; NaN = unlabelled."""
    visibility: torch.Tensor
    """uint8 (batch, parts); 0 = no target."""
    sigmas: torch.Tensor
    """float32 (batch, parts) heatmap cells."""
    crop_to_image: torch.Tensor
    """float32 (batch, 2, 3) heatmap cells -> image px."""
    area: torch.Tensor
    """float32 (batch,) image px²."""
    crop_area: torch.Tensor
    """float32 (batch,) area of the padded crop, image px²."""
    instance: torch.Tensor
    """int64 (batch,) rows of the RecordIndex."""

    def __len__(self) -> int:
        return len(self.instance)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on a device; tensors that are there already are not copied."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


def make_batch(images: torch.Tensor, plan: BatchPlan) -> Batch:
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
