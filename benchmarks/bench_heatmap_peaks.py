"""Decoding: 32 instances, 7 parts, 64 x 64 cells."""

from __future__ import annotations

import torch
from compare import compare

from fasthg.ops import heatmap_peaks, reference

BATCH, PARTS, SIZE = 32, 7, 64
BYTES = BATCH * PARTS * SIZE * SIZE * 4  # the maps are read once
METHODS = ["argmax", "quarter", "dark", "plateau"]


@compare("torch", "fasthg", bytes_moved=BYTES, method=METHODS)
def bench_heatmap_peaks(device, method):
    maps = torch.rand(BATCH, PARTS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    maps = maps.to(device)
    return {
        "torch": lambda: reference.heatmap_peaks(maps, method),
        "fasthg": lambda: heatmap_peaks(maps, method),
    }
