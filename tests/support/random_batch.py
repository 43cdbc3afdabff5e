"""A batch of noise, in the shapes of a small network."""

from __future__ import annotations

import torch

from fasthg.data.batch import Batch


def batch(seed: int, size: int = 4) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.randint(0, 256, (size, 64, 64, 3), generator=random, dtype=torch.uint8),
        keypoints=torch.rand(size, 7, 2, generator=random) * 16,
        visibility=torch.full((size, 7), 2, dtype=torch.uint8),
        sigmas=torch.full((size, 7), 1.5),
        crop_to_image=torch.zeros(size, 2, 3),
        area=torch.ones(size),
        crop_area=torch.ones(size),
        instance=torch.arange(size),
    )
