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

from fasthg.ops import (
    bn_act,
    bn_act_inference,
    gaussian_heatmaps,
    heatmap_mse,
    heatmap_peaks,
    max_pool2x,
    paths,
    reference,
    rmsprop_ema,
    upsample2x_add,
)

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


def _maps(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Input, residual and incoming gradient, channels last."""
    random = torch.Generator().manual_seed(sum(shape))
    made = torch.randn(3, *shape, generator=random).to(dtype)
    x, residual, of_y = (t.contiguous(memory_format=torch.channels_last) for t in made)
    return x, residual, of_y


def run_bn_act(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Result and statistics with everything on; gradients without the ReLU, whose corner rounds."""
    for shape in SHAPES:
        x, residual, of_y = _maps(dtype, shape)
        beta = torch.linspace(-1, 1, shape[1], dtype=_wide(dtype))
        wanted = reference.bn_act(
            x.double(), beta.double(), None, residual.double(), relu=True, eps=1e-3
        )
        got = bn_act(x.to(device), beta.to(device), None, residual.to(device), relu=True)
        for result, right in zip(got, wanted, strict=True):
            close("bn_act", result, right, error)
        exact = [t.double().requires_grad_() for t in (x, beta)]
        reference.bn_act(*exact)[0].backward(of_y.double())
        given = [t.to(device).requires_grad_() for t in (x, beta)]
        for relu in (True, False):
            for t in given:
                t.grad = None
            bn_act(*given, relu=relu)[0].backward(of_y.to(device))
        for t, right in zip(given, exact, strict=True):
            assert t.grad is not None and right.grad is not None
            close("bn_act's gradient", t.grad, right.grad, 2 * error)


def run_bn_act_inference(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Given statistics, with residual and ReLU."""
    for shape in SHAPES:
        x, residual, _ = _maps(dtype, shape)
        mean, var, beta = torch.rand(3, shape[1], dtype=_wide(dtype)) + 0.5
        wide = [t.double() for t in (x, mean, var, beta)]
        wanted = reference.normalise(*wide, None, residual.double(), relu=True)
        there = [t.to(device) for t in (x, mean, var, beta)]
        got = bn_act_inference(*there, None, residual.to(device), relu=True)
        close("bn_act_inference", got, wanted, error)


def run_rmsprop_ema(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Every buffer, lengths off the vector width. The operator has no half types."""
    if dtype not in (torch.float32, torch.float64):
        return
    random = torch.Generator().manual_seed(2)
    weights, total = 1025, 1032
    values, averages = torch.rand(2, total, generator=random).to(dtype)
    gradient, squares, momenta = torch.rand(3, weights, generator=random).to(dtype)
    rate, share = torch.tensor([0.1, 0.3], dtype=dtype).split(1)
    numbers = {"decay": 0.9, "eps": 0.5, "momentum": 0.5, "weight_decay": 0.1, "decayed": 1001}
    results = []
    for place in (torch.device("cpu"), device):
        buffers = [t.to(place, copy=True) for t in (values, squares, momenta, averages)]
        rounded = torch.zeros(weights, dtype=torch.bfloat16, device=place)
        v, s, m, a = buffers
        if place is device:
            optional = {"momenta": m, "averages": a, "average_weight": share.to(place)}
            rmsprop_ema(
                v, gradient.to(place), s, rate.to(place), **optional, bfloat16=rounded, **numbers
            )
        else:
            reference.rmsprop_ema(
                v, gradient, s, m, a, rounded, rate, share, None, 1001, 0.1, 0.9, 0.5, 0.5
            )
        results.append([*buffers, rounded])
    for right, got in zip(*results, strict=True):
        close("rmsprop_ema", got, right, error if got.dtype == dtype else 1e-2)


def run_upsample2x_add(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Result and gradient, with vectors of channels and without."""
    for batch, channels, height, width in (*SHAPES, (2, 64, 8, 8)):
        _, high, of_y = _maps(dtype, (batch, channels, 2 * height, 2 * width))
        low = _maps(dtype, (batch, channels, height, width))[0]
        given = [t.to(device).requires_grad_() for t in (low, high)]
        y = upsample2x_add(*given)
        gradients = torch.autograd.grad(y, given, of_y.to(device))
        close("upsample2x_add", y, reference.upsample2x_add(low.double(), high.double()), error)
        wanted = reference.upsample2x_add_backward(of_y.double()), of_y
        for got, right in zip(gradients, wanted, strict=True):
            close("upsample2x_add's gradient", got, right, error)


def run_max_pool2x(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Result, index and gradient, which are exact; with vectors of channels and without."""
    for batch, channels, height, width in (*SHAPES, (2, 64, 9, 8)):
        x = _maps(dtype, (batch, channels, height, width))[0]
        of_y = _maps(dtype, (batch, channels, height // 2, width // 2))[0]
        given = x.to(device).requires_grad_()
        y, index = max_pool2x(given)
        (of_x,) = torch.autograd.grad(y, given, of_y.to(device))
        wanted, which = reference.max_pool2x(x)
        slope = reference.max_pool2x_backward(of_y, which, height, width)
        for got, right in ((y, wanted), (index, which), (of_x, slope)):
            assert torch.equal(got.cpu(), right), f"max_pool2x: wrong at {tuple(x.shape)}"


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


CASES: dict[str, Callable[[torch.device, torch.dtype, float], None]] = {
    "bn_act": run_bn_act,
    "bn_act_inference": run_bn_act_inference,
    "gaussian_heatmaps": run_gaussian_heatmaps,
    "heatmap_mse": run_heatmap_mse,
    "heatmap_peaks": run_heatmap_peaks,
    "max_pool2x": run_max_pool2x,
    "rmsprop_ema": run_rmsprop_ema,
    "upsample2x_add": run_upsample2x_add,
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
