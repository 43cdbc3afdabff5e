"""Drawing targets: the stock batch of 32 instances, 7 parts, 64 x 64 cells."""

from __future__ import annotations

import numpy as np
import torch
from compare import compare

from fasthg.ops import gaussian_heatmaps

BATCH, PARTS, SIZE = 32, 7, 64
BYTES = BATCH * PARTS * SIZE * SIZE * 4  # the maps are written once


@compare("numpy loop", "torch", "fasthg", bytes_moved=BYTES)
def bench_gaussian_heatmaps(device):
    keypoints = torch.rand(BATCH, PARTS, 2, generator=torch.Generator().manual_seed(0)) * SIZE
    sigmas = torch.tensor([1.5, 2, 2, 3, 3, 3, 3])
    arrays = keypoints.numpy(), sigmas.numpy()
    keypoints, sigmas = keypoints.to(device), sigmas.to(device)
    cells = torch.arange(SIZE, device=device)

    def numpy_loop():
        """As MARS does: one map after the other, from a grid of coordinates."""
        maps = np.zeros((BATCH, SIZE, SIZE, PARTS), np.float32)
        for image, points in zip(maps, arrays[0], strict=True):
            for part, (x, y) in enumerate(np.round(points)):
                columns, rows = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
                square = (columns - x) ** 2 + (rows - y) ** 2
                image[..., part] = np.exp(-square / (2 * arrays[1][part] ** 2))
        return maps

    def in_torch():
        x, y = keypoints.round()[..., None, None].unbind(2)
        square = (cells - x) ** 2 + (cells[:, None] - y) ** 2
        return torch.exp(-square / (2 * sigmas[:, None, None] ** 2))

    return {
        "numpy loop": numpy_loop,
        "torch": in_torch,
        "fasthg": lambda: gaussian_heatmaps(keypoints, sigmas, SIZE),
    }
