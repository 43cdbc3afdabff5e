"""Decoding: 32 instances, 7 parts, 64 x 64 cells."""

from __future__ import annotations

import pytest
import torch

from fasthg.ops import heatmap_peaks, reference

BATCH, PARTS, SIZE = 32, 7, 64
BYTES = BATCH * PARTS * SIZE * SIZE * 4  # the maps are read once
METHODS = ["argmax", "quarter", "dark", "plateau"]
FLOORS = {"dark": 2.5, "quarter": 2.5}


def providers(device, method):
    maps = torch.rand(BATCH, PARTS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    maps = maps.to(device)
    return {
        "torch": lambda: reference.heatmap_peaks(maps, method),
        "fasthg": lambda: heatmap_peaks(maps, method),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("provider", ["torch", "fasthg"])
def bench_heatmap_peaks(benchmark, bench, provider, method):
    bench.row(benchmark, providers(bench.device, method)[provider], BYTES)


@pytest.mark.parametrize("method", FLOORS)
def bench_heatmap_peaks_ratio(bench, method):
    bench.check(providers(bench.device, method), {"torch": FLOORS[method]})
