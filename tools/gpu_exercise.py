"""Every operator on small shapes, in every dtype and layout, against plain torch in float64.

Small enough to run under compute-sanitizer; shapes are odd, so that blocks have idle threads.
Inputs are made and results compared on the CPU: few kernels but our own run.

    python tools/gpu_exercise.py [--device cuda]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from fasthg.ops import gaussian_heatmaps, heatmap_mse, heatmap_peaks, paths, reference

# dtype -> error allowed, relative to the largest value.
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = [(1, 1, 1, 1), (2, 3, 13, 17), (3, 7, 64, 64)]  # (batch, parts, height, width)


def points(batch: int, parts: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints on and off the map, one NaN; sigmas; visibility. All float64, on the CPU."""
    random = torch.Generator().manual_seed(batch * parts)
    size = torch.tensor([width, height])
    keypoints = (
        torch.rand(batch, parts, 2, generator=random, dtype=torch.float64) * 1.4 - 0.2
    ) * size
    # A quarter off the grid: rounding to a cell is the same in every dtype.
    keypoints = keypoints.round() + 0.25
    keypoints[-1, -1] = torch.nan
    sigmas = torch.randint(2, 8, (batch, parts), generator=random) / 2.0
    visibility = (torch.rand(batch, parts, generator=random) > 0.2).to(torch.uint8) * 2
    return keypoints, sigmas.double(), visibility


def close(name: str, got: Tensor, wanted: Tensor, error: float) -> None:
    """Raise AssertionError unless `got` is `wanted` within `error` times its largest value."""
    got, wanted = got.cpu().double(), wanted.double()
    assert got.shape == wanted.shape, f"{name}: shape {tuple(got.shape)}"
    worst = (got - wanted).abs().max().item()
    limit = error * max(wanted.abs().max().item(), 1.0)
    assert worst <= limit, f"{name}: off by {worst:.3g}, allowed {limit:.3g}"


def run_gaussian_heatmaps(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Both layouts, rounded and sub-pixel centres."""
    for batch, parts, height, width in SHAPES:
        keypoints, sigmas, visibility = points(batch, parts, height, width)
        arguments = keypoints.to(device), sigmas.to(device), (height, width), visibility.to(device)
        for subpixel in (False, True):
            wanted = reference.gaussian_heatmaps(
                keypoints, sigmas, height, width, visibility, subpixel=subpixel
            )
            for layout in (torch.contiguous_format, torch.channels_last):
                got = gaussian_heatmaps(
                    *arguments, subpixel=subpixel, dtype=dtype, memory_format=layout
                )
                close("gaussian_heatmaps", got, wanted, error)


def run_heatmap_mse(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Loss and gradient, parts first and last."""
    for batch, parts, height, width in SHAPES:
        keypoints, sigmas, visibility = points(batch, parts, height, width)
        random = torch.Generator().manual_seed(1)
        values = torch.randn(2, batch, height, width, parts, generator=random).to(dtype)
        first = values.permute(0, 1, 4, 2, 3)
        targets = reference.gaussian_heatmaps(keypoints, sigmas, height, width, visibility)
        exact = first.double() - targets
        wanted = exact.square().sum((2, 3, 4)) / 2
        for maps in (first, first.contiguous()):
            predictions = maps.to(device).requires_grad_()
            given = keypoints.to(device), sigmas.to(device), visibility.to(device)
            loss = heatmap_mse(predictions, *given)
            (gradient,) = torch.autograd.grad(loss.sum(), predictions)
            close("heatmap_mse", loss, wanted, min(error, 1e-5))
            close("heatmap_mse's gradient", gradient, exact, error)


def run_heatmap_peaks(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """All four methods, both layouts, on maps whose peaks are known."""
    for batch, parts, height, width in SHAPES:
        keypoints, sigmas, _ = points(batch, parts, height, width)
        maps = reference.gaussian_heatmaps(keypoints, sigmas, height, width, subpixel=True)
        maps = maps.to(dtype)
        for method in ("argmax", "quarter", "dark", "plateau"):
            wanted = reference.heatmap_peaks(maps.to(_wide(dtype)), method)
            for layout in (torch.contiguous_format, torch.channels_last):
                laid = maps.to(device).contiguous(memory_format=layout)
                for got, right in zip(heatmap_peaks(laid, method), wanted, strict=True):
                    # Arithmetic is float32 at least, whatever the maps are.
                    close(f"heatmap_peaks {method}", got, right, max(min(error, 1e-3), 1e-4))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


CASES: dict[str, Callable[[torch.device, torch.dtype, float], None]] = {
    "gaussian_heatmaps": run_gaussian_heatmaps,
    "heatmap_mse": run_heatmap_mse,
    "heatmap_peaks": run_heatmap_peaks,
}


def main() -> int:
    """Run every case; 1 if an operator is wrong, or would not take its compiled kernel."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu; default cuda")
    device = torch.device(parser.parse_args().device)
    failed = False
    for row in paths():
        if row.device == device.type and row.path != "native":
            print(f"{row.op}: no compiled kernel for {device.type}: {row.reason}")
            failed = True
    for name, run in CASES.items():
        for dtype, error in DTYPES.items():
            try:
                run(device, dtype, error)
            except AssertionError as problem:
                print(f"{name} in {str(dtype).removeprefix('torch.')}: {problem}")
                failed = True
    print(f"{len(CASES)} operators in {len(DTYPES)} dtypes: {'FAILED' if failed else 'passed'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
