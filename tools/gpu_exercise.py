"""Every operator on small shapes, in every dtype and layout, against plain torch in float64.

Small enough to run under compute-sanitizer; shapes are odd, so that blocks have idle threads.
Inputs are made and results compared on the CPU: few kernels but our own run.

    python tools/gpu_exercise.py [--device cuda] [--only OPERATOR ...] [--without OPERATOR ...]
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
    bn_fold,
    bn_fold_backward,
    channel_covariance,
    conv1x1_act,
    conv3x3,
    gaussian_heatmaps,
    heatmap_mse,
    heatmap_peaks,
    max_pool2x,
    moving_statistics,
    paths,
    reference,
    residual_block,
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
    x, residual, grad_y = (t.contiguous(memory_format=torch.channels_last) for t in made)
    return x, residual, grad_y


# One launch each way; one for the forward and three for the backward; three each way.
NORM_SHAPES = [*SHAPES, (2, 16, 24, 24), (2, 16, 48, 64), (3, 16, 64, 64)]


def run_bn_act(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Result and statistics with everything on; gradients without the ReLU, whose corner rounds."""
    for shape in NORM_SHAPES:
        x, residual, grad_y = _maps(dtype, shape)
        beta = torch.linspace(-1, 1, shape[1], dtype=_wide(dtype))
        wanted = reference.bn_act(
            x.double(), beta.double(), None, residual.double(), relu=True, eps=1e-3
        )
        added = residual.to(device).requires_grad_()
        got = bn_act(x.to(device), beta.to(device), None, added, relu=True)
        for result, right in zip(got, wanted, strict=True):
            close("bn_act", result, right, error)
        (masked,) = torch.autograd.grad(got[0], added, grad_y.to(device))
        close("bn_act's residual", masked, grad_y.double() * (got[0] > 0).cpu(), 0)
        # Copies: a leaf of one device must not be the other's.
        exact = [t.to(torch.float64, copy=True).requires_grad_() for t in (x, beta)]
        reference.bn_act(*exact)[0].backward(grad_y.double())
        given = [t.to(device, copy=True).requires_grad_() for t in (x, beta)]
        for relu in (True, False):
            for t in given:
                t.grad = None
            bn_act(*given, relu=relu)[0].backward(grad_y.to(device))
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


def run_residual_block(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """With and without a skip convolution; in norm, since half types round between convolutions.

    Their gradients are off by some hundredths where a ReLU switches by that rounding.
    """
    grad_gradient = 5 * error if dtype in (torch.float32, torch.float64) else 0.2
    for channels, out in ((16, 16), (16, 40), (5, 5)):
        half = out // 2
        x, _, _ = _maps(dtype, (2, channels, 13, 7))
        _, _, grad_y = _maps(dtype, (2, out, 13, 7))
        random = torch.Generator().manual_seed(out)
        sizes = [(half, channels, 1, 1), (half,), (half, half, 3, 3), (half,), (out, half, 1, 1)]
        sizes += [(out,)] + ([] if out == channels else [(out, channels, 1, 1), (out,)])
        weights = [torch.randn(s, generator=random).to(_wide(dtype)) / s[0] ** 0.5 for s in sizes]
        results = []
        for function, place, as_dtype in (
            (reference.residual_block, "cpu", torch.float64),
            (residual_block, device, None),
        ):
            given = [t.to(place, as_dtype or t.dtype).requires_grad_() for t in (x, *weights)]
            y, statistics = function(*given)
            gradients = torch.autograd.grad(y, given, grad_y.to(y))
            values = [y, *(s for s in statistics if s.numel())]
            results.append(
                [(t, 5 * error) for t in values] + [(t, grad_gradient) for t in gradients]
            )
        for (right, _), (got, allowed) in zip(*results, strict=True):
            distance = (got.cpu().double() - right).norm() / right.norm().clamp(min=1.0)
            assert distance < allowed, f"residual_block: off by {distance:.3g}"


def run_moving_statistics(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Lengths on and off the vector width. The operator has no half types."""
    if dtype not in (torch.float32, torch.float64):
        return
    for count in (1, 1027, 2052):
        random = torch.Generator().manual_seed(count)
        running, batch, correction = torch.rand(3, count, generator=random).to(dtype)
        weight = torch.tensor(0.3, dtype=dtype)
        read = [t.to(device) for t in (batch, correction, weight)]
        moved = running.to(device, copy=True)
        moving_statistics(moved, *read)
        reference.moving_statistics(running, batch, correction, weight)
        close("moving_statistics", moved, running, error)


def run_channel_covariance(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Moments, with vector loads and without, of one tile and of several."""
    for shape in (*SHAPES, (2, 24, 31, 37), (2, 200, 9, 5), (1, 131, 5, 5)):
        x = _maps(dtype, shape)[0]
        wanted = reference.channel_covariance(x.double())
        # Arithmetic is float32 at least, whatever the maps are.
        for got, right in zip(channel_covariance(x.to(device)), wanted, strict=True):
            close("channel_covariance", got, right, min(error, 1e-5))


def run_bn_fold(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Both directions, from the same numbers; `dtype` is that of the folded matrices."""
    eps, real = 1e-3, _wide(dtype)
    for outputs, inputs in ((1, 1), (7, 13), (40, 130), (6, 300)):
        random = torch.Generator().manual_seed(inputs)
        a = torch.randn(97, inputs, generator=random, dtype=torch.float64) + 0.5
        d = torch.randn(97, outputs, generator=random, dtype=torch.float64)
        weight = torch.randn(outputs, inputs, generator=random, dtype=torch.float64) / inputs
        moments = a.mean(0), torch.cov(a.mT, correction=0).view(inputs, inputs)
        given = [t.to(real) for t in (weight, *moments, d[0], d.mT @ a / 97, d.sum(0) / 97)]
        *forward, product, total = (t.double() for t in given)
        wanted = reference.bn_fold(*forward, eps, torch.float64)
        statistics = (*forward[:3], *wanted[2:])
        slopes = reference.bn_fold_backward(product, total, *statistics, 97, eps, torch.float64)
        there = [t.to(device) for t in given]
        got = bn_fold(*there[:4], eps, dtype)
        statistics = (*there[:3], *got[2:])
        grad_weight, _, *others = bn_fold_backward(*there[4:], *statistics, 97, eps, dtype)
        # Offset and constant belong to the rounded matrices.
        back, mix, _ = (t.cpu().double() for t in others)
        wanted = (wanted[0], forward[3] - got[0].cpu().double() @ forward[1], *wanted[2:])
        slopes = (*slopes[:3], -(mix @ forward[1]) - back @ (total / 97))
        results = [*got, grad_weight, *others]
        for result, right in zip(results, [*wanted, *slopes], strict=True):
            close("bn_fold", result, right, 20 * error if result.dtype == dtype else 2e-4)


def run_conv1x1_act(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Everything on, and the gradients without the ReLU; rows with and without whole vectors."""
    for batch, parts, height, width in SHAPES:
        for inputs, inputs2, outputs in ((40, parts, 72), (parts, 8, 136)):
            x, *_ = _maps(dtype, (batch, inputs, height, width))
            x2, *_ = _maps(dtype, (batch, inputs2, height, width))
            _, residual, grad_y = _maps(dtype, (batch, outputs, height, width))
            random = torch.Generator().manual_seed(outputs)
            weight = (torch.randn(outputs, inputs, generator=random) / inputs**0.5).to(dtype)
            weight2 = (torch.randn(outputs, inputs2, generator=random) / inputs2**0.5).to(dtype)
            tensors = (x, weight, torch.linspace(-1, 1, outputs, dtype=_wide(dtype)), residual)
            results = []
            for relu in (True, False):
                exact, there = (
                    [t.to(place).detach().requires_grad_() for t in (*tensors, x2, weight2)]
                    for place in (torch.float64, device)
                )
                wanted, got = (
                    op(*t[:4], x2=t[4], weight2=t[5], relu=relu)
                    for op, t in ((reference.conv1x1_act, exact), (conv1x1_act, there))
                )
                close("conv1x1_act", got.detach(), wanted.detach(), error)
                results = [(got, there, grad_y.to(device)), (wanted, exact, grad_y.double())]
            gradients = (torch.autograd.grad(*result) for result in results)
            for gradient, right in zip(*gradients, strict=True):
                close("conv1x1_act's gradient", gradient, right, 2 * error)


def run_conv3x3(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Result and gradients, with whole panels of channels and tiles, and without."""
    for batch, parts, height, width in SHAPES:
        x, *_ = _maps(dtype, (batch, parts, height, width))
        _, grad_y, _ = _maps(dtype, (batch, 2 * parts, height, width))
        random = torch.Generator().manual_seed(parts)
        weight = (torch.randn(2 * parts, parts, 3, 3, generator=random) / 3 / parts**0.5).to(dtype)
        bias = torch.linspace(-1, 1, 2 * parts).to(dtype)
        results = []
        for place, op in ((device, conv3x3), (torch.float64, reference.conv3x3)):
            given = [t.to(place).detach().requires_grad_() for t in (x, weight, bias)]
            y = op(*given)
            results.append((y.detach(), *torch.autograd.grad(y, given, grad_y.to(place))))
        for got, right in zip(*results, strict=True):
            close("conv3x3", got, right, 2 * error)


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
        _, high, grad_y = _maps(dtype, (batch, channels, 2 * height, 2 * width))
        low = _maps(dtype, (batch, channels, height, width))[0]
        given = [t.to(device).requires_grad_() for t in (low, high)]
        y = upsample2x_add(*given)
        gradients = torch.autograd.grad(y, given, grad_y.to(device))
        close("upsample2x_add", y, reference.upsample2x_add(low.double(), high.double()), error)
        wanted = reference.upsample2x_add_backward(grad_y.double()), grad_y
        for got, right in zip(gradients, wanted, strict=True):
            close("upsample2x_add's gradient", got, right, error)


def run_max_pool2x(device: torch.device, dtype: torch.dtype, error: float) -> None:
    """Result, index and gradient, which are exact; with vectors of channels and without."""
    for batch, channels, height, width in (*SHAPES, (2, 64, 9, 8)):
        x = _maps(dtype, (batch, channels, height, width))[0]
        grad_y = _maps(dtype, (batch, channels, height // 2, width // 2))[0]
        given = x.to(device).requires_grad_()
        y, index = max_pool2x(given)
        (grad_x,) = torch.autograd.grad(y, given, grad_y.to(device))
        wanted, which = reference.max_pool2x(x)
        slope = reference.max_pool2x_backward(grad_y, which, height, width)
        for got, right in ((y, wanted), (index, which), (grad_x, slope)):
            assert torch.equal(got.cpu(), right), f"max_pool2x: wrong at {tuple(x.shape)}"


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


CASES: dict[str, Callable[[torch.device, torch.dtype, float], None]] = {
    "bn_act": run_bn_act,
    "bn_act_inference": run_bn_act_inference,
    "bn_fold": run_bn_fold,
    "channel_covariance": run_channel_covariance,
    "conv1x1_act": run_conv1x1_act,
    "conv3x3": run_conv3x3,
    "gaussian_heatmaps": run_gaussian_heatmaps,
    "heatmap_mse": run_heatmap_mse,
    "heatmap_peaks": run_heatmap_peaks,
    "residual_block": run_residual_block,
    "moving_statistics": run_moving_statistics,
    "max_pool2x": run_max_pool2x,
    "rmsprop_ema": run_rmsprop_ema,
    "upsample2x_add": run_upsample2x_add,
}


def main() -> int:
    """Run every case; 1 if an operator is wrong, or would not take its compiled kernel."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu; default cuda")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, metavar="OPERATOR")
    parser.add_argument("--without", nargs="+", choices=CASES, default=(), metavar="OPERATOR")
    arguments = parser.parse_args()
    chosen = [name for name in arguments.only if name not in arguments.without]
    device = torch.device(arguments.device)
    torch.backends.cudnn.allow_tf32 = False
    failed = False
    for row in paths():
        if row.device == device.type and row.path == "torch reference":
            print(f"{row.op}: no compiled kernel for {device.type}: {row.reason}")
            failed = True
    for name in chosen:
        run = CASES[name]
        for dtype, error in DTYPES.items():
            # Said before, so that what hangs or takes the process along is known.
            print(f"{name} in {str(dtype).removeprefix('torch.')}", end="", flush=True)
            try:
                run(device, dtype, error)
            except AssertionError as problem:
                print(f": {problem}")
                failed = True
            else:
                print(": right")
    words = "FAILED" if failed else "passed"
    print(f"{len(chosen)} operators in {len(DTYPES)} dtypes: {words}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
