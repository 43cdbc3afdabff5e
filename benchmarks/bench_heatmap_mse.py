"""Loss of 8 stacks and its gradient: 32 instances, 7 parts, 64 x 64 cells, parts last."""

from __future__ import annotations

import torch
from compare import compare

from fasthg.ops import heatmap_mse

STACKS, BATCH, PARTS, SIZE = 8, 32, 7, 64
# The loss reads the predictions; the backward reads them again and writes the gradient.
BYTES = 3 * STACKS * BATCH * PARTS * SIZE * SIZE * 4


@compare("draw, then MSE", "fasthg", bytes_moved=BYTES)
def bench_heatmap_mse(device):
    random = torch.Generator().manual_seed(0)
    keypoints = (torch.rand(BATCH, PARTS, 2, generator=random) * SIZE).to(device)
    sigmas = torch.tensor([1.5, 2, 2, 3, 3, 3, 3], device=device)
    predictions = torch.randn(STACKS, BATCH, SIZE, SIZE, PARTS, generator=random).to(device)
    predictions = predictions.permute(0, 1, 4, 2, 3).requires_grad_()
    cells = torch.arange(SIZE, device=device)

    def draw_then_mse():
        x, y = keypoints.round()[..., None, None].unbind(2)
        square = (cells - x) ** 2 + (cells[:, None] - y) ** 2
        targets = torch.exp(-square / (2 * sigmas[:, None, None] ** 2))
        loss = (predictions - targets).square().sum((2, 3, 4)) / 2
        return torch.autograd.grad(loss.sum(), predictions)

    def fused():
        return torch.autograd.grad(heatmap_mse(predictions, keypoints, sigmas).sum(), predictions)

    return {"draw, then MSE": draw_then_mse, "fasthg": fused}
